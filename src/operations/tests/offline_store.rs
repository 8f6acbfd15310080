//! An operator at the store while no gateway runs.

use std::sync::Arc;

use super::House;
use crate::adapters::adapter::Recovery;
use crate::model::Phase;
use crate::model::Showing;
use crate::operations::OfflineStore;
use crate::operations::OfflineStoreError;
use crate::operations::testing::Begin;
use crate::operations::testing::Say;
use crate::operations::testing::restore;
use crate::runtime::Clock;

async fn desk(house: &House) -> Result<OfflineStore, OfflineStoreError> {
    let clock: Arc<dyn Clock> = Arc::<crate::runtime::ManualClock>::clone(&house.setup.clock);
    let metrics = crate::telemetry::Metrics::new().unwrap();
    OfflineStore::open(&house.setup.config, clock, metrics).await
}

#[tokio::test]
async fn an_unknown_outcome_is_listed_until_it_is_acknowledged() {
    let mut house = House::new().await;
    house.adapter.begin_with("vm", Begin::Lose);
    house.adapter.find_says(&[Say::Unknowable]);
    let lost = house.accept(restore("vm", "a")).await;
    assert_eq!(house.end(lost).await.phase, Phase::Unknown, "unknown");
    let running = house.accept(restore("wm", "a")).await;
    house.reaches(running, Phase::Running).await;
    let refused = desk(&house).await.map(drop);
    assert!(
        matches!(refused, Err(OfflineStoreError::Open(_))),
        "not beside a gateway: {refused:?}"
    );
    house.room.stop().await;

    let open = desk(&house).await.expect("the store is free");
    let rows = [
        (Showing::Unknown, 9, vec![lost]),
        (Showing::Unfinished, 9, vec![running]),
        (Showing::All, 9, vec![running, lost]),
        (Showing::All, 1, vec![running]),
        (Showing::All, 0, vec![]),
    ];
    for (showing, most, expected) in rows {
        let found = open.list(showing, None, most).await.unwrap();
        let found: Vec<_> = found.iter().map(|it| it.seq).collect();
        assert_eq!(found, expected, "{showing:?}, at most {most}");
    }
    let refused = open.acknowledge(running).await;
    assert!(
        matches!(refused, Err(OfflineStoreError::NotUnknown(_, "running"))),
        "only the unknown: {refused:?}"
    );
    let none = house.room.core.numbers.next(house.setup.clock.now());
    let refused = open.show(none).await;
    assert!(
        matches!(refused, Err(OfflineStoreError::NoSuchOperation(_))),
        "never was: {refused:?}"
    );
    let older = open.list(Showing::All, Some(running), 9).await.unwrap();
    assert_eq!(
        older.first().map(|it| it.seq),
        Some(lost),
        "only older ones"
    );
    let first = open.acknowledge(lost).await.unwrap();
    assert!(first.is_new, "somebody has to be told");
    let seen = first.operation;
    assert!(seen.acknowledged.is_some(), "acknowledged");
    assert!(seen.expires.is_some(), "and may expire");
    let again = open.acknowledge(lost).await.unwrap();
    assert_eq!(
        (again.operation, again.is_new),
        (Arc::clone(&seen), false),
        "once"
    );
    let left = open.list(Showing::Unknown, None, 9).await.unwrap();
    assert!(left.is_empty(), "nothing is left to look at");
    open.close().await;

    house.restart().await;
    let kept = house.operation(lost).await;
    assert_eq!(kept.acknowledged, seen.acknowledged, "the gateway sees it");
    house.adapter.say("wm", Say::Done);
    let done = house.end(running).await;
    assert_eq!(done.phase, Phase::Succeeded, "and goes on with the rest");
}

#[tokio::test]
async fn what_is_cancelled_before_a_start_is_never_begun_again() {
    let mut house = House::with(Recovery::ReplaySafe, |_| {}).await;
    house.adapter.begin_with("lost", Begin::Lose);
    let running = house.accept(restore("vm", "a")).await;
    let queued = house.accept(restore("vm", "b")).await;
    let lost = house.accept(restore("lost", "a")).await;
    house.reaches(running, Phase::Running).await;
    house.reaches(lost, Phase::Uncertain).await;
    house.room.stop().await;

    let open = desk(&house).await.expect("the store is free");
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

    let begun = house.adapter.begun().len();
    house.adapter.say("vm", Say::Gone);
    house.adapter.find_says(&[Say::NotBegun]);
    house.room = house.setup.open().await;
    for (name, seq) in [
        ("running", running),
        ("uncertain", lost),
        ("queued", queued),
    ] {
        let end = house.end(seq).await;
        assert_eq!(end.phase, Phase::Cancelled, "{name}");
    }
    assert_eq!(
        house.adapter.begun().len(),
        begun,
        "nothing was begun again"
    );
}
