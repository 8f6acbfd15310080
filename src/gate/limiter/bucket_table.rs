//! A table of fixed size for state that is kept of clients for a while. No client can evict an entry that expires later than its own.

use std::fmt;
use std::time::Instant;

use parking_lot::Mutex;

use crate::model::limits;

/// State kept of one client.
pub(super) trait Expiring: Copy {
    /// The state of a new client.
    fn fresh(now: Instant) -> Self;

    /// When it expires: from then on it equals that of a new client.
    fn until(&self) -> Instant;
}

/// Entries by the keyed hash of a client, in buckets of a few. A full bucket drops the entry that expires
/// first, which may be the new one: an attacker with many addresses can neither grow the table nor evict a long penalty. A
/// client that does not fit is treated as new each time.
pub(super) struct BucketTable<V> {
    key: [u8; 32],
    buckets: Box<[Bucket<V>]>,
}

type Bucket<V> = Mutex<Vec<(u64, V)>>;

impl<V> fmt::Debug for BucketTable<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").finish_non_exhaustive()
    }
}

impl<V: Expiring> BucketTable<V> {
    /// An empty one; `key` must be random and secret: a client that knew it could choose its bucket.
    pub(super) fn new(key: [u8; 32]) -> Self {
        let buckets = (0..limits::CLIENT_BUCKETS).map(|_| Mutex::default());
        Self {
            key,
            buckets: buckets.collect(),
        }
    }

    /// The hash by which a client is known here.
    pub(super) fn hash(&self, parts: &[&[u8]]) -> u64 {
        keyed_hash_of(&self.key, parts)
    }

    /// Reads and perhaps changes the state of a client, under the lock of its bucket.
    pub(super) fn with<R>(&self, hash: u64, now: Instant, change: impl FnOnce(&mut V) -> R) -> R {
        let most = u64::try_from(self.buckets.len()).unwrap_or(1).max(1);
        let at = usize::try_from(hash.checked_rem(most).unwrap_or(0)).unwrap_or(0);
        let Some(bucket) = self.buckets.get(at) else {
            return change(&mut V::fresh(now));
        };
        let mut bucket = bucket.lock();
        let found = bucket.iter().position(|(key, _)| *key == hash);
        let mut value = found
            .and_then(|index| bucket.get(index))
            .filter(|entry| entry.1.until() > now)
            .map_or_else(|| V::fresh(now), |entry| entry.1);
        let done = change(&mut value);
        if let Some(at) = found {
            bucket.swap_remove(at);
        }
        if value.until() > now {
            insert(&mut bucket, (hash, value), now);
        }
        done
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        let count = |bucket: &Mutex<Vec<_>>| bucket.lock().len();
        self.buckets.iter().map(count).sum()
    }
}

fn insert<V: Expiring>(bucket: &mut Vec<(u64, V)>, new: (u64, V), now: Instant) {
    bucket.retain(|(_, value)| value.until() > now);
    if bucket.len() >= limits::CLIENT_BUCKET_ENTRIES {
        let ends = bucket
            .iter()
            .enumerate()
            .min_by_key(|(_, value)| value.1.until());
        match ends.map(|(at, entry)| (at, entry.1.until())) {
            Some((at, until)) if until < new.1.until() => {
                bucket.swap_remove(at);
            }
            Some(_) | None => return,
        }
    }
    bucket.push(new);
}

/// A hash that cannot be aimed without the key.
pub(super) fn keyed_hash_of(key: &[u8; 32], parts: &[&[u8]]) -> u64 {
    let mut bytes = Vec::with_capacity(128);
    for part in parts {
        bytes.extend(u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
        bytes.extend_from_slice(part);
    }
    let [a, b, c, d, e, f, g, h, ..] = *blake3::keyed_hash(key, &bytes).as_bytes();
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::Timestamp;
    use crate::runtime::Clock;
    use crate::runtime::ManualClock;

    #[derive(Clone, Copy)]
    struct Until(Instant);

    impl Expiring for Until {
        fn fresh(now: Instant) -> Self {
            Self(now)
        }

        fn until(&self) -> Instant {
            self.0
        }
    }

    #[test]
    fn the_table_does_not_grow_and_many_small_ones_push_out_no_large_one() {
        let table = BucketTable::<Until>::new([3; 32]);
        let now = ManualClock::new(Timestamp::default()).instant();
        let after = |seconds| now + Duration::from_secs(seconds);
        let culprit = table.hash(&[b"culprit"]);
        table.with(culprit, now, |until| until.0 = after(600));
        let most = limits::CLIENT_BUCKETS * limits::CLIENT_BUCKET_ENTRIES;
        for number in 0..4 * most {
            let hash = table.hash(&[&number.to_le_bytes()]);
            table.with(hash, now, |until| until.0 = after(1));
        }
        let held = table.len();
        assert!(held <= most && held > most / 2, "bounded and used: {held}");
        let until = table.with(culprit, now, |until| until.0);
        assert_eq!(until, after(600), "the long one is still there");
        let gone = table.with(culprit, after(600), |until| until.0);
        assert_eq!(gone, after(600), "as good as new once over");
        let other = table.hash(&[b"other"]);
        table.with(other, after(601), |until| until.0 = after(602));
        let found = table.with(other, after(601), |until| until.0);
        assert_eq!(found, after(602), "what is over makes room");
    }
}
