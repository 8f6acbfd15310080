//! The adapter for servers that speak this API: against servers that follow a script, and beds for the suite.

pub(crate) mod conformance;
mod failures;
mod http;
pub(crate) mod servers;

use std::sync::Arc;
use std::time::Duration;

use snapgate::adapters::adapter::*;
use snapgate::model::*;
use snapgate::runtime::Clock;
use snapgate::runtime::ManualClock;
use snapgate::runtime::SystemClock;

use crate::cloudapi::servers::Script;
use crate::cloudapi::servers::http;
use crate::conformance::key;
use crate::harness::PATIENCE;

const BACKUP: &str =
    r#"{"name": "n", "uri": "http://x/vms/1/backups/456", "created": "2026-11-24T01:02:03Z"}"#;

pub(crate) fn by(millis: u64) -> Deadline {
    SystemClock.deadline(Duration::from_millis(millis))
}

fn intent(change: Change) -> Intent {
    Intent {
        target: Target {
            vm: VmId::new("1").unwrap(),
            backup: BackupId::new("456").unwrap(),
        },
        identity: Some(Identity::new("2026-11-24T01:02:03Z 456".to_owned())),
        change,
    }
}

pub(crate) fn restore() -> Intent {
    intent(Change::Restore(RestoreOptions::default()))
}

