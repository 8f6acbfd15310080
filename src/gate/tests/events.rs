//! Streams of events, without a socket.

use std::time::Duration;

use bytes::Bytes;

use crate::gate::tests::rig::Rig;
use crate::gate::tests::rig::header;
use crate::gate::tests::rig::json;
use crate::gate::tests::rig::status;
use crate::model::Phase;
use crate::model::limits;

const RESTORE: &str = "POST /vms/33333/backups/456/restore\nas: ann\nv";
const GET: &str = "GET /statuses?seq=1\nas: ann\nAccept: text/event-stream";

/// A gate with one accepted operation, over a service that keeps those who wait.
async fn rig() -> Rig {
    let rig = Rig::new();
    rig.operations.state().waits_for_changes = true;
    assert_eq!(status(&rig.send(RESTORE).await), 202, "accepted");
    rig
}

fn text(piece: Option<Bytes>) -> String {
    String::from_utf8(piece.expect("a piece").to_vec()).unwrap()
}

/// The id and the Status of one event.
fn event(text: &str) -> (String, serde_json::Value) {
    let lines: Vec<_> = text.lines().collect();
    let [id, data, ""] = lines[..] else {
        panic!("one event: {text:?}")
    };
    let data = data.strip_prefix("data: ").unwrap();
    let id = id.strip_prefix("id: ").unwrap().to_owned();
    (id, serde_json::from_str(data).unwrap())
}

fn waiters(rig: &Rig) -> String {
    let text = String::from_utf8(rig.gate.services.metrics.encode_text()).unwrap();
    let mut lines = text.lines();
    let found = lines.find_map(|line| line.strip_prefix("snapgate_waiters "));
    found.unwrap().to_owned()
}

#[tokio::test]
async fn a_stream_has_every_change_and_ends_with_the_status() {
    let rig = rig().await;
    let begun = rig.send(GET).await;
    assert_eq!(status(&begun), 200, "begun");
    assert_eq!(header(&begun, "content-type"), "text/event-stream", "type");
    assert_eq!(header(&begun, "cache-control"), "no-store", "never kept");
    assert_eq!(
        header(&begun, "content-length"),
        "",
        "the length is unknown"
    );
    assert_eq!(begun.route, "events", "counted apart");
    assert_eq!(begun.operation.unwrap().number(), 1, "for the log");
    let mut pieces = begun.pieces.unwrap();
    let first = text(pieces.next().await);
    let first = first
        .strip_prefix("retry: 2000\n\n")
        .expect("how soon to ask again");
    let (id, shown) = event(first);
    assert_eq!(
        (id.as_str(), &shown["progress"]),
        ("1-1", &0.into()),
        "the present"
    );
    assert_eq!(waiters(&rig), "1", "one waits");
    rig.change_operation(1, Phase::Running, 40);
    let (id, shown) = event(&text(pieces.next().await));
    assert_eq!(
        (id.as_str(), &shown["progress"]),
        ("1-2", &40.into()),
        "a change"
    );
    assert_eq!(shown["state"], "RUNNING", "a whole Status");
    let (woken, ()) = tokio::join!(pieces.next(), async {
        tokio::task::yield_now().await;
        rig.change_operation(1, Phase::Succeeded, 100);
    });
    let (id, shown) = event(&text(woken));
    assert_eq!(
        (id.as_str(), &shown["progress"]),
        ("1-3", &100.into()),
        "the end"
    );
    assert_eq!(shown["status"], 200, "with its outcome");
    assert_eq!(pieces.next().await, None, "and no more");
    assert_eq!(pieces.next().await, None, "ever");
    drop(pieces);
    assert_eq!(waiters(&rig), "0", "the place is given back");
    let again = rig.send(&format!("{GET}\nLast-Event-ID: 1-3")).await;
    assert_eq!(status(&again), 204, "who knows the end need not ask again");
    assert!(again.pieces.is_none(), "and receives nothing");
}

#[tokio::test]
async fn a_client_that_was_away_takes_up_where_it_was() {
    let rig = rig().await;
    rig.change_operation(1, Phase::Submitting, 0);
    rig.change_operation(1, Phase::Running, 7);
    // Last-Event-ID, what comes at once
    let rows = [
        (None, Some("1-3")),
        (Some("1-1"), Some("1-3")),
        (Some(" 1-3 "), None),
        (Some("1-9"), Some("1-3")),
    ];
    for (last, expected) in rows {
        let header = last.map_or(String::new(), |id| format!("\nLast-Event-ID: {id}"));
        let begun = rig.send(&format!("{GET}{header}")).await;
        let first = text(begun.pieces.unwrap().next().await);
        let rest = first.strip_prefix("retry: 2000\n\n").unwrap();
        let found = (!rest.is_empty()).then(|| event(rest).0);
        assert_eq!(found.as_deref(), expected, "{last:?}");
    }
    for last in [
        "",
        "1",
        "1-",
        "-1",
        "1-1-1",
        "x-1",
        "1-x",
        "+1-1",
        "0-1",
        "2-1",
        "1-1\nLast-Event-ID: 1-1",
    ] {
        let found = rig.send(&format!("{GET}\nLast-Event-ID: {last}")).await;
        assert_eq!(found.refusal, Some("MalformedLastEventId"), "{last:?}");
        assert_eq!(
            json(&found)["message"][0]["field"],
            "Last-Event-ID",
            "{last:?}: named"
        );
    }
    let once = rig
        .send("GET /statuses?seq=1\nas: ann\nLast-Event-ID: x")
        .await;
    assert_eq!(status(&once), 200, "means nothing where there is no stream");
}

