//! Admission of requests: rates, concurrent requests and waiters of each client.

use std::net::IpAddr;
use std::time::Instant;

use crate::gate::config::RateLimits;
use crate::gate::limiter::client_network::ClientNetwork;
use crate::gate::limiter::in_flight::AtCapacity;
use crate::gate::limiter::in_flight::InFlightCounts;
use crate::gate::limiter::in_flight::InFlightSlot;
use crate::gate::limiter::in_flight::PausedSlot;
use crate::gate::limiter::lockout::Lockouts;
use crate::gate::limiter::rate::Quota;
use crate::gate::limiter::rate::RateTable;
use crate::model::PrincipalName;

/// The state of all limits. Outlives reloads.
#[derive(Debug)]
pub(in crate::gate) struct Limiter {
    pub(in crate::gate) lockouts: Lockouts,
    principals: RateTable,
    networks: RateTable,
    in_flight: InFlightCounts,
    pub(in crate::gate) waiters: InFlightCounts,
}

/// An admitted request.
#[derive(Debug)]
pub(in crate::gate) struct AdmittedRequest {
    of_principal: Option<InFlightSlot>,
    of_network: Option<InFlightSlot>,
    /// The quota of the limit with the fewest requests remaining.
    pub(in crate::gate) quota: Option<Quota>,
}

/// The limit that keeps a request out, as a word for metrics.
#[derive(Clone, Copy, Debug)]
pub(in crate::gate) enum LimitReached {
    /// Of concurrent requests.
    Concurrency(&'static str),
    /// Of requests in a time.
    Rate(&'static str, Quota),
}

impl AdmittedRequest {
    /// Does not count among the concurrent requests until dropped.
    pub(in crate::gate) fn pause(&self) -> (Option<PausedSlot>, Option<PausedSlot>) {
        let pause = |slot: &Option<InFlightSlot>| slot.as_ref().map(InFlightSlot::pause);
        (pause(&self.of_principal), pause(&self.of_network))
    }
}

impl Limiter {
    /// `key` must be random and secret.
    pub(in crate::gate) fn new(key: [u8; 32]) -> Self {
        let derived = |what| blake3::derive_key(what, &key);
        Self {
            lockouts: Lockouts::new(key),
            principals: RateTable::new(derived("snapgate rates of principals")),
            networks: RateTable::new(derived("snapgate rates of networks")),
            in_flight: InFlightCounts::new(derived("snapgate concurrent requests")),
            waiters: InFlightCounts::new(derived("snapgate requests that wait")),
        }
    }

    /// A slot of this principal among the concurrent requests.
    #[cfg(test)]
    pub(in crate::gate) fn hold_slot(&self, name: &str) -> Option<InFlightSlot> {
        let client: [&[u8]; 2] = [b"principal", name.as_bytes()];
        self.in_flight.acquire(&client, usize::MAX).unwrap()
    }

    /// Admits a request, or returns the limit that is reached (check 6).
    pub(in crate::gate) fn admit(
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
