//! Which range of an index a walk reads next.
//!
//! etcd counts all keys of a range even when few are asked for, so that the cost of a read is the number of keys in its range.
//! The ranges, here windows, grow where they hold few keys and shrink where they hold too many.

/// Most keys that one step returns.
pub(super) const STEP_MAX: u16 = 512;
/// How many keys the next window is meant to hold: half of one step, because keys are not spread evenly.
const STEP_GOAL: usize = 256;
/// The factor by which a window grows at most.
const GROWTH_MAX: usize = 64;
/// The first window, in milliseconds. It is short because etcd counts what is in it: at the highest rates that is about what one
/// step returns, and where there is an operation a week a few more steps come to it.
pub(super) const FIRST_WINDOW_MILLIS: u128 = 64;
/// Steps of one walk, those that return nothing included: more than any distribution of keys over time needs for one page.
const STEPS_MAX: usize = 200;

/// In which order keys are visited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Upwards,
    Downwards,
}

/// The windows of one walk along numbers.
#[derive(Debug)]
pub(super) struct Windows {
    direction: Direction,
    /// The numbers that are still to be visited: from the first on, below the second.
    left: (u128, u128),
    size: u128,
    /// Down to where there are more keys than one step returns, and how many there are: of a walk downwards.
    crowded: Option<(u128, usize)>,
    /// Above it nothing is expected.
    expected_end: Option<u128>,
    steps: usize,
}

impl Windows {
    pub(super) const fn new(direction: Direction, left: (u128, u128), first: u128) -> Self {
        Self {
            direction,
            left,
            size: first,
            crowded: None,
            expected_end: None,
            steps: 0,
        }
    }

    /// With another size of the first window.
    pub(super) fn with_first(self, first: u128) -> Self {
        Self {
            size: first,
            ..self
        }
    }

    /// A walk downwards looks at everything from this number on in its first step.
    pub(super) fn starting_near(self, number: u128) -> Self {
        Self {
            expected_end: Some(number),
            ..self
        }
    }

    /// The next window: from the first number on, below the second; `None` at the end of the walk.
    pub(super) fn next(&mut self) -> Option<(u128, u128)> {
        let (from, to) = self.left;
        if from >= to || self.steps >= STEPS_MAX {
            return None;
        }
        self.steps = self.steps.saturating_add(1);
        let start = match (self.direction, self.crowded, self.expected_end) {
            (Direction::Upwards, _, _) => {
                return Some((from, to.min(from.saturating_add(self.size))));
            }
            // The upper half of what holds too many; all of it once it holds few enough.
            (Direction::Downwards, Some((low, count)), _) if count > STEP_MAX.into() => {
                let half = to.saturating_sub(low) / 2;
                to.saturating_sub(half.max(1))
            }
            (Direction::Downwards, Some((low, _)), _) => low,
            (Direction::Downwards, None, Some(expected)) if expected < to => expected,
            (Direction::Downwards, None, _) => to.saturating_sub(self.size),
        };
        Some((from.max(start), to))
    }

    /// Notes what a window holds: the numbers of the lowest keys, at most [`STEP_MAX`], and how many there are. Returns the keys
    /// to visit, in order; none when the window has to be divided.
    pub(super) fn note<T>(
        &mut self,
        (from, to): (u128, u128),
        mut found: Vec<T>,
        count: usize,
        number_of: impl Fn(&T) -> u128,
    ) -> Vec<T> {
        let is_complete = count <= found.len();
        match self.direction {
            Direction::Upwards => {
                let last = found.last().filter(|_| !is_complete).map(number_of);
                self.go_up((from, to), last, count);
                found
            }
            Direction::Downwards if is_complete => {
                self.go_down(from, found.len());
                found.reverse();
                found
            }
            Direction::Downwards => {
                // Those that were returned are the lowest, and the highest come first.
                self.crowded = Some((from, count));
                Vec::new()
            }
        }
    }

    /// After a window of a walk upwards. `last` is the highest number that was returned, where there are more.
    fn go_up(&mut self, (from, to): (u128, u128), last: Option<u128>, count: usize) {
        let Some(last) = last else {
            self.left.0 = to;
            self.grow(count);
            return;
        };
        self.left.0 = last.saturating_add(1);
        // About as many as one step returns, if they are spread evenly.
        let count = u128::try_from(count).unwrap_or(u128::MAX).max(1);
        let each = to.saturating_sub(from).checked_div(count).unwrap_or(0);
        self.size = each.saturating_mul(STEP_MAX.into()).max(1);
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

    fn grow(&mut self, found: usize) {
        let factor = STEP_GOAL.checked_div(found).unwrap_or(GROWTH_MAX);
        let factor = factor.clamp(1, GROWTH_MAX);
        let factor = u128::try_from(factor).unwrap_or(1);
        self.size = self.size.saturating_mul(factor);
    }

    /// Where the walk stopped although there is more: the highest or lowest number that was not visited.
    pub(super) fn stopped_at(&self) -> Option<u128> {
        (self.left.0 < self.left.1).then_some(match self.direction {
            Direction::Upwards => self.left.0,
            Direction::Downwards => self.left.1,
        })
    }
}

#[cfg(test)]
#[expect(clippy::arithmetic_side_effects, reason = "small numbers of a test")]
mod tests {
    use super::*;

