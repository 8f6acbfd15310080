//! An operator at the store while no gateway runs.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Fixture;
use crate::adapters::adapter::Recovery;
use crate::model::OperatorQuery;
use crate::model::Phase;
use crate::model::Showing;
use crate::operations::OfflineStore;
use crate::operations::OfflineStoreError;
use crate::operations::testing::BeginReply;
use crate::operations::testing::Reply;
use crate::operations::testing::restore;
use crate::runtime::Clock;

async fn open_offline(fixture: &Fixture) -> Result<OfflineStore, OfflineStoreError> {
    let clock: Arc<dyn Clock> = Arc::<crate::runtime::ManualClock>::clone(&fixture.setup.clock);
    let metrics = crate::telemetry::Metrics::new().unwrap();
    OfflineStore::open(&fixture.setup.config, clock, metrics).await
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one story, step by step")]
async fn an_unknown_outcome_is_listed_until_it_is_acknowledged() {
    let mut fixture = Fixture::new().await;
    fixture.adapter.set_begin_reply("vm", BeginReply::Lose);
    fixture.adapter.set_find_replies(&[Reply::Unknowable]);
    let lost = fixture.accept(restore("vm", "a")).await;
    assert_eq!(
        fixture.wait_for_end(lost).await.phase,
        Phase::Unknown,
        "unknown"
    );
    let running = fixture.accept(restore("wm", "a")).await;
    fixture.wait_for_phase(running, Phase::Running).await;
    let refused = open_offline(&fixture).await.map(drop);
    assert!(
        matches!(refused, Err(OfflineStoreError::Open(_))),
        "not beside a gateway: {refused:?}"
    );
    fixture.operations.stop().await;

    let open = open_offline(&fixture).await.expect("the store is free");
    let rows = [
        (Showing::Unknown, 9, vec![lost]),
        (Showing::Unfinished, 9, vec![running]),
        (Showing::All, 9, vec![running, lost]),
        (Showing::All, 1, vec![running]),
        (Showing::All, 0, vec![]),
        (Showing::Queued, 9, vec![]),
        (Showing::Running, 9, vec![running]),
        (Showing::Failed, 9, vec![]),
        // Its backend is configured.
        (Showing::Held, 9, vec![]),
    ];
    let backends = BTreeSet::from([open.show(running).await.unwrap().backend.clone()]);
    for (showing, most, expected) in rows {
        let query = OperatorQuery {
            showing,
            limit: most,
            ..OperatorQuery::default()
        };
        let found = open.list(&query, &backends).await.unwrap();
        let found: Vec<_> = found.iter().map(|operation| operation.seq).collect();
        assert_eq!(found, expected, "{showing:?}, at most {most}");
    }
    let refused = open.acknowledge(running).await;
    assert!(
        matches!(refused, Err(OfflineStoreError::NotUnknown(_, "running"))),
        "only the unknown: {refused:?}"
    );
    let none = fixture
        .operations
        .core
        .sequence
        .next(fixture.setup.clock.now());
    let refused = open.show(none).await;
    assert!(
        matches!(refused, Err(OfflineStoreError::NoSuchOperation(_))),
        "never was: {refused:?}"
    );
    let held = OperatorQuery {
        showing: Showing::Held,
        ..OperatorQuery::page()
    };
    let found = open.list(&held, &BTreeSet::new()).await.unwrap();
    assert_eq!(
        found.first().map(|operation| operation.seq),
        Some(running),
        "held without its backend"
    );
    let attention = open.attention().await.unwrap();
    assert_eq!(attention.unknown, 1, "one outcome to look at");
    let older = OperatorQuery {
        older_than: Some(running),
        ..OperatorQuery::page()
    };
    let older = open.list(&older, &backends).await.unwrap();
    assert_eq!(
        older.first().map(|operation| operation.seq),
        Some(lost),
        "only older ones"
    );
    let first = open.acknowledge(lost).await.unwrap();
    assert!(first.is_new, "the first acknowledgement");
    let seen = first.operation;
    assert!(seen.acknowledged.is_some(), "acknowledged");
    assert!(seen.expires.is_some(), "and may expire");
    let again = open.acknowledge(lost).await.unwrap();
    assert_eq!(
        (again.operation, again.is_new),
        (Arc::clone(&seen), false),
        "once"
    );
    let unknown = OperatorQuery {
        showing: Showing::Unknown,
        ..OperatorQuery::page()
    };
    let left = open.list(&unknown, &backends).await.unwrap();
    assert!(left.is_empty(), "nothing is left to look at");
    open.close().await;

    fixture.restart().await;
    let kept = fixture.read(lost).await;
    assert_eq!(kept.acknowledged, seen.acknowledged, "the gateway sees it");
    fixture.adapter.set_task_reply("wm", Reply::Done);
    let done = fixture.wait_for_end(running).await;
    assert_eq!(done.phase, Phase::Succeeded, "and goes on with the rest");
}

#[tokio::test]
async fn what_is_cancelled_before_a_start_is_never_called_again() {
    let mut fixture = Fixture::with(Recovery::ReplaySafe, |_| {}).await;
    fixture.adapter.set_begin_reply("lost", BeginReply::Lose);
    let running = fixture.accept(restore("vm", "a")).await;
    let queued = fixture.accept(restore("vm", "b")).await;
    let lost = fixture.accept(restore("lost", "a")).await;
    fixture.wait_for_phase(running, Phase::Running).await;
    fixture.wait_for_phase(lost, Phase::Uncertain).await;
    fixture.operations.stop().await;

    let open = open_offline(&fixture).await.expect("the store is free");
    for (name, seq, phase) in [
        ("queued", queued, Phase::Cancelled),
        ("running", running, Phase::Running),
        ("uncertain", lost, Phase::Uncertain),
    ] {
        let decided = open.cancel(seq).await.expect(name);
        assert!(decided.is_new, "{name}: the first time");
        assert_eq!(decided.operation.phase, phase, "{name}");
    }
    let again = open.cancel(running).await.expect("again");
    assert!(!again.is_new, "the second time changes nothing");
    let refused = open.cancel(queued).await;
    assert!(
        matches!(
            refused,
            Err(OfflineStoreError::NotCancellable(_, "cancelled"))
        ),
        "finished: {refused:?}"
    );
    open.close().await;

    let begun = fixture.adapter.begun_operations().len();
    fixture.adapter.set_task_reply("vm", Reply::Gone);
    fixture.adapter.set_find_replies(&[Reply::NotBegun]);
    fixture.operations = fixture.setup.open().await;
    for (name, seq) in [
        ("running", running),
        ("uncertain", lost),
        ("queued", queued),
    ] {
        let end = fixture.wait_for_end(seq).await;
        assert_eq!(end.phase, Phase::Cancelled, "{name}");
    }
    assert_eq!(
        fixture.adapter.begun_operations().len(),
        begun,
        "nothing was called again"
    );
}
