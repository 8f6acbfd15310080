//! Concurrent requests, counted per client. A client without requests has no entry, so the table never has more entries than
//! there are requests.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::gate::limiter::bucket_table::keyed_hash_of;

/// Number of locks: clients of different shards do not contend.
const SHARDS: u64 = 16;

/// The number of concurrent requests of each client.
#[derive(Clone, Debug)]
pub(in crate::gate) struct InFlightCounts {
    key: [u8; 32],
    counts: Arc<[Mutex<BTreeMap<u64, usize>>]>,
}

/// The client has as many requests as allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gate) struct AtCapacity;

impl InFlightCounts {
    pub(super) fn new(key: [u8; 32]) -> Self {
        let counts = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { key, counts }
    }

    /// One more for this client; nothing is counted when `most` is zero, which means that there is no limit.
    pub(in crate::gate) fn acquire(
        &self,
        client: &[&[u8]],
        most: usize,
    ) -> Result<Option<InFlightSlot>, AtCapacity> {
        if most == 0 {
            return Ok(None);
        }
        let hash = keyed_hash_of(&self.key, client);
        let begun = self.with(hash, |count| {
            let fits = *count < most;
            if fits {
                *count = count.saturating_add(1);
            }
            fits
        });
        if begun == Some(true) {
            let in_flight = self.clone();
            Ok(Some(InFlightSlot { in_flight, hash }))
        } else {
            Err(AtCapacity)
        }
    }

    fn with<R>(&self, hash: u64, change: impl FnOnce(&mut usize) -> R) -> Option<R> {
        let at = usize::try_from(hash.checked_rem(SHARDS)?).ok()?;
        let mut counts = self.counts.get(at)?.lock();
        let count = counts.entry(hash).or_default();
        let done = change(count);
        if *count == 0 {
            counts.remove(&hash);
        }
        Some(done)
    }

    #[cfg(test)]
    fn entries(&self) -> usize {
        self.counts.iter().map(|count| count.lock().len()).sum()
    }
}

/// One request of a client; counted until dropped.
#[derive(Debug)]
pub(in crate::gate) struct InFlightSlot {
    in_flight: InFlightCounts,
    hash: u64,
}

impl InFlightSlot {
    /// Stops counting until the returned guard is dropped. Counts again then, even beyond the limit: the request was admitted.
    pub(super) fn pause(&self) -> PausedSlot {
        let in_flight = self.in_flight.clone();
        in_flight.with(self.hash, |count| *count = count.saturating_sub(1));
        PausedSlot {
            in_flight,
            hash: self.hash,
        }
    }
}

impl Drop for InFlightSlot {
    fn drop(&mut self) {
        self.in_flight
            .with(self.hash, |count| *count = count.saturating_sub(1));
    }
}

/// A request that waits and does not count meanwhile.
#[derive(Debug)]
pub(in crate::gate) struct PausedSlot {
    in_flight: InFlightCounts,
    hash: u64,
}

impl Drop for PausedSlot {
    fn drop(&mut self) {
        self.in_flight
            .with(self.hash, |count| *count = count.saturating_add(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_client_has_its_own_places_and_waiting_takes_none() {
        let in_flight = InFlightCounts::new([5; 32]);
        let begin = |client: &[u8]| in_flight.acquire(&[client], 2);
        let first = begin(b"ann").unwrap().unwrap();
        let second = begin(b"ann").unwrap();
        assert_eq!(begin(b"ann").unwrap_err(), AtCapacity, "two at once");
        let other = begin(b"bob").unwrap();
        assert!(other.is_some(), "another client");
        let waits = first.pause();
        let third = begin(b"ann").unwrap();
        assert!(third.is_some(), "who waits takes no place");
        drop(waits);
        assert_eq!(
            begin(b"ann").unwrap_err(),
            AtCapacity,
            "back, beyond the limit"
        );
        drop((first, second, third, other));
        assert_eq!(
            in_flight.entries(),
            0,
            "nothing is kept of those who have none"
        );
        assert!(
            in_flight.acquire(&[b"ann"], 0).unwrap().is_none(),
            "no limit, no count"
        );
    }
}
