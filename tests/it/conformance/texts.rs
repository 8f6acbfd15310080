//! Rows of the conformance suite about what callers read when something was refused or failed.

use snapgate::adapters::adapter::Adapter;
use snapgate::model::Intent;

use crate::conformance::AdapterFixture;
use crate::conformance::by;
use crate::conformance::fault_of;
use crate::conformance::key;
use crate::conformance::run;

/// A restore that fails says what became of the data, whether the VM runs, and what to do; the remedy works.
pub(crate) async fn fails(
    fixture: &dyn AdapterFixture,
    adapter: &dyn Adapter,
    restore: &Intent,
    broken: Option<Box<dyn std::any::Any + Send>>,
) {
    let name = fixture.name();
    fixture.write(4);
    let seen = adapter.baseline(restore, key(30), by()).await.unwrap();
    let fault = fault_of(adapter, restore, 30, seen.as_ref()).await;
    let fault = fault.expect_err(name);
    for (about, words) in [
        ("the data", &["data"][..]),
        (
            "the run state",
            &[
                "running",
                "off",
                "frozen",
                "suspended",
                "could not be determined",
            ],
        ),
        ("the remedy", &["again", "start", "check"]),
    ] {
        let is_said = words.iter().any(|word| fault.text.contains(word));
        assert!(is_said, "{name}: {about}: {fault:?}");
    }
    drop(broken);
    assert_eq!(
        run(adapter, restore, 31).await,
        Ok(()),
        "{name}: restored again"
    );
    assert_eq!(fixture.content(), 1, "{name}: restored again");
}

/// What a caller reads of a refusal says what to do: more than one statement.
pub(crate) async fn names_remedy(
    fixture: &dyn AdapterFixture,
    adapter: &dyn Adapter,
    refused: &Intent,
    number: u64,
) {
    let seen = adapter.baseline(refused, key(number), by()).await.unwrap();
    let fault = fault_of(adapter, refused, number, seen.as_ref()).await;
    let fault = fault.expect_err("refused");
    let rest = fault
        .text
        .split_once([':', '.'])
        .map_or("", |(_, rest)| rest);
    let words = rest.split_whitespace().count();
    assert!(words >= 2, "{}: no remedy: {fault:?}", fixture.name());
}
