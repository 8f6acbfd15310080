//! What one client may take of the gateway: requests in a time, requests at once, wrong passwords.

mod flights;
mod lockout;
mod rate;
mod table;

use std::net::IpAddr;
use std::time::Instant;

pub(super) use flights::Flight;
pub(super) use flights::Flights;
pub(super) use flights::Paused;
pub(super) use lockout::LockOuts;
pub(super) use lockout::Standing;
pub(super) use rate::Quota;

use crate::gate::config::RateLimits;
use crate::gate::limiter::flights::Full;
use crate::gate::limiter::rate::Rates;
use crate::model::PrincipalName;

/// The network that counts as one client: an IPv4 address, or the /64 of an IPv6 address, which is what one site or machine
/// gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Network {
    bytes: [u8; 8],
    length: usize,
}

impl Network {
    /// The network of a client. `None` for loopback addresses: behind a proxy that is not trusted by name everybody has one,
    /// so that what one does must not fall upon all.
    pub(super) fn of(address: IpAddr) -> Option<Self> {
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
    pub(super) lock_outs: LockOuts,
    principals: Rates,
    networks: Rates,
    flights: Flights,
    pub(super) waiters: Flights,
}

/// A request that was let in.
#[derive(Debug)]
pub(super) struct Admitted {
    of_principal: Option<Flight>,
    of_network: Option<Flight>,
    /// What is left of the limit that is nearest to being reached.
    pub(super) quota: Option<Quota>,
}

/// The limit that keeps a request out, as a word for metrics.
#[derive(Clone, Copy, Debug)]
pub(super) enum Reached {
    /// Of requests at work at once.
    AtOnce(&'static str),
    /// Of requests in a time.
    Rate(&'static str, Quota),
}

impl Admitted {
    /// Does not count among the requests at work until dropped.
    pub(super) fn pause(&self) -> (Option<Paused>, Option<Paused>) {
        let pause = |it: &Option<Flight>| it.as_ref().map(Flight::pause);
        (pause(&self.of_principal), pause(&self.of_network))
    }
}

impl Limiter {
    /// `key` must be random and known to nobody.
    pub(super) fn new(key: [u8; 32]) -> Self {
        let derived = |what| blake3::derive_key(what, &key);
        Self {
            lock_outs: LockOuts::new(key),
            principals: Rates::new(derived("snapgate rates of principals")),
            networks: Rates::new(derived("snapgate rates of networks")),
            flights: Flights::new(derived("snapgate requests at work")),
            waiters: Flights::new(derived("snapgate requests that wait")),
        }
    }

    /// A place of this principal among the requests at work.
    #[cfg(test)]
    pub(super) fn at_work(&self, name: &str) -> Option<Flight> {
        let client: [&[u8]; 2] = [b"principal", name.as_bytes()];
        self.flights.begin(&client, usize::MAX).unwrap()
    }

    /// Lets a request in, or says which limit is reached. Check 6.
    pub(super) fn admit(
        &self,
        principal: Option<&PrincipalName>,
        client: Option<IpAddr>,
        rule: &RateLimits,
        now: Instant,
    ) -> Result<Admitted, Reached> {
        let name = principal.map(|principal| principal.as_str().as_bytes());
        let network = client.and_then(Network::of);
        let begin = |what: &[u8], client: Option<&[u8]>, most, limit| match client {
            Some(client) => {
                let flight = self.flights.begin(&[what, client], most);
                flight.map_err(|Full| Reached::AtOnce(limit))
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
            network.as_ref().map(Network::bytes),
            rule.address_concurrent,
            "address_concurrent",
        )?;
        let mut quota = None;
        if let (Some(network), Some(rate)) = (network, &rule.address) {
            let left = self.networks.take("address", network.bytes(), rate, now);
            quota = Some(left.map_err(|error| Reached::Rate("address_rate", error))?);
        }
        if let (Some(name), Some(rate)) = (name, &rule.principal) {
            let left = self.principals.take("principal", name, rate, now);
            let left = left.map_err(|error| Reached::Rate("principal_rate", error))?;
            quota = Some(match quota {
                Some(other) if other.remaining < left.remaining => other,
                Some(_) | None => left,
            });
        }
        Ok(Admitted {
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
            let network = |it: &str| Network::of(it.parse().unwrap()).unwrap();
            assert_eq!(network(one) == network(two), expected, "{one} {two}");
        }
        for it in ["127.0.0.1", "::1", "::ffff:127.0.0.2"] {
            assert_eq!(Network::of(it.parse().unwrap()), None, "{it}");
        }
    }
}
