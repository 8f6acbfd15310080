//! What lists cost: pages of Statuses, backups and VMs in small and large stores, and what their indexes cost writers.
//!
//! Prints one table. Every figure is the median of interleaved rounds, and the ratios are of figures of the same run. The folder of
//! the stores is the target folder unless `SNAPGATE_BENCH_FOLDER` names another. `cargo bench --bench lists`, or with
//! `--profile dev` what the tests have built.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::print_stdout,
    clippy::indexing_slicing,
    clippy::too_many_lines,
    reason = "a program that measures and prints, and has nothing to save when something is wrong"
)]

use std::io::Read;
use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use futures_util::future::join_all;
use snapgate::adapters::adapter::Adapter;
use snapgate::adapters::adapter::BeginOutcome;
use snapgate::adapters::adapter::TaskState;
use snapgate::adapters::files;
use snapgate::adapters::files::Files;
use snapgate::app;
use snapgate::config;
use snapgate::model::*;
use snapgate::operations::ListQuery;
use snapgate::operations::Selector;
use snapgate::operations::bench_support::BenchStore;
use snapgate::operations::bench_support::LifeCycle;
use snapgate::operations::bench_support::transition;
use snapgate::runtime::Clock;
use snapgate::runtime::SystemClock;
use snapgate::runtime::Tasks;
use snapgate::telemetry::Metrics;
use tokio::runtime::Runtime;

const NOW: Timestamp = Timestamp::from_millis(1_795_482_123_000);
const ROUNDS: usize = 15;
const STATUSES: [u64; 3] = [100, 10_000, 1_000_000];
const BACKUPS: [u64; 3] = [1, 1000, 10_000];
const VMS: [u64; 3] = [200, 1000, 10_000];
/// `alice` with `secret`.
const ALICE: &str = "Basic YWxpY2U6c2VjcmV0";
const HASH: &str = "$2b$04$ABCDEFGHIJKLMNOPQRSTUux/yVoHLb2P5.QxxfIdIyVUJvRQqUe5S";
/// Creates and updates of one round of writes.
const WRITES: u64 = 512;

/// The indexes of the store format before, to compare writes with.
const INDEXES_BEFORE: &str = "
    DROP INDEX by_created; DROP INDEX by_verb; DROP INDEX by_vm; DROP INDEX by_backup;
    DROP INDEX by_principal; DROP INDEX by_live; DROP INDEX by_outcome;
    CREATE INDEX by_principal ON operations(principal, seq);
    CREATE INDEX by_target ON operations(backup, vm, seq);
    CREATE INDEX by_vm ON operations(vm, seq);
    CREATE INDEX by_live ON operations(seq) WHERE live = 1;";