#[tokio::test(start_paused = true)]
async fn a_silent_stream_shows_signs_of_life_and_ends_in_time() {
    let rig = rig().await;
    let mut pieces = rig.send(GET).await.pieces.unwrap();
    text(pieces.next().await);
    let mut beats = Duration::ZERO;
    while beats < limits::STREAM {
        assert_eq!(text(pieces.next().await), ":\n\n", "after {beats:?}");
        rig.clock.advance(limits::STREAM_HEARTBEAT);
        beats += limits::STREAM_HEARTBEAT;
    }
    assert_eq!(pieces.next().await, None, "asked to come again");
}

#[tokio::test]
async fn without_a_place_to_wait_a_stream_is_a_look() {
    let mut rig = rig().await;
    rig.reload(|rig| rig.limits.waiters = 1);
    let first = rig.send(GET).await;
    let mut second = rig.send(GET).await.pieces.unwrap();
    let shown = text(second.next().await);
    assert!(shown.starts_with("retry: 10000\n\nid: 1-1\n"), "{shown:?}");
    assert_eq!(second.next().await, None, "not kept");
    drop(first);
    let third = rig.send(GET).await.pieces.unwrap().next().await;
    assert!(
        text(third).starts_with("retry: 2000\n"),
        "the place is free"
    );
}

#[tokio::test]
async fn streams_end_when_the_gateway_stops() {
    let rig = rig().await;
    let mut pieces = rig.send(GET).await.pieces.unwrap();
    text(pieces.next().await);
    let poll = "GET /statuses?seq=1\nas: ann\nPrefer: wait=40";
    let (stream, polled, ()) = tokio::join!(pieces.next(), rig.send(poll), async {
        tokio::task::yield_now().await;
        rig.shared.release_waiters();
    });
    assert_eq!(stream, None, "the stream ends");
    assert_eq!(status(&polled), 200, "the long poll is answered");
    assert_eq!(json(&polled)["progress"], 0, "with the present");
    let later = rig.send(&format!("{RESTORE}\nPrefer: wait=40")).await;
    assert_eq!(status(&later), 202, "and no new request waits");
}

#[tokio::test]
async fn streams_are_for_those_who_name_them_and_may_see_the_status() {
    let rig = rig().await;
    let accept = "Accept: text/event-stream";
    // name, request, status, type
    let rows = [
        ("named", GET, 200, "text/event-stream"),
        (
            "named best",
            "GET /statuses?seq=1\nas: ann\nAccept: application/json;q=0.5, text/event-stream",
            200,
            "text/event-stream",
        ),
        (
            "named worst",
            "GET /statuses?seq=1\nas: ann\nAccept: text/event-stream;q=0.5, application/json",
            200,
            "application/json",
        ),
        (
            "anything",
            "GET /statuses?seq=1\nas: ann\nAccept: */*",
            200,
            "application/vnd.com.sun.cloud.Status+json",
        ),
        (
            "nothing",
            "GET /statuses?seq=1\nas: ann",
            200,
            "application/vnd.com.sun.cloud.Status+json",
        ),
        (
            "any text",
            "GET /statuses?seq=1\nas: ann\nAccept: text/*",
            406,
            "application/vnd.com.sun.cloud.common.Messages+json",
        ),
        (
            "without a number",
            "GET /statuses?vm=33333&b=456\nas: ann\nAccept: text/event-stream",
            200,
            "text/event-stream",
        ),
        (
            "HEAD",
            "HEAD /statuses?seq=1\nas: ann\nAccept: text/event-stream",
            200,
            "text/event-stream",
        ),
    ];
    for (name, request, code, media) in rows {
        let found = rig.send(request).await;
        assert_eq!(status(&found), code, "{name}: status");
        assert_eq!(header(&found, "content-type"), media, "{name}: type");
        let streams = media == "text/event-stream" && name != "HEAD";
        assert_eq!(found.pieces.is_some(), streams, "{name}: pieces");
    }
    let refused = [
        ("a list", "GET /statuses\nas: ann", "NotAcceptable"),
        (
            "a cancel",
            "DELETE /statuses?seq=1\nas: ann",
            "NotAcceptable",
        ),
        (
            "a backup",
            "GET /vms/33333/backups/456\nas: ann\nv",
            "NotAcceptable",
        ),
        (
            "another caller's",
            "GET /statuses?seq=1\nas: reader",
            "NoSuchStatus",
        ),
        (
            "without credentials",
            "GET /statuses?seq=1",
            "Unauthenticated",
        ),
        ("none", "GET /statuses?seq=7\nas: ann", "NoSuchStatus"),
        (
            "another",
            "GET /statuses?vm=9&seq=1\nas: ann",
            "NoSuchStatus",
        ),
    ];
    for (name, request, code) in refused {
        let found = rig.send(&format!("{request}\n{accept}")).await;
        assert_eq!(found.refusal, Some(code), "{name}");
    }
    assert_eq!(waiters(&rig), "0", "no place is left taken");
}
