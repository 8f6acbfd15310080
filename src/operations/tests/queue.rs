//! Acceptance: order, limits, idempotency keys, and clients that disconnect.

use std::time::Duration;

use futures_util::future::join_all;

use super::Fixture;
use super::wait_until;
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
use crate::operations::testing::BeginReply;
use crate::operations::testing::Reply;
use crate::operations::testing::TestSetup;
use crate::operations::testing::delete;
use crate::operations::testing::idempotency;
use crate::operations::testing::new_backup;
use crate::operations::testing::permit;
use crate::operations::testing::restore;
use crate::operations::testing::submission;

#[tokio::test]
async fn operations_of_one_vm_run_one_at_a_time_in_order_and_vms_run_concurrently() {
    let fixture = Fixture::new().await;
    let mut seqs = Vec::new();
    for backup in ["a", "b", "c"] {
        seqs.push(fixture.accept(restore("vm", backup)).await);
    }
    let other = fixture.accept(restore("wm", "a")).await;
    fixture.wait_for_phase(seqs[0], Phase::Running).await;
    fixture.wait_for_phase(other, Phase::Running).await;
    for seq in &seqs[1..] {
        let waiting = fixture.read(*seq).await;
        assert_eq!(waiting.phase, Phase::Accepted, "it waits");
        assert_eq!(waiting.started, None, "and has not started");
    }
    let metrics = fixture.metrics_text();
    let depth = r#"snapgate_queue_depth{backend="one",state="queued"} 2"#;
    assert!(metrics.contains(depth), "queue depth: {metrics}");
    fixture.setup.clock.advance(Duration::from_secs(3));
    fixture.adapter.set_task_reply("vm", Reply::Done);
    for seq in &seqs {
        assert_eq!(
            fixture.wait_for_end(*seq).await.phase,
            Phase::Succeeded,
            "it ran"
        );
    }
    let last = fixture.read(seqs[2]).await;
    let waited = last.started.map(|started| started.since(last.created));
    assert_eq!(
        waited,
        Some(Duration::from_secs(3)),
        "started after waiting"
    );
    let begun = fixture.adapter.begun_operations();
    let of_vm: Vec<_> = begun.into_iter().filter(|seq| *seq != other).collect();
    assert_eq!(of_vm, seqs, "first accepted, first run");
    assert_eq!(fixture.read(other).await.phase, Phase::Running, "beside");
}

#[tokio::test]
async fn an_unresponsive_backend_delays_no_other() {
    let fixture = Fixture::with(Recovery::Listable, |setup: &mut TestSetup| {
        setup.backends[0].concurrency = 1;
    })
    .await;
    fixture.adapter.set_begin_reply("dead", BeginReply::Hang);
    let stuck = fixture.accept(restore("dead", "a")).await;
    fixture.wait_for_phase(stuck, Phase::Submitting).await;
    let behind = fixture.accept(restore("vm", "a")).await;
    fixture.adapter.set_begin_reply("wm", BeginReply::Done);
    let free = fixture.accept_on("two", restore("wm", "a")).await.unwrap();
    let free = fixture.wait_for_end(free.operation().seq).await;
    assert_eq!(free.phase, Phase::Succeeded, "the other backend");
    let behind = fixture.read(behind).await;
    assert_eq!(behind.phase, Phase::Accepted, "no slot on its own backend");
}

