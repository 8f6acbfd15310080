//! The adapter for LXD and Incus on a real LXD: `tests/beds/lxd.sh` starts one, `SNAPGATE_BED_LXD` is its folder.

pub(crate) mod failures;
mod http;

use std::env;
use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use snapgate::adapters::adapter::Adapter;
use snapgate::adapters::adapter::BeginOutcome;
use snapgate::adapters::adapter::Effect;
use snapgate::adapters::adapter::FindOutcome;
use snapgate::adapters::adapter::TaskState;
use snapgate::adapters::incus::Config;
use snapgate::adapters::incus::Incus;
use snapgate::adapters::transport::Address;
use snapgate::adapters::transport::ClientFiles;
use snapgate::adapters::transport::ServerTrust;
use snapgate::model::Backup;
use snapgate::model::BackupId;
use snapgate::model::BackupName;
use snapgate::model::BackupState;
use snapgate::model::Change;
use snapgate::model::Deadline;
use snapgate::model::Evidence;
use snapgate::model::FaultKind;
use snapgate::model::Intent;
use snapgate::model::NewBackup;
use snapgate::model::OperationSeq;
use snapgate::model::Page;
use snapgate::model::RequestKey;
use snapgate::model::RestoreOptions;
use snapgate::model::Tag;
use snapgate::model::Target;
use snapgate::model::TaskRef;
use snapgate::model::VmId;
use snapgate::runtime::Clock;
use snapgate::runtime::SystemClock;

use crate::conformance::begin_as_planned;
use crate::harness::eventually;
use crate::runner::skip;
use crate::runner::skip_part;

const SCRIPT: &str = "tests/beds/lxd.sh";

/// Which daemon: the same script starts either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flavor {
    Lxd,
    Incus,
}

impl Flavor {
    const ALL: [Self; 2] = [Self::Lxd, Self::Incus];

    fn name(self) -> &'static str {
        match self {
            Self::Lxd => "lxd",
            Self::Incus => "incus",
        }
    }

    /// The flavors of which a server was started for the tests; skips the test where there is none, and in part where one is missing.
    pub(crate) fn started() -> Vec<Self> {
        let (started, missing): (Vec<Self>, Vec<Self>) = Self::ALL
            .into_iter()
            .partition(|flavor| flavor.folder().is_ok());
        for reason in missing.iter().filter_map(|flavor| flavor.folder().err()) {
            if started.is_empty() {
                skip(&reason);
            }
            skip_part(&reason);
        }
        started
    }

    /// The folder of the server that was started for the tests.
    ///
    /// # Errors
    /// The reason for a skipped test.
    fn folder(self) -> Result<PathBuf, String> {
        let variable = match self {
            Self::Lxd => "SNAPGATE_BED_LXD",
            Self::Incus => "SNAPGATE_BED_INCUS",
        };
        let folder = env::var_os(variable).map(PathBuf::from);
        folder.ok_or_else(|| {
            format!(
                "no {} was started ({SCRIPT}, {variable} is not set)",
                self.name()
            )
        })
    }
}

/// A running LXD or Incus. One that a test may stop or kill is its own, and removed with it.
pub(crate) struct Lxd {
    folder: PathBuf,
    flavor: Flavor,
    own: Option<tempfile::TempDir>,
}

/// How the gateway comes to the daemon.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Transport {
    Socket,
    Tls,
}

impl Lxd {
    /// The one that was started for the tests; skips the test where none was.
    pub(crate) fn shared() -> Self {
        Self::of(Flavor::Lxd)
    }

    /// The one of that flavor that was started for the tests.
    pub(crate) fn of(flavor: Flavor) -> Self {
        let folder = flavor.folder().unwrap_or_else(|reason| skip(&reason));
        Self {
            folder,
            flavor,
            own: None,
        }
    }

    /// Another one, to be stopped and killed; skips the test where none was started for the tests.
    pub(crate) fn own(flavor: Flavor) -> Self {
        drop(Self::of(flavor));
        let own = tempfile::tempdir().unwrap();
        let lxd = Self {
            folder: own.path().join("lxd"),
            flavor,
            own: Some(own),
        };
        fs::create_dir(&lxd.folder).unwrap();
        lxd.run(&["up"]);
        lxd
    }

