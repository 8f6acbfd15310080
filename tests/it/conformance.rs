//! One behaviour suite for every adapter, driven through the port.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use snapgate::adapters::adapter::*;
use snapgate::adapters::files;
use snapgate::adapters::libvirt;
use snapgate::adapters::sim;
use snapgate::model::*;
use snapgate::runtime::{Clock, SystemClock, Tasks};

use crate::conformance_kills::Moments;
use crate::conformance_kills::kill;
use crate::conformance_kills::kills;
use crate::conformance_kills::kills_of;
use crate::conformance_texts;
use crate::harness::PATIENCE;
use crate::harness::eventually;
use crate::incus::Flavor;
use crate::incus::Lxd;
use crate::incus::Way;
use crate::incus_failures::Mount;
use crate::libvirt_lab::Lab;

/// What the suite needs of one adapter beside the port. The VM exists and has no backup.
pub(crate) trait Bed {
    fn name(&self) -> &'static str;
    fn adapter(&self) -> Arc<dyn Adapter>;
    fn vm(&self) -> VmId;
    /// Changes what the VM holds.
    fn write(&self, content: u64);
    /// What the VM holds.
    fn content(&self) -> u64;
    /// An adapter as a gateway that has just started has it, on the VM manager as it is; the one before is gone.
    fn born(&self) -> Arc<dyn Adapter> {
        self.adapter()
    }
    /// How often the request was carried out, where the VM manager counts.
    fn executions(&self, _key: RequestKey) -> Option<u64> {
        None
    }
    /// Where gateways are killed. Real VM managers are looked at often while they work, each time alike.
    fn moments(&self) -> Moments {
        Moments::FirstOfEach
    }
    /// What the VM holds; `None` when its disks are of two times, as a gateway that was killed may leave them.
    fn found(&self) -> Option<u64> {
        Some(self.content())
    }
    /// Whether a gateway is to be killed now: a moment that the VM manager alone sees, within a call or a task.
    fn is_due(&self) -> bool {
        false
    }
    /// A gateway was killed. Returns at once, or when the VM manager has noticed.
    fn killed(&self) {}
    /// A settle time other than the adapter's, where the bed itself makes sure of what that time is waited for.
    fn settle(&self) -> Option<Duration> {
        None
    }
    /// Makes restores fail after they have begun, for as long as what is returned lives; `None` where that cannot be done.
    fn break_restores(&self) -> Option<Box<dyn std::any::Any + Send>> {
        None
    }
    /// Whether every refusal ends with what to do.
    fn names_remedies(&self) -> bool {
        false
    }
    /// How long evidence is looked for, other than the gateway's default, where the bed leaves none.
    fn window(&self) -> Option<Duration> {
        None
    }
}

pub(crate) struct SimBed(Arc<sim::Sim>);

impl Bed for SimBed {
    fn name(&self) -> &'static str {
        "sim"
    }
    fn adapter(&self) -> Arc<dyn Adapter> {
        Arc::<sim::Sim>::clone(&self.0)
    }
    fn vm(&self) -> VmId {
        VmId::new("33333").unwrap()
    }
    fn write(&self, content: u64) {
        assert!(self.0.control().write(&self.vm(), content), "written");
    }
    fn content(&self) -> u64 {
        self.0.control().content(&self.vm()).unwrap()
    }
    fn born(&self) -> Arc<dyn Adapter> {
        Arc::new(self.0.control().adapter(Tasks::default()))
    }
    fn executions(&self, key: RequestKey) -> Option<u64> {
        Some(self.0.control().executions(key))
    }
    fn moments(&self) -> Moments {
        Moments::All
    }
    fn break_restores(&self) -> Option<Box<dyn std::any::Any + Send>> {
        self.0.control().fail_next_task(FaultKind::BackendFailed);
        Some(Box::new(()))
    }
    fn names_remedies(&self) -> bool {
        true
    }
}

