//! The network that counts as one client.

use std::net::IpAddr;

/// The network that counts as one client: an IPv4 address, or the /64 of an IPv6 address, which is what one site or machine
/// gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gate) struct ClientNetwork {
    bytes: [u8; 8],
    length: usize,
}

impl ClientNetwork {
    /// The network of a client. `None` for loopback addresses: behind a proxy that is not configured as trusted all clients
    /// share one, and one of them must not exhaust the limits of all.
    pub(in crate::gate) fn from_address(address: IpAddr) -> Option<Self> {
        let address = address.to_canonical();
        if address.is_loopback() {
            return None;
        }
        let mut bytes = [0; 8];
        let length = match address {
            IpAddr::V4(value) => copy(&mut bytes, &value.octets()),
            IpAddr::V6(value) => copy(&mut bytes, &value.octets()),
        };
        Some(Self { bytes, length })
    }

    pub(in crate::gate) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or(&self.bytes)
    }
}

/// Copies as many bytes as fit; returns how many.
fn copy(to: &mut [u8; 8], from: &[u8]) -> usize {
    to.iter_mut()
        .zip(from)
        .map(|(to, from)| *to = *from)
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_an_address_or_a_64() {
        let rows = [
            ("192.0.2.1", "192.0.2.1", true),
            ("192.0.2.1", "192.0.2.2", false),
            ("::ffff:192.0.2.1", "192.0.2.1", true),
            ("2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", true),
            ("2001:db8::1", "2001:db8:0:1::1", false),
        ];
        for (one, two, expected) in rows {
            let network = |text: &str| ClientNetwork::from_address(text.parse().unwrap()).unwrap();
            assert_eq!(network(one) == network(two), expected, "{one} {two}");
        }
        for address in ["127.0.0.1", "::1", "::ffff:127.0.0.2"] {
            assert_eq!(
                ClientNetwork::from_address(address.parse().unwrap()),
                None,
                "{address}"
            );
        }
    }
}