#[tokio::test]
async fn queues_are_bounded_also_for_concurrent_requests() {
    let fixture = Fixture::with(Recovery::Listable, |setup: &mut TestSetup| {
        setup.config.queue_per_vm = 3;
        setup.config.queue_total = 6;
    })
    .await;
    let all = join_all((0..20).map(|_| fixture.accept_on("one", restore("vm", "b")))).await;
    let accepted = all.iter().filter(|answer| answer.is_ok()).count();
    assert_eq!(accepted, 4, "one runs, three wait");
    let is_full =
        |answer: &Result<Accepted, AcceptError>| matches!(answer, Err(AcceptError::VmQueueFull));
    assert_eq!(
        all.iter().filter(|answer| is_full(answer)).count(),
        16,
        "the others"
    );
    let names: Vec<String> = (0..9).map(|number| format!("vm-{number}")).collect();
    let more = join_all(
        names
            .iter()
            .map(|vm| fixture.accept_on("one", restore(vm, "b"))),
    )
    .await;
    assert_eq!(
        more.iter().filter(|answer| answer.is_ok()).count(),
        2,
        "in all"
    );
    fixture.adapter.set_task_reply("vm", Reply::Done);
    wait_until("a place in the queue is free again", || async {
        fixture.accept_on("one", restore("vm", "b")).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn refuse_names_the_unfinished_operation() {
    let fixture = Fixture::with(Recovery::Listable, |setup: &mut TestSetup| {
        setup.config.when_busy = WhenBusy::Refuse;
    })
    .await;
    let all = join_all((0..5).map(|_| fixture.accept_on("one", restore("vm", "b")))).await;
    let (made, refused): (Vec<_>, Vec<_>) = all.into_iter().partition(Result::is_ok);
    assert_eq!((made.len(), refused.len()), (1, 4), "one is accepted");
    let first = made[0].as_ref().unwrap().operation().seq;
    for answer in refused {
        match answer {
            Err(AcceptError::Busy(other)) => assert_eq!(other.seq, first, "names it"),
            other => panic!("busy, not {other:?}"),
        }
    }
}

#[tokio::test]
async fn the_same_key_is_the_same_operation() {
    let fixture = Fixture::new().await;
    let send = |print: u8| {
        let intent = restore("vm", "b");
        let mut submission = submission(fixture.operations.reserve(), intent.clone());
        submission.idempotency = Some(idempotency("k", print));
        fixture
            .operations
            .accept(permit(&intent, "one"), submission)
    };
    let all = join_all((0..10).map(|_| send(1))).await;
    let new = |answer: &&Result<Accepted, AcceptError>| matches!(answer, Ok(Accepted::New(_)));
    assert_eq!(all.iter().filter(new).count(), 1, "one is new");
    let seqs: Vec<_> = all
        .into_iter()
        .map(|answer| answer.unwrap().operation().seq)
        .collect();
    assert!(
        seqs.iter().all(|seq| *seq == seqs[0]),
        "all the same: {seqs:?}"
    );
    match send(2).await {
        Err(AcceptError::KeyReused(seq)) => assert_eq!(seq, seqs[0], "names it"),
        other => panic!("reused, not {other:?}"),
    }
    fixture.adapter.set_task_reply("vm", Reply::Done);
    fixture.wait_for_end(seqs[0]).await;
    let late = send(1).await.expect("still the same");
    assert!(matches!(late, Accepted::Existing(_)), "after the end too");
    assert_eq!(fixture.adapter.begun_operations().len(), 1, "run once");
    let ada = fixture.read(seqs[0]).await.principal.clone();
    for (name, key, print, expected) in [
        ("same", "k", 1, "same"),
        ("other", "k", 2, "other"),
        ("unused", "l", 1, "unused"),
    ] {
        let key = idempotency(key, print);
        let scope = restore("vm", "b").key_scope();
        let replay = fixture
            .operations
            .replay(&ada, &scope, &key.key, key.fingerprint);
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
    let fixture = Fixture::new().await;
    let create = |vm: &str, id: &str| Intent {
        identity: None,
        change: Change::Create(new_backup("n")),
        ..restore(vm, id)
    };
    let send = |intent: Intent, print: u8| {
        let mut submission = submission(fixture.operations.reserve(), intent.clone());
        submission.idempotency = Some(idempotency("k", print));
        fixture
            .operations
            .accept(permit(&intent, "one"), submission)
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
            fixture.adapter.set_task_reply(vm, Reply::Done);
        }
        let unfinished = ListQuery {
            unfinished: Some(true),
            limit: 1,
            ..ListQuery::default()
        };
        wait_until("all end", || async {
            fixture
                .operations
                .list(&unfinished)
                .await
                .unwrap()
                .operations
                .is_empty()
        })
        .await;
    }
}

#[tokio::test]
async fn a_repeated_delete_joins_the_first() {
    let fixture = Fixture::new().await;
    let all = join_all((0..4).map(|_| fixture.accept_on("one", delete("vm", "b")))).await;
    let seqs: Vec<_> = all
        .into_iter()
        .map(|answer| answer.unwrap().operation().seq)
        .collect();
    assert!(
        seqs.iter().all(|seq| *seq == seqs[0]),
        "one delete: {seqs:?}"
    );
    let other = fixture.accept(delete("vm", "c")).await;
    assert_ne!(other, seqs[0], "of another backup");
    fixture.adapter.set_task_reply("vm", Reply::Done);
    fixture.wait_for_end(other).await;
    let again = fixture.accept(delete("vm", "b")).await;
    assert_ne!(again, seqs[0], "after the end it is a new one");
}

#[tokio::test]
async fn a_client_that_disconnects_neither_loses_nor_duplicates_an_operation() {
    let fixture = Fixture::new().await;
    let mut gone = Vec::new();
    for number in 0..20_u32 {
        let vm = format!("vm-{number}");
        let asked = fixture.accept_on("one", restore(&vm, "b"));
        tokio::select! {
            biased;
            _ = asked => {}
            () = tokio::time::sleep(Duration::from_micros(u64::from(number) * 20)) => gone.push(number),
        }
    }
    assert!(
        !gone.is_empty(),
        "some clients disconnected before the answer"
    );
    let query = ListQuery {
        limit: 100,
        ..ListQuery::default()
    };
    wait_until("all are durable and begun", || async {
        let all = fixture.operations.list(&query).await.unwrap().operations;
        let on_one = 4;
        all.len() == 20 && fixture.adapter.begun_operations().len() == on_one
    })
    .await;
    for number in 0..20 {
        fixture
            .adapter
            .set_task_reply(&format!("vm-{number}"), Reply::Done);
    }
    let listed = fixture.operations.list(&query).await.unwrap();
    for listed in listed.operations {
        assert_eq!(
            fixture.wait_for_end(listed.seq).await.phase,
            Phase::Succeeded,
            "it ran"
        );
    }
    assert_eq!(fixture.adapter.begun_operations().len(), 20, "each once");
}

#[tokio::test]
async fn what_cannot_be_accepted_is_refused_and_not_stored() {
    let fixture = Fixture::new().await;
    let wrong = submission(fixture.operations.reserve(), restore("vm", "b"));
    let pass = permit(&restore("vm", "c"), "one");
    let refused = fixture.operations.accept(pass, wrong).await;
    assert!(
        matches!(refused, Err(AcceptError::NotPermitted)),
        "{refused:?}"
    );
    let nowhere = fixture.accept_on("three", restore("vm", "b")).await;
    assert!(
        matches!(nowhere, Err(AcceptError::NoSuchBackend)),
        "{nowhere:?}"
    );
    let seq = fixture.accept(restore("vm", "b")).await;
    let twice = submission(seq, restore("vm", "b"));
    let twice = fixture
        .operations
        .accept(permit(&restore("vm", "b"), "one"), twice)
        .await;
    assert!(matches!(twice, Err(AcceptError::Store(_))), "{twice:?}");
    assert!(fixture.operations.is_ready(), "no fault of the store");
    let minted = fixture.operations.mint_backup_id(
        &crate::operations::testing::backend("one"),
        &new_backup("n"),
        seq,
    );
    assert_eq!(
        minted.unwrap().as_str(),
        seq.to_string(),
        "by default the number"
    );
    fixture.operations.stop().await;
    assert!(!fixture.operations.is_ready(), "not after the stop");
    let late = fixture.accept_on("one", restore("vm", "b")).await;
    assert!(matches!(late, Err(AcceptError::Stopping)), "{late:?}");
    let names: Vec<_> = std::fs::read_dir(fixture.folder.path()).unwrap().collect();
    assert_eq!(names.len(), 2, "the store and its lock: {names:?}");
}

#[tokio::test]
async fn a_verb_that_the_backend_lacks_is_unsupported() {
    let fixture = Fixture::new().await;
    let mut intent = restore("vm", "b");
    intent.change = Change::Update(crate::model::BackupPatch::default());
    let seq = fixture.operations.reserve();
    let actions = crate::model::ActionSet::NONE.with(crate::model::Action::Update);
    let pass = permit(&intent, "one");
    type Pass = crate::model::Permit;
    let pass = Pass::issue(
        pass.principal().clone(),
        actions,
        pass.backend().clone(),
        intent.target.clone(),
    );
    match fixture
        .operations
        .accept(pass, submission(seq, intent))
        .await
    {
        Err(AcceptError::Backend(fault)) => {
            assert_eq!(fault.kind, FaultKind::Unsupported, "which kind");
        }
        other => panic!("unsupported, not {other:?}"),
    }
    assert_eq!(
        fixture.operations.operation(seq).await.unwrap(),
        None,
        "not stored"
    );
}

#[tokio::test]
async fn an_operation_outlives_the_runtime_of_its_request() {
    let fixture = Fixture::new().await;
    let operations = std::sync::Arc::clone(&fixture.operations);
    let asked = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let intent = restore("vm", "b");
        let submission = submission(operations.reserve(), intent.clone());
        runtime.block_on(operations.accept(permit(&intent, "one"), submission))
    });
    let accepted = asked.await.unwrap().expect("accepted");
    fixture.adapter.set_task_reply("vm", Reply::Done);
    let end = fixture.wait_for_end(accepted.operation().seq).await;
    assert_eq!(end.phase, Phase::Succeeded, "run on another runtime");
}
