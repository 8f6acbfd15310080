//! Repeating of reads: how often, and how long to wait in between.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Pause before the first repetition.
const FIRST: Duration = Duration::from_millis(50);
/// Longest pause: a caller waits for the answer.
const LONGEST: Duration = Duration::from_secs(1);

/// How often a read is repeated, with pauses that differ from caller to caller.
#[derive(Debug)]
pub(super) struct RetryPolicy {
    most: u32,
    random: AtomicU64,
}

impl RetryPolicy {
    /// At most so many repetitions; the seed decides the pauses.
    pub(super) const fn new(most: u32, seed: u64) -> Self {
        Self {
            most,
            random: AtomicU64::new(seed),
        }
    }

    /// The pause before repetition number `nth` (from 0); `None` when there are no more.
    pub(super) fn pause_before(&self, nth: u32) -> Option<Duration> {
        if nth >= self.most {
            return None;
        }
        let doubled = 1_u32.checked_shl(nth).unwrap_or(u32::MAX);
        let full = FIRST.saturating_mul(doubled).min(LONGEST);
        // Between half and all of it, so that callers that failed together do not come back together.
        let half = full.div_f64(2.0);
        let share = u32::try_from(self.draw() >> 40).unwrap_or(0);
        Some(half.saturating_add(half.mul_f64(f64::from(share) / f64::from(1_u32 << 24))))
    }

    /// The next number of a SplitMix64 sequence.
    fn draw(&self) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self
            .random
            .fetch_add(STEP, Ordering::Relaxed)
            .wrapping_add(STEP);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_stay_bounded_and_differ() {
        let retries = RetryPolicy::new(8, 7);
        for (nth, (least, most)) in [
            (25, 50),
            (50, 100),
            (100, 200),
            (200, 400),
            (400, 800),
            (500, 1000),
            (500, 1000),
            (500, 1000),
        ]
        .into_iter()
        .enumerate()
        {
            let nth = u32::try_from(nth).unwrap();
            let pause = retries.pause_before(nth).unwrap();
            assert!(
                pause >= Duration::from_millis(least) && pause <= Duration::from_millis(most),
                "{nth}: {pause:?} is outside {least}..={most} ms"
            );
        }
        assert_eq!(retries.pause_before(8), None, "no more than asked for");
        assert_ne!(
            retries.pause_before(0),
            retries.pause_before(0),
            "no two alike"
        );
        assert_eq!(
            RetryPolicy::new(0, 7).pause_before(0),
            None,
            "none when none are wanted"
        );
    }
}