    const WEEK: u128 = 7 * 24 * 3600 * 1000;
    /// A day of the present, in milliseconds.
    const NOW: u128 = 1_790_000_000_000;

    /// What a walk over these ascending numbers costs until it has visited so many: the order of the visits, the steps, and the
    /// keys that etcd counts.
    fn walk(windows: &mut Windows, keys: &[u128], wanted: usize) -> (Vec<u128>, usize, usize) {
        let (mut visited, mut steps, mut counted) = (Vec::new(), 0, 0);
        while visited.len() < wanted
            && let Some((from, to)) = windows.next()
        {
            let first = keys.partition_point(|key| *key < from);
            let count = keys.partition_point(|key| *key < to) - first;
            let found = keys[first..]
                .iter()
                .take(count.min(STEP_MAX.into()))
                .copied();
            steps += 1;
            counted += count;
            visited.extend(windows.note((from, to), found.collect(), count, |key| *key));
        }
        (visited, steps, counted)
    }

    fn downwards(keys: &[u128]) -> Windows {
        let end = keys.last().map_or(NOW, |last| last + 1);
        Windows::new(Direction::Downwards, (0, u128::MAX), FIRST_WINDOW_MILLIS).starting_near(end)
    }

    #[test]
    fn a_page_costs_as_many_keys_as_it_is_long_however_many_there_are() {
        // So many operations, so many milliseconds apart: 1,000 a second, 10,000 a minute, one a second, one a week.
        for (count, apart) in [(1_000_000, 1), (100_000, 6), (100_000, 1000), (1000, WEEK)] {
            let keys: Vec<u128> = (0..count)
                .map(|number| NOW - (count - number) * apart)
                .collect();
            let (visited, steps, counted) = walk(&mut downwards(&keys), &keys, 21);
            let newest: Vec<u128> = keys.iter().rev().take(21).copied().collect();
            assert_eq!(visited[..21], newest, "{count} {apart}: newest first");
            assert!(steps <= 10, "{count} {apart}: {steps} steps");
            assert!(counted <= 2048, "{count} {apart}: {counted} keys counted");

            let start = (keys[0], u128::MAX);
            let mut windows = Windows::new(Direction::Upwards, start, FIRST_WINDOW_MILLIS);
            let (visited, steps, counted) = walk(&mut windows, &keys, 21);
            assert_eq!(visited[..21], keys[..21], "{count} {apart}: oldest first");
            assert!(steps <= 10, "{count} {apart}: {steps} steps upwards");
            assert!(
                counted <= 2048,
                "{count} {apart}: {counted} counted upwards"
            );
        }
    }

    #[test]
    fn every_key_is_visited_once_in_order_however_unevenly_they_are_spread() {
        // A burst in one millisecond after years without any, another a day later, and one alone.
        let mut keys: Vec<u128> = (0..3000).map(|number| (NOW << 16) + number).collect();
        keys.extend((0..2000).map(|number| ((NOW + WEEK) << 16) + number * 65536));
        keys.push((NOW + 100 * WEEK) << 16);
        let first = FIRST_WINDOW_MILLIS << 16;
        let end = ((NOW + 100 * WEEK) << 16) + 1;
        let mut up = Windows::new(Direction::Upwards, (0, end), first);
        let (visited, ..) = walk(&mut up, &keys, usize::MAX);
        assert_eq!(visited, keys, "upwards");
        let down = Windows::new(Direction::Downwards, (0, end), first);
        let mut down = down.starting_near(end - 1);
        let (mut visited, ..) = walk(&mut down, &keys, usize::MAX);
        visited.reverse();
        assert_eq!(visited, keys, "downwards");
    }

    #[test]
    fn a_walk_that_stops_says_where() {
        let keys: Vec<u128> = (0..1_000_000).collect();
        let mut windows = Windows::new(Direction::Upwards, (0, 1_000_000), 1);
        let (visited, steps, _) = walk(&mut windows, &keys, usize::MAX);
        assert_eq!(steps, STEPS_MAX, "so many at most");
        assert_eq!(visited.last().map(|last| last + 1), windows.stopped_at());
        assert!(visited.len() > 50_000, "{} visited", visited.len());
    }
}
