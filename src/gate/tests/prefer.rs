//! Preferences, profiles and conditions as the whole walk honours them.

use std::pin::Pin;
use std::task::Poll;

use crate::gate::HandledRequest;
use crate::gate::Profile;
use crate::gate::tests::rig::Rig;
use crate::gate::tests::rig::header;
use crate::gate::tests::rig::json;
use crate::gate::tests::rig::status;
use crate::model::Phase;

const B: &str = "/vms/33333/backups/456";

#[tokio::test]
async fn waiting_is_capped_bounded_and_reported() {
    let mut rig = Rig::new();
    rig.operations.state().ends_when_awaited = true;
    let restore = format!("POST {B}/restore\nas: ann\nv");
    let found = rig.send(&restore).await;
    assert_eq!(json(&found)["progress"], 0, "no wait was requested");
    assert_eq!(header(&found, "retry-after"), "2", "look again");
    let found = rig.send(&format!("{restore}\nPrefer: wait=999")).await;
    assert_eq!(json(&found)["progress"], 100, "waited for the end");
    assert_eq!(header(&found, "preference-applied"), "wait=50", "capped");
    assert_eq!(header(&found, "retry-after"), "", "nothing to look for");
    let polled = rig
        .send("GET /statuses?seq=1\nas: ann\nPrefer: wait=5")
        .await;
    assert_eq!(json(&polled)["progress"], 100, "long poll");
    assert_eq!(header(&polled, "preference-applied"), "wait=5", "applied");
    rig.reload(|rig| rig.limits.waiters = 0);
    let found = rig.send(&format!("{restore}\nPrefer: wait=5")).await;
    assert_eq!(json(&found)["progress"], 0, "no place to wait");
    assert_eq!(header(&found, "preference-applied"), "", "and not applied");
}

/// The answer if it is there without waiting.
async fn at_once(asked: Pin<&mut impl Future<Output = HandledRequest>>) -> Option<HandledRequest> {
    match futures_util::poll!(asked) {
        Poll::Ready(found) => Some(found),
        Poll::Pending => None,
    }
}

/// A Status that is queued (revision 1), makes progress (2) and ends (3), asked for in every way.
#[tokio::test]
async fn a_wait_is_for_the_end_and_with_a_tag_for_the_next_change() {
    // name, method, selector, If-None-Match, tag of the answer, its status
    let rows = [
        ("by number", "GET", "seq=1", None, "\"1-3\"", 200),
        ("by backup", "GET", "vm=33333&b=456", None, "\"1-3\"", 200),
        ("HEAD", "HEAD", "seq=1", None, "\"1-3\"", 200),
        ("known", "GET", "seq=1", Some("\"1-1\""), "\"1-2\"", 200),
        (
            "by backup, known",
            "GET",
            "vm=33333&b=456",
            Some("\"1-1\""),
            "\"1-2\"",
            200,
        ),
        (
            "HEAD, known",
            "HEAD",
            "seq=1",
            Some("\"1-1\""),
            "\"1-2\"",
            200,
        ),
        ("any", "GET", "seq=1", Some("*"), "\"1-2\"", 304),
        ("not known", "GET", "seq=1", Some("\"1-0\""), "\"1-1\"", 200),
    ];
    for (name, method, selector, tag, expected, code) in rows {
        let rig = Rig::new();
        rig.operations.state().waits_for_changes = true;
        rig.send(&format!("POST {B}/restore\nas: ann\nv")).await;
        let tag = tag.map_or_else(String::new, |tag| format!("\nIf-None-Match: {tag}"));
        let request = format!("{method} /statuses?{selector}\nas: ann\nPrefer: wait=40{tag}");
        let asked = rig.send(&request);
        tokio::pin!(asked);
        let mut found = at_once(asked.as_mut()).await;
        for phase in [Phase::Running, Phase::Succeeded] {
            if found.is_none() {
                rig.change_operation(1, phase, 40);
                found = at_once(asked.as_mut()).await;
            }
        }
        let found = found.unwrap_or_else(|| panic!("{name}: answered at the end"));
        assert_eq!(
            header(&found, "etag"),
            expected,
            "{name}: what it waited for"
        );
        assert_eq!(status(&found), code, "{name}: status");
    }
}

#[tokio::test]
async fn the_answer_to_a_cancellation_waits_for_the_end_too() {
    let rig = Rig::new();
    {
        let mut state = rig.operations.state();
        state.waits_for_changes = true;
        state.cancels_later = true;
    }
    rig.send(&format!("POST {B}/restore\nas: ann\nv")).await;
    let cancel = "DELETE /statuses?seq=1\nas: ann";
    let found = rig.send(cancel).await;
    assert_eq!(json(&found)["state"], "QUEUED", "no wait was asked for");
    let request = format!("{cancel}\nPrefer: wait=40");
    let asked = rig.send(&request);
    tokio::pin!(asked);
    assert!(at_once(asked.as_mut()).await.is_none(), "held");
    rig.change_operation(1, Phase::Cancelled, 0);
    let found = at_once(asked.as_mut()).await.expect("answered at the end");
    assert_eq!(status(&found), 202, "as every change");
    assert_eq!(json(&found)["state"], "CANCELLED", "the end");
    assert_eq!(header(&found, "preference-applied"), "wait=40", "named");
}

#[tokio::test]
async fn the_strict_profile_needs_no_preference() {
    let mut rig = Rig::new();
    let get = format!("GET {B}\nas: ann\nv\nAccept: application/vnd.com.sun.cloud.VM+json");
    assert_eq!(status(&rig.send(&get).await), 200, "lenient");
    let strict = rig.send(&format!("{get}\nPrefer: handling=strict")).await;
    assert_eq!(status(&strict), 406, "asked for");
    assert_eq!(
        header(&strict, "preference-applied"),
        "handling=strict",
        "applied"
    );
    rig.reload(|rig| rig.specification.profile = Profile::Strict);
    assert_eq!(status(&rig.send(&get).await), 406, "configured");
}

#[tokio::test]
async fn a_backup_is_guarded_by_its_tag() {
    let rig = Rig::new();
    let get = format!("GET {B}\nas: ann\nv");
    let first = rig.send(&get).await;
    let tag = header(&first, "etag");
    let known = rig.send(&format!("{get}\nIf-None-Match: {tag}")).await;
    assert_eq!(status(&known), 304, "known");
    assert!(known.response.body().is_empty(), "and not sent again");
    for (condition, expected) in [("\"other\"", 412), (tag, 202)] {
        let found = rig
            .send(&format!("DELETE {B}\nas: ann\nv\nIf-Match: {condition}"))
            .await;
        assert_eq!(status(&found), expected, "{condition}");
    }
}

#[tokio::test]
async fn errors_come_in_the_preferred_type_and_name_no_server() {
    let rig = Rig::new();
    let found = rig
        .send(&format!("GET {B}\nAccept: application/problem+json"))
        .await;
    assert_eq!(
        header(&found, "content-type"),
        "application/problem+json",
        "type"
    );
    assert_eq!(
        json(&found)["type"],
        "/problems/Unauthenticated",
        "problem type"
    );
    assert_eq!(json(&found)["status"], 401, "status");
    assert_eq!(
        header(&found, "x-request-id"),
        found.request.as_str(),
        "request id"
    );
    assert_eq!(header(&found, "server"), "", "no Server");
}