impl SimBed {
    pub(crate) fn new(recovery: Recovery) -> Self {
        let config = sim::Config {
            vms: vec![VmId::new("33333").unwrap()],
            backups: 0,
            duration: Duration::from_millis(30),
            recovery,
            ..sim::Config::default()
        };
        let made = sim::Sim::new(&config, SystemClock::shared(), Tasks::default());
        Self(Arc::new(made))
    }
}

#[tokio::test]
async fn sim_behaves() {
    suite(&SimBed::new(Recovery::ReplaySafe)).await;
}

#[test]
fn a_replay_safe_sim_is_killed_between_any_two_steps() {
    kills(&SimBed::new(Recovery::ReplaySafe));
}

#[test]
fn a_listable_sim_is_killed_between_any_two_steps() {
    kills(&SimBed::new(Recovery::Listable));
}

#[test]
fn a_traceless_sim_is_killed_between_any_two_steps() {
    kills(&SimBed::new(Recovery::NoTrace));
}

struct FilesBed(tempfile::TempDir, Mutex<Option<Arc<files::Files>>>);

impl FilesBed {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (root, backups) = (folder.path().join("vms"), folder.path().join("backups"));
        std::fs::create_dir_all(root.join("33333")).unwrap();
        std::fs::create_dir(backups).unwrap();
        Self(folder, Mutex::new(None))
    }

    fn disk(&self) -> std::path::PathBuf {
        self.0.path().join("vms/33333/disk.img")
    }
}

