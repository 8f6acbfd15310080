//! The kills of the suite: a whole gateway without sockets (gate, operations, store) over each adapter is ended between
//! any two steps of a change, and the next one must tell the truth about it.
//!
//! A step is a call to the adapter or a durable write; both lie between the moments counted here: right before a call
//! is made, and right after, before its answer is heard. Kills within a call are each adapter's own tests'.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::HeaderMap;
use http::HeaderValue;
use http::Method;
use snapgate::adapters::adapter::*;
use snapgate::adapters::layers::Annotate;
use snapgate::config;
use snapgate::gate::Body;
use snapgate::gate::BodyError;
use snapgate::gate::Gate;
use snapgate::gate::GateDecision;
use snapgate::gate::HandledRequest;
use snapgate::gate::ProcessState;
use snapgate::gate::RequestHead;
use snapgate::model::*;
use snapgate::operations::BackendHandle;
use snapgate::operations::Config;
use snapgate::operations::ListQuery;
use snapgate::operations::OpenStore;
use snapgate::operations::Operations;
use snapgate::operations::OperationsApi;
use snapgate::operations::WaitFor;
use snapgate::runtime::Clock;
use snapgate::runtime::SystemClock;
use snapgate::runtime::Tasks;
use snapgate::telemetry::Metrics;
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::client::basic;
use crate::conformance::Bed;
use crate::conformance::SimBed;
use crate::harness::PATIENCE;
use crate::harness::SECRET_HASH;

/// The name of the moment that the VM manager alone sees.
const DUE: &str = "half-way";

/// More moments than a change can have here: a change that has more never ends.
const MOMENTS_MAX: usize = 100;

/// Which of the moments of a change a gateway is killed at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moments {
    /// Every single one.
    All,
    /// The first of each name: of the looks at work that goes on, one.
    FirstOfEach,
}

impl Moments {
    const fn holds(self, is_new: bool) -> bool {
        match self {
            Self::All => true,
            Self::FirstOfEach => is_new,
        }
    }
}

/// When a gateway is killed. Everything in it shares this.
#[derive(Debug)]
struct Death {
    moments: Moments,
    /// Moments to live; none is left when it is dead.
    left: AtomicUsize,
    met: Mutex<BTreeSet<&'static str>>,
    /// Moments that were met and that nobody is killed at.
    spared: AtomicUsize,
    dead: watch::Sender<Option<&'static str>>,
}

impl Death {
    fn after(moments: Moments, left: usize) -> Arc<Self> {
        Arc::new(Self {
            moments,
            left: AtomicUsize::new(left),
            met: Mutex::default(),
            spared: AtomicUsize::new(0),
            dead: watch::Sender::new(None),
        })
    }

    fn never() -> Arc<Self> {
        Self::after(Moments::All, usize::MAX)
    }

    /// Passes, or ends the gateway: then it never returns.
    async fn moment(&self, name: &'static str) {
        if self.dead.borrow().is_none() {
            let is_new = self.met.lock().unwrap().insert(name);
            if !self.moments.holds(is_new) {
                self.spared.fetch_add(1, Ordering::SeqCst);
                return;
            }
            let one_less = |left: usize| left.checked_sub(1);
            let order = Ordering::SeqCst;
            if self.left.fetch_update(order, order, one_less).is_ok() {
                return;
            }
            self.dead.send_if_modified(|dead| {
                let is_first = dead.is_none();
                dead.get_or_insert(name);
                is_first
            });
        }
        std::future::pending::<()>().await;
    }
}

/// How often the backup that a change is about is asked for.
const PREPARATIONS_MAX: u32 = 3;

/// An adapter whose gateway is killed at a moment: from then on nothing it is asked is ever answered.
#[derive(Debug)]
struct Mortal {
    inner: Arc<dyn Adapter>,
    capability: Capability,
    /// Whether it is the VM manager's own adapter below the one that keeps names: then only the calls are moments.
    beneath: bool,
    death: Arc<Death>,
}

