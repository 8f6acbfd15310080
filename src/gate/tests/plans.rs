//! Plans of restores and deletes, and the condition that one is still right.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use serde_json::json;

use crate::gate::Grant;
use crate::gate::Grantee;
use crate::gate::tests::rig::Rig;
use crate::gate::tests::rig::backup;
use crate::gate::tests::rig::header;
use crate::gate::tests::rig::json as body_of;
use crate::gate::tests::rig::status;
use crate::gate::tests::rig::target;
use crate::model::Action;
use crate::model::BackupState;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::Pattern;
use crate::model::Precondition;
use crate::model::PrincipalName;
use crate::operations::AcceptError;
use crate::operations::Capability;
use crate::operations::DurationBasis;
use crate::operations::ExpectedDuration;
use crate::operations::memory_operations::PlannedAnswers;
use crate::operations::memory_operations::full_capability;
use crate::public_text;

const B: &str = "/vms/33333/backups/456";
const JSON: &str = "\nContent-Type: application/json";
const RESTORE: &str = r#"{"op":"restore-Backup"}"#;
const DELETE: &str = r#"{"op":"delete-Backup"}"#;

fn plan(user: &str, body: &str) -> String {
    format!("POST {B}/plan\nas: {user}\nv{JSON}\n\n{body}")
}

/// Lets `stranger`, who may do nothing else, do this to one backup.
fn allow(rig: &mut Rig, action: Action) {
    rig.reload(|config| {
        config.grants.push(Grant {
            to: vec![Grantee::User(PrincipalName::new("stranger").unwrap())],
            actions: [action].into_iter().collect(),
            vms: vec![Pattern::new("33333").unwrap()],
            backups: vec![Pattern::new("456").unwrap()],
            line: 0,
        });
    });
}

