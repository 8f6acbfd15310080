//! The life of an operation, piece by piece: transitions of the machine, and durable writes of the store.
//!
//! The store is on the disk of the target folder unless `SNAPGATE_BENCH_FOLDER` names another: each write waits for one sync.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    reason = "a program that measures, and has nothing to save when something is wrong"
)]

use std::cell::Cell;
use std::hint::black_box;
use std::sync::Arc;

use criterion::Criterion;
use criterion::Throughput;
use criterion::criterion_group;
use criterion::criterion_main;
use futures_util::future::join_all;
use snapgate::model::*;
use snapgate::operations::bench_support::BenchStore;
use snapgate::operations::bench_support::LifeCycle;
use snapgate::operations::bench_support::transition;
use snapgate::telemetry::Metrics;

/// That of the program.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const NOW: Timestamp = Timestamp::from_millis(1_764_200_000_000);
/// Writes handed over together, as by so many clients.
const TOGETHER: u64 = 16;

fn operation(seq: u64) -> Operation {
    let vm = format!("vm{}", seq % 512);
    let patch = BackupPatch {
        description: Patch::Set(Description::new("changed").unwrap()),
        ..BackupPatch::default()
    };
    let intent = Intent {
        target: Target {
            vm: VmId::new(&vm).unwrap(),
            backup: BackupId::new("456").unwrap(),
        },
        identity: Some(Identity::new("1764200000000-456".to_owned())),
        change: Change::Update(patch),
    };
    Operation::accepted(
        OperationSeq::new(seq).unwrap(),
        PrincipalName::new("ann").unwrap(),
        RequestId::new("0123456789abcdef").unwrap(),
        BackendName::new("sim").unwrap(),
        intent,
        NOW,
    )
}

fn next(state: &Operation, what: LifeCycle) -> Operation {
    transition(state, what, NOW).unwrap()
}

fn machine(criterion: &mut Criterion) {
    let accepted = operation(1);
    let task = TaskRef::new("task-1".to_owned()).unwrap();
    let submitting = next(&accepted, LifeCycle::Start);
    let running = next(&submitting, LifeCycle::Task(task.clone()));
    let mut group = criterion.benchmark_group("machine");
    group.bench_function("accepted to submitting", |bencher| {
        bencher.iter(|| next(black_box(&accepted), LifeCycle::Start));
    });
    group.bench_function("submitting to running", |bencher| {
        bencher.iter(|| next(black_box(&submitting), LifeCycle::Task(task.clone())));
    });
    group.bench_function("running to succeeded", |bencher| {
        bencher.iter(|| next(black_box(&running), LifeCycle::Done));
    });
    group.finish();
}

fn store(criterion: &mut Criterion) {
    let default = env!("CARGO_TARGET_TMPDIR").to_owned();
    let folder = std::env::var("SNAPGATE_BENCH_FOLDER").unwrap_or(default);
    let folder = tempfile::tempdir_in(folder).unwrap();
    let file = folder.path().join("operations.sqlite");
    let store = BenchStore::open(file, Metrics::new().unwrap()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let seq = Cell::new(0);
    let fresh = || {
        seq.set(seq.get() + 1);
        Arc::new(operation(seq.get()))
    };
    let create = async |them: &[Arc<Operation>]| {
        let all = join_all(them.iter().map(|operation| store.create(operation))).await;
        assert!(all.into_iter().all(|is_durable| is_durable), "durable");
    };
    let update = async |them: &[Arc<Operation>]| {
        let ended = |operation: &Arc<Operation>| {
            Arc::new(next(&next(operation, LifeCycle::Start), LifeCycle::Done))
        };
        let them: Vec<_> = them
            .iter()
            .map(ended)
            .map(|operation| {
                Arc::new(Operation {
                    revision: Revision::FIRST.next(),
                    ..(*operation).clone()
                })
            })
            .collect();
        let all = join_all(them.iter().map(|operation| store.update(operation))).await;
        assert!(all.into_iter().all(|is_durable| is_durable), "durable");
    };
    let mut group = criterion.benchmark_group("store");
    for together in [1, TOGETHER] {
        let some = || (0..together).map(|_| fresh()).collect::<Vec<_>>();
        group.throughput(Throughput::Elements(together));
        group.bench_function(format!("create, {together} at once"), |bencher| {
            bencher.iter_batched(
                some,
                |them| runtime.block_on(create(&them)),
                criterion::BatchSize::PerIteration,
            );
        });
        group.bench_function(
            format!("update to its end, {together} at once"),
            |bencher| {
                bencher.iter_batched(
                    || {
                        let them = some();
                        runtime.block_on(create(&them));
                        them
                    },
                    |them| runtime.block_on(update(&them)),
                    criterion::BatchSize::PerIteration,
                );
            },
        );
    }
    group.finish();
}

criterion_group!(benches, machine, store);
criterion_main!(benches);