impl Mortal {
    fn around(inner: Arc<dyn Adapter>, beneath: bool, death: &Arc<Death>) -> Self {
        let capability = inner.capability().clone();
        Self {
            inner,
            capability,
            beneath,
            death: Arc::clone(death),
        }
    }

    /// With another settle time than the adapter's own.
    fn settling(mut self, settle: Option<Duration>) -> Self {
        let it = &mut self.capability;
        let verbs = [
            &mut it.create,
            &mut it.update,
            &mut it.delete,
            &mut it.restore,
        ];
        for verb in verbs.into_iter().flatten() {
            verb.settle = settle.unwrap_or(verb.settle);
        }
        self
    }

    async fn moment(&self, name: &'static str) {
        if !self.beneath {
            self.death.moment(name).await;
        }
    }
}

#[async_trait]
impl Adapter for Mortal {
    fn capability(&self) -> &Capability {
        &self.capability
    }
    fn metadata_owner(&self) -> MetadataOwner {
        self.inner.metadata_owner()
    }
    fn mint_backup_id(&self, new: &NewBackup, key: RequestKey) -> Result<BackupId, AdapterError> {
        self.inner.mint_backup_id(new, key)
    }
    fn needs_baseline(&self, intent: &Intent) -> bool {
        self.inner.needs_baseline(intent)
    }
    async fn health(&self, by: Deadline) -> Result<Health, AdapterError> {
        self.inner.health(by).await
    }
    async fn vm(&self, vm: &VmId, by: Deadline) -> Result<Vm, AdapterError> {
        self.inner.vm(vm, by).await
    }
    async fn list(&self, vm: &VmId, page: &Page, by: Deadline) -> Result<BackupPage, AdapterError> {
        self.inner.list(vm, page, by).await
    }
    async fn read(&self, target: &Target, by: Deadline) -> Result<Backup, AdapterError> {
        self.inner.read(target, by).await
    }
    async fn baseline(
        &self,
        intent: &Intent,
        key: RequestKey,
        by: Deadline,
    ) -> Result<Option<Evidence>, AdapterError> {
        self.moment("before baseline").await;
        let answer = self.inner.baseline(intent, key, by).await;
        self.moment("after baseline").await;
        answer
    }
    async fn begin(
        &self,
        intent: &Intent,
        key: RequestKey,
        baseline: Option<&Evidence>,
        by: Deadline,
    ) -> Result<BeginOutcome, AdapterError> {
        let (before, after) = match self.beneath {
            false => ("before begin", "after begin"),
            true => (
                "before the VM manager's begin",
                "after the VM manager's begin",
            ),
        };
        self.death.moment(before).await;
        let answer = self.inner.begin(intent, key, baseline, by).await;
        self.death.moment(after).await;
        answer
    }
    async fn poll(&self, task: &TaskRef, by: Deadline) -> Result<TaskState, AdapterError> {
        self.moment("before poll").await;
        let answer = self.inner.poll(task, by).await;
        let after = match &answer {
            Ok(TaskState::Running(_)) | Err(_) => "after poll, at work",
            Ok(_) => "after poll, ended",
        };
        self.moment(after).await;
        answer
    }
    async fn changed(&self, task: &TaskRef) {
        self.inner.changed(task).await;
    }
    async fn find(
        &self,
        intent: &Intent,
        key: RequestKey,
        baseline: Option<&Evidence>,
        by: Deadline,
    ) -> Result<FindOutcome, AdapterError> {
        self.moment("before find").await;
        let answer = self.inner.find(intent, key, baseline, by).await;
        self.moment("after find").await;
        answer
    }
    async fn cancel(&self, task: &TaskRef, by: Deadline) -> Result<(), AdapterError> {
        self.inner.cancel(task, by).await
    }
}

/// One body, whole.
struct Whole(Bytes);