pub(crate) fn status_body(op: &str, more: &str) -> String {
    format!(r#"{{"op": "{op}", "target_uri": "/vms/1/backups/456", {more}}}"#)
}

#[apply(test)]
async fn a_restore_that_got_no_clear_answer_may_have_been_begun() {
    let running = |uri: &str| {
        status_body(
            "restore-Backup",
            &format!(r#""progress": 0, "status_uri": "{uri}""#),
        )
    };
    let code =
        |code: &str| format!(r#"{{"message": [{{"code": "{code}", "text": "/etc/passwd"}}]}}"#);
    let large = "x".repeat(33 * 1024 * 1024);
    let may = |kind| Err((kind, Effect::Possible));
    let none = |kind| Err((kind, Effect::None));
    let nonsense = FaultKind::BackendFailed;
    let rows: Vec<(&str, Vec<u8>, Result<&str, (FaultKind, Effect)>)> = vec![
        (
            "a task",
            http("202 A", "", &running("/statuses?seq=7")),
            Ok("task"),
        ),
        (
            "done at once",
            http(
                "202 A",
                "",
                &status_body(
                    "restore-Backup",
                    r#""progress": 100, "status": 200, "status_uri": "/s""#,
                ),
            ),
            Ok("done"),
        ),
        (
            "failed at once",
            http(
                "202 A",
                "",
                &status_body(
                    "restore-Backup",
                    r#""progress": 100, "status": 507, "status_uri": "/s""#,
                ),
            ),
            Ok("task"),
        ),
        (
            "another host",
            http("202 A", "", &running("http://169.254.169.254/latest")),
            may(nonsense),
        ),
        (
            "no scheme",
            http("202 A", "", &running("//evil.example/s")),
            may(nonsense),
        ),
        (
            "dot segments",
            http("202 A", "", &running("/a/%2e%2e/s")),
            may(nonsense),
        ),
        (
            "of something else",
            http(
                "202 A",
                "",
                &status_body("back_up", r#""progress": 0, "status_uri": "/s""#),
            ),
            may(nonsense),
        ),
        ("no JSON", http("202 A", "", "<html>"), may(nonsense)),
        ("nothing", http("200 OK", "", ""), may(nonsense)),
        ("too large", http("202 A", "", &large), may(nonsense)),
        (
            "redirect",
            http("307 T", "location: http://evil.example/\r\n", ""),
            may(nonsense),
        ),
        (
            "closed without a word",
            Vec::new(),
            may(FaultKind::Unavailable),
        ),
        ("proxy error", http("502 B", "", "<html>"), may(nonsense)),
        (
            "own credentials",
            http("401 U", "", &code("Unauthenticated")),
            none(FaultKind::BackendDenied),
        ),
        (
            "not granted",
            http("403 F", "", &code("NotPermitted")),
            none(FaultKind::BackendDenied),
        ),
        (
            "busy",
            http("409 C", "", &code("Busy")),
            none(FaultKind::Busy),
        ),
        (
            "overloaded",
            http("503 S", "", &code("QueueFull")),
            none(FaultKind::Unavailable),
        ),
        (
            "changed each time",
            http("412 P", "", &code("PreconditionFailed")),
            none(FaultKind::Conflict),
        ),
    ];
    for (name, answer, expected) in rows {
        let script = Script::start(move |request| {
            if request.starts_with("GET ") {
                http("200 OK", "etag: \"t1\"\r\n", BACKUP)
            } else {
                answer.clone()
            }
        });
        let adapter = script.adapter(Recovery::ReplaySafe, SystemClock::shared());
        let begun = adapter.begin(&restore(), key(9), None, by(20_000)).await;
        let found = match &begun {
            Ok(BeginOutcome::Done) => Ok("done"),
            Ok(BeginOutcome::Task(_)) => Ok("task"),
            Err(error) => {
                assert!(
                    !error.fault.text.contains("/etc"),
                    "{name}: no words of the server"
                );
                Err((error.fault.kind, error.effect))
            }
        };
        assert_eq!(found, expected, "{name}: {begun:?}");
        let requests = script.requests();
        let tries = if name == "changed each time" { 4 } else { 2 };
        assert_eq!(
            requests.len(),
            tries,
            "{name}: nothing else is asked: {requests:#?}"
        );
        let sent = requests[1].to_ascii_lowercase();
        let parts = [
            "post /vms/1/backups/456/restore http/1.1",
            "x-cloud-client-specification-version: 0.1",
            "authorization: basic z2f0ztpzzwnyzxq=",
            "idempotency-key: snapgate-9",
            "x-request-id: snapgate-9",
            "if-match: \"t1\"",
            "x-cloud-hops: 1",
            "{\"note\":\"snapgate-9\"}",
        ];
        for part in parts {
            assert!(sent.contains(part), "{name}: {part} in {sent}");
        }
    }
    // Answers nothing until the caller has given up.
    let (release, held) = std::sync::mpsc::channel::<()>();
    let slow = Script::start(move |request| {
        if request.starts_with("GET ") {
            return http("200 OK", "", BACKUP);
        }
        assert!(
            held.recv_timeout(PATIENCE).is_err(),
            "released, not answered"
        );
        Vec::new()
    });
    let adapter = slow.adapter(Recovery::ReplaySafe, SystemClock::shared());
    let error = adapter
        .begin(&restore(), key(9), None, by(1500))
        .await
        .unwrap_err();
    drop(release);
    let seen = (error.fault.kind, error.effect);
    assert_eq!(
        seen,
        (FaultKind::TimedOut, Effect::Possible),
        "too slow: {error:?}"
    );
}

#[apply(test)]
async fn a_status_is_followed_and_what_the_server_does_not_know_is_never_a_failure() {
    let status = |more: &str| {
        http(
            "200 OK",
            "retry-after: 30\r\n",
            &status_body("restore-Backup", more),
        )
    };
    let rows: Vec<(&str, Vec<u8>, &str)> = vec![
        (
            "running",
            status(r#""progress": 40, "status_uri": "/s""#),
            "Running(Some(Progress(40)))",
        ),
        (
            "done",
            status(r#""progress": 100, "status": 200, "status_uri": "/s""#),
            "Done",
        ),
        (
            "failed",
            status(r#""progress": 100, "status": 507, "status_uri": "/s""#),
            "StorageFull",
        ),
        (
            "stopped",
            status(r#""progress": 100, "status": 409, "state": "CANCELLED", "status_uri": "/s""#),
            "Cancelled",
        ),
        (
            "not known there",
            status(r#""progress": 100, "status": 500, "state": "UNKNOWN", "status_uri": "/s""#),
            "Gone",
        ),
        (
            "expired",
            http("404 N", "", r#"{"message": [{"code": "NoSuchStatus"}]}"#),
            "Gone",
        ),
        (
            "redirect",
            http("302 F", "location: /elsewhere\r\n", ""),
            "Err(BackendFailed)",
        ),
        ("garbage", http("200 OK", "", "{]"), "Err(BackendFailed)"),
        ("no right", http("403 F", "", ""), "Err(BackendDenied)"),
    ];
    for (name, answer, expected) in rows {
        let script = Script::start(move |_| answer.clone());
        let adapter = script.adapter(Recovery::Listable, SystemClock::shared());
        let task = TaskRef::new("/statuses?op=restore-Backup&vm=a%2Fb&seq=7".to_owned()).unwrap();
        let mut found = String::new();
        // The second look comes before the time that the server asked for: it is not asked.
        for _ in 0..2 {
            let state = adapter.poll(&task, by(20_000)).await;
            found = state.map_or_else(
                |state| format!("Err({:?})", state.fault.kind),
                |outcome| format!("{outcome:?}"),
            );
            assert!(found.contains(expected), "{name}: {found}");
        }
        let requests = script.requests();
        assert!(
            requests[0].starts_with("GET /statuses?op=restore-Backup&vm=a%2Fb&seq=7 "),
            "{name}: {requests:?}"
        );
        let looks = if found.starts_with("Running") { 1 } else { 2 };
        let asked = requests
            .iter()
            .filter(|request| request.starts_with("GET /statuses"));
        assert_eq!(asked.count(), looks, "{name}: Retry-After is respected");
    }
}

/// A server that lists these Statuses, and has the backup 456.
fn listing(statuses: &[&str]) -> Script {
    let list = format!(r#"{{"statuses": [{}]}}"#, statuses.join(","));
    Script::start(move |request| {
        if request.starts_with("GET /statuses?op=restore-Backup&vm=1&limit=20&principal=me ") {
            http("200 OK", "", &list)
        } else {
            http("200 OK", "", BACKUP)
        }
    })
}

#[apply(test)]
async fn lost_answers_are_found_in_the_servers_own_list() {
    let status = |seq: u32, more: &str| {
        let more = format!(r#""status_uri": "/statuses?seq={seq}", {more}"#);
        status_body("restore-Backup", &more)
    };
    let old = status(1, r#""progress": 100, "status": 200"#);
    let running_status = status(2, r#""progress": 10"#);
    let done = status(2, r#""progress": 100, "status": 200"#);
    let unknown = status(2, r#""progress": 100, "status": 500, "state": "UNKNOWN""#);
    let failed = status(2, r#""progress": 100, "status": 507"#);
    let other = running_status.replace("456", "457");
    let again = running_status.replace("seq=2", "seq=3");
    let rows: Vec<(&str, Vec<&str>, &str)> = vec![
        ("nothing new", vec![&old], "NotBegun"),
        (
            "running",
            vec![&running_status, &old],
            "Task(TaskRef(\"/statuses?seq=2\"))",
        ),
        ("done", vec![&done, &old], "Done"),
        ("failed", vec![&failed, &old], "Failed"),
        ("not known there", vec![&unknown, &old], "Unknowable"),
        (
            "two that fit",
            vec![&again, &running_status, &old],
            "Unknowable",
        ),
        ("of another backup", vec![&other, &old], "NotBegun"),
    ];
    let clock = Arc::new(ManualClock::new(SystemClock.now()));
    for (name, list, expected) in &rows {
        let before = listing(&[&old]);
        let shared = Arc::<ManualClock>::clone(&clock);
        let adapter = before.adapter(Recovery::Listable, shared);
        let baseline = adapter
            .baseline(&restore(), key(9), by(20_000))
            .await
            .unwrap();
        let after = listing(list);
        let shared = Arc::<ManualClock>::clone(&clock);
        let adapter = after.adapter(Recovery::Listable, shared);
        let found = adapter
            .find_outcome(&restore(), key(9), baseline.as_ref(), by(20_000))
            .await;
        let found = format!("{:?}", found.unwrap());
        assert!(found.starts_with(expected), "{name}: {found}");
    }
    let script = listing(&[&old]);
    let adapter = script.adapter(Recovery::ReplaySafe, Arc::<ManualClock>::clone(&clock));
    let baseline = adapter
        .baseline(&restore(), key(9), by(20_000))
        .await
        .unwrap();
    clock.advance(Duration::from_secs(13 * 3600));
    let found = adapter
        .find_outcome(&restore(), key(9), baseline.as_ref(), by(20_000))
        .await;
    let found = found.unwrap();
    assert!(
        matches!(found, FindOutcome::Unknowable),
        "a day later it may be forgotten: {found:?}"
    );
    let error = adapter
        .begin(&restore(), key(9), baseline.as_ref(), by(20_000))
        .await;
    let error = error.unwrap_err();
    assert_eq!(
        error.effect,
        Effect::Possible,
        "and is not asked for again: {error:?}"
    );
    let posts = script
        .requests()
        .iter()
        .filter(|request| request.starts_with("POST"))
        .count();
    assert_eq!(posts, 0, "nothing was sent");
    let no_trace = script.adapter(Recovery::NoTrace, SystemClock::shared());
    let found = no_trace
        .find_outcome(&restore(), key(9), None, by(20_000))
        .await
        .unwrap();
    assert!(
        matches!(found, FindOutcome::Unknowable),
        "a restore leaves no trace: {found:?}"
    );
}

#[apply(test)]
async fn unsupported_servers_are_refused_at_once() {
    let versions = |versions: &'static str| {
        move |request: &str| {
            if request.starts_with("GET /versions ") {
                http("200 OK", "", versions)
            } else {
                http(
                    "405 M",
                    "",
                    r#"{"message": [{"code": "MethodNotAllowed"}]}"#,
                )
            }
        }
    };
    let rows = [
        (
            "other version",
            r#"{"specification_version": "0.9"}"#,
            Recovery::NoTrace,
            Some("version"),
        ),
        (
            "fits",
            r#"{"specification_version": "0.2, 0.1"}"#,
            Recovery::NoTrace,
            None,
        ),
        (
            "lists nothing",
            r#"{"specification_version": "0.1"}"#,
            Recovery::Listable,
            Some("understand"),
        ),
    ];
    for (name, listed, recovery, expected) in rows {
        let script = Script::start(versions(listed));
        let health = script
            .adapter(recovery, SystemClock::shared())
            .health(by(20_000))
            .await;
        match (health, expected) {
            (Ok(health), None) => {
                assert!(health.product.contains("0.2, 0.1"), "{name}: {health:?}");
            }
            (Err(error), Some(expected)) => {
                assert!(error.fault.text.contains(expected), "{name}: {error:?}");
            }
            (found, expected) => panic!("{name}: {found:?} instead of {expected:?}"),
        }
    }
    // A list that never ends is given up.
    let endless = Script::start(|_| {
        http(
            "200 OK",
            "link: </x>; rel=\"next\"\r\n",
            &format!(r#"{{"backups": [{BACKUP}]}}"#),
        )
    });
    let adapter = endless.adapter(Recovery::NoTrace, SystemClock::shared());
    let page = Page {
        after: None,
        limit: 5,
    };
    let error = adapter
        .list_backups(&VmId::new("1").unwrap(), &page, by(20_000))
        .await
        .unwrap_err();
    assert_eq!(error.fault.kind, FaultKind::BackendFailed, "{error:?}");
    assert_eq!(endless.requests().len(), 2, "the same page twice is enough");
}

#[apply(test)]
async fn a_task_is_stopped_where_the_server_can() {
    let code = |code: &str| format!(r#"{{"message": [{{"code": "{code}"}}]}}"#);
    let rows = [
        (
            "asked",
            http(
                "202 A",
                "",
                &status_body("back_up", r#""progress": 5, "status_uri": "/s""#),
            ),
            None,
        ),
        (
            "not offered",
            http("405 M", "", &code("MethodNotAllowed")),
            Some((FaultKind::Unsupported, Retry::Permanent)),
        ),
        (
            "over already",
            http("409 C", "", &code("NotCancellable")),
            Some((FaultKind::Unsupported, Retry::Permanent)),
        ),
        (
            "not now",
            http("503 S", "", &code("Unavailable")),
            Some((FaultKind::Unavailable, Retry::Temporary)),
        ),
    ];
    for (name, answer, expected) in rows {
        let script = Script::start(move |_| answer.clone());
        let adapter = script.adapter(Recovery::Listable, SystemClock::shared());
        let task = TaskRef::new("/statuses?op=back_up&seq=7".to_owned()).unwrap();
        let asked = adapter.cancel(&task, by(20_000)).await;
        let found = asked.err().map(|error| (error.fault.kind, error.retry));
        assert_eq!(found, expected, "{name}");
        let requests = script.requests();
        assert_eq!(requests.len(), 1, "{name}: asked once");
        let line = "DELETE /statuses?op=back_up&seq=7 ";
        assert!(requests[0].starts_with(line), "{name}: {requests:?}");
    }
}