fn operation(seq: u64) -> Operation {
    let vm = format!("vm{}", seq % 512);
    let intent = Intent {
        target: Target {
            vm: VmId::new(&vm).unwrap(),
            backup: BackupId::new(&format!("b{}", seq % 64)).unwrap(),
        },
        identity: Some(Identity::new("1764200000000-456".to_owned())),
        change: Change::Restore(RestoreOptions::default()),
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

fn open_store(file: &Path) -> BenchStore {
    BenchStore::open(file.to_owned(), Metrics::new().unwrap()).unwrap()
}

/// Fills a store with finished records, as a gateway writes them.
fn fill(file: &Path, records: u64) {
    let record = serde_json::json!({ "format": 2, "operation": operation(1) }).to_string();
    let db = rusqlite::Connection::open(file).unwrap();
    let sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
        INSERT INTO operations(seq, revision, verb, backend, vm, backup, principal, phase, live, expires, record, created)
        SELECT i, 2, CASE i % 2 WHEN 0 THEN 'restore' ELSE 'update' END, 'one', 'vm' || (i % 4), 'b' || (i % 4),
            CASE i % 2 WHEN 0 THEN 'ann' ELSE 'bob' END,
            CASE i % 4 WHEN 0 THEN 'failed' ELSE 'succeeded' END, 0, NULL, ?2, ?3 + i FROM n";
    let now = i64::try_from(NOW.as_millis()).unwrap();
    let records = i64::try_from(records).unwrap();
    db.execute(sql, rusqlite::params![records, record, now])
        .unwrap();
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn row(name: &str, times: &[Duration]) {
    let shown: Vec<String> = times.iter().map(|time| format!("{time:>10.1?}")).collect();
    let ratio = times[times.len() - 1].as_secs_f64() / times[0].as_secs_f64();
    println!("{name:<34} {}  x{ratio:.2}", shown.join(" "));
}

fn queries() -> Vec<(&'static str, ListQuery)> {
    let query = || ListQuery {
        limit: 20,
        ..ListQuery::default()
    };
    let select = |selector| ListQuery {
        selector,
        ..query()
    };
    let any = Selector::default;
    let time = |millis: u64| Some(NOW.plus(Duration::from_millis(millis)));
    vec![
        ("all", query()),
        (
            "op",
            select(Selector {
                verb: Some(Verb::Restore),
                ..any()
            }),
        ),
        (
            "vm",
            select(Selector {
                vm: VmId::new("vm1").ok(),
                ..any()
            }),
        ),
        (
            "b",
            select(Selector {
                backup: BackupId::new("b1").ok(),
                ..any()
            }),
        ),
        (
            "principal",
            ListQuery {
                principal: PrincipalName::new("ann").ok(),
                ..query()
            },
        ),
        (
            "state=FAILED",
            ListQuery {
                state: Some(OperationState::Failed),
                ..query()
            },
        ),
        (
            "state=QUEUED",
            ListQuery {
                state: Some(OperationState::Queued),
                ..query()
            },
        ),
        (
            "since",
            ListQuery {
                since: time(50),
                ..query()
            },
        ),
        (
            "before",
            ListQuery {
                before: time(50),
                ..query()
            },
        ),
        (
            "op and vm",
            select(Selector {
                verb: Some(Verb::Restore),
                vm: VmId::new("vm2").ok(),
                ..any()
            }),
        ),
    ]
}

fn statuses(runtime: &Runtime, folder: &Path) {
    println!("\na page of 20 Statuses                 {STATUSES:?} records");
    let stores = STATUSES.map(|records| {
        let file = folder.join(format!("{records}.db"));
        let store = open_store(&file);
        fill(&file, records);
        store
    });
    for (name, query) in queries() {
        let mut times = vec![Vec::new(); stores.len()];
        for _ in 0..=ROUNDS {
            for (store, times) in stores.iter().zip(&mut times) {
                let begun = Instant::now();
                assert!(runtime.block_on(store.list(&query)).is_some(), "{name}");
                times.push(begun.elapsed());
            }
        }
        let medians: Vec<Duration> = times.into_iter().map(median).collect();
        row(name, &medians);
    }
}

fn writes(runtime: &Runtime, folder: &Path) {
    println!("\n{WRITES} creates and ends, 16 at once     [before, now]");
    let stores = ["before", "now"].map(|name| {
        let file = folder.join(format!("{name}.db"));
        let store = open_store(&file);
        fill(&file, 100_000);
        if name == "before" {
            let db = rusqlite::Connection::open(&file).unwrap();
            db.execute_batch(INDEXES_BEFORE).unwrap();
        }
        store
    });
    let mut times = vec![Vec::new(); stores.len()];
    for round in 0..ROUNDS {
        let first = 1_000_000 + u64::try_from(round).unwrap() * WRITES;
        for (store, times) in stores.iter().zip(&mut times) {
            let begun = Instant::now();
            runtime.block_on(write_all(store, first));
            times.push(begun.elapsed());
        }
    }
    let medians: Vec<Duration> = times.into_iter().map(median).collect();
    row("durable writes", &medians);
}

async fn write_all(store: &BenchStore, first: u64) {
    let all: Vec<u64> = (first..first + WRITES).collect();
    for together in all.chunks(16) {
        let made: Vec<_> = together
            .iter()
            .map(|seq| Arc::new(operation(*seq)))
            .collect();
        let created = join_all(made.iter().map(|operation| store.create(operation))).await;
        assert!(created.into_iter().all(|done| done), "created");
        let ended = made.iter().map(|operation| {
            let started = transition(operation, LifeCycle::Start, NOW).unwrap();
            let ended = transition(&started, LifeCycle::Done, NOW).unwrap();
            Arc::new(Operation {
                revision: Revision::FIRST.next(),
                ..ended
            })
        });
        let ended: Vec<_> = ended.collect();
        let updated = join_all(ended.iter().map(|operation| store.update(operation))).await;
        assert!(updated.into_iter().all(|done| done), "ended");
    }
}

fn by() -> Deadline {
    SystemClock.deadline(Duration::from_secs(60))
}

fn create(vm: &VmId, number: u64) -> Intent {
    Intent {
        target: Target {
            vm: vm.clone(),
            backup: BackupId::new(&number.to_string()).unwrap(),
        },
        identity: None,
        change: Change::Create(NewBackup {
            name: BackupName::new(&format!("n{number}")).unwrap(),
            description: None,
            kind: None,
            tags: vec![Tag::new(&format!("t{}", number % 7)).unwrap()],
            protected: false,
        }),
    }
}

async fn run_create(files: &Files, vm: &VmId, number: u64) {
    // A key that was used before makes this a repeated request, whatever the VM.
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let seq = NEXT.fetch_add(1, Ordering::Relaxed);
    let key = RequestKey(OperationSeq::new(seq).unwrap());
    let begun = files
        .begin(&create(vm, number), key, None, by())
        .await
        .unwrap();
    if let BeginOutcome::Task(task) = begun {
        files.changed(&task).await;
        let state = files.poll(&task, by()).await.unwrap();
        assert!(matches!(state, TaskState::Done(_)), "created: {state:?}");
    }
}

/// A VM with so many backups: copies of the first one, each with a manifest of its own.
async fn make_vm(files: &Files, folder: &Path, backups: u64) -> VmId {
    let vm = VmId::new(&format!("vm{backups}")).unwrap();
    let disks = folder.join("root").join(vm.as_str());
    std::fs::create_dir_all(&disks).unwrap();
    std::fs::write(disks.join("disk.raw"), [7; 4096]).unwrap();
    run_create(files, &vm, 1_000_000).await;
    let all = folder.join("backups").join(vm.as_str());
    let first = all.join("1000000");
    let manifest = std::fs::read_to_string(first.join("manifest.json")).unwrap();
    for number in 1_000_001..1_000_000 + backups {
        let copy = all.join(number.to_string());
        std::fs::create_dir_all(copy.join("disks")).unwrap();
        std::fs::copy(first.join("disks/disk.raw"), copy.join("disks/disk.raw")).unwrap();
        let own = manifest
            .replace("\"1000000\"", &format!("\"{number}\""))
            .replace("\"n1000000\"", &format!("\"n{number}\""));
        std::fs::write(copy.join("manifest.json"), own).unwrap();
    }
    vm
}

fn backup_queries() -> Vec<(&'static str, BackupQuery)> {
    let query = BackupQuery::default;
    let order = |key, descending| BackupQuery {
        order: BackupOrder { key, descending },
        ..query()
    };
    let filter = |filter| BackupQuery { filter, ..query() };
    vec![
        ("list, first page of 100", query()),
        ("sort=-created", order(BackupSortKey::Created, true)),
        ("sort=name", order(BackupSortKey::Name, false)),
        (
            "name=n1000000",
            filter(BackupFilter {
                name: Some(NameFilter::Exact("n1000000".to_owned())),
                ..BackupFilter::default()
            }),
        ),
        (
            "tag that none has (looks at all)",
            filter(BackupFilter {
                tags: vec![Tag::new("none").unwrap()],
                ..BackupFilter::default()
            }),
        ),
    ]
}

fn backups(runtime: &Runtime, folder: &Path) {
    println!("\n`files`                               {BACKUPS:?} backups");
    for name in ["root", "backups"] {
        std::fs::create_dir_all(folder.join(name)).unwrap();
    }
    let config = files::Config {
        root: folder.join("root"),
        backups: folder.join("backups"),
        new_folders: true,
    };
    let tasks = Tasks::default();
    let files = runtime.block_on(async { Files::new(config, SystemClock::shared(), tasks) });
    let files = Arc::new(files.unwrap());
    let vms = BACKUPS.map(|count| runtime.block_on(make_vm(&files, folder, count)));
    let mut firsts = Vec::new();
    for vm in &vms {
        let begun = Instant::now();
        let query = BackupQuery::default();
        let found = files.query_backups(vm, &query, by());
        assert!(
            !runtime.block_on(found).unwrap().backups.is_empty(),
            "listed"
        );
        firsts.push(begun.elapsed());
    }
    row("the very first list", &firsts);
    for (name, query) in backup_queries() {
        let mut times = vec![Vec::new(); vms.len()];
        for _ in 0..ROUNDS {
            for (vm, times) in vms.iter().zip(&mut times) {
                let begun = Instant::now();
                let found = runtime.block_on(files.query_backups(vm, &query, by()));
                times.push(begun.elapsed());
                assert!(found.is_ok(), "{name}");
            }
        }
        let medians: Vec<Duration> = times.into_iter().map(median).collect();
        row(name, &medians);
    }
    let mut times = vec![Vec::new(); vms.len()];
    for round in 0..ROUNDS {
        for (vm, times) in vms.iter().zip(&mut times) {
            let number = 2_000_000 + u64::try_from(round).unwrap();
            let begun = Instant::now();
            runtime.block_on(run_create(&files, vm, number));
            times.push(begun.elapsed());
        }
    }
    let medians: Vec<Duration> = times.into_iter().map(median).collect();
    row("create", &medians);
    others(runtime, &files, &vms);
}

/// The p99 of reads of one backup, alone and beside eight callers that list.
fn others(runtime: &Runtime, files: &Arc<Files>, vms: &[VmId; 3]) {
    let target = Target {
        vm: vms[1].clone(),
        backup: BackupId::new("1000000").unwrap(),
    };
    let p99 = || {
        let mut times: Vec<Duration> = (0..2000)
            .map(|_| {
                let begun = Instant::now();
                assert!(
                    runtime.block_on(files.read_backup(&target, by())).is_ok(),
                    "read"
                );
                begun.elapsed()
            })
            .collect();
        times.sort_unstable();
        times[times.len() * 99 / 100]
    };
    let quiet = p99();
    let listers: Vec<_> = (0..8)
        .map(|_| {
            let (files, vm) = (Arc::clone(files), vms[2].clone());
            runtime.spawn(async move {
                loop {
                    let found = files
                        .query_backups(&vm, &BackupQuery::default(), by())
                        .await;
                    assert!(found.is_ok(), "listed");
                }
            })
        })
        .collect();
    let beside = p99();
    listers.iter().for_each(tokio::task::JoinHandle::abort);
    row("p99 of a read: [quiet, 8 listers]", &[quiet, beside]);
}

/// A whole gateway with so many simulated VMs of three backups each.
fn start_gateway(runtime: &Runtime, folder: &Path, vms: u64) -> app::Running {
    let ids: Vec<String> = (0..vms)
        .map(|number| format!("\"vm{number:05}\""))
        .collect();
    let ids = ids.join(", ");
    let text = format!(
        r#"
[server]
listen = "127.0.0.1:0"
admin = "127.0.0.1:0"
[operations]
store = "vms{vms}.db"
[log]
access = false
level = "error"
[[backend]]
name = "lab"
kind = "sim"
vms = ["*"]
[backend.sim]
simulated_vms = [{ids}]
simulated_backups = 3
[[user]]
name = "alice"
password_hash = "{HASH}"
[[grant]]
to = ["user:alice"]
actions = ["read", "observe"]
vms = ["*"]
backups = ["*"]
"#
    );
    let file = folder.join(format!("vms{vms}.toml"));
    std::fs::write(&file, text).unwrap();
    let loaded = config::load(&file, &|_| None).unwrap();
    runtime.block_on(app::start(loaded)).unwrap()
}

/// Sends one request and reads its answer, which has a length.
fn request(socket: &mut TcpStream, target: &str) -> Vec<u8> {
    let head = format!(
        "GET {target} HTTP/1.1\r\nHost: x\r\nAuthorization: {ALICE}\r\nX-Cloud-Client-Specification-Version: 0.1\r\n\r\n"
    );
    socket.write_all(head.as_bytes()).unwrap();
    let (mut received, mut part) = (Vec::new(), [0; 65_536]);
    loop {
        let count = socket.read(&mut part).unwrap();
        assert!(count > 0, "an answer: {}", received.escape_ascii());
        received.extend_from_slice(&part[..count]);
        let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") else {
            continue;
        };
        let fields = String::from_utf8_lossy(&received[..end]).to_ascii_lowercase();
        let length = fields.split("content-length: ").nth(1).unwrap();
        let length: usize = length.lines().next().unwrap().parse().unwrap();
        if received.len() == end + 4 + length {
            return received;
        }
    }
}

fn vms(runtime: &Runtime, folder: &Path) {
    println!("\n`GET /vms`, whole gateway             {VMS:?} VMs");
    let gateways = VMS.map(|count| start_gateway(runtime, folder, count));
    let mut sockets: Vec<TcpStream> = gateways
        .iter()
        .map(|gateway| TcpStream::connect(gateway.api()).unwrap())
        .collect();
    let targets = [
        ("first page of 100, last backups", "/vms?limit=100"),
        (
            "a page of 100 in the middle",
            "/vms?limit=100&after=vm00049",
        ),
        ("name=...", "/vms?name=vm00042"),
        ("a prefix of 10", "/vms?name=vm0004*"),
        ("a name that none has", "/vms?name=other"),
    ];
    for (name, target) in targets {
        let mut times = vec![Vec::new(); sockets.len()];
        for _ in 0..=ROUNDS {
            for (socket, times) in sockets.iter_mut().zip(&mut times) {
                let begun = Instant::now();
                let answer = request(socket, target);
                times.push(begun.elapsed());
                assert!(
                    answer.starts_with(b"HTTP/1.1 200"),
                    "{}",
                    answer.escape_ascii()
                );
            }
        }
        let medians: Vec<Duration> = times.into_iter().map(median).collect();
        row(name, &medians);
    }
    drop(gateways);
}

fn main() {
    // `cargo bench` hands in arguments that mean nothing here.
    let default = env!("CARGO_TARGET_TMPDIR").to_owned();
    let folder = std::env::var("SNAPGATE_BENCH_FOLDER").unwrap_or(default);
    let folder = tempfile::tempdir_in(folder).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    vms(&runtime, folder.path());
    backups(&runtime, folder.path());
    statuses(&runtime, folder.path());
    writes(&runtime, folder.path());
}