#[async_trait]
impl Body for Whole {
    async fn read(&mut self, _limit: usize) -> Result<Bytes, BodyError> {
        Ok(self.0.clone())
    }
    fn is_present(&self) -> bool {
        !self.0.is_empty()
    }
}

/// One life of the gateway.
struct Life {
    runtime: Runtime,
    operations: Arc<Operations>,
    gate: Gate,
}

impl Life {
    /// Starts on what the life before left.
    fn begin(folder: &Path, bed: &dyn Bed, death: &Arc<Death>) -> Self {
        let (vm, adapter) = (bed.vm(), bed.born());
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let operations = runtime.block_on(open(folder, &adapter, bed, death));
        let clock = SystemClock::shared();
        let service: Arc<dyn OperationsApi> = Arc::<Operations>::clone(&operations);
        let metrics = Metrics::new().unwrap();
        let gate = Gate::new(
            gate_config(folder, &vm),
            service,
            clock,
            metrics,
            ProcessState::new([3; 32]),
        );
        Self {
            runtime,
            operations,
            gate,
        }
    }

    /// How lost answers are made good; `None` when it cannot be done at all.
    fn recovery(&self, verb: Verb) -> Option<Recovery> {
        let name = BackendName::new("bed").unwrap();
        let capability = self.operations.capability(&name).unwrap();
        capability.verb(verb).map(|verb| verb.recovery)
    }

    fn send(&self, method: &Method, path: &str) -> HandledRequest {
        self.runtime.block_on(self.ask(method, path, ""))
    }

    async fn ask(&self, method: &Method, path: &str, body: &str) -> HandledRequest {
        let mut headers = HeaderMap::new();
        let mut add = |name: &'static str, value: &str| {
            headers.insert(name, HeaderValue::from_str(value).unwrap());
        };
        add("host", "example.com");
        add("authorization", &basic("alice", "secret"));
        add("x-cloud-client-specification-version", "0.1");
        if !body.is_empty() {
            add("content-type", "application/json");
            add("content-length", &body.len().to_string());
        }
        let head = RequestHead {
            method,
            target: path.as_bytes(),
            version: http::Version::HTTP_11,
            headers: &headers,
            peer: None,
            certificate: &[],
        };
        let mut body = Whole(Bytes::copy_from_slice(body.as_bytes()));
        match self.gate.handle(head, &mut body).await {
            GateDecision::Answer(exchange) => exchange,
            GateDecision::PassThrough(_) => panic!("{method} {path}: nothing is passed on here"),
        }
    }

    /// Sends a change and returns the number of its operation. A client whose gateway is killed first has no answer.
    fn change(&self, method: &Method, path: &str, body: &str, death: &Death) -> OperationSeq {
        let mut dead = death.dead.subscribe();
        let answer = self.runtime.block_on(async {
            tokio::select! {
                biased;
                answer = self.ask(method, path, body) => Some(answer),
                _ = dead.wait_for(Option::is_some) => None,
            }
        });
        if let Some(answer) = answer {
            assert_eq!(answer.response.status(), 202, "{method} {path}: {answer:?}");
            return answer.operation.unwrap();
        }
        let newest = ListQuery {
            limit: 1,
            ..ListQuery::default()
        };
        let found = self.runtime.block_on(self.operations.list(&newest));
        found.unwrap().first().expect("it was accepted").seq
    }

    /// Waits for the end of the operation.
    fn end(&self, seq: OperationSeq) -> Arc<Operation> {
        let by = SystemClock.deadline(PATIENCE);
        let found = self.operations.wait(seq, WaitFor::End, by);
        let found = self.runtime.block_on(found).unwrap().expect("it is kept");
        assert!(found.phase.is_final(), "it ends: {found:?}");
        found
    }

    /// Waits until the gateway is to be killed, or the operation is over without.
    fn dies(&self, seq: OperationSeq, death: &Death, bed: &dyn Bed) -> Option<&'static str> {
        let mut dead = death.dead.subscribe();
        let by = SystemClock.deadline(PATIENCE);
        self.runtime.block_on(async {
            let due = async {
                while !bed.is_due() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::select! {
                biased;
                moment = dead.wait_for(Option::is_some) => *moment.unwrap(),
                () = due => {
                    death.dead.send_replace(Some(DUE));
                    Some(DUE)
                }
                ended = self.operations.wait(seq, WaitFor::End, by) => {
                    let ended = ended.unwrap().unwrap();
                    assert!(ended.phase.is_final(), "it ends or is killed: {ended:?}");
                    None
                }
            }
        })
    }

    /// Ends it as a kill would: nothing that runs is waited for, nothing more is written.
    fn kill(self) {
        drop(self.gate);
        drop(self.operations);
        self.runtime.shutdown_timeout(PATIENCE);
    }

    /// Ends it in an orderly way.
    fn stop(self) {
        self.runtime.block_on(self.operations.stop());
        self.kill();
    }
}

