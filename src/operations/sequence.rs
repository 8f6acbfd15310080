//! Sequence numbers of operations: 63 bits, rising with time, never given twice.

use parking_lot::Mutex;

use crate::model::OperationSeq;
use crate::model::Timestamp;

/// 2026-01-01T00:00:00Z: 41 bits of milliseconds from here last until 2095.
const EPOCH: Timestamp = Timestamp::from_millis(1_767_225_600_000);
/// Below the milliseconds: 10 bits for a gateway among several (0 while there is one), 12 bits to count within one.
const LOW_BITS: u32 = 22;
const MILLIS_MAX: u64 = (1 << 41) - 1;

/// Gives sequence numbers.
#[derive(Debug)]
pub(crate) struct SequenceNumbers(Mutex<u64>);

impl SequenceNumbers {
    /// Gives only numbers above `highest`, whatever the clock says.
    pub(crate) fn above(highest: Option<OperationSeq>) -> Self {
        Self(Mutex::new(highest.map_or(0, OperationSeq::number)))
    }

    /// The next number.
    pub(crate) fn next(&self, now: Timestamp) -> OperationSeq {
        let since_epoch = now.as_millis().saturating_sub(EPOCH.as_millis());
        let by_time = since_epoch.min(MILLIS_MAX) << LOW_BITS;
        let mut last = self.0.lock();
        // There is no number above 2^63: reaching it takes a store that was tampered with, and the store then refuses.
        let next = by_time
            .max(last.saturating_add(1))
            .clamp(1, i64::MAX.cast_unsigned());
        *last = next;
        OperationSeq::new(next).unwrap_or(FIRST)
    }
}

// Evaluated by the compiler.
const FIRST: OperationSeq = OperationSeq::new(1).unwrap();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_always_rise_whatever_the_clock_does() {
        let highest = OperationSeq::new(1 << 60);
        let rows = [
            ("before the epoch", None, 0, 1),
            ("the epoch", None, EPOCH.as_millis(), 1),
            ("one second in", None, EPOCH.as_millis() + 1000, 1000 << 22),
            ("the clock went back", highest, 0, (1 << 60) + 1),
            ("the last possible time", None, u64::MAX, MILLIS_MAX << 22),
        ];
        for (name, highest, millis, expected) in rows {
            let numbers = SequenceNumbers::above(highest);
            let now = Timestamp::from_millis(millis);
            let first = numbers.next(now);
            assert_eq!(first.number(), expected, "{name}: first");
            let more: Vec<_> = (0..5000).map(|_| numbers.next(now)).collect();
            assert!(more.is_sorted() && more[0] > first, "{name}: rising");
            let back = numbers.next(Timestamp::default());
            assert!(back > more[4999], "{name}: still rising");
        }
    }
}
