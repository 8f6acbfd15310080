//! Accepting: order, bounds, keys, and clients that go away.

use std::time::Duration;

use futures_util::future::join_all;

use super::House;
use super::eventually;
use crate::adapters::adapter::Recovery;
use crate::model::Change;
use crate::model::FaultKind;
use crate::model::Intent;
use crate::model::Phase;
use crate::operations::AcceptError;
use crate::operations::Accepted;
use crate::operations::ListQuery;
use crate::operations::OperationsApi;
use crate::operations::Replay;
use crate::operations::WhenBusy;
use crate::operations::testing::Begin;
use crate::operations::testing::Say;
use crate::operations::testing::Setup;
use crate::operations::testing::delete;
use crate::operations::testing::idempotency;
use crate::operations::testing::new_backup;
use crate::operations::testing::permit;
use crate::operations::testing::restore;
use crate::operations::testing::submission;

#[tokio::test]
async fn one_of_a_vm_at_a_time_in_order_and_vms_beside_one_another() {
    let house = House::new().await;
    let mut seqs = Vec::new();
    for backup in ["a", "b", "c"] {
        seqs.push(house.accept(restore("vm", backup)).await);
    }
    let other = house.accept(restore("wm", "a")).await;
    house.reaches(seqs[0], Phase::Running).await;
    house.reaches(other, Phase::Running).await;
    for seq in &seqs[1..] {
        let waiting = house.operation(*seq).await;
        assert_eq!(waiting.phase, Phase::Accepted, "it waits");
        assert_eq!(waiting.started, None, "and has not started");
    }
    let metrics = house.metrics();
    let depth = r#"snapgate_queue_depth{backend="one",state="queued"} 2"#;
    assert!(metrics.contains(depth), "queue depth: {metrics}");
    house.setup.clock.advance(Duration::from_secs(3));
    house.adapter.say("vm", Say::Done);
    for seq in &seqs {
        assert_eq!(house.end(*seq).await.phase, Phase::Succeeded, "it ran");
    }
    let last = house.operation(seqs[2]).await;
    let waited = last.started.map(|started| started.since(last.created));
    assert_eq!(
        waited,
        Some(Duration::from_secs(3)),
        "started after waiting"
    );
    let begun = house.adapter.begun();
    let of_vm: Vec<_> = begun.into_iter().filter(|it| *it != other).collect();
    assert_eq!(of_vm, seqs, "first accepted, first run");
    assert_eq!(house.operation(other).await.phase, Phase::Running, "beside");
}

#[tokio::test]
async fn a_dead_backend_delays_no_other() {
    let house = House::with(Recovery::Listable, |it: &mut Setup| {
        it.backends[0].concurrency = 1;
    })
    .await;
    house.adapter.begin_with("dead", Begin::Hang);
    let stuck = house.accept(restore("dead", "a")).await;
    house.reaches(stuck, Phase::Submitting).await;
    let behind = house.accept(restore("vm", "a")).await;
    house.adapter.begin_with("wm", Begin::Done);
    let free = house.try_on("two", restore("wm", "a")).await.unwrap();
    let free = house.end(free.operation().seq).await;
    assert_eq!(free.phase, Phase::Succeeded, "the other backend");
    let behind = house.operation(behind).await;
    assert_eq!(behind.phase, Phase::Accepted, "no place on its own backend");
}

