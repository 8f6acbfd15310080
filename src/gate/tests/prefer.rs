//! Preferences, profiles and conditions as the whole walk honours them.

use crate::gate::Profile;
use crate::gate::tests::rig::Rig;
use crate::gate::tests::rig::header;
use crate::gate::tests::rig::json;
use crate::gate::tests::rig::status;

const B: &str = "/vms/33333/backups/456";

#[tokio::test]
async fn waiting_is_capped_bounded_and_told() {
    let mut rig = Rig::new();
    rig.fake.0.lock().unwrap().quick = true;
    let restore = format!("POST {B}/restore\nas: ann\nv");
    let found = rig.send(&restore).await;
    assert_eq!(json(&found)["progress"], 0, "nobody asked to wait");
    assert_eq!(header(&found, "retry-after"), "2", "look again");
    let found = rig.send(&format!("{restore}\nPrefer: wait=999")).await;
    assert_eq!(json(&found)["progress"], 100, "waited for the end");
    assert_eq!(header(&found, "preference-applied"), "wait=50", "capped");
    assert_eq!(header(&found, "retry-after"), "", "nothing to look for");
    let polled = rig
        .send("GET /statuses?seq=1\nas: ann\nPrefer: wait=5")
        .await;
    assert_eq!(json(&polled)["progress"], 100, "long poll");
    assert_eq!(header(&polled, "preference-applied"), "wait=5", "told");
    rig.reload(|it| it.limits.waiters = 0);
    let found = rig.send(&format!("{restore}\nPrefer: wait=5")).await;
    assert_eq!(json(&found)["progress"], 0, "no place to wait");
    assert_eq!(header(&found, "preference-applied"), "", "and not told");
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
        "told"
    );
    rig.reload(|it| it.specification.profile = Profile::Strict);
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
