//! SQLite's integers are signed.

/// The integer to store. Every number of ours fits; a larger one is stored as the largest.
pub(super) fn to_integer(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
