//! The stream of all Statuses, without a socket.

use std::time::Duration;

use crate::gate::HandledRequest;
use crate::gate::request::BodyStream;
use crate::gate::tests::rig::Rig;
use crate::gate::tests::rig::header;
use crate::gate::tests::rig::json;
use crate::gate::tests::rig::status;
use crate::model::Phase;
use crate::model::limits;
use crate::operations::ChangeFeed;
use crate::operations::ChangeHistory;
use crate::operations::StoreRun;

const ALL: &str = "GET /statuses\nas: ann\nAccept: text/event-stream";
const RESTORE: &str = "POST /vms/33333/backups/456/restore\nas: ann\nv";
const PROTECT: &str = "PUT /vms/333333/backups/456\nas: shield\nv\nContent-Type: application/json\n\n{\"protected\":true}";

type Pieces = Box<dyn BodyStream>;

/// A gate with one operation of `ann` and, on another VM, one of `shield`.
async fn rig() -> Rig {
    let rig = Rig::new();
    rig.operations.state().waits_for_changes = true;
    assert_eq!(status(&rig.send(RESTORE).await), 202, "accepted");
    let protect = PROTECT.replace("\n\n", "\nPrefer: respond-async\n\n");
    assert_eq!(status(&rig.send(&protect).await), 202, "accepted");
    rig
}

/// One block of a stream: its fields.
#[derive(Debug, Default, PartialEq, Eq)]
struct Block {
    id: Option<String>,
    event: Option<String>,
    /// The number of the operation and its state.
    data: Option<(u64, String)>,
}

fn parse(text: &str) -> Vec<Block> {
    let blocks = text.split_terminator("\n\n");
    blocks
        .map(|lines| {
            let mut block = Block::default();
            for line in lines.lines() {
                match line.split_once(": ") {
                    Some(("id", id)) => block.id = Some(id.to_owned()),
                    Some(("event", event)) => block.event = Some(event.to_owned()),
                    Some(("data", "{}")) => {}
                    Some(("data", data)) => {
                        let data: serde_json::Value = serde_json::from_str(data).unwrap();
                        let uri = data["status_uri"].as_str().unwrap();
                        let seq = uri.split_once("seq=").unwrap().1.parse().unwrap();
                        block.data = Some((seq, data["state"].as_str().unwrap().to_owned()));
                    }
                    Some(("retry", _)) => {}
                    _ => assert_eq!(line, ":", "a comment"),
                }
            }
            block
        })
        .collect()
}

/// What comes within a moment, as blocks that have something in them.
async fn read(pieces: &mut Pieces) -> Vec<Block> {
    let mut found = Vec::new();
    while let Ok(Some(piece)) =
        tokio::time::timeout(limits::STREAM_PACE.saturating_mul(3), pieces.next()).await
    {
        found.extend(parse(str::from_utf8(&piece).unwrap()));
    }
    found.retain(|block| *block != Block::default());
    found
}

async fn begin(rig: &Rig, request: &str) -> Pieces {
    let begun = rig.send(request).await;
    assert_eq!(status(&begun), 200, "{request}: {:?}", begun.refusal);
    begun.pieces.expect("a stream")
}

/// The operations that a stream begins with, and the id to resume from.
async fn present(rig: &Rig, request: &str) -> (Vec<(u64, String)>, String) {
    let blocks = read(&mut begin(rig, request).await).await;
    let id = blocks.iter().rev().find_map(|block| block.id.clone());
    let data = blocks.into_iter().filter_map(|block| block.data);
    (data.collect(), id.expect("an id"))
}

fn seqs(found: &[(u64, String)]) -> Vec<u64> {
    found.iter().map(|(seq, _)| *seq).collect()
}

fn change(rig: &Rig, seq: u64, phase: Phase) {
    rig.change_operation(seq, phase, 50);
}

fn waiters(rig: &Rig) -> String {
    let text = String::from_utf8(rig.gate.services.metrics.encode_text()).unwrap();
    let mut lines = text.lines();
    let found = lines.find_map(|line| line.strip_prefix("snapgate_waiters "));
    found.unwrap().to_owned()
}