/// Opens what the life before left, once that has let go of the file.
async fn open(
    folder: &Path,
    adapter: &Arc<dyn Adapter>,
    bed: &dyn Bed,
    death: &Arc<Death>,
) -> Arc<Operations> {
    let by = SystemClock.deadline(PATIENCE);
    loop {
        let config = Config {
            poll_min: Duration::from_millis(20),
            poll_max: Duration::from_millis(50),
            probe_window: bed.window().unwrap_or(limits::PROBE_WINDOW),
            ..Config::with_store(folder.join("operations.db"))
        };
        let (metrics, clock) = (Metrics::new().unwrap(), SystemClock::shared());
        let store = match OpenStore::open(&config, Arc::clone(&clock), metrics.clone()).await {
            Ok(store) => store,
            Err(error) => {
                assert!(SystemClock.instant() < by.instant(), "opened: {error}");
                tokio::time::sleep(Duration::from_millis(5)).await;
                continue;
            }
        };
        let name = BackendName::new("bed").unwrap();
        let adapter: Arc<dyn Adapter> = match adapter.metadata_owner() {
            MetadataOwner::Native => Arc::clone(adapter),
            MetadataOwner::Gateway => Arc::new(Annotate::new(
                name.clone(),
                Arc::new(Mortal::around(Arc::clone(adapter), true, death)),
                store.annotations(),
                Arc::clone(&clock),
            )),
        };
        let adapter = Arc::new(Mortal::around(adapter, false, death).settling(bed.settle()));
        let backend = BackendHandle {
            name,
            adapter,
            concurrency: 1,
        };
        let opened = Operations::open_on(
            store,
            config,
            vec![backend],
            clock,
            metrics,
            Tasks::default(),
        );
        return opened.await.unwrap();
    }
}

/// The gate's part of a configuration file in which alice may do everything to the VM.
fn gate_config(folder: &Path, vm: &VmId) -> snapgate::gate::Config {
    let file = folder.join("snapgate.toml");
    let vm = vm.as_str();
    let text = format!(
        "[operations]\nstore = \"operations.db\"\n[[backend]]\nname = \"bed\"\nkind = \"sim\"\nvms = [\"{vm}\"]\n\
         [[user]]\nname = \"alice\"\npassword_hash = \"{SECRET_HASH}\"\n[[grant]]\nto = [\"user:alice\"]\n\
         actions = [\"read\", \"create\", \"update\", \"protect\", \"delete\", \"restore\", \"observe\"]\n\
         vms = [\"*\"]\nbackups = [\"*\"]\n"
    );
    std::fs::write(&file, text).unwrap();
    let loaded = config::load(&file, &|_| None);
    loaded.unwrap_or_else(|error| panic!("{error}")).gate
}

