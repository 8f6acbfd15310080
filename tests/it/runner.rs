//! Runs the tests of this program: each registers itself with `#[apply(test)]`, and one that cannot run here ends as ignored.

use std::any::Any;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::io::Write;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::panic::resume_unwind;
use std::process::ExitCode;

use libtest_mimic::Arguments;
use libtest_mimic::Completion;
use libtest_mimic::Failed;
use libtest_mimic::Trial;
use parking_lot::Mutex;

/// Registers a function without arguments as a test: `#[apply(test)] fn name() { ... }`, or `async fn`.
macro_rules! test {
    ($(#[$attribute:meta])* fn $name:ident() $body:block) => {
        $(#[$attribute])*
        fn $name() $body

        inventory::submit! {
            crate::runner::Test { module: module_path!(), name: stringify!($name), run: $name }
        }
    };
    ($(#[$attribute:meta])* async fn $name:ident() $body:block) => {
        $(#[$attribute])*
        fn $name() {
            crate::runner::block_on(async $body);
        }

        inventory::submit! {
            crate::runner::Test { module: module_path!(), name: stringify!($name), run: $name }
        }
    };
}

/// Why each test that was skipped could not run; several at once run their tests in threads.
static SKIPPED: Mutex<BTreeMap<String, Vec<String>>> = Mutex::new(BTreeMap::new());

thread_local! {
    /// Why parts of the test of this thread were skipped.
    static SKIPPED_PARTS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// A registered test.
pub(crate) struct Test {
    pub(crate) module: &'static str,
    pub(crate) name: &'static str,
    pub(crate) run: fn(),
}

inventory::collect!(Test);

/// What unwinds the stack of a test that cannot run here.
struct Skip(String);

/// Ends the test as ignored, for this reason. With `SNAPGATE_NO_SKIP` set, as `.ci/run` does, it fails instead.
///
/// Only the thread of the test itself may call this.
pub(crate) fn skip(reason: &str) -> ! {
    refuse_where_nothing_may_be_skipped(reason);
    // Without the panic hook: this is no failure to report.
    resume_unwind(Box::new(Skip(reason.to_owned())));
}

/// Says that a part of the test cannot run here, and goes on; the test then ends as ignored in part. As strict as [`skip`].
pub(crate) fn skip_part(reason: &str) {
    refuse_where_nothing_may_be_skipped(reason);
    SKIPPED_PARTS.with_borrow_mut(|parts| parts.push(reason.to_owned()));
}

fn refuse_where_nothing_may_be_skipped(reason: &str) {
    assert!(
        std::env::var_os("SNAPGATE_NO_SKIP").is_none(),
        "a requirement is missing and SNAPGATE_NO_SKIP is set: {reason}"
    );
}

/// Runs an asynchronous test on a runtime of its own with two worker threads.
pub(crate) fn block_on(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(test);
}

/// Runs what the arguments select, and lists what was skipped and why.
pub(crate) fn run() -> ExitCode {
    let (filters, others) = split_arguments(std::env::args());
    let arguments = Arguments::from_iter(others);
    let mut trials: Vec<Trial> = inventory::iter::<Test>().map(trial).collect();
    trials.retain(|trial| is_selected(trial.name(), &filters, arguments.exact));
    trials.sort_by(|one, other| one.name().cmp(other.name()));
    let conclusion = libtest_mimic::run(&arguments, trials);
    let skipped = SKIPPED.lock();
    std::io::stdout()
        .write_all(summary_of(&skipped).as_bytes())
        .unwrap();
    conclusion.exit_code()
}

/// Options of the runner that are followed by a value.
const OPTIONS_WITH_VALUE: [&str; 6] = [
    "--color",
    "--format",
    "--logfile",
    "--skip",
    "--test-threads",
    "-Z",
];

/// The filters, of which libtest takes several and libtest-mimic one, and all other arguments.
fn split_arguments(arguments: impl Iterator<Item = String>) -> (Vec<String>, Vec<String>) {
    let (mut filters, mut others) = (Vec::new(), Vec::new());
    for (position, argument) in arguments.enumerate() {
        let is_value = others
            .last()
            .is_some_and(|before: &String| OPTIONS_WITH_VALUE.contains(&before.as_str()));
        if position == 0 || is_value || argument.starts_with('-') {
            others.push(argument);
        } else {
            filters.push(argument);
        }
    }
    (filters, others)
}

fn is_selected(name: &str, filters: &[String], is_exact: bool) -> bool {
    let fits = |filter: &String| {
        if is_exact {
            name == filter
        } else {
            name.contains(filter.as_str())
        }
    };
    filters.is_empty() || filters.iter().any(fits)
}

fn trial(test: &'static Test) -> Trial {
    let (_crate, module) = test.module.split_once("::").unwrap();
    let name = format!("{module}::{}", test.name);
    Trial::ignorable_test(name.clone(), move || outcome_of(&name, test.run))
}

/// What became of one test; a panic is a failure, and [`Skip`] is none.
fn outcome_of(name: &str, run: fn()) -> Result<Completion, Failed> {
    SKIPPED_PARTS.take();
    let ended = catch_unwind(AssertUnwindSafe(run));
    let parts = SKIPPED_PARTS.take();
    let reason = match ended {
        Ok(()) if parts.is_empty() => return Ok(Completion::Completed),
        Ok(()) => format!("in part: {}", parts.join("; ")),
        Err(panic) => match panic.downcast::<Skip>() {
            Ok(skip) => skip.0,
            Err(panic) => return Err(message_of(&*panic).into()),
        },
    };
    let mut skipped = SKIPPED.lock();
    let tests = skipped.entry(reason.clone()).or_default();
    tests.push(name.to_owned());
    Ok(Completion::ignored_with(reason))
}

fn message_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic without a message").to_owned()
}

/// The skipped tests by reason; empty when none was skipped.
fn summary_of(skipped: &BTreeMap<String, Vec<String>>) -> String {
    let count: usize = skipped.values().map(Vec::len).sum();
    if count == 0 {
        return String::new();
    }
    let mut text = format!("skipped {}:\n", counted(count));
    for (reason, tests) in skipped {
        text.push_str(&format!("  {reason}: {}\n", counted(tests.len())));
        for name in tests {
            text.push_str(&format!("    {name}\n"));
        }
    }
    text.push_str("`.ci/run` installs everything that tests need and skips nothing.\n\n");
    text
}

fn counted(tests: usize) -> String {
    if tests == 1 {
        "1 test".to_owned()
    } else {
        format!("{tests} tests")
    }
}

#[apply(test)]
fn the_summary_groups_skipped_tests_by_reason() {
    assert_eq!(summary_of(&BTreeMap::new()), "", "nothing was skipped");
    let skipped = BTreeMap::from([
        (
            "no curl".to_owned(),
            vec!["a::b".to_owned(), "c".to_owned()],
        ),
        ("not root".to_owned(), vec!["d".to_owned()]),
    ]);
    let text = summary_of(&skipped);
    let expected =
        "skipped 3 tests:\n  no curl: 2 tests\n    a::b\n    c\n  not root: 1 test\n    d\n";
    assert!(text.starts_with(expected), "{text}");
}

#[apply(test)]
fn a_panic_is_a_failure() {
    let failed = outcome_of("", || resume_unwind(Box::new("wrong")));
    let message = failed
        .err()
        .and_then(|error| error.message().map(str::to_owned));
    assert_eq!(
        message.as_deref(),
        Some("wrong"),
        "the message of the panic"
    );
    let passed = outcome_of("", || {});
    assert!(matches!(passed, Ok(Completion::Completed)), "passed");
}

#[apply(test)]
fn several_filters_select_the_tests_that_fit_any_of_them() {
    let arguments = ["it", "one", "--test-threads", "2", "two", "--nocapture"];
    let (filters, others) = split_arguments(arguments.map(str::to_owned).into_iter());
    assert_eq!(filters, ["one", "two"], "filters");
    assert_eq!(
        others,
        ["it", "--test-threads", "2", "--nocapture"],
        "the rest"
    );
    assert!(
        is_selected("a::two_more", &filters, false),
        "a part of a name"
    );
    assert!(
        !is_selected("a::two_more", &filters, true),
        "not the whole name"
    );
    assert!(is_selected("two", &filters, true), "the whole name");
    assert!(is_selected("any", &[], false), "no filter");
}