    pub(crate) fn run(&self, arguments: &[&str]) {
        let mut all = vec![arguments[0], self.folder.to_str().unwrap()];
        all.extend(&arguments[1..]);
        let mut script = Command::new(SCRIPT);
        script.args(&all).env("FLAVOR", self.flavor.name());
        let ended = script.status().unwrap();
        assert!(ended.success(), "{SCRIPT} {all:?}");
    }

    /// A new VM with so many MiB in it.
    pub(crate) fn vm(&self, name: &str, mib: u32) -> VmId {
        self.run(&["vm", name, &mib.to_string()]);
        VmId::new(name).unwrap()
    }

    /// From now on what LXD copies of the VM waits.
    pub(crate) fn hold(&self, vm: &VmId) -> Hold {
        let of = |state: &str| self.folder.join(state).join(vm.as_str());
        let (hold, held) = (of("hold"), of("held"));
        drop(fs::remove_file(&held));
        fs::write(&hold, "").unwrap();
        Hold { hold, held }
    }

    /// Calls the daemon itself, as another client does, and waits for the end of what it begins.
    pub(crate) fn call(&self, method: &str, path: &str, body: &str) -> serde_json::Value {
        let answer = self.ask(method, path, body);
        if answer["type"] != "async" {
            return answer;
        }
        let operation = answer["operation"].as_str().unwrap().split('?').next();
        self.ask("GET", &format!("{}/wait?", operation.unwrap()), "")
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> serde_json::Value {
        let project = if path.contains('?') {
            ""
        } else {
            "?project=tenant"
        };
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--max-time", "60", "-X", method, "--unix-socket"])
            .arg(self.folder.join("var/unix.socket"))
            .args(["-H", "Content-Type: application/json"])
            .arg(format!("http://daemon{path}{project}"));
        if !body.is_empty() {
            curl.args(["-d", body]);
        }
        let said = curl.output().unwrap();
        serde_json::from_slice(&said.stdout).unwrap_or_else(|_| panic!("{method} {path}: {said:?}"))
    }

    /// Where a pool is mounted.
    pub(crate) fn pool(&self, name: &str) -> PathBuf {
        self.folder.join("var/storage-pools").join(name)
    }

    /// What is in the VM, straight from its storage.
    pub(crate) fn file(&self, vm: &VmId) -> PathBuf {
        let pool = self.folder.join("var/storage-pools/default/containers");
        pool.join(format!("tenant_{vm}/rootfs/root/data"))
    }

    pub(crate) fn config(&self, way: Transport) -> Config {
        let address = match way {
            Transport::Socket => Address::Unix(self.folder.join("var/unix.socket")),
            Transport::Tls => self.tls(ServerTrust::Certificate(self.folder.join("server.crt"))),
        };
        Config {
            address,
            project: "tenant".to_owned(),
            connect_timeout: Duration::from_secs(5),
        }
    }

    fn tls(&self, trust: ServerTrust) -> Address {
        let port = fs::read_to_string(self.folder.join("port")).unwrap();
        Address::Https {
            authority: format!("127.0.0.1:{}", port.trim()),
            trust,
            identity: Some(ClientFiles {
                certificate: self.folder.join("client.crt"),
                key: self.folder.join("client.key"),
            }),
        }
    }

    pub(crate) fn adapter(&self, way: Transport) -> Incus {
        Incus::new(&self.config(way), SystemClock::shared()).unwrap()
    }
}

/// What LXD copies of a VM waits, for as long as this lives.
pub(crate) struct Hold {
    hold: PathBuf,
    held: PathBuf,
}

impl Hold {
    /// Waits until a copy waits.
    pub(crate) fn reached(&self) {
        eventually("LXD copies", || self.held.exists());
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.hold));
    }
}

impl Drop for Lxd {
    fn drop(&mut self) {
        if self.own.is_some() {
            let folder = self.folder.to_str().unwrap();
            let mut script = Command::new(SCRIPT);
            script
                .args(["down", folder])
                .env("FLAVOR", self.flavor.name());
            let ended = script.status();
            assert!(ended.is_ok_and(|ended| ended.success()), "{SCRIPT} down");
        }
    }
}

pub(crate) fn by() -> Deadline {
    SystemClock.deadline(Duration::from_secs(30))
}

/// A key that no other test and no earlier run used.
pub(crate) fn key() -> RequestKey {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = SystemClock.now().as_millis() * 1000 + NEXT.fetch_add(1, Ordering::Relaxed);
    RequestKey(OperationSeq::new(number).unwrap())
}

