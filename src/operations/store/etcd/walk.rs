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
    /// Down to where there are more keys than one step returns, and how many there are: of a walk downwards.
    crowded: Option<(u128, usize)>,
    /// Above it nothing is expected.
    expected_end: Option<u128>,
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
            crowded: None,
            expected_end: None,
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

    /// A walk downwards looks at everything from this number on in its first step.
    pub(super) fn starting_near(self, number: u128) -> Self {
        Self {
            expected_end: Some(number),
            ..self
        }
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
            match self.direction {
                Direction::Upwards => self.go_up((from, to), &found, count),
                Direction::Downwards if is_complete => {
                    self.go_down(from, found.len());
                    found.reverse();
                }
                Direction::Downwards => {
                    // Those that were returned are the lowest, and the highest come first.
                    self.crowded = Some((from, count));
                    continue;
                }
            }
            if !found.is_empty() {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// After a window of a walk upwards, of which the lowest keys were found.
    fn go_up(&mut self, (from, to): (u128, u128), found: &[KeyValue], count: usize) {
        self.left.0 = match found.last() {
            Some(last) if count > found.len() => self.number_of(last).saturating_add(1),
            Some(_) | None => to,
        };
        if count > found.len() {
            // About as many as one step returns, if they are spread evenly.
            let count = u128::try_from(count).unwrap_or(u128::MAX).max(1);
            let each = to.saturating_sub(from).checked_div(count).unwrap_or(0);
            self.window = each.saturating_mul(STEP_MAX.into()).max(1);
        } else {
            self.grow(found.len());
        }
    }

    /// After a window of a walk downwards, of which all keys were found.
    fn go_down(&mut self, from: u128, found: usize) {
        let was_first = self.expected_end.take().is_some();
        self.left.1 = from;
        self.crowded = match self.crowded.take() {
            // The rest of the crowd fits into one step.
            Some((low, count)) if low < from => Some((low, count.saturating_sub(found))),
            Some(_) | None => None,
        };
        if self.crowded.is_none() && !was_first {
            self.grow(found);
        }
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
        let start = match (self.direction, self.crowded, self.expected_end) {
            (Direction::Upwards, _, _) => return (from, to.min(from.saturating_add(self.window))),
            // The upper half of what holds too many; all of it once it holds few enough.
            (Direction::Downwards, Some((low, count)), _) if count > STEP_MAX.into() => {
                let half = to.saturating_sub(low) / 2;
                to.saturating_sub(half.max(1))
            }
            (Direction::Downwards, Some((low, _)), _) => low,
            (Direction::Downwards, None, Some(expected)) if expected < to => expected,
            (Direction::Downwards, None, _) => to.saturating_sub(self.window),
        };
        (from.max(start), to)
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
