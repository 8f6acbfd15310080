//! The forms of values that several tables share, as the documentation names them.

pub(super) const NAME_FORM: &str = "name of 1 to 64 letters, digits, `.`, `_`, `-`, `@`";
pub(super) const SECRET_FORM: &str = "hash, `file:PATH` or `env:NAME`";
pub(super) const PATTERN_FORM: &str = "patterns in which `*` stands for anything";
