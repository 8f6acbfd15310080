//! Walks along the keys of one index, in either order, in steps whose cost does not depend on how many keys there are.
//!
//! etcd sorts by descending keys only after it has read all of them, and counts all keys of a range even when few are asked
//! for. A step therefore asks for a window of the numbers at the end of the keys; see `windows.rs`.

use crate::etcd::Connection;
use crate::etcd::EtcdError;
use crate::etcd::GetOptions;
use crate::etcd::KeyValue;
use crate::operations::store::etcd::keys::number_at_end;
pub(super) use crate::operations::store::etcd::windows::Direction;
use crate::operations::store::etcd::windows::FIRST_WINDOW_MILLIS;
use crate::operations::store::etcd::windows::STEP_MAX;
use crate::operations::store::etcd::windows::Windows;

/// A walk along keys that end with a number of so many hexadecimal digits.
pub(super) struct Walk<'a> {
    connection: &'a Connection,
    /// What the keys begin with.
    prefix: String,
    digits: usize,
    windows: Windows,
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
        Self {
            connection,
            prefix,
            digits: 32,
            windows: Windows::new(direction, left, FIRST_WINDOW_MILLIS << 64),
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
        Self {
            connection,
            prefix,
            digits: 16,
            // Milliseconds, as they stand in sequence numbers.
            windows: Windows::new(direction, left, FIRST_WINDOW_MILLIS << 22),
            keys_only: false,
        }
    }

    /// With another size of the first window.
    pub(super) fn with_window(self, window: u128) -> Self {
        Self {
            windows: self.windows.with_first(window),
            ..self
        }
    }

    /// A walk downwards looks at everything from this number on in its first step.
    pub(super) fn starting_near(self, number: u128) -> Self {
        Self {
            windows: self.windows.starting_near(number),
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
        let digits = self.digits;
        let number_of = |found: &KeyValue| number_at_end(found.key(), digits).unwrap_or(u128::MAX);
        while let Some(window) = self.windows.next() {
            let (found, count) = self.read(window).await?;
            let found = self.windows.note(window, found, count, number_of);
            if !found.is_empty() {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Where the walk stopped although there is more: the highest or lowest number that was not visited.
    pub(super) fn stopped_at(&self) -> Option<u128> {
        self.windows.stopped_at()
    }

    async fn read(&self, (from, to): (u128, u128)) -> Result<(Vec<KeyValue>, usize), EtcdError> {
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
}