/// What is there and what the VM holds, before or after a change.
fn was_done(bed: &dyn Bed, life: &Life, verb: Verb, path: &str) -> bool {
    let found = life.send(&Method::GET, path);
    let status = found.response.status().as_u16();
    match verb {
        Verb::Create => {
            assert!(status == 200 || status == 404, "there or not: {found:?}");
            // What is left of one that was cut short is shown, so that it can be removed, and said to be no good.
            let text = String::from_utf8_lossy(found.response.body()).into_owned();
            status == 200 && !text.contains("\"state\":\"ERROR\"")
        }
        Verb::Delete => {
            assert!(status == 200 || status == 404, "there or not: {found:?}");
            status == 404
        }
        Verb::Update => {
            let text = String::from_utf8_lossy(found.response.body()).into_owned();
            assert_eq!(status, 200, "still there: {text}");
            text.contains("\"tags\":[\"new\"]")
        }
        Verb::Restore => {
            assert_eq!(status, 200, "still there: {found:?}");
            match bed.content() {
                1 => true,
                2 => false,
                other => panic!("neither before nor after: {other}"),
            }
        }
    }
}

/// Kills the gateway at this moment of one change and judges what the next one tells. Says which moment it was, or
/// `None` when the change has no such moment, and what is untrue.
fn killed_at(
    bed: &dyn Bed,
    folder: &Path,
    verb: Verb,
    moment: usize,
) -> (Option<&'static str>, Result<(), String>) {
    let death = Death::after(bed.moments(), moment);
    let verdict = killed_by(bed, folder, verb, moment, &death);
    (*death.dead.borrow(), verdict)
}

/// Makes a backup and returns its path. Nobody is killed here, but LXD forgets what it made five seconds after the end: a
/// gateway that is not given a turn for so long tells that, and is asked for another one.
fn prepared(bed: &dyn Bed, life: &Life, name: &str) -> String {
    let backups = format!("/vms/{}/backups", bed.vm().as_str());
    for number in 0..PREPARATIONS_MAX {
        let body = format!("{{\"name\":\"{name}-{number}\"}}");
        let made = life.change(&Method::POST, &backups, &body, &Death::never());
        let made = life.end(made);
        if made.phase == Phase::Succeeded {
            return format!("{backups}/{}", made.target().backup.as_str());
        }
        assert_eq!(made.phase, Phase::Failed, "{name}: prepared: {made:?}");
        say(&format!(
            "conformance: {name} prepared anew: {:?}\n",
            made.fault
        ));
    }
    panic!("{name}: no backup was made")
}

fn killed_by(
    bed: &dyn Bed,
    folder: &Path,
    verb: Verb,
    number: usize,
    death: &Arc<Death>,
) -> Result<(), String> {
    let (vm, name) = (bed.vm(), bed.name());
    let backups = format!("/vms/{}/backups", vm.as_str());
    bed.write(1);
    let never = Death::never();
    let first = Life::begin(folder, bed, &never);
    let path = prepared(bed, &first, &format!("{}-{number}", verb.as_str()));
    first.stop();
    bed.write(2);

    let second = Life::begin(folder, bed, death);
    let killed = format!("{{\"name\":\"killed-{number}\"}}");
    let restore = format!("{path}/restore");
    let (method, place, body) = match verb {
        Verb::Create => (Method::POST, &backups, killed.as_str()),
        Verb::Update => (Method::PUT, &path, "{\"tags\":[\"new\"]}"),
        Verb::Delete => (Method::DELETE, &path, ""),
        Verb::Restore => (Method::POST, &restore, ""),
    };
    let seq = second.change(&method, place, body, death);
    let died = second.dies(seq, death, bed);
    second.kill();
    bed.killed();
    let what = format!(
        "{name}: {} killed {}",
        verb.as_str(),
        died.unwrap_or("never")
    );

    // Carried out before the kill: whoever carries it out again takes this away.
    let marked = verb == Verb::Restore && bed.found() == Some(1);
    if marked {
        bed.write(3);
    }
    let third = Life::begin(folder, bed, &never);
    let end = third.end(seq);
    let twice = marked && bed.found() != Some(3);
    if marked {
        bed.write(1);
    }
    let target = match verb {
        Verb::Create => format!("{backups}/{}", end.target().backup.as_str()),
        Verb::Update | Verb::Delete | Verb::Restore => path,
    };
    // What nobody follows any more may still be at work over there.
    let mut done = was_done(bed, &third, verb, &target);
    let begun = |done: bool| {
        let executions = bed.executions(end.key());
        executions.is_none_or(|execution| execution == u64::from(done))
    };
    let until = SystemClock.deadline(Duration::from_secs(10)).instant();
    while end.phase == Phase::Unknown && !begun(done) && SystemClock.instant() < until {
        std::thread::sleep(Duration::from_millis(20));
        done = was_done(bed, &third, verb, &target);
    }
    let recovery = third.recovery(verb);
    third.stop();
    let is_true = match end.phase {
        Phase::Succeeded => done,
        Phase::Failed | Phase::NotExecuted => !done,
        Phase::Unknown => recovery == Some(Recovery::NoTrace),
        Phase::Accepted
        | Phase::Submitting
        | Phase::Running
        | Phase::Uncertain
        | Phase::Cancelled => false,
    };
    let executions = bed.executions(end.key());
    let is_once = !twice && executions.is_none_or(|execution| execution == u64::from(done));
    if is_true && is_once {
        return Ok(());
    }
    Err(format!(
        "{what}: done: {done}, times: {executions:?}, twice: {twice}, told: {end:?}"
    ))
}

