//! What a server says of a change that failed, and what it cannot say of a VM that changed meanwhile.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use snapgate::adapters::adapter::Adapter;
use snapgate::adapters::adapter::FindOutcome;
use snapgate::adapters::adapter::Recovery;
use snapgate::adapters::adapter::TaskState;
use snapgate::model::OperationSeq;
use snapgate::model::RequestKey;
use snapgate::model::TaskRef;
use snapgate::runtime::SystemClock;

use crate::cloudapi::by;
use crate::cloudapi::restore;
use crate::cloudapi::servers::Script;
use crate::cloudapi::servers::http;
use crate::cloudapi::status_body;

fn vm(run_status: &str) -> Vec<u8> {
    let body = format!(r#"{{"name": "n", "run_status": "{run_status}"}}"#);
    http("200 OK", "", &body)
}

#[apply(test)]
async fn a_failed_restore_keeps_the_servers_sentence_and_says_whether_the_vm_runs() {
    let said = "The data was restored, but the VM could not be started again.";
    let rows = [
        ("says what it left", said, said, true),
        ("says nothing", "", "does not say", true),
        ("says a path", "open /etc/passwd failed", "/etc", false),
    ];
    for (name, message, part, expected) in rows {
        let status = status_body(
            "restore-Backup",
            &format!(
                r#""progress": 100, "status": 502, "state": "FAILED", "message": "{message}",
                   "status_uri": "/statuses?seq=7""#
            ),
        );
        let script = Script::start(move |request| {
            if request.starts_with("GET /vms/1 ") {
                vm("STOPPED")
            } else {
                http("200 OK", "", &status)
            }
        });
        let adapter = script.adapter(Recovery::Listable, SystemClock::shared());
        let task = TaskRef::new("/statuses?seq=7".to_owned()).unwrap();
        match adapter.poll(&task, by(20_000)).await.unwrap() {
            TaskState::Failed(fault) => {
                assert_eq!(fault.text.contains(part), expected, "{name}: {fault:?}");
                assert!(fault.text.contains("is off now"), "{name}: {fault:?}");
            }
            state @ (TaskState::Running(_)
            | TaskState::Done(_)
            | TaskState::Cancelled
            | TaskState::Gone) => panic!("{name}: {state:?}"),
        }
    }
}

#[apply(test)]
async fn a_restore_that_never_began_is_not_repeated_over_a_vm_that_was_started_meanwhile() {
    for was_started in [false, true] {
        let runs = Arc::<AtomicBool>::default();
        let now = Arc::clone(&runs);
        let script = Script::start(move |request| {
            if request.starts_with("GET /vms/1 ") {
                let runs = now.load(Ordering::SeqCst);
                vm(if runs { "STARTED" } else { "STOPPED" })
            } else {
                http("200 OK", "", r#"{"statuses": []}"#)
            }
        });
        let adapter = script.adapter(Recovery::ReplaySafe, SystemClock::shared());
        let key = RequestKey(OperationSeq::new(9).unwrap());
        let intent = restore();
        let before = adapter.baseline(&intent, key, by(20_000)).await.unwrap();
        runs.store(was_started, Ordering::SeqCst);
        let found = adapter
            .find_outcome(&intent, key, before.as_ref(), by(20_000))
            .await;
        let found = found.unwrap();
        assert_eq!(
            matches!(found, FindOutcome::VmChanged),
            was_started,
            "{was_started}: {found:?}"
        );
        assert_eq!(
            matches!(found, FindOutcome::NotBegun),
            !was_started,
            "{was_started}: {found:?}"
        );
    }
}
