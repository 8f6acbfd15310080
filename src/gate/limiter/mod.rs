//! What one client may take of the gateway: requests in a time, requests at once, wrong passwords.

mod bucket_table;
mod in_flight;
mod lockout;
mod rate;

use std::net::IpAddr;
use std::time::Instant;

pub(super) use in_flight::InFlightCounts;
pub(super) use in_flight::InFlightSlot;
pub(super) use in_flight::PausedSlot;
pub(super) use lockout::LockoutStatus;
pub(super) use lockout::Lockouts;
pub(super) use rate::Quota;

use crate::gate::config::RateLimits;
use crate::gate::limiter::in_flight::AtCapacity;
use crate::gate::limiter::rate::RateTable;
use crate::model::PrincipalName;

/// The network that counts as one client: an IPv4 address, or the /64 of an IPv6 address, which is what one site or machine
/// gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ClientNetwork {
    bytes: [u8; 8],
    length: usize,
}

impl ClientNetwork {
    /// The network of a client. `None` for loopback addresses: behind a proxy that is not trusted by name everybody has one,
    /// so that what one does must not fall upon all.
    pub(super) fn from_address(address: IpAddr) -> Option<Self> {
        let address = address.to_canonical();
        if address.is_loopback() {
            return None;
        }
        let mut bytes = [0; 8];
        let length = match address {
            IpAddr::V4(it) => copy(&mut bytes, &it.octets()),
            IpAddr::V6(it) => copy(&mut bytes, &it.octets()),
        };
        Some(Self { bytes, length })
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or(&self.bytes)
    }
}

/// As much as there is room for.
fn copy(to: &mut [u8; 8], from: &[u8]) -> usize {
    to.iter_mut()
        .zip(from)
        .map(|(to, from)| *to = *from)
        .count()
}

/// Everything that limits go by. Outlives reloads.
#[derive(Debug)]
pub(super) struct Limiter {
    pub(super) lockouts: Lockouts,
    principals: RateTable,
    networks: RateTable,
    in_flight: InFlightCounts,
    pub(super) waiters: InFlightCounts,
}

/// A request that was let in.
#[derive(Debug)]
pub(super) struct AdmittedRequest {
    of_principal: Option<InFlightSlot>,
    of_network: Option<InFlightSlot>,
    /// What is left of the limit that is nearest to being reached.
    pub(super) quota: Option<Quota>,
}

/// The limit that keeps a request out, as a word for metrics.
#[derive(Clone, Copy, Debug)]
pub(super) enum LimitReached {
    /// Of requests at work at once.
    Concurrency(&'static str),
    /// Of requests in a time.
    Rate(&'static str, Quota),
}

impl AdmittedRequest {
    /// Does not count among the requests at work until dropped.
    pub(super) fn pause(&self) -> (Option<PausedSlot>, Option<PausedSlot>) {
        let pause = |it: &Option<InFlightSlot>| it.as_ref().map(InFlightSlot::pause);
        (pause(&self.of_principal), pause(&self.of_network))
    }
}

impl Limiter {
    /// `key` must be random and known to nobody.
    pub(super) fn new(key: [u8; 32]) -> Self {
        let derived = |what| blake3::derive_key(what, &key);
        Self {
            lockouts: Lockouts::new(key),
            principals: RateTable::new(derived("snapgate rates of principals")),
            networks: RateTable::new(derived("snapgate rates of networks")),
            in_flight: InFlightCounts::new(derived("snapgate requests at work")),
            waiters: InFlightCounts::new(derived("snapgate requests that wait")),
        }
    }

    /// A place of this principal among the requests at work.
    #[cfg(test)]
    pub(super) fn at_work(&self, name: &str) -> Option<InFlightSlot> {
        let client: [&[u8]; 2] = [b"principal", name.as_bytes()];
        self.in_flight.acquire(&client, usize::MAX).unwrap()
    }

    /// Lets a request in, or says which limit is reached. Check 6.
    pub(super) fn admit(
        &self,
        principal: Option<&PrincipalName>,
        client: Option<IpAddr>,
        rule: &RateLimits,
        now: Instant,
    ) -> Result<AdmittedRequest, LimitReached> {
        let name = principal.map(|principal| principal.as_str().as_bytes());
        let network = client.and_then(ClientNetwork::from_address);
        let begin = |what: &[u8], client: Option<&[u8]>, most, limit| match client {
            Some(client) => {
                let slot = self.in_flight.acquire(&[what, client], most);
                slot.map_err(|AtCapacity| LimitReached::Concurrency(limit))
            }
            None => Ok(None),
        };
        let of_principal = begin(
            b"principal",
            name,
            rule.principal_concurrent,
            "principal_concurrent",
        )?;
        let of_network = begin(
            b"network",
            network.as_ref().map(ClientNetwork::bytes),
            rule.address_concurrent,
            "address_concurrent",
        )?;
        let mut quota = None;
        if let (Some(network), Some(rate)) = (network, &rule.address) {
            let left = self
                .networks
                .take_request("address", network.bytes(), rate, now);
            quota = Some(left.map_err(|error| LimitReached::Rate("address_rate", error))?);
        }
        if let (Some(name), Some(rate)) = (name, &rule.principal) {
            let left = self.principals.take_request("principal", name, rate, now);
            let left = left.map_err(|error| LimitReached::Rate("principal_rate", error))?;
            quota = Some(match quota {
                Some(other) if other.remaining < left.remaining => other,
                Some(_) | None => left,
            });
        }
        Ok(AdmittedRequest {
            of_principal,
            of_network,
            quota,
        })
    }
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
            let network = |it: &str| ClientNetwork::from_address(it.parse().unwrap()).unwrap();
            assert_eq!(network(one) == network(two), expected, "{one} {two}");
        }
        for it in ["127.0.0.1", "::1", "::ffff:127.0.0.2"] {
            assert_eq!(
                ClientNetwork::from_address(it.parse().unwrap()),
                None,
                "{it}"
            );
        }
    }
}
