//! Sequence numbers of operations: 63 bits, rising with time, never given twice.

use parking_lot::Mutex;

use crate::model::OperationSeq;
use crate::model::Timestamp;
use crate::model::limits;

/// 2026-01-01T00:00:00Z: 41 bits of milliseconds from here last until 2095.
const EPOCH: Timestamp = Timestamp::from_millis(1_767_225_600_000);
/// Below the milliseconds: 10 bits for the cell, 12 bits to count within one millisecond.
const LOW_BITS: u32 = 22;
const CELL_SHIFT: u32 = 12;
const CELL_MASK: u64 = limits::CELL_MAX;
/// The last time that a number shows: 17 minutes before the bits end, which leaves four billion numbers for a clock that stays there.
const MILLIS_MAX: u64 = (1 << 41) - (1 << 20);

/// Gives sequence numbers.
#[derive(Debug)]
pub(crate) struct SequenceNumbers {
    /// The cell, at its place in a number.
    cell: u64,
    last: Mutex<u64>,
}

impl SequenceNumbers {
    /// Gives only numbers of this cell above `highest`, whatever the clock says.
    pub(crate) fn above(highest: Option<OperationSeq>, cell: u16) -> Self {
        Self {
            cell: (u64::from(cell) & CELL_MASK) << CELL_SHIFT,
            last: Mutex::new(highest.map_or(0, OperationSeq::number)),
        }
    }

    /// The lowest number of this cell that is not below `least`.
    const fn of_this_cell(&self, least: u64) -> u64 {
        let millis = least & !((1 << LOW_BITS) - 1);
        let cell = least & (CELL_MASK << CELL_SHIFT);
        if cell == self.cell {
            least
        } else if cell < self.cell {
            millis | self.cell
        } else {
            millis.saturating_add(1 << LOW_BITS) | self.cell
        }
    }

    /// The next number.
    pub(crate) fn next(&self, now: Timestamp) -> OperationSeq {
        let since_epoch = now.as_millis().saturating_sub(EPOCH.as_millis());
        let by_time = since_epoch.min(MILLIS_MAX) << LOW_BITS;
        let mut last = self.last.lock();
        // There is no number above 2^63: reaching it takes a store that was tampered with, and the store then refuses.
        let least = by_time.max(last.saturating_add(1));
        let next = self.of_this_cell(least).clamp(1, i64::MAX.cast_unsigned());
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
            let numbers = SequenceNumbers::above(highest, 0);
            let now = Timestamp::from_millis(millis);
            let first = numbers.next(now);
            assert_eq!(first.number(), expected, "{name}: first");
            let more: Vec<_> = (0..5000).map(|_| numbers.next(now)).collect();
            assert!(more.is_sorted() && more[0] > first, "{name}: rising");
            let back = numbers.next(Timestamp::default());
            assert!(back > more[4999], "{name}: still rising");
        }
    }

    #[test]
    fn numbers_name_their_cell_and_rise_in_it_too() {
        let now = Timestamp::from_millis(EPOCH.as_millis() + 1000);
        let highest = [
            None,
            OperationSeq::new((1000 << 22) | (5 << 12) | 7),
            OperationSeq::new((1000 << 22) | (1023 << 12) | 4095),
            OperationSeq::new(1 << 60),
        ];
        for highest in highest {
            for cell in [0_u16, 1, 5, 1023] {
                let numbers = SequenceNumbers::above(highest, cell);
                let all: Vec<_> = (0..10_000).map(|_| numbers.next(now)).collect();
                assert!(all.is_sorted(), "{highest:?} {cell}: rising");
                assert!(Some(all[0]) > highest, "{highest:?} {cell}: above");
                for pair in all.windows(2) {
                    assert_ne!(pair[0], pair[1], "{highest:?} {cell}: once");
                }
                for number in all {
                    let named = (number.number() >> 12) & 1023;
                    assert_eq!(named, u64::from(cell), "{highest:?} {number:?}");
                }
            }
        }
    }
}