/// Moments of every change: the calls themselves, and the look before it.
const DECISIVE: [&str; 4] = [
    "before baseline",
    "after baseline",
    "before begin",
    "after begin",
];

/// The moments of every change that the adapter can do, one after the other. To be called outside any runtime.
pub(crate) fn kills(bed: &dyn Bed) {
    for verb in Verb::ALL {
        kills_of(bed, verb);
    }
}

/// The moments of one change, one after the other. To be called outside any runtime.
pub(crate) fn kills_of(bed: &dyn Bed, verb: Verb) {
    let folder = tempfile::tempdir().unwrap();
    let name = bed.name();
    let (mut seen, mut spared) = (Vec::new(), 0);
    let start = SystemClock.instant();
    let life = Life::begin(folder.path(), bed, &Death::never());
    let recovery = life.recovery(verb);
    let is_able = recovery.is_some();
    // Such an update may be begun by its acceptance, without a look before it.
    let may_skip_look = verb == Verb::Update && recovery == Some(Recovery::ReplaySafe);
    life.stop();
    // One life after the other, until one is not killed any more.
    let mut alive = !is_able;
    while !alive {
        let death = Death::after(bed.moments(), seen.len());
        let verdict = killed_by(bed, folder.path(), verb, seen.len(), &death);
        verdict.unwrap_or_else(|untrue| panic!("{untrue}"));
        let Some(moment) = *death.dead.borrow() else {
            spared = death.spared.load(Ordering::SeqCst);
            alive = true;
            continue;
        };
        seen.push(moment);
        let count = seen.len();
        assert!(count < MOMENTS_MAX, "{name}: {verb:?} never ends");
    }
    let is_skipped = |it: &str| may_skip_look && it.ends_with("baseline");
    let due = |it: &&&str| is_able && bed.moments().holds(true) && !is_skipped(it);
    for moment in DECISIVE.iter().filter(due) {
        assert!(
            seen.contains(moment),
            "{name}: {verb:?}: {moment}: {seen:?}"
        );
    }
    let (count, verb) = (seen.len(), verb.as_str());
    let took = SystemClock.instant().duration_since(start).as_secs_f64();
    say(&format!(
        "conformance: {name:<8} killed   {verb} at {count} moments, not at {spared} more, {took:.0} s\n"
    ));
}