fn is_stream(begun: &HandledRequest) -> bool {
    header(begun, "content-type") == "text/event-stream" && begun.pieces.is_some()
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_all_begins_with_the_present_and_has_every_change() {
    let rig = rig().await;
    let begun = rig.send(ALL).await;
    assert!(is_stream(&begun), "a stream: {begun:?}");
    assert_eq!(header(&begun, "cache-control"), "no-store", "never kept");
    assert_eq!(header(&begun, "x-accel-buffering"), "no", "not buffered");
    assert_eq!(begun.route, "events", "counted apart");
    let mut pieces = begun.pieces.unwrap();
    let first = pieces.next().await.unwrap();
    assert_eq!(&*first, b"retry: 2000\n\n", "how soon to ask again");
    let blocks = read(&mut pieces).await;
    let data: Vec<_> = blocks
        .iter()
        .filter_map(|block| block.data.clone())
        .collect();
    assert_eq!(seqs(&data), [1, 2], "own, and those it may observe");
    let ids: Vec<_> = blocks.iter().filter(|block| block.id.is_some()).collect();
    assert_eq!(ids.len(), 1, "one id when everything was sent: {blocks:?}");
    assert_eq!(ids[0].data, None, "and no event: {blocks:?}");
    change(&rig, 1, Phase::Running);
    let running = read(&mut pieces).await;
    assert_eq!(running.len(), 1, "one event: {running:?}");
    assert_eq!(
        running[0].data,
        Some((1, "RUNNING".to_owned())),
        "the change"
    );
    change(&rig, 2, Phase::Running);
    change(&rig, 1, Phase::Uncertain);
    change(&rig, 1, Phase::Succeeded);
    let ended = read(&mut pieces).await;
    let data: Vec<_> = ended
        .iter()
        .filter_map(|block| block.data.clone())
        .collect();
    let expected = [(2, "RUNNING".to_owned()), (1, "SUCCESS".to_owned())];
    assert_eq!(data, expected, "superseded states are left out");
    let numbers: Vec<u64> = running
        .iter()
        .chain(&ended)
        .map(|block| block.id.as_ref().unwrap().split_once('-').unwrap().1)
        .map(|number| number.parse().unwrap())
        .collect();
    assert_eq!(numbers, [3, 4, 6], "ids rise");
    drop(pieces);
    assert_eq!(waiters(&rig), "0", "the place is given back");
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_all_shows_what_the_caller_may_see_and_asks_for() {
    let mut rig = rig().await;
    rig.reload(|config| {
        // Enough to see it, not to do it.
        let mut grant = config.grants[0].clone();
        grant.to = config.grants[1].to.clone();
        grant.actions = [crate::model::Action::Observe].into_iter().collect();
        grant.vms = vec![crate::model::Pattern::new("333333").unwrap()];
        config.grants.push(grant);
    });
    let rows: [(&str, &[u64]); 13] = [
        ("GET /statuses\nas: ann", &[1, 2]),
        ("GET /statuses\nas: shield", &[2]),
        ("GET /statuses\nas: reader", &[2]),
        ("GET /statuses\nas: stranger", &[]),
        ("GET /statuses?vm=33333\nas: ann", &[1]),
        ("GET /statuses?vm=333333\nas: reader", &[2]),
        ("GET /statuses?vm=33333\nas: reader", &[]),
        ("GET /statuses?op=RESTORE-backup\nas: ann", &[1]),
        ("GET /statuses?op=update-Backup&vm=33333\nas: ann", &[]),
        ("GET /statuses?principal=me\nas: ann", &[1]),
        ("GET /statuses?principal=shield\nas: ann", &[2]),
        ("GET /statuses?principal=ann\nas: reader", &[]),
        ("GET /statuses?principal=ann\nas: stranger", &[]),
    ];
    for (request, expected) in rows {
        let request = format!("{request}\nAccept: text/event-stream");
        let (found, _) = present(&rig, &request).await;
        assert_eq!(seqs(&found), expected, "{request}: at first");
        let mut pieces = begin(&rig, &request).await;
        read(&mut pieces).await;
        change(&rig, 1, Phase::Running);
        change(&rig, 2, Phase::Running);
        let found: Vec<_> = read(&mut pieces).await;
        let found: Vec<_> = found.into_iter().filter_map(|block| block.data).collect();
        assert_eq!(seqs(&found), expected, "{request}: as it changes");
    }
    let refused = [
        ("GET /statuses?op=x\nas: ann", "InvalidParameter"),
        ("GET /statuses?principal=a%20b\nas: ann", "InvalidParameter"),
        (
            "GET /statuses?state=RUNNING\nas: ann\nPrefer: handling=strict",
            "InvalidParameter",
        ),
        ("GET /statuses", "Unauthenticated"),
    ];
    for (request, code) in refused {
        let request = format!("{request}\nAccept: text/event-stream");
        assert_eq!(rig.send(&request).await.refusal, Some(code), "{request}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_all_goes_on_after_the_last_event() {
    let rig = rig().await;
    let (_, id) = present(&rig, ALL).await;
    change(&rig, 1, Phase::Running);
    change(&rig, 1, Phase::Succeeded);
    let (found, later) = present(&rig, &format!("{ALL}\nLast-Event-ID: {id}")).await;
    assert_eq!(found, [(1, "SUCCESS".to_owned())], "what changed since");
    let (none, _) = {
        let mut pieces = begin(&rig, &format!("{ALL}\nLast-Event-ID: {later}")).await;
        (read(&mut pieces).await, ())
    };
    assert_eq!(none, [], "nothing did");
    // A reader that saw nothing of what changed is moved along, so that it resumes from there.
    let request = "GET /statuses\nas: stranger\nAccept: text/event-stream";
    let (found, at) = present(&rig, &format!("{request}\nLast-Event-ID: {id}")).await;
    assert_eq!((found, at), (vec![], later), "without an event");
    for malformed in [
        "",
        "x",
        "1-1",
        "0000000000000001",
        "0000000000000001-",
        "000000000000000x-1",
        "0000000000000001--1",
        "0000000000000001-1\nLast-Event-ID: 0000000000000001-1",
    ] {
        let request = format!("{ALL}\nLast-Event-ID: {malformed}");
        let found = rig.send(&request).await;
        assert_eq!(found.refusal, Some("MalformedLastEventId"), "{malformed:?}");
        assert_eq!(
            json(&found)["message"][0]["field"],
            "Last-Event-ID",
            "named"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_id_that_is_not_of_this_history_begins_anew_and_says_so() {
    let rig = rig().await;
    change(&rig, 1, Phase::Succeeded);
    let feed = |base, forgotten| {
        ChangeFeed::new(ChangeHistory {
            runs: vec![StoreRun { base: 0, mark: 7 }, StoreRun { base, mark: 8 }],
            latest: 3,
            forgotten,
        })
    };
    rig.operations.state().feed = feed(2, 1).into();
    // id, whether it is good
    let rows = [
        ("0000000000000007-1", true),
        ("0000000000000007-2", true),
        ("0000000000000007-3", false),
        ("0000000000000008-2", true),
        ("0000000000000008-3", true),
        ("0000000000000008-4", false),
        ("0000000000000007-0", false),
        ("0000000000000009-2", false),
    ];
    for (id, good) in rows {
        let mut pieces = begin(&rig, &format!("{ALL}\nLast-Event-ID: {id}")).await;
        let blocks = read(&mut pieces).await;
        let is_reset = blocks[..].first().and_then(|block| block.event.clone());
        assert_eq!(
            is_reset.as_deref() == Some("reset"),
            !good,
            "{id}: {blocks:?}"
        );
        let has_id = blocks.first().is_some_and(|block| block.id.is_some());
        assert!(good || !has_id, "{id}: asked for again until all is there");
        if !good {
            let mut found: Vec<_> = blocks
                .iter()
                .filter_map(|block| block.data.clone())
                .collect();
            found.sort();
            assert_eq!(seqs(&found), [1, 2], "{id}: the present");
            let last = blocks.last().unwrap().id.as_deref();
            assert_eq!(last, Some("0000000000000008-3"), "{id}: and where it is");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_falls_behind_the_memory_is_served_from_the_store() {
    let rig = rig().await;
    let mut pieces = begin(&rig, ALL).await;
    read(&mut pieces).await;
    for _ in 0..=limits::CHANGES_KEPT_MAX {
        change(&rig, 2, Phase::Running);
    }
    change(&rig, 1, Phase::Succeeded);
    let blocks = read(&mut pieces).await;
    let data: Vec<_> = blocks
        .iter()
        .filter_map(|block| block.data.clone())
        .collect();
    let expected = [(2, "RUNNING".to_owned()), (1, "SUCCESS".to_owned())];
    assert_eq!(data, expected, "the newest state of each, and no more");
}

#[tokio::test(start_paused = true)]
async fn a_silent_stream_of_all_shows_signs_of_life_and_ends_in_time() {
    let rig = rig().await;
    let mut pieces = begin(
        &rig,
        "GET /statuses?vm=1\nas: ann\nAccept: text/event-stream",
    )
    .await;
    read(&mut pieces).await;
    assert_eq!(&*pieces.next().await.unwrap(), b":\n\n", "a sign of life");
    change(&rig, 1, Phase::Running);
    let sign = pieces.next().await.unwrap();
    assert_eq!(&*sign, b"id: 0000000000000001-3\n\n", "or where it is");
    let mut beats = Duration::ZERO;
    while beats < limits::STREAM {
        assert_eq!(&*pieces.next().await.unwrap(), b":\n\n", "after {beats:?}");
        rig.clock.advance(limits::STREAM_HEARTBEAT);
        beats += limits::STREAM_HEARTBEAT;
    }
    assert_eq!(pieces.next().await, None, "asked to come again");
}

#[tokio::test(start_paused = true)]
async fn streams_end_when_another_configuration_is_used() {
    let mut rig = rig().await;
    let requests = [
        ALL,
        "GET /statuses?seq=1\nas: ann\nAccept: text/event-stream",
    ];
    for request in requests {
        let mut waiting = begin(&rig, request).await;
        let mut catching_up = begin(&rig, request).await;
        read(&mut waiting).await;
        catching_up.next().await.expect("it has begun");
        rig.reload(|config| config.grants.clear());
        assert_eq!(waiting.next().await, None, "{request}: one that waits");
        assert_eq!(
            catching_up.next().await,
            None,
            "{request}: one that does not"
        );
        let again = rig.send(request).await;
        assert_eq!(
            status(&again),
            200,
            "{request}: own operations are still seen"
        );
    }
    rig.reload(|config| config.credentials.users.clear());
    assert_eq!(rig.send(ALL).await.refusal, Some("Unauthenticated"), "gone");
}

#[tokio::test(start_paused = true)]
async fn streams_of_all_end_when_the_gateway_stops_or_the_store_fails() {
    let rig = rig().await;
    let mut pieces = begin(&rig, ALL).await;
    read(&mut pieces).await;
    let mut second = begin(&rig, ALL).await;
    second.next().await.expect("begun");
    rig.operations.state().store_fault = Some(crate::operations::StoreFault::Unavailable);
    assert_eq!(second.next().await, None, "the store does not answer");
    rig.shared.release_waiters();
    assert_eq!(pieces.next().await, None, "the gateway stops");
}

#[tokio::test(start_paused = true)]
async fn without_a_place_to_wait_a_stream_of_all_is_a_look() {
    let mut rig = rig().await;
    rig.reload(|config| config.limits.waiters = 1);
    let first = rig.send(ALL).await;
    let mut second = begin(&rig, ALL).await;
    let greeting = second.next().await.unwrap();
    assert_eq!(&*greeting, b"retry: 10000\n\n", "later");
    let blocks = read(&mut second).await;
    let data: Vec<_> = blocks.into_iter().filter_map(|block| block.data).collect();
    assert_eq!(seqs(&data), [1, 2], "the present");
    assert_eq!(second.next().await, None, "not kept");
    drop(first);
    let third = begin(&rig, ALL).await.next().await.unwrap();
    assert_eq!(&*third, b"retry: 2000\n\n", "the place is free");
}
