//! Who may stop what, and what is answered.

use crate::gate::tests::rig::Rig;
use crate::gate::tests::rig::header;
use crate::gate::tests::rig::json;
use crate::gate::tests::rig::status;
use crate::gate::*;

const RESTORE: &str =
    "POST /vms/33333/backups/456/restore\nas: ann\nv\nContent-Type: application/json\n\n{}";
const URI: &str = "/statuses?op=restore-Backup&vm=33333&b=456&seq=1";

#[tokio::test]
async fn delete_on_a_status_uri_stops_the_operation_once() {
    let rig = Rig::new();
    let begun = rig.send(RESTORE).await;
    assert_eq!(status(&begun), 202, "accepted");
    assert_eq!(header(&begun, "location"), URI, "the status_uri");
    let stopped = rig.send(&format!("DELETE {URI}\nas: ann")).await;
    assert_eq!(status(&stopped), 202, "taken");
    assert_eq!(header(&stopped, "location"), URI, "where to look");
    assert_eq!(json(&stopped)["progress"], 100, "a Status");
    let audit = stopped.audit.unwrap();
    assert_eq!(audit.action, AuditAction::Cancel, "in the trail");
    assert_eq!(audit.outcome, AuditOutcome::Accepted, "as taken");
    assert_eq!(audit.vm.unwrap().as_str(), "33333", "with its VM");
    let again = rig.send(&format!("DELETE {URI}\nas: ann")).await;
    assert_eq!(again.refusal, Some("NotCancellable"), "it is over");
    assert_eq!(status(&again), 409, "a conflict");
}

#[tokio::test]
async fn only_the_owner_and_those_who_could_ask_for_it_may_stop_it() {
    let mut rig = Rig::new();
    rig.send(RESTORE).await;
    // name, who, what is granted besides, path, refusal
    let rows = [
        (
            "others see nothing",
            "reader",
            None,
            URI,
            Some("NoSuchStatus"),
        ),
        (
            "seeing is not stopping",
            "reader",
            Some(crate::model::Action::Observe),
            URI,
            Some("NotPermitted"),
        ),
        (
            "another right",
            "reader",
            Some(crate::model::Action::Delete),
            URI,
            Some("NotPermitted"),
        ),
        (
            "which one",
            "ann",
            None,
            "/statuses?vm=33333&b=456",
            Some("MissingParameter"),
        ),
        (
            "no such",
            "ann",
            None,
            "/statuses?seq=9",
            Some("NoSuchStatus"),
        ),
        (
            "not that one",
            "ann",
            None,
            "/statuses?vm=9&seq=1",
            Some("NoSuchStatus"),
        ),
        (
            "no number",
            "ann",
            None,
            "/statuses?seq=x",
            Some("InvalidParameter"),
        ),
        (
            "the right for it",
            "reader",
            Some(crate::model::Action::Restore),
            URI,
            None,
        ),
    ];
    for (name, who, granted, path, expected) in rows {
        if let Some(action) = granted {
            rig.reload(|rig| {
                let mine = &mut rig.grants[1];
                mine.actions = mine.actions.with(action);
            });
        }
        let found = rig.send(&format!("DELETE {path}\nas: {who}")).await;
        assert_eq!(found.refusal, expected, "{name}");
    }
}

#[tokio::test]
async fn a_busy_refusal_links_the_operation_for_callers_who_may_see_it() {
    let mut rig = Rig::new();
    rig.send(RESTORE).await;
    rig.reload(|rig| {
        let mine = &mut rig.grants[1];
        mine.actions = mine.actions.with(crate::model::Action::Restore);
    });
    {
        let mut state = rig.operations.state();
        let running = state.operations.first().cloned().unwrap();
        state.accept_error = Some(crate::operations::AcceptError::Busy(running));
    }
    for (who, expected) in [("ann", URI), ("reader", "")] {
        let found = rig.send(&RESTORE.replace("ann", who)).await;
        assert_eq!(found.refusal, Some("Busy"), "{who}: busy");
        assert_eq!(status(&found), 409, "{who}: a conflict");
        assert_eq!(header(&found, "location"), expected, "{who}: Location");
        assert!(!header(&found, "retry-after").is_empty(), "{who}: later");
    }
}