/// The codes of what would refuse it.
fn codes(plan: &Value) -> Vec<&str> {
    let refused = plan["refused"].as_array().unwrap().iter();
    refused.map(|one| one["code"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_plan_has_the_documented_members_in_their_order() {
    let rig = Rig::new();
    rig.operations.state().planned = PlannedAnswers {
        faults: vec![Fault::new(
            FaultKind::Conflict,
            public_text!("The disk is a mount point."),
        )],
        loses: vec![backup("457", "later")],
        duration: Some(ExpectedDuration {
            time: Duration::from_millis(1_500),
            basis: DurationBasis::History,
        }),
        is_full: true,
    };
    let found = rig.send(&plan("ann", RESTORE)).await;
    assert_eq!(status(&found), 200, "{found:?}");
    assert_eq!(
        header(&found, "content-type"),
        "application/vnd.snapgate.Plan+json",
        "its own type"
    );
    assert_eq!(header(&found, "cache-control"), "no-store", "of a moment");
    let text = String::from_utf8(found.response.body().to_vec()).unwrap();
    let mut plan = body_of(&found);
    let fingerprint = plan["fingerprint"].take();
    assert_eq!(fingerprint.as_str().unwrap().len(), 64, "{text}");
    let expected = json!({
        "op": "restore-Backup",
        "target_uri": "/vms/33333/backups/456",
        "vm": {"id": "33333", "name": "web", "state": "STARTED"},
        "backup": {"id": "456", "name": "web01_YYYYMMDD", "created": "1970-01-01T00:00:01Z"},
        // A size that not every reader of JSON reads exactly is left out.
        "overwrites": [{"disk": "root", "size": 9}, {"disk": "huge"}],
        "loses": {
            "since": "1970-01-01T00:00:01Z",
            "backups": [{"id": "457", "name": "later", "created": "1970-01-01T00:00:01Z"}],
        },
        "leaves": ["data"],
        "after": "STARTED",
        "needs": {"bytes": 7, "free": 8},
        "duration": {"seconds": 2, "basis": "history"},
        "refused": [{"code": "Conflict", "text": "The disk is a mount point."}],
        "warnings": ["The VM is old."],
        "unknown": ["refused"],
        "fingerprint": null,
        "expires": "1970-01-01T00:10:05Z",
    });
    assert_eq!(plan, expected, "{text}");
    let members = [
        "op",
        "target_uri",
        "vm",
        "overwrites",
        "loses",
        "refused",
        "fingerprint",
    ];
    let places: Vec<_> = members
        .iter()
        .map(|name| text.find(&format!("\"{name}\":")).unwrap())
        .collect();
    assert!(places.is_sorted(), "in the documented order: {text}");
    let state = rig.operations.state();
    assert!(state.operations.is_empty(), "nothing is stored");
    assert!(
        found.audit.is_none(),
        "no line of the audit trail: {:?}",
        found.audit
    );
}

#[tokio::test]
async fn a_plan_needs_the_right_to_do_it() {
    let mut with_restore = Rig::new();
    allow(&mut with_restore, Action::Restore);
    let mut with_delete = Rig::new();
    allow(&mut with_delete, Action::Delete);
    let plain = Rig::new();
    let rows = [
        (&plain, "ann", RESTORE, 200, None),
        (&plain, "ann", DELETE, 200, None),
        (&plain, "reader", RESTORE, 403, Some("NotPermitted")),
        (&plain, "stranger", RESTORE, 404, Some("NoSuchVm")),
        (&with_restore, "stranger", RESTORE, 200, None),
        (&with_restore, "stranger", DELETE, 403, Some("NotPermitted")),
        (&with_delete, "stranger", DELETE, 200, None),
        (&with_delete, "stranger", RESTORE, 403, Some("NotPermitted")),
    ];
    for (rig, user, body, expected, code) in rows {
        let found = rig.send(&plan(user, body)).await;
        let name = format!("{user} {body}");
        assert_eq!((status(&found), found.refusal), (expected, code), "{name}");
    }
    let found = plain
        .send(&format!("POST {B}/plan\nv{JSON}\n\n{RESTORE}"))
        .await;
    assert_eq!(status(&found), 401, "without credentials");
}

#[expect(clippy::too_many_lines, reason = "a table")]
#[tokio::test]
async fn a_request_for_a_plan_is_checked_like_the_change() {
    let long = format!(
        "{{\"op\":\"restore-Backup\",{}\"z\":1}}",
        (0..33).fold(String::new(), |text, number| format!(
            "{text}\"x{number}\":1,"
        ))
    );
    let form = "Content-Type: application/x-www-form-urlencoded";
    let strict = format!("{JSON}\nPrefer: handling=strict");
    // Fields and body, the status, the code.
    let rows: [(&str, Option<&str>, u16, Option<&str>); 22] = [
        (JSON, Some(RESTORE), 200, None),
        (
            JSON,
            Some(r#"{"op":"RESTORE-backup","mode":"x","note":"why"}"#),
            200,
            None,
        ),
        (
            &format!("\n{form}"),
            Some("op=restore-Backup&mode=x"),
            200,
            None,
        ),
        (&format!("\n{form}"), Some("op=delete-Backup"), 200, None),
        (
            &format!("{JSON}\nAccept: application/json"),
            Some(RESTORE),
            200,
            None,
        ),
        (
            &format!("{JSON}\nAccept: application/vnd.snapgate.Plan+json"),
            Some(RESTORE),
            200,
            None,
        ),
        (
            &format!("{JSON}\nAccept: text/html"),
            Some(RESTORE),
            406,
            Some("NotAcceptable"),
        ),
        ("", Some(RESTORE), 415, Some("UnsupportedMediaType")),
        (
            "\nContent-Type: text/plain",
            Some(RESTORE),
            415,
            Some("UnsupportedMediaType"),
        ),
        (JSON, None, 411, Some("LengthRequired")),
        (JSON, Some(""), 400, Some("MalformedJson")),
        (JSON, Some("[]"), 400, Some("MalformedJson")),
        (JSON, Some("{}"), 400, Some("MissingMember")),
        (
            JSON,
            Some(r#"{"op":"update-Backup"}"#),
            400,
            Some("InvalidMember"),
        ),
        (JSON, Some(r#"{"op":7}"#), 400, Some("InvalidMember")),
        (
            JSON,
            Some(r#"{"op":"restore-Backup","mode":[]}"#),
            400,
            Some("InvalidMember"),
        ),
        (JSON, Some(&long), 400, Some("InvalidMember")),
        (JSON, Some(r#"{"op":"restore-Backup","x":1}"#), 200, None),
        (
            &strict,
            Some(r#"{"op":"restore-Backup","x":1}"#),
            400,
            Some("UnknownMember"),
        ),
        (
            &strict,
            Some(r#"{"op":"delete-Backup","mode":"x"}"#),
            400,
            Some("UnknownMember"),
        ),
        (
            &strict,
            Some(r#"{"op":"restore-Backup","mode":"x","note":"why"}"#),
            200,
            None,
        ),
        (
            &format!("\n{form}"),
            Some("op=%ff"),
            400,
            Some("MalformedForm"),
        ),
    ];
    let rig = Rig::new();
    for (fields, body, expected, code) in rows {
        let body = body.map_or_else(String::new, |body| format!("\n\n{body}"));
        let found = rig
            .send(&format!("POST {B}/plan\nas: ann\nv{fields}{body}"))
            .await;
        let name = format!("{fields} {body}");
        assert_eq!((status(&found), found.refusal), (expected, code), "{name}");
    }
    let found = rig.send(&format!("GET {B}/plan\nas: ann\nv")).await;
    assert_eq!(status(&found), 405, "POST alone");
    let found = rig
        .send(&format!("POST {B}/plan\nas: ann{JSON}\n\n{RESTORE}"))
        .await;
    let code = Some("MissingSpecificationVersion");
    assert_eq!(found.refusal, code, "one of the Backup routes");
    let other = format!("POST /vms/33333/backups/457/plan\nas: ann\nv{JSON}\n\n{RESTORE}");
    assert_eq!(rig.send(&other).await.refusal, Some("NoSuchBackup"), "404");
    let found = rig
        .send(&plan("ann", r#"{"op":"restore-Backup","x":1}"#))
        .await;
    assert_eq!(body_of(&found)["ignored"], json!(["x"]), "as in a Status");
}

#[expect(clippy::too_many_lines, reason = "a table")]
#[tokio::test]
async fn what_would_refuse_the_change_is_listed_and_refuses_it() {
    let fault = |kind| Fault::new(kind, public_text!("The VM manager refuses it."));
    type Prepare<'a> = &'a dyn Fn(&Rig);
    let set_state = |rig: &Rig, state| {
        let mut all = rig.operations.state();
        all.backups.get_mut(&target("33333", "456")).unwrap().state = state;
    };
    let protect = |rig: &Rig| {
        let mut all = rig.operations.state();
        all.backups
            .get_mut(&target("33333", "456"))
            .unwrap()
            .protected = true;
    };
    let rows: [(&str, Prepare<'_>, &str, &[&str]); 9] = [
        ("nothing", &|_| {}, RESTORE, &[]),
        ("protected", &protect, DELETE, &["BackupProtected"]),
        ("protected, restored", &protect, RESTORE, &[]),
        (
            "damaged",
            &|rig| set_state(rig, BackupState::Error),
            RESTORE,
            &["NotReady"],
        ),
        (
            "damaged, deleted",
            &|rig| set_state(rig, BackupState::Error),
            DELETE,
            &[],
        ),
        (
            "in the making",
            &|rig| set_state(rig, BackupState::Creating),
            DELETE,
            &["NotReady"],
        ),
        (
            "unable",
            &|rig| {
                rig.operations.state().capability = Arc::new(Capability {
                    restore: None,
                    ..full_capability()
                });
            },
            RESTORE,
            &["Unsupported"],
        ),
        (
            "no store",
            &|rig| rig.operations.state().is_ready = false,
            RESTORE,
            &["StoreUnavailable"],
        ),
        (
            "a full queue",
            &|rig| rig.operations.state().accept_error = Some(AcceptError::QueueFull),
            RESTORE,
            &["QueueFull"],
        ),
    ];
    for (name, prepare, body, expected) in rows {
        let rig = Rig::new();
        prepare(&rig);
        let found = rig.send(&plan("ann", body)).await;
        assert_eq!(status(&found), 200, "{name}: {found:?}");
        assert_eq!(codes(&body_of(&found)), expected, "{name}");
        let request = if body == DELETE {
            format!("DELETE {B}\nas: ann\nv")
        } else {
            format!("POST {B}/restore\nas: ann\nv{JSON}\n\n{{}}")
        };
        let sent = rig.send(&request).await;
        assert_eq!(sent.refusal, expected.first().copied(), "{name}: in fact");
    }
    let rig = Rig::new();
    rig.operations.state().planned.faults = vec![
        fault(FaultKind::Conflict),
        fault(FaultKind::Damaged),
        fault(FaultKind::Conflict),
    ];
    let found = body_of(&rig.send(&plan("ann", RESTORE)).await);
    let every = ["Conflict", "DamagedBackup", "Conflict"];
    assert_eq!(codes(&found), every, "all that the VM manager says");
}

#[tokio::test]
async fn a_vm_manager_that_does_not_answer_makes_no_plan() {
    let rig = Rig::new();
    rig.operations.state().read_fault = Some(Fault::new(
        FaultKind::Unavailable,
        public_text!("The VM manager does not answer."),
    ));
    let found = rig.send(&plan("ann", RESTORE)).await;
    assert_eq!(
        (status(&found), found.refusal),
        (503, Some("Unavailable")),
        "no plan"
    );
}

#[tokio::test]
async fn unfinished_operations_hold_a_change_up_and_do_not_refuse_it() {
    let rig = Rig::new();
    let first = rig
        .send(&format!("POST {B}/restore\nas: ann\nv{JSON}\n\n{{}}"))
        .await;
    assert_eq!(status(&first), 202, "unfinished");
    rig.operations.state().planned.faults = vec![Fault::new(
        FaultKind::Busy,
        public_text!("The VM is being restored."),
    )];
    let found = body_of(&rig.send(&plan("ann", DELETE)).await);
    assert_eq!(codes(&found), [""; 0], "it would wait: {found}");
    let warnings = found["warnings"].to_string();
    assert!(warnings.contains("1 unfinished operations"), "{warnings}");
}

#[tokio::test]
async fn backups_that_the_caller_may_not_see_are_counted_only() {
    let mut rig = Rig::new();
    allow(&mut rig, Action::Restore);
    rig.operations.state().planned.loses = vec![backup("457", "secret")];
    let found = rig.send(&plan("stranger", RESTORE)).await;
    let text = body_of(&found).to_string();
    assert!(!text.contains("secret") && !text.contains("457"), "{text}");
    assert!(text.contains("1 more backups"), "{text}");
}

/// The change with a condition on a plan.
fn planned(change: &str, fields: &str) -> String {
    match change {
        "delete" => format!("DELETE {B}\nas: ann\nv{fields}"),
        "update" => format!("PUT {B}\nas: ann\nv{JSON}{fields}\n\n{{\"tags\":[]}}"),
        "create" => {
            format!("POST /vms/33333/backups\nas: ann\nv{JSON}{fields}\n\n{{\"name\":\"n\"}}")
        }
        _ => format!("POST {B}/restore\nas: ann\nv{JSON}{fields}\n\n{{}}"),
    }
}

#[tokio::test]
async fn a_change_that_names_a_plan_is_refused_unless_the_plan_is_still_right() {
    for (change, body) in [("restore", RESTORE), ("delete", DELETE)] {
        let rig = Rig::new();
        let made = body_of(&rig.send(&plan("ann", body)).await);
        let print = made["fingerprint"].as_str().unwrap();
        let right = format!("\nIf-Plan: \"{print}\"");
        let rows = [
            ("\nIf-Plan: x", Some("InvalidParameter")),
            ("\nIf-Plan: \"\"", Some("InvalidParameter")),
            ("\nIf-Plan: \"a\", \"b\"", Some("InvalidParameter")),
            ("\nIf-Plan: \"0f\"", Some("PlanStale")),
            (right.as_str(), None),
        ];
        for (fields, expected) in rows {
            let found = rig.send(&planned(change, fields)).await;
            assert_eq!(found.refusal, expected, "{change}{fields}");
        }
        let state = rig.operations.state();
        let kept = &state.operations.last().unwrap().preconditions;
        let is_kept = matches!(kept.as_slice(), [Precondition::PlanUnchanged(_)]);
        assert!(is_kept && state.operations.len() == 1, "{change}: {kept:?}");
    }
    let rig = Rig::new();
    let made = body_of(&rig.send(&plan("ann", RESTORE)).await);
    let right = format!("\nIf-Plan: \"{}\"", made["fingerprint"].as_str().unwrap());
    for change in ["update", "create"] {
        let found = rig.send(&planned(change, &right)).await;
        assert_eq!(
            found.refusal,
            Some("InvalidParameter"),
            "{change}: no plans"
        );
    }
    let found = rig.send(&planned("delete", &right)).await;
    assert_eq!(found.refusal, Some("PlanStale"), "the plan of a restore");
    let mut later = backup("457", "later");
    later.created = crate::model::Timestamp::from_millis(9_000);
    let at = target("33333", "457");
    rig.operations.state().backups.insert(at, later);
    let found = rig.send(&planned("restore", &right)).await;
    assert_eq!(
        (status(&found), found.refusal),
        (412, Some("PlanStale")),
        "a newer backup"
    );
}

#[tokio::test]
async fn a_repeated_delete_that_names_a_plan_does_not_join_the_first() {
    let rig = Rig::new();
    let made = body_of(&rig.send(&plan("ann", DELETE)).await);
    let right = format!("\nIf-Plan: \"{}\"", made["fingerprint"].as_str().unwrap());
    let first = rig.send(&planned("delete", &right)).await;
    assert_eq!(status(&first), 202, "the first");
    let again = rig.send(&planned("delete", &right)).await;
    assert_eq!(again.refusal, Some("PlanStale"), "the plan is used up");
    let plain = rig.send(&planned("delete", "")).await;
    assert_eq!(status(&plain), 202, "without a condition it joins");
}

#[tokio::test]
async fn a_change_that_comes_before_the_acceptance_makes_the_plan_stale() {
    let rig = Rig::new();
    let made = body_of(&rig.send(&plan("ann", RESTORE)).await);
    let right = format!("\nIf-Plan: \"{}\"", made["fingerprint"].as_str().unwrap());
    // Set after the plan was made: the fake says the same of a plan and of an acceptance.
    let rows = [
        (right.clone(), "PlanStale"),
        (format!("{right}\nIf-Match: *"), "PreconditionFailed"),
    ];
    for (fields, expected) in rows {
        let fake = Arc::clone(&rig.operations);
        fake.state().accept_error = Some(AcceptError::PreconditionFailed);
        let found = rig.send(&planned("restore", &fields)).await;
        assert_eq!(found.refusal, Some(expected), "{fields}");
    }
}
