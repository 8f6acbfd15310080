//! Tests that need a program which is not installed say so, and fail where nothing may be skipped.

use std::io::Write;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

/// Tests skipped so far in this run.
static SKIPPED: AtomicUsize = AtomicUsize::new(0);

/// Prints that a test was skipped for want of `what`, and how many were until now. With `SNAPGATE_NO_SKIP` set, as `.ci/run` does, that is a failure.
pub(crate) fn skipped(what: &str) {
    assert!(
        std::env::var("SNAPGATE_NO_SKIP").is_err(),
        "not installed, and nothing may be skipped: {what}"
    );
    // Straight to the terminal: the test runner swallows what passing tests print.
    let number = SKIPPED.fetch_add(1, Ordering::Relaxed) + 1;
    let line = format!("skipped, number {number}: not installed: {what}\n");
    std::io::stderr().lock().write_all(line.as_bytes()).unwrap();
}