/// One moment of one change that the VM manager alone sees: see [`Bed::is_due`].
pub(crate) fn kill_when_due(bed: &dyn Bed, verb: Verb) {
    let folder = tempfile::tempdir().unwrap();
    let death = Death::never();
    let verdict = killed_by(bed, folder.path(), verb, 0, &death);
    assert_eq!(*death.dead.borrow(), Some(DUE), "{}: {verb:?}", bed.name());
    verdict.unwrap_or_else(|untrue| panic!("{untrue}"));
    let (name, verb) = (bed.name(), verb.as_str());
    say(&format!("conformance: {name:<8} killed   {verb} {DUE}\n"));
}

/// Straight to the terminal: the test runner swallows what passing tests print.
fn say(text: &str) {
    std::io::Write::write_all(&mut std::io::stderr().lock(), text.as_bytes()).unwrap();
}

/// One moment of one change, by the name it must have.
pub(crate) fn kill(bed: &dyn Bed, verb: Verb, moment: usize, named: &str) {
    let folder = tempfile::tempdir().unwrap();
    let (died, verdict) = killed_at(bed, folder.path(), verb, moment);
    assert_eq!(died, Some(named), "{}: {verb:?}", bed.name());
    verdict.unwrap_or_else(|untrue| panic!("{untrue}"));
    let (name, verb) = (bed.name(), verb.as_str());
    say(&format!("conformance: {name:<8} killed   {verb} {named}\n"));
}

/// An adapter that says of everything whose answer was lost that it was done.
#[derive(Debug)]
struct Liar(Arc<dyn Adapter>);

#[async_trait]
impl Adapter for Liar {
    fn capability(&self) -> &Capability {
        self.0.capability()
    }
    async fn health(&self, by: Deadline) -> Result<Health, AdapterError> {
        self.0.health(by).await
    }
    async fn vm(&self, vm: &VmId, by: Deadline) -> Result<Vm, AdapterError> {
        self.0.vm(vm, by).await
    }
    async fn list(&self, vm: &VmId, page: &Page, by: Deadline) -> Result<BackupPage, AdapterError> {
        self.0.list(vm, page, by).await
    }
    async fn read(&self, target: &Target, by: Deadline) -> Result<Backup, AdapterError> {
        self.0.read(target, by).await
    }
    async fn begin(
        &self,
        intent: &Intent,
        key: RequestKey,
        baseline: Option<&Evidence>,
        by: Deadline,
    ) -> Result<BeginOutcome, AdapterError> {
        self.0.begin(intent, key, baseline, by).await
    }
    async fn poll(&self, task: &TaskRef, by: Deadline) -> Result<TaskState, AdapterError> {
        self.0.poll(task, by).await
    }
    async fn find(
        &self,
        _intent: &Intent,
        _key: RequestKey,
        _baseline: Option<&Evidence>,
        _by: Deadline,
    ) -> Result<FindOutcome, AdapterError> {
        Ok(FindOutcome::Done)
    }
    async fn cancel(&self, task: &TaskRef, by: Deadline) -> Result<(), AdapterError> {
        self.0.cancel(task, by).await
    }
}

struct LyingBed(SimBed);

impl Bed for LyingBed {
    fn name(&self) -> &'static str {
        "a liar"
    }
    fn adapter(&self) -> Arc<dyn Adapter> {
        self.born()
    }
    fn vm(&self) -> VmId {
        self.0.vm()
    }
    fn write(&self, content: u64) {
        self.0.write(content);
    }
    fn content(&self) -> u64 {
        self.0.content()
    }
    fn born(&self) -> Arc<dyn Adapter> {
        Arc::new(Liar(self.0.born()))
    }
}

#[test]
fn an_adapter_that_lies_is_caught() {
    let folder = tempfile::tempdir().unwrap();
    let bed = LyingBed(SimBed::new(Recovery::Listable));
    for verb in Verb::ALL {
        // "before begin": nothing was done.
        let (moment, verdict) = killed_at(&bed, folder.path(), verb, 2);
        assert_eq!(moment, Some("before begin"), "{verb:?}");
        let untrue = verdict.expect_err("the Status says that it was done");
        assert!(untrue.contains("done: false"), "{verb:?}: {untrue}");
    }
}