#[tokio::test]
async fn queues_are_bounded_also_for_requests_that_come_together() {
    let house = House::with(Recovery::Listable, |it: &mut Setup| {
        it.config.queue_per_vm = 3;
        it.config.queue_total = 6;
    })
    .await;
    let all = join_all((0..20).map(|_| house.try_on("one", restore("vm", "b")))).await;
    let accepted = all.iter().filter(|it| it.is_ok()).count();
    assert_eq!(accepted, 4, "one runs, three wait");
    let full = |it: &Result<Accepted, AcceptError>| matches!(it, Err(AcceptError::VmQueueFull));
    assert_eq!(all.iter().filter(|it| full(it)).count(), 16, "the others");
    let names: Vec<String> = (0..9).map(|it| format!("vm-{it}")).collect();
    let more = join_all(names.iter().map(|vm| house.try_on("one", restore(vm, "b")))).await;
    assert_eq!(more.iter().filter(|it| it.is_ok()).count(), 2, "in all");
    house.adapter.say("vm", Say::Done);
    eventually("a place is free again", || async {
        house.try_on("one", restore("vm", "b")).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn refuse_names_the_operation_that_is_in_the_way() {
    let house = House::with(Recovery::Listable, |it: &mut Setup| {
        it.config.when_busy = WhenBusy::Refuse;
    })
    .await;
    let all = join_all((0..5).map(|_| house.try_on("one", restore("vm", "b")))).await;
    let (made, refused): (Vec<_>, Vec<_>) = all.into_iter().partition(Result::is_ok);
    assert_eq!((made.len(), refused.len()), (1, 4), "one is taken");
    let first = made[0].as_ref().unwrap().operation().seq;
    for it in refused {
        match it {
            Err(AcceptError::Busy(other)) => assert_eq!(other.seq, first, "names it"),
            other => panic!("busy, not {other:?}"),
        }
    }
}

#[tokio::test]
async fn the_same_key_is_the_same_operation() {
    let house = House::new().await;
    let send = |print: u8| {
        let intent = restore("vm", "b");
        let mut it = submission(house.room.reserve(), intent.clone());
        it.idempotency = Some(idempotency("k", print));
        house.room.accept(permit(&intent, "one"), it)
    };
    let all = join_all((0..10).map(|_| send(1))).await;
    let new = |it: &&Result<Accepted, AcceptError>| matches!(it, Ok(Accepted::New(_)));
    assert_eq!(all.iter().filter(new).count(), 1, "one is new");
    let seqs: Vec<_> = all
        .into_iter()
        .map(|it| it.unwrap().operation().seq)
        .collect();
    assert!(
        seqs.iter().all(|seq| *seq == seqs[0]),
        "all the same: {seqs:?}"
    );
    match send(2).await {
        Err(AcceptError::KeyReused(seq)) => assert_eq!(seq, seqs[0], "names it"),
        other => panic!("reused, not {other:?}"),
    }
    house.adapter.say("vm", Say::Done);
    house.end(seqs[0]).await;
    let late = send(1).await.expect("still the same");
    assert!(matches!(late, Accepted::Existing(_)), "after the end too");
    assert_eq!(house.adapter.begun().len(), 1, "run once");
    let ada = house.operation(seqs[0]).await.principal.clone();
    for (name, key, print, expected) in [
        ("same", "k", 1, "same"),
        ("other", "k", 2, "other"),
        ("unused", "l", 1, "unused"),
    ] {
        let key = idempotency(key, print);
        let scope = restore("vm", "b").key_scope();
        let replay = house.room.replay(&ada, &scope, &key.key, key.fingerprint);
        let found = replay.await;
        let got = match found.unwrap() {
            Replay::Unused => "unused",
            Replay::Same(_) => "same",
            Replay::Other(_) => "other",
        };
        assert_eq!(got, expected, "{name}");
    }
}

#[tokio::test]
async fn a_key_is_scoped_by_method_and_target() {
    let house = House::new().await;
    let create = |vm: &str, id: &str| Intent {
        identity: None,
        change: Change::Create(new_backup("n")),
        ..restore(vm, id)
    };
    let send = |intent: Intent, print: u8| {
        let mut it = submission(house.room.reserve(), intent.clone());
        it.idempotency = Some(idempotency("k", print));
        house.room.accept(permit(&intent, "one"), it)
    };
    // Intent, fingerprint, whether it is another operation than those before.
    let rows = [
        (restore("vm", "b"), 1, true),
        (restore("vm", "c"), 2, true),
        (restore("wm", "b"), 3, true),
        (delete("vm", "b"), 4, true),
        (create("vm", "new-1"), 5, true),
        (create("wm", "new-2"), 6, true),
        (create("vm", "new-3"), 5, false),
        (restore("wm", "b"), 3, false),
    ];
    for round in ["at once", "from the store"] {
        for (intent, print, new) in rows.clone() {
            let answer = send(intent.clone(), print).await;
            let is_new = matches!(answer, Ok(Accepted::New(_)));
            let expected = new && round == "at once";
            assert_eq!(is_new, expected, "{round}: {intent:?}: {answer:?}");
            let other = send(intent.clone(), 9).await;
            let reused = matches!(other, Err(AcceptError::KeyReused(_)));
            assert!(reused, "{round}: {intent:?} with another body: {other:?}");
        }
        for vm in ["vm", "wm"] {
            house.adapter.say(vm, Say::Done);
        }
        let unfinished = ListQuery {
            unfinished: Some(true),
            limit: 1,
            ..ListQuery::default()
        };
        eventually("all end", || async {
            house.room.list(&unfinished).await.unwrap().is_empty()
        })
        .await;
    }
}

#[tokio::test]
async fn a_repeated_delete_joins_the_first() {
    let house = House::new().await;
    let all = join_all((0..4).map(|_| house.try_on("one", delete("vm", "b")))).await;
    let seqs: Vec<_> = all
        .into_iter()
        .map(|it| it.unwrap().operation().seq)
        .collect();
    assert!(
        seqs.iter().all(|seq| *seq == seqs[0]),
        "one delete: {seqs:?}"
    );
    let other = house.accept(delete("vm", "c")).await;
    assert_ne!(other, seqs[0], "of another backup");
    house.adapter.say("vm", Say::Done);
    house.end(other).await;
    let again = house.accept(delete("vm", "b")).await;
    assert_ne!(again, seqs[0], "after the end it is a new one");
}

#[tokio::test]
async fn a_client_that_goes_away_neither_loses_nor_doubles() {
    let house = House::new().await;
    let mut gone = Vec::new();
    for number in 0..20_u32 {
        let vm = format!("vm-{number}");
        let asked = house.try_on("one", restore(&vm, "b"));
        tokio::select! {
            biased;
            _ = asked => {}
            () = tokio::time::sleep(Duration::from_micros(u64::from(number) * 20)) => gone.push(number),
        }
    }
    assert!(!gone.is_empty(), "some clients went away before the answer");
    let query = ListQuery {
        limit: 100,
        ..ListQuery::default()
    };
    eventually("all are durable and begun", || async {
        let all = house.room.list(&query).await.unwrap();
        let on_one = 4;
        all.len() == 20 && house.adapter.begun().len() == on_one
    })
    .await;
    for number in 0..20 {
        house.adapter.say(&format!("vm-{number}"), Say::Done);
    }
    for it in house.room.list(&query).await.unwrap() {
        assert_eq!(house.end(it.seq).await.phase, Phase::Succeeded, "it ran");
    }
    assert_eq!(house.adapter.begun().len(), 20, "each once");
}

#[tokio::test]
async fn what_cannot_be_accepted_is_refused_and_leaves_nothing() {
    let house = House::new().await;
    let wrong = submission(house.room.reserve(), restore("vm", "b"));
    let pass = permit(&restore("vm", "c"), "one");
    let refused = house.room.accept(pass, wrong).await;
    assert!(
        matches!(refused, Err(AcceptError::NotPermitted)),
        "{refused:?}"
    );
    let nowhere = house.try_on("three", restore("vm", "b")).await;
    assert!(
        matches!(nowhere, Err(AcceptError::NoSuchBackend)),
        "{nowhere:?}"
    );
    let seq = house.accept(restore("vm", "b")).await;
    let twice = submission(seq, restore("vm", "b"));
    let twice = house
        .room
        .accept(permit(&restore("vm", "b"), "one"), twice)
        .await;
    assert!(matches!(twice, Err(AcceptError::Store(_))), "{twice:?}");
    assert!(house.room.is_ready(), "no fault of the store");
    let minted = house.room.mint_backup_id(
        &crate::operations::testing::backend("one"),
        &new_backup("n"),
        seq,
    );
    assert_eq!(
        minted.unwrap().as_str(),
        seq.to_string(),
        "by default the number"
    );
    house.room.stop().await;
    assert!(!house.room.is_ready(), "not after the stop");
    let late = house.try_on("one", restore("vm", "b")).await;
    assert!(matches!(late, Err(AcceptError::Stopping)), "{late:?}");
    let names: Vec<_> = std::fs::read_dir(house.folder.path()).unwrap().collect();
    assert_eq!(names.len(), 2, "the store and its lock: {names:?}");
}

#[tokio::test]
async fn a_verb_that_the_backend_has_not_is_unsupported() {
    let house = House::new().await;
    let mut intent = restore("vm", "b");
    intent.change = Change::Update(crate::model::BackupPatch::default());
    let seq = house.room.reserve();
    let actions = crate::model::ActionSet::NONE.with(crate::model::Action::Update);
    let pass = permit(&intent, "one");
    type Pass = crate::model::Permit;
    let pass = Pass::issue(
        pass.principal().clone(),
        actions,
        pass.backend().clone(),
        intent.target.clone(),
    );
    match house.room.accept(pass, submission(seq, intent)).await {
        Err(AcceptError::Backend(fault)) => {
            assert_eq!(fault.kind, FaultKind::Unsupported, "which kind");
        }
        other => panic!("unsupported, not {other:?}"),
    }
    assert_eq!(
        house.room.operation(seq).await.unwrap(),
        None,
        "nothing kept"
    );
}

#[tokio::test]
async fn an_operation_outlives_the_runtime_of_its_request() {
    let house = House::new().await;
    let room = std::sync::Arc::clone(&house.room);
    let asked = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let intent = restore("vm", "b");
        let it = submission(room.reserve(), intent.clone());
        runtime.block_on(room.accept(permit(&intent, "one"), it))
    });
    let accepted = asked.await.unwrap().expect("accepted");
    house.adapter.say("vm", Say::Done);
    let end = house.end(accepted.operation().seq).await;
    assert_eq!(end.phase, Phase::Succeeded, "worked on elsewhere");
}