impl Bed for FilesBed {
    fn name(&self) -> &'static str {
        "files"
    }
    fn adapter(&self) -> Arc<dyn Adapter> {
        self.1.lock().unwrap().clone().unwrap()
    }
    fn vm(&self) -> VmId {
        VmId::new("33333").unwrap()
    }
    fn write(&self, content: u64) {
        std::fs::write(self.disk(), content.to_string()).unwrap();
    }
    fn content(&self) -> u64 {
        let text = std::fs::read_to_string(self.disk()).unwrap();
        text.parse().unwrap()
    }
    fn born(&self) -> Arc<dyn Adapter> {
        let mut place = self.1.lock().unwrap();
        place.take();
        let until = SystemClock.deadline(PATIENCE);
        loop {
            let config = files::Config {
                root: self.0.path().join("vms"),
                backups: self.0.path().join("backups"),
                new_folders: true,
            };
            match files::Files::new(config, SystemClock::shared(), Tasks::default()) {
                Ok(made) => return Arc::<files::Files>::clone(place.insert(Arc::new(made))),
                // The threads of the one before have not let go yet.
                Err(error) => assert!(SystemClock.instant() < until.instant(), "{error}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    fn moments(&self) -> Moments {
        Moments::All
    }
}

#[tokio::test]
async fn files_behave() {
    let bed = FilesBed::new();
    drop(bed.born());
    suite(&bed).await;
}

#[test]
fn files_are_killed_between_any_two_steps() {
    kills(&FilesBed::new());
}

/// A VM of a real libvirtd: the running one with one disk, or the one that is off and has two.
struct LibvirtBed {
    lab: Lab,
    adapter: Arc<libvirt::Libvirt>,
    /// Waits until libvirtd has taken up everything that a killed gateway asked it, so that nothing is left to settle.
    hurries: bool,
    runs: bool,
}

impl LibvirtBed {
    /// `None`, and the test counts as skipped, where libvirt is not installed.
    fn start(hurries: bool) -> Option<Self> {
        let lab = Lab::start()?;
        let adapter = lab.adapter();
        Some(Self {
            lab,
            adapter,
            hurries,
            runs: true,
        })
    }
}

impl LibvirtBed {
    /// Waits for the lock of the VM, so that nobody is at its disks.
    fn free(&self) {
        if self.runs {
            self.lab.monitor("web01", "info status");
        } else {
            self.lab.virsh(&["desc", "web02", "--config", "waited for"]);
        }
    }
}

impl Bed for LibvirtBed {
    fn name(&self) -> &'static str {
        if self.runs {
            "libvirt, running"
        } else {
            "libvirt, stopped"
        }
    }
    fn adapter(&self) -> Arc<dyn Adapter> {
        Arc::<libvirt::Libvirt>::clone(&self.adapter)
    }
    fn vm(&self) -> VmId {
        VmId::new(if self.runs { "web01" } else { "web02" }).unwrap()
    }
    fn write(&self, content: u64) {
        let byte = u8::try_from(content).unwrap();
        if self.runs {
            self.lab.write(byte);
        } else {
            self.free();
            self.lab.write_off("web02a.qcow2", byte);
            self.lab.write_off("web02b.qcow2", byte);
        }
    }
    fn content(&self) -> u64 {
        self.found().expect("both disks are of one time")
    }
    fn found(&self) -> Option<u64> {
        self.free();
        if self.runs {
            return Some(u64::from(self.lab.read("web01.qcow2")));
        }
        let one = self.lab.read("web02a.qcow2");
        let two = self.lab.read("web02b.qcow2");
        (one == two).then_some(u64::from(one))
    }
    fn born(&self) -> Arc<dyn Adapter> {
        self.lab.adapter()
    }
    fn killed(&self) {
        if self.hurries {
            eventually("libvirtd misses the gateway", || self.lab.clients() == 0);
            self.free();
        }
    }
    fn settle(&self) -> Option<Duration> {
        self.hurries.then_some(Duration::from_secs(1))
    }
    fn names_remedies(&self) -> bool {
        true
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn libvirt_behaves() {
    let Some(bed) = LibvirtBed::start(false) else {
        return;
    };
    suite(&bed).await;
}

#[test]
fn libvirt_is_left_by_a_gateway_killed_between_any_two_steps() {
    let Some(bed) = LibvirtBed::start(true) else {
        return;
    };
    kills(&bed);
}

#[test]
fn libvirt_is_left_with_a_stopped_vm_by_a_gateway_killed_between_any_two_steps() {
    let Some(bed) = LibvirtBed::start(true) else {
        return;
    };
    kills(&LibvirtBed { runs: false, ..bed });
}

/// With the adapter's own settle time, of which there is too much for every moment.
#[test]
fn a_gateway_killed_between_libvirts_restore_and_its_answer_settles() {
    let Some(bed) = LibvirtBed::start(false) else {
        return;
    };
    kill(&bed, Verb::Restore, 3, "after begin");
}

struct LxdBed {
    lxd: Lxd,
    flavor: Flavor,
    way: Way,
    vm: VmId,
}

impl LxdBed {
    /// `None`, and the test counts as skipped, where none of that flavor was started.
    fn new(flavor: Flavor, way: Way, name: &str) -> Option<Self> {
        let lxd = Lxd::of(flavor)?;
        let vm = lxd.vm(name, 0);
        Some(Self {
            lxd,
            flavor,
            way,
            vm,
        })
    }
}

impl Bed for LxdBed {
    fn name(&self) -> &'static str {
        match (self.flavor, self.way) {
            (Flavor::Lxd, Way::Socket) => "incus on LXD, unix socket",
            (Flavor::Lxd, Way::Tls) => "incus on LXD, TLS",
            (Flavor::Incus, Way::Socket) => "incus on Incus, unix socket",
            (Flavor::Incus, Way::Tls) => "incus on Incus, TLS",
        }
    }
    fn adapter(&self) -> Arc<dyn Adapter> {
        Arc::new(self.lxd.adapter(self.way))
    }
    fn vm(&self) -> VmId {
        self.vm.clone()
    }
    fn write(&self, content: u64) {
        std::fs::write(self.lxd.file(&self.vm), content.to_string()).unwrap();
    }
    fn content(&self) -> u64 {
        let text = std::fs::read_to_string(self.lxd.file(&self.vm)).unwrap();
        text.parse().unwrap()
    }
    fn break_restores(&self) -> Option<Box<dyn std::any::Any + Send>> {
        let file = self.lxd.file(&self.vm);
        let this = file.to_str()?.to_owned();
        Some(Box::new(Mount::new(&["--bind", &this], &file)))
    }
    fn names_remedies(&self) -> bool {
        true
    }
}

#[tokio::test]
async fn incus_behaves_over_a_socket() {
    lxd_behaves(Way::Socket, "socket").await;
}

#[tokio::test]
async fn incus_behaves_over_tls_with_a_restricted_certificate() {
    lxd_behaves(Way::Tls, "tls").await;
}

async fn lxd_behaves(way: Way, name: &str) {
    for flavor in Flavor::ALL {
        if let Some(bed) = LxdBed::new(flavor, way, name) {
            suite(&bed).await;
        }
    }
}

/// Each change on a VM of its own: they spend their time waiting for LXD to settle.
#[test]
fn incus_is_left_by_a_gateway_killed_between_any_two_steps() {
    std::thread::scope(|scope| {
        let beds = Flavor::ALL.into_iter().flat_map(|flavor| {
            Verb::ALL.into_iter().filter_map(move |verb| {
                let name = format!("killed-{}", verb.as_str());
                Some((verb, LxdBed::new(flavor, Way::Socket, &name)?))
            })
        });
        for (verb, bed) in beds {
            let body = move || kills_of(&bed, verb);
            drop(
                std::thread::Builder::new()
                    .spawn_scoped(scope, body)
                    .unwrap(),
            );
        }
    });
}

/// Which rows of the suite were run on a bed; those that its capability does not promise are skipped.
struct Rows {
    bed: &'static str,
    capability: Capability,
    said: Vec<(String, bool)>,
}

impl Rows {
    /// Whether to run a row that needs these verbs.
    fn due(&mut self, row: &str, verbs: &[Verb]) -> bool {
        let able = verbs
            .iter()
            .all(|verb| self.capability.verb(*verb).is_some());
        self.due_if(row, able)
    }

    fn due_if(&mut self, row: &str, able: bool) -> bool {
        self.said.push((row.to_owned(), able));
        able
    }

    fn replays(&self, verb: Verb) -> bool {
        let verb = self.capability.verb(verb);
        verb.is_some_and(|verb| verb.recovery == Recovery::ReplaySafe)
    }

    /// Straight to the terminal: the test runner swallows what passing tests print.
    fn print(&self) {
        let mut table = String::new();
        for (row, run) in &self.said {
            let word = if *run { "run" } else { "skipped" };
            table.push_str(&format!("conformance: {:<8} {word:<8} {row}\n", self.bed));
        }
        std::io::Write::write_all(&mut std::io::stderr().lock(), table.as_bytes()).unwrap();
    }
}

pub(crate) fn by() -> Deadline {
    SystemClock.deadline(Duration::from_secs(20))
}

pub(crate) fn key(number: u64) -> RequestKey {
    RequestKey(OperationSeq::new(number).unwrap())
}

pub(crate) fn create(adapter: &dyn Adapter, vm: &VmId, name: &str, number: u64) -> Intent {
    let new = NewBackup {
        name: BackupName::new(name).unwrap(),
        description: None,
        kind: None,
        tags: vec![Tag::new("old").unwrap()],
        protected: false,
    };
    let backup = adapter.mint_backup_id(&new, key(number)).unwrap();
    let target = Target {
        vm: vm.clone(),
        backup,
    };
    Intent {
        target,
        identity: None,
        change: Change::Create(new),
    }
}

pub(crate) fn on(backup: &Backup, vm: &VmId, change: Change) -> Intent {
    let target = Target {
        vm: vm.clone(),
        backup: backup.id.clone(),
    };
    Intent {
        target,
        identity: Some(backup.identity.clone()),
        change,
    }
}

/// Begins and follows to the end; the progress must not go back.
pub(crate) async fn run(
    adapter: &dyn Adapter,
    intent: &Intent,
    number: u64,
) -> Result<(), FaultKind> {
    let baseline = adapter.baseline(intent, key(number), by()).await.unwrap();
    run_from(adapter, intent, number, baseline.as_ref()).await
}

/// The same, from what was seen before: with the same number and baseline it is the same request again.
pub(crate) async fn run_from(
    adapter: &dyn Adapter,
    intent: &Intent,
    number: u64,
    baseline: Option<&Evidence>,
) -> Result<(), FaultKind> {
    let ended = fault_of(adapter, intent, number, baseline).await;
    ended.map_err(|fault| fault.kind)
}

/// The same, with what a caller reads.
pub(crate) async fn fault_of(
    adapter: &dyn Adapter,
    intent: &Intent,
    number: u64,
    baseline: Option<&Evidence>,
) -> Result<(), Fault> {
    let begun = adapter.begin(intent, key(number), baseline, by()).await;
    let task = match begun.map_err(|error| {
        assert_eq!(
            error.effect,
            Effect::None,
            "{number}: a refusal has no effect: {error:?}"
        );
        error.fault
    })? {
        BeginOutcome::Done => return Ok(()),
        BeginOutcome::Task(task) => task,
    };
    let (mut last, end) = (Progress::NONE, by());
    while SystemClock.instant() < end.instant() {
        match adapter.poll(&task, by()).await.unwrap() {
            TaskState::Running(progress) => {
                let now = progress.unwrap_or(last);
                assert!(now >= last, "{number}: progress went back");
                last = now;
            }
            TaskState::Done => return Ok(()),
            TaskState::Failed(fault) => return Err(fault),
            TaskState::Cancelled => return Err(Fault::new(FaultKind::Cancelled, "")),
            // What the gateway does then.
            TaskState::Gone => return found(adapter, intent, number, baseline).await,
        }
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    panic!("{number}: the task does not end")
}

/// What became of a request whose task is gone.
async fn found(
    adapter: &dyn Adapter,
    intent: &Intent,
    number: u64,
    baseline: Option<&Evidence>,
) -> Result<(), Fault> {
    let only = |kind| Err(Fault::new(kind, ""));
    let settle = adapter.capability().verb(intent.verb()).unwrap().settle;
    let end = SystemClock.deadline(settle + Duration::from_secs(20));
    while SystemClock.instant() < end.instant() {
        match adapter.find(intent, key(number), baseline, by()).await {
            Ok(FindOutcome::Done) => return Ok(()),
            Ok(FindOutcome::Failed(fault) | FindOutcome::HalfDone(fault)) => return Err(fault),
            Ok(FindOutcome::NotBegun | FindOutcome::VmChanged) => {
                return only(FaultKind::NotExecuted);
            }
            Ok(FindOutcome::Unknowable) => return only(FaultKind::OutcomeUnknown),
            Ok(FindOutcome::NotYet | FindOutcome::Task(_)) | Err(_) => {}
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{number}: nothing is ever found out")
}

pub(crate) async fn suite(bed: &dyn Bed) {
    let (adapter, vm, name) = (bed.adapter(), bed.vm(), bed.name());
    let adapter = adapter.as_ref();
    let mut rows = Rows {
        bed: name,
        capability: adapter.capability().clone(),
        said: Vec::new(),
    };
    if rows.due("health", &[]) {
        let health = adapter.health(by()).await.unwrap();
        assert!(!health.product.is_empty(), "{name}: names itself");
    }
    if rows.due("an unknown VM is told", &[]) {
        let nowhere = VmId::new("no-such-vm").unwrap();
        let error = adapter.vm(&nowhere, by()).await.unwrap_err();
        assert_eq!(error.fault.kind, FaultKind::NoSuchVm, "{name}: unknown VM");
        let page = Page {
            after: None,
            limit: 1,
        };
        let error = adapter.list(&nowhere, &page, by()).await.unwrap_err();
        assert_eq!(error.fault.kind, FaultKind::NoSuchVm, "{name}: list");
        assert_eq!(adapter.vm(&vm, by()).await.unwrap().id, vm, "{name}");
    }
    if rows.due("create", &[Verb::Create]) {
        let backup = creates(bed, adapter, &mut rows).await;
        if rows.due("restore", &[Verb::Restore]) {
            restores(bed, adapter, &backup, &mut rows).await;
        }
        let backup = updates(bed, adapter, backup, &mut rows).await;
        if rows.due("delete", &[Verb::Delete]) {
            deletes(bed, adapter, &backup, &mut rows).await;
        }
    }
    rows.print();
}

/// Makes backups and returns the first.
async fn creates(bed: &dyn Bed, adapter: &dyn Adapter, rows: &mut Rows) -> Backup {
    let (vm, name) = (bed.vm(), bed.name());
    let first = create(adapter, &vm, "one", 1);
    let error = adapter.read(&first.target, by()).await.unwrap_err();
    let unknown = FaultKind::NoSuchBackup;
    assert_eq!(error.fault.kind, unknown, "{name}: unknown backup");
    let found = adapter.find(&first, key(1), None, by()).await.unwrap();
    assert!(
        !matches!(found, FindOutcome::Done | FindOutcome::Task(_)),
        "{name}: never begun: {found:?}"
    );
    bed.write(1);
    let seen = adapter.baseline(&first, key(1), by()).await.unwrap();
    let outcome = run_from(adapter, &first, 1, seen.as_ref()).await;
    assert_eq!(outcome, Ok(()), "{name}: create");
    let found = adapter.find(&first, key(1), seen.as_ref(), by()).await;
    let found = found.unwrap();
    assert!(
        matches!(found, FindOutcome::Done),
        "{name}: found after done: {found:?}"
    );
    let backup = adapter.read(&first.target, by()).await.unwrap();
    assert_eq!(backup.name.as_str(), "one", "{name}: as asked for");
    let replays = rows.replays(Verb::Create);
    if rows.due_if("the same create again makes nothing", replays) {
        let outcome = run_from(adapter, &first, 1, seen.as_ref()).await;
        assert_eq!(outcome, Ok(()), "{name}: again");
        let now = adapter.read(&first.target, by()).await.unwrap();
        assert_eq!(now, backup, "{name}: the same backup");
    }
    let taken = create(adapter, &vm, "one", 2);
    let outcome = run(adapter, &taken, 2).await;
    assert_eq!(outcome, Err(FaultKind::NameTaken), "{name}: name");
    for kind in [
        BackupKind::Full,
        BackupKind::Snapshot,
        BackupKind::Incremental,
    ] {
        let able = rows.capability.kinds.contains(&kind);
        let row = format!("a backup of kind {kind:?} is refused");
        if rows.due_if(&row, !able) {
            let mut intent = create(adapter, &vm, "odd", 20);
            if let Change::Create(new) = &mut intent.change {
                new.kind = Some(kind);
            }
            let outcome = run(adapter, &intent, 20).await;
            assert_eq!(outcome, Err(FaultKind::Unsupported), "{name}: {kind:?}");
        }
    }
    let second = create(adapter, &vm, "two", 3);
    assert_eq!(run(adapter, &second, 3).await, Ok(()), "{name}: second");
    let page = |after, limit| Page { after, limit };
    let head = adapter.list(&vm, &page(None, 1), by()).await.unwrap();
    assert!(
        head.more && head.backups.len() == 1,
        "{name}: first page: {head:?}"
    );
    let rest = page(Some(head.backups[0].id.clone()), 5);
    let tail = adapter.list(&vm, &rest, by()).await.unwrap();
    assert!(
        !tail.more && tail.backups.len() == 1,
        "{name}: rest: {tail:?}"
    );
    assert!(tail.backups[0].id > head.backups[0].id, "{name}: in order");
    backup
}

async fn restores(bed: &dyn Bed, adapter: &dyn Adapter, backup: &Backup, rows: &mut Rows) {
    let (vm, name) = (bed.vm(), bed.name());
    bed.write(2);
    let restore = on(backup, &vm, Change::Restore(RestoreOptions::default()));
    let other = Intent {
        identity: Some(Identity::new("other".to_owned())),
        ..restore.clone()
    };
    let outcome = run(adapter, &other, 4).await;
    assert_eq!(outcome, Err(FaultKind::NoSuchBackup), "{name}: identity");
    assert_eq!(bed.content(), 2, "{name}: nothing restored");
    let found = adapter.find(&restore, key(5), None, by()).await.unwrap();
    assert!(
        !matches!(found, FindOutcome::Done | FindOutcome::Task(_)),
        "{name}: never begun: {found:?}"
    );
    let seen = adapter.baseline(&restore, key(5), by()).await.unwrap();
    let outcome = run_from(adapter, &restore, 5, seen.as_ref()).await;
    assert_eq!(outcome, Ok(()), "{name}: restore");
    assert_eq!(bed.content(), 1, "{name}: content is back");
    let broken = bed.break_restores();
    let row = "a restore that fails says what it left";
    if rows.due_if(row, broken.is_some()) {
        conformance_texts::fails(bed, adapter, &restore, broken).await;
    }
    let replays = rows.replays(Verb::Restore);
    if rows.due_if("the same restore again does nothing", replays) {
        bed.write(3);
        let outcome = run_from(adapter, &restore, 5, seen.as_ref()).await;
        assert_eq!(outcome, Ok(()), "{name}: the same again");
        assert_eq!(bed.content(), 3, "{name}: acts once");
    }
}

/// Changes the backup and protects it where that can be done. Returns it, not protected.
async fn updates(bed: &dyn Bed, adapter: &dyn Adapter, backup: Backup, rows: &mut Rows) -> Backup {
    if !rows.due("update", &[Verb::Update]) {
        return backup;
    }
    let (vm, name) = (bed.vm(), bed.name());
    let patch = BackupPatch {
        tags: Patch::Set(vec![Tag::new("new").unwrap()]),
        protected: Patch::Set(true),
        ..BackupPatch::default()
    };
    let update = on(&backup, &vm, Change::Update(patch));
    assert_eq!(run(adapter, &update, 6).await, Ok(()), "{name}: update");
    let after = adapter.read(&update.target, by()).await.unwrap();
    let expected = [Tag::new("new").unwrap()];
    assert_eq!(after.tags, expected, "{name}: replaced, not merged");
    if rows.due("a protected backup is not deleted", &[Verb::Delete]) {
        let page = Page {
            after: None,
            limit: 9,
        };
        let before = adapter.list(&vm, &page, by()).await.unwrap();
        let delete = on(&after, &vm, Change::Delete);
        let outcome = run(adapter, &delete, 7).await;
        assert_eq!(outcome, Err(FaultKind::Protected), "{name}: protected");
        let now = adapter.list(&vm, &page, by()).await.unwrap();
        assert_eq!(now, before, "{name}: a refused delete changes nothing");
        let read = adapter.read(&delete.target, by()).await.unwrap();
        assert_eq!(read, after, "{name}: a refused delete changes nothing");
        if rows.due_if("refusals say what to do", bed.names_remedies()) {
            let taken = create(adapter, &vm, "one", 32);
            conformance_texts::names_remedy(bed, adapter, &delete, 33).await;
            conformance_texts::names_remedy(bed, adapter, &taken, 32).await;
        }
    }
    let patch = BackupPatch {
        protected: Patch::Clear,
        ..BackupPatch::default()
    };
    let update = on(&after, &vm, Change::Update(patch));
    assert_eq!(run(adapter, &update, 8).await, Ok(()), "{name}: unprotect");
    adapter.read(&update.target, by()).await.unwrap()
}

async fn deletes(bed: &dyn Bed, adapter: &dyn Adapter, backup: &Backup, rows: &mut Rows) {
    let (vm, name) = (bed.vm(), bed.name());
    let delete = on(backup, &vm, Change::Delete);
    let seen = adapter.baseline(&delete, key(9), by()).await.unwrap();
    let outcome = run_from(adapter, &delete, 9, seen.as_ref()).await;
    assert_eq!(outcome, Ok(()), "{name}: delete");
    let gone = adapter.read(&delete.target, by()).await.unwrap_err();
    assert_eq!(gone.fault.kind, FaultKind::NoSuchBackup, "{name}: gone");
    let replays = rows.replays(Verb::Delete);
    if rows.due_if("a deleted backup is found deleted", replays) {
        let found = adapter.find(&delete, key(9), seen.as_ref(), by()).await;
        let found = found.unwrap();
        assert!(matches!(found, FindOutcome::Done), "{name}: {found:?}");
    }
}
