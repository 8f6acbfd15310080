//! Tests that need a program which is not installed say so, and fail where nothing may be skipped.

use std::io::Write;

/// Prints that a test was skipped for want of `what`. With `SNAPGATE_NO_SKIP` set, as `.ci/run` does, that is a failure.
pub(crate) fn skipped(what: &str) {
    assert!(
        std::env::var("SNAPGATE_NO_SKIP").is_err(),
        "not installed, and nothing may be skipped: {what}"
    );
    // Straight to the terminal: the test runner swallows what passing tests print.
    let line = format!("skipped: not installed: {what}\n");
    std::io::stderr().lock().write_all(line.as_bytes()).unwrap();
}