pub(crate) fn create(adapter: &Incus, vm: &VmId, name: &str, key: RequestKey) -> Intent {
    let new = NewBackup {
        name: BackupName::new(name).unwrap(),
        description: None,
        kind: None,
        tags: vec![Tag::new("t").unwrap()],
        protected: false,
    };
    Intent {
        target: Target {
            vm: vm.clone(),
            backup: adapter.mint_backup_id(&new, key).unwrap(),
        },
        identity: None,
        change: Change::Create(new),
    }
}

pub(crate) fn on(backup: &Backup, vm: &VmId, change: Change) -> Intent {
    Intent {
        target: Target {
            vm: vm.clone(),
            backup: backup.id.clone(),
        },
        identity: Some(backup.identity.clone()),
        change,
    }
}

pub(crate) fn restore(backup: &Backup, vm: &VmId) -> Intent {
    on(backup, vm, Change::Restore(RestoreOptions::default()))
}

/// Begins, and gives the task and what was seen before.
pub(crate) async fn begin(
    adapter: &Incus,
    intent: &Intent,
    key: RequestKey,
) -> (TaskRef, Option<Evidence>) {
    let before = adapter.baseline(intent, key, by()).await.unwrap();
    let begun = begin_as_planned(adapter, intent, key, before.as_ref(), by()).await;
    match begun.unwrap() {
        BeginOutcome::Task(task) => (task, before),
        BeginOutcome::Done => panic!("{intent:?} is a task"),
    }
}

/// Follows to the end as the gateway does: what cannot be reached is asked again.
pub(crate) async fn followed(adapter: &Incus, task: &TaskRef) -> TaskState {
    let end = SystemClock.deadline(Duration::from_secs(60));
    while SystemClock.instant() < end.instant() {
        match adapter.poll(task, by()).await {
            Ok(TaskState::Running(_)) => {}
            Ok(state) => return state,
            Err(error) => assert_ne!(error.fault.kind, FaultKind::BackendFailed, "{error:?}"),
        }
        let pause = tokio::time::sleep(Duration::from_millis(200));
        tokio::select! {
            () = adapter.changed(task) => {}
            () = pause => {}
        }
    }
    panic!("{task:?} does not end")
}

