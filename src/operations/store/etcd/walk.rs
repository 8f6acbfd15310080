//! Walks along the keys of one index, in either order, in steps whose cost does not depend on how many keys there are.
//!
//! etcd sorts by descending keys only after it has read all of them, and counts all keys of a range even when few are asked
//! for. A step therefore asks for a window of the numbers at the end of the keys, which grows where it finds little and shrinks
//! where it would find too much.

use crate::etcd::Connection;
use crate::etcd::EtcdError;
use crate::etcd::GetOptions;
use crate::etcd::KeyValue;

/// Most keys that one step returns.
const STEP_MAX: u16 = 512;
/// A window that holds fewer keys than this grows.
const STEP_MIN: usize = 128;
/// Steps of one walk, those that return nothing included: more than any distribution of keys over time needs for one page.
const STEPS_MAX: usize = 200;

/// In which order keys are visited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Upwards,
    Downwards,
}

/// A walk along keys that end with a number of so many hexadecimal digits.
pub(super) struct Walk<'a> {
    connection: &'a Connection,
    /// What the keys begin with.
    prefix: String,
    digits: usize,
    direction: Direction,
    /// The numbers that are still to be visited: from the first on, below the second.
    left: (u128, u128),
    window: u128,
    steps: usize,
    keys_only: bool,
}

impl<'a> Walk<'a> {
    /// A walk along positions: a time and a number of an operation, the first included, the second not.
    pub(super) fn along_positions(
        connection: &'a Connection,
        prefix: String,
        direction: Direction,
        left: (u128, u128),
    ) -> Self {
        /// An hour.
        const WINDOW: u128 = 3_600_000 << 64;
        Self {
            connection,
            prefix,
            digits: 32,
            direction,
            left,
            window: WINDOW,
            steps: 0,
            keys_only: false,
        }
    }

    /// A walk along sequence numbers.
    pub(super) fn along_numbers(
        connection: &'a Connection,
        prefix: String,
        direction: Direction,
        left: (u128, u128),
    ) -> Self {
        /// An hour, as it stands in sequence numbers.
        const WINDOW: u128 = 3_600_000 << 22;
        Self {
            digits: 16,
            window: WINDOW,
            ..Self::along_positions(connection, prefix, direction, left)
        }
    }

    /// With another size of the first window.
    pub(super) fn with_window(self, window: u128) -> Self {
        Self { window, ..self }
    }

    /// Without the values.
    pub(super) fn keys_only(self) -> Self {
        Self {
            keys_only: true,
            ..self
        }
    }

    /// The next keys, in order; `None` when there are no more.
    pub(super) async fn step(&mut self) -> Result<Option<Vec<KeyValue>>, EtcdError> {
        while self.left.0 < self.left.1 && self.steps < STEPS_MAX {
            self.steps = self.steps.saturating_add(1);
            let (from, to) = self.next_window();
            let (mut found, count) = self.read(from, to).await?;
            let is_complete = count <= found.len();
            if !is_complete && self.direction == Direction::Downwards {
                // Those that were returned are the lowest, and the highest come first.
                self.shrink(to.saturating_sub(from), count);
                continue;
            }
            self.left = match self.direction {
                Direction::Upwards if is_complete => (to, self.left.1),
                // The rest of the window comes with the next step.
                Direction::Upwards => match found.last() {
                    Some(last) => (self.number_of(last).saturating_add(1), self.left.1),
                    None => (to, self.left.1),
                },
                Direction::Downwards => (self.left.0, from),
            };
            if is_complete {
                self.grow(found.len());
            }
            if self.direction == Direction::Downwards {
                found.reverse();
            }
            if !found.is_empty() {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Where the walk stopped although there is more: the highest or lowest number that was not visited.
    pub(super) fn stopped_at(&self) -> Option<u128> {
        (self.left.0 < self.left.1).then_some(match self.direction {
            Direction::Upwards => self.left.0,
            Direction::Downwards => self.left.1,
        })
    }

    fn next_window(&self) -> (u128, u128) {
        let (from, to) = self.left;
        match self.direction {
            Direction::Upwards => (from, to.min(from.saturating_add(self.window))),
            Direction::Downwards => (from.max(to.saturating_sub(self.window)), to),
        }
    }

    /// Half of what would be the right size if the keys were spread evenly.
    fn shrink(&mut self, size: u128, count: usize) {
        let share = u128::from(STEP_MAX) / 2;
        let count = u128::try_from(count).unwrap_or(u128::MAX).max(1);
        let even = size
            .checked_div(count)
            .unwrap_or_default()
            .saturating_mul(share);
        // Never as large as before, so that every step comes nearer.
        self.window = even.min(size / 2).max(1);
    }

    fn grow(&mut self, found: usize) {
        let factor = match found {
            0 => 64,
            1..STEP_MIN => 4,
            STEP_MIN.. => 1,
        };
        self.window = self.window.saturating_mul(factor);
    }

    async fn read(&self, from: u128, to: u128) -> Result<(Vec<KeyValue>, usize), EtcdError> {
        let key = |number: u128| format!("{}{number:0width$x}", self.prefix, width = self.digits);
        let mut options = GetOptions::new()
            .with_range(key(to))
            .with_limit(STEP_MAX.into());
        if self.keys_only {
            options = options.with_keys_only();
        }
        let mut found = self.connection.read(key(from), Some(options)).await?;
        let count = usize::try_from(found.count()).unwrap_or(usize::MAX);
        Ok((found.take_kvs(), count))
    }

    fn number_of(&self, found: &KeyValue) -> u128 {
        super::keys::number_at_end(found.key(), self.digits).unwrap_or(u128::MAX)
    }
}