/// What became of it, once that is known.
async fn found(
    adapter: &Incus,
    intent: &Intent,
    key: RequestKey,
    before: Option<&Evidence>,
) -> FindOutcome {
    let end = SystemClock.deadline(Duration::from_secs(60));
    while SystemClock.instant() < end.instant() {
        match adapter.find_outcome(intent, key, before, by()).await {
            Ok(FindOutcome::Task(task)) => match followed(adapter, &task).await {
                TaskState::Gone => {}
                TaskState::Done(_) => return FindOutcome::Done(None),
                TaskState::Failed(fault) => return FindOutcome::Failed(fault),
                state @ (TaskState::Running(_) | TaskState::Cancelled) => panic!("{state:?}"),
            },
            Ok(FindOutcome::NotYet) | Err(_) => {}
            Ok(
                outcome @ (FindOutcome::NotBegun
                | FindOutcome::VmChanged
                | FindOutcome::HalfDone(_)
                | FindOutcome::Done(_)
                | FindOutcome::Failed(_)
                | FindOutcome::Unknowable),
            ) => {
                return outcome;
            }
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    panic!("{intent:?} is never found")
}

pub(crate) async fn made(adapter: &Incus, vm: &VmId, name: &str) -> Backup {
    let key = key();
    let intent = create(adapter, vm, name, key);
    let (task, _) = begin(adapter, &intent, key).await;
    let state = followed(adapter, &task).await;
    assert!(matches!(state, TaskState::Done(_)), "{name}: {state:?}");
    adapter.read_backup(&intent.target, by()).await.unwrap()
}

pub(crate) fn write(file: &Path, text: &str) {
    fs::write(file, text).unwrap();
}

#[apply(test)]
async fn servers_and_clients_that_are_not_trusted_are_refused() {
    let lxd = Lxd::shared();
    let config = |server| Config {
        address: lxd.tls(server),
        ..lxd.config(Transport::Tls)
    };
    let adapter = |config: &Config| Incus::new(config, SystemClock::shared()).unwrap();
    for way in [Transport::Socket, Transport::Tls] {
        let health = lxd.adapter(way).health(by()).await.unwrap();
        assert!(health.product.starts_with("LXD 5."), "{way:?}: {health:?}");
    }
    let ca = config(ServerTrust::Authority(lxd.folder.join("server.crt")));
    adapter(&ca).health(by()).await.unwrap();
    let wrong = [
        ("fingerprint", ServerTrust::Fingerprint("00".repeat(32))),
        (
            "authority",
            ServerTrust::Authority(lxd.folder.join("client.crt")),
        ),
        (
            "certificate",
            ServerTrust::Certificate(lxd.folder.join("client.crt")),
        ),
    ];
    for (name, server) in wrong {
        let error = adapter(&config(server)).health(by()).await.unwrap_err();
        let seen = (error.fault.kind, error.effect);
        assert_eq!(
            seen,
            (FaultKind::BackendFailed, Effect::None),
            "{name}: {error:?}"
        );
        assert!(
            error.fault.text.contains("certificate"),
            "{name}: {error:?}"
        );
    }
    // A client that the daemon does not know: made of the daemon's own certificate and key.
    let mut stranger = lxd.config(Transport::Tls);
    if let Address::Https { identity, .. } = &mut stranger.address {
        let files = ClientFiles {
            certificate: lxd.folder.join("stranger.crt"),
            key: lxd.folder.join("stranger.key"),
        };
        let made = Command::new("openssl")
            .args(
                "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=x"
                    .split(' '),
            )
            .arg("-keyout")
            .arg(files.key.as_path())
            .arg("-out")
            .arg(files.certificate.as_path())
            .output()
            .unwrap();
        assert!(made.status.success(), "openssl: {made:?}");
        *identity = Some(files);
    }
    let stranger = adapter(&stranger);
    let error = stranger.health(by()).await.unwrap_err();
    assert_eq!(error.fault.kind, FaultKind::BackendDenied, "{error:?}");
    let error = stranger
        .read_vm(&VmId::new("a").unwrap(), by())
        .await
        .unwrap_err();
    assert_eq!(error.fault.kind, FaultKind::BackendDenied, "{error:?}");
    let other = Config {
        project: "default".to_owned(),
        ..lxd.config(Transport::Tls)
    };
    let error = adapter(&other)
        .read_vm(&VmId::new("a").unwrap(), by())
        .await
        .unwrap_err();
    assert_eq!(
        error.fault.kind,
        FaultKind::BackendDenied,
        "another project: {error:?}"
    );
}

#[apply(test)]
async fn dangerous_names_are_unknown_without_asking() {
    let lxd = Lxd::shared();
    let vm = lxd.vm("names", 0);
    // No server listens there: requests fail in another way.
    let unreachable = Config {
        address: Address::Unix(lxd.folder.join("unreachable")),
        ..lxd.config(Transport::Socket)
    };
    let unreachable = Incus::new(&unreachable, SystemClock::shared()).unwrap();
    let adapter = lxd.adapter(Transport::Socket);
    for bad in [
        "a..b", "../x", "a/b", "a%2fb", "a%b", ".hidden", "x?y", "a b",
    ] {
        let error = unreachable
            .read_vm(&VmId::new(bad).unwrap(), by())
            .await
            .unwrap_err();
        assert_eq!(error.fault.kind, FaultKind::NoSuchVm, "{bad}");
        let target = Target {
            vm: vm.clone(),
            backup: BackupId::new(bad).unwrap(),
        };
        let error = adapter.read_backup(&target, by()).await.unwrap_err();
        assert_eq!(error.fault.kind, FaultKind::NoSuchBackup, "{bad}");
        let mut intent = create(&adapter, &vm, "n", key());
        intent.target = target;
        let error = adapter.begin(&intent, key(), None, by()).await.unwrap_err();
        assert_eq!(
            (error.fault.kind, error.effect),
            (FaultKind::Invalid, Effect::None),
            "{bad}"
        );
    }
}

/// LXD takes a connection to its socket only once the one before has sent something: one that a gateway opened and does
/// not use keeps everybody out. That came of a call that began right before another one ended.
#[apply(test)]
async fn connections_that_a_gateway_opened_keep_no_client_out() {
    let lxd = Lxd::shared();
    let mut usual = Duration::from_millis(1);
    for round in 0..200 {
        let (adapter, other) = (
            lxd.adapter(Transport::Socket),
            lxd.adapter(Transport::Socket),
        );
        let begun = SystemClock.instant();
        let first = async {
            adapter.health(by()).await.unwrap();
            begun.elapsed()
        };
        let second = async {
            let pause = usual * (round % 20) / 20;
            while begun.elapsed() < pause {
                tokio::task::yield_now().await;
            }
            adapter.health(by()).await.unwrap();
        };
        (usual, ()) = tokio::join!(first, second);
        let soon = SystemClock.deadline(Duration::from_secs(15));
        let health = other.health(soon).await;
        assert!(health.is_ok(), "round {round}: {health:?}");
    }
}

#[apply(test)]
async fn fifty_backups_are_listed_page_by_page() {
    let lxd = Lxd::shared();
    let adapter = lxd.adapter(Transport::Tls);
    let vm = lxd.vm("many", 0);
    for number in 0..50 {
        made(&adapter, &vm, &format!("number {number}")).await;
    }
    let mut page = Page {
        after: None,
        limit: 7,
    };
    let mut all: Vec<Backup> = Vec::new();
    loop {
        let part = adapter.list_backups(&vm, &page, by()).await.unwrap();
        assert!(part.backups.len() <= 7, "no more than asked for");
        all.extend(part.backups);
        page.after = all.last().map(|backup| backup.id.clone());
        if !part.more {
            break;
        }
    }
    assert_eq!(all.len(), 50, "all of them, none twice");
    assert!(
        all.windows(2).all(|window| window[0].id < window[1].id),
        "in order of their ids"
    );
    let names: Vec<&str> = all.iter().map(|backup| backup.name.as_str()).collect();
    assert_eq!(names[49], "number 49", "with their labels: {names:?}");
}

#[apply(test)]
async fn a_gateway_that_dies_in_a_restore_finds_what_became_of_it() {
    let lxd = Lxd::shared();
    let vm = lxd.vm("lost", 20);
    let adapter = lxd.adapter(Transport::Socket);
    write(&lxd.file(&vm), "one");
    let backup = made(&adapter, &vm, "one").await;
    write(&lxd.file(&vm), "two");
    let (key, intent) = (key(), restore(&backup, &vm));
    let never = adapter.baseline(&intent, key, by()).await.unwrap();
    let found_early = adapter
        .find_outcome(&intent, key, never.as_ref(), by())
        .await
        .unwrap();
    assert!(
        matches!(found_early, FindOutcome::NotBegun),
        "not begun: {found_early:?}"
    );
    let (task, before) = begin(&adapter, &intent, key).await;
    drop(adapter);
    let next = lxd.adapter(Transport::Tls);
    let end = found(&next, &intent, key, before.as_ref()).await;
    assert!(matches!(end, FindOutcome::Done(_)), "{end:?}");
    assert_eq!(
        fs::read_to_string(lxd.file(&vm)).unwrap(),
        "one",
        "restored"
    );
    // Operations are forgotten after five seconds: from then on there is only the evidence.
    let end = Instant::now() + Duration::from_secs(30);
    while !matches!(next.poll(&task, by()).await, Ok(TaskState::Gone)) {
        assert!(Instant::now() < end, "the daemon forgets its operation");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let end = next
        .find_outcome(&intent, key, before.as_ref(), by())
        .await
        .unwrap();
    assert!(matches!(end, FindOutcome::Done(_)), "by evidence: {end:?}");
}

#[apply(test)]
async fn two_gateways_do_not_run_into_each_other() {
    let lxd = Lxd::shared();
    let vm = lxd.vm("shared", 1);
    let (one, two) = (lxd.adapter(Transport::Socket), lxd.adapter(Transport::Tls));
    let backup = made(&one, &vm, "base").await;
    let (first, second) = (key(), key());
    let slow = create(&one, &vm, "slow", first);
    let hold = lxd.hold(&vm);
    let (task, _) = begin(&one, &slow, first).await;
    hold.reached();
    let begun = [
        ("restore", restore(&backup, &vm)),
        ("delete", on(&backup, &vm, Change::Delete)),
        ("create", create(&two, &vm, "other", second)),
    ];
    for (name, intent) in begun {
        let before = two.baseline(&intent, second, by()).await.unwrap();
        let error = two
            .begin(&intent, second, before.as_ref(), by())
            .await
            .unwrap_err();
        let seen = (error.fault.kind, error.effect);
        assert_eq!(seen, (FaultKind::Busy, Effect::None), "{name}: {error:?}");
    }
    let page = Page {
        after: None,
        limit: 10,
    };
    let error = two.read_backup(&slow.target, by()).await.unwrap_err();
    assert_eq!(error.fault.kind, FaultKind::NoSuchBackup, "{error:?}");
    let list = two.list_backups(&vm, &page, by()).await.unwrap();
    assert_eq!(
        list.backups,
        [backup],
        "the half-made one is not there: {list:?}"
    );
    drop(hold);
    let state = followed(&one, &task).await;
    assert!(matches!(state, TaskState::Done(_)), "{state:?}");
    let list = two.list_backups(&vm, &page, by()).await.unwrap();
    let states: Vec<BackupState> = list.backups.iter().map(|backup| backup.state).collect();
    assert_eq!(
        states,
        [BackupState::Available; 2],
        "both are whole: {list:?}"
    );
}

#[apply(test)]
async fn a_daemon_that_restarts_or_dies_leaves_no_doubt() {
    let lxd = Lxd::own(Flavor::Lxd);
    let vm = lxd.vm("web01", 1);
    let adapter = lxd.adapter(Transport::Socket);
    write(&lxd.file(&vm), "one");
    let backup = made(&adapter, &vm, "one").await;
    write(&lxd.file(&vm), "two");

    // Restarted while the gateway follows: the daemon ends what it has begun first, and then forgets it.
    let (again, intent) = (key(), restore(&backup, &vm));
    let (task, before) = begin(&adapter, &intent, again).await;
    lxd.run(&["stop"]);
    let error = adapter.poll(&task, by()).await.unwrap_err();
    assert_eq!(error.fault.kind, FaultKind::Unavailable, "{error:?}");
    lxd.run(&["start"]);
    let state = followed(&adapter, &task).await;
    assert!(matches!(state, TaskState::Gone), "{state:?}");
    let end = found(&adapter, &intent, again, before.as_ref()).await;
    assert!(matches!(end, FindOutcome::Done(_)), "{end:?}");
    assert_eq!(
        fs::read_to_string(lxd.file(&vm)).unwrap(),
        "one",
        "restored"
    );

    // Killed in the middle of a restore: cut short, and a second one repairs it.
    let (killed, intent) = (key(), restore(&backup, &vm));
    let hold = lxd.hold(&vm);
    let (task, before) = begin(&adapter, &intent, killed).await;
    hold.reached();
    lxd.run(&["kill"]);
    drop(hold);
    lxd.run(&["start"]);
    let state = followed(&adapter, &task).await;
    assert!(matches!(state, TaskState::Gone), "{state:?}");
    let end = found(&adapter, &intent, killed, before.as_ref()).await;
    assert!(matches!(end, FindOutcome::Failed(_)), "{end:?}");
    let repaired = key();
    let (task, _) = begin(&adapter, &intent, repaired).await;
    let state = followed(&adapter, &task).await;
    assert!(matches!(state, TaskState::Done(_)), "{state:?}");

    // Killed in the middle of a create: what is left is never offered for restore, and can be removed.
    let half = key();
    let intent = create(&adapter, &vm, "half", half);
    let hold = lxd.hold(&vm);
    let (task, _) = begin(&adapter, &intent, half).await;
    hold.reached();
    lxd.run(&["kill"]);
    drop(hold);
    lxd.run(&["start"]);
    let state = followed(&adapter, &task).await;
    assert!(matches!(state, TaskState::Gone), "{state:?}");
    let end = found(&adapter, &intent, half, None).await;
    assert!(matches!(end, FindOutcome::Failed(_)), "{end:?}");
    let left = adapter.read_backup(&intent.target, by()).await.unwrap();
    assert_eq!(left.state, BackupState::Error, "{left:?}");
    let refused = restore(&left, &vm);
    let error = begin_as_planned(&adapter, &refused, key(), None, by())
        .await
        .unwrap_err();
    assert_eq!(
        (error.fault.kind, error.effect),
        (FaultKind::NotReady, Effect::None),
        "{error:?}"
    );
    let (removal, intent) = (key(), on(&left, &vm, Change::Delete));
    let (task, _) = begin(&adapter, &intent, removal).await;
    let state = followed(&adapter, &task).await;
    assert!(matches!(state, TaskState::Done(_)), "{state:?}");
    let end = found(&adapter, &intent, removal, None).await;
    assert!(matches!(end, FindOutcome::Done(_)), "{end:?}");
}
