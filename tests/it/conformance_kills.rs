//! The kills of the suite: a whole gateway without sockets (gate, operations, store) over each adapter is ended between
//! any two steps of a change, and the next one must tell the truth about it.
//!
//! A step is a call to the adapter or a durable write; both lie between the moments counted here: right before a call
//! is made, and right after, before its answer is heard. Kills within a call are each adapter's own tests'.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::HeaderMap;
use http::HeaderValue;
use http::Method;
use snapgate::adapters::layers::Annotate;
use snapgate::adapters::port::*;
use snapgate::config;
use snapgate::gate::Body;
use snapgate::gate::BodyError;
use snapgate::gate::Decision;
use snapgate::gate::Exchange;
use snapgate::gate::Gate;
use snapgate::gate::RequestHead;
use snapgate::gate::Shared;
use snapgate::model::*;
use snapgate::operations::BackendHandle;
use snapgate::operations::Config;
use snapgate::operations::ListQuery;
use snapgate::operations::OpenStore;
use snapgate::operations::Operations;
use snapgate::operations::Service;
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

/// More moments than a change can have here: a change that has more never ends.
const MOMENTS_MAX: usize = 100;

/// An adapter whose gateway is killed at a moment: from then on nothing it is asked is ever answered.
#[derive(Debug)]
struct Mortal {
    inner: Arc<dyn Adapter>,
    /// Moments to live; none is left when it is dead.
    left: AtomicUsize,
    dead: watch::Sender<Option<&'static str>>,
}

impl Mortal {
    fn new(inner: Arc<dyn Adapter>, moments: usize) -> Arc<Self> {
        let left = AtomicUsize::new(moments);
        let dead = watch::Sender::new(None);
        Arc::new(Self { inner, left, dead })
    }

    async fn moment(&self, name: &'static str) {
        let one_less = |left: usize| left.checked_sub(1);
        let lived = self
            .left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less);
        if lived.is_err() {
            self.dead.send_if_modified(|it| {
                let is_first = it.is_none();
                it.get_or_insert(name);
                is_first
            });
            std::future::pending::<()>().await;
        }
    }
}

#[async_trait]
impl Adapter for Mortal {
    fn capability(&self) -> &Capability {
        self.inner.capability()
    }
    fn keeping(&self) -> Keeping {
        self.inner.keeping()
    }
    fn mint(&self, new: &NewBackup, key: RequestKey) -> Result<BackupId, AdapterError> {
        self.inner.mint(new, key)
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
    ) -> Result<Begun, AdapterError> {
        self.moment("before begin").await;
        let answer = self.inner.begin(intent, key, baseline, by).await;
        self.moment("after begin").await;
        answer
    }
    async fn poll(&self, task: &TaskRef, by: Deadline) -> Result<TaskState, AdapterError> {
        self.moment("before poll").await;
        let answer = self.inner.poll(task, by).await;
        self.moment("after poll").await;
        answer
    }
    async fn stirred(&self, task: &TaskRef) {
        self.inner.stirred(task).await;
    }
    async fn find(
        &self,
        intent: &Intent,
        key: RequestKey,
        baseline: Option<&Evidence>,
        by: Deadline,
    ) -> Result<Found, AdapterError> {
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
    fn begin(folder: &Path, vm: &VmId, adapter: &Arc<dyn Adapter>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let operations = runtime.block_on(open(folder, adapter));
        let clock = SystemClock::shared();
        let service: Arc<dyn Service> = Arc::<Operations>::clone(&operations);
        let metrics = Metrics::new().unwrap();
        let gate = Gate::new(
            gate_config(folder, vm),
            service,
            clock,
            metrics,
            Shared::new([3; 32]),
        );
        Self {
            runtime,
            operations,
            gate,
        }
    }

    fn send(&self, method: &Method, path: &str) -> Exchange {
        self.runtime.block_on(self.ask(method, path, ""))
    }

    async fn ask(&self, method: &Method, path: &str, body: &str) -> Exchange {
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
            Decision::Answer(exchange) => exchange,
            Decision::Pass(_) => panic!("{method} {path}: nothing is passed on here"),
        }
    }

    /// Sends a change and returns the number of its operation. A client whose gateway is killed first has no answer.
    fn change(
        &self,
        method: &Method,
        path: &str,
        body: &str,
        mortal: Option<&Mortal>,
    ) -> OperationSeq {
        let answer = self.runtime.block_on(async {
            let dead = async {
                match mortal {
                    Some(mortal) => drop(mortal.dead.subscribe().wait_for(Option::is_some).await),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                answer = self.ask(method, path, body) => Some(answer),
                () = dead => None,
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
    fn dies(&self, seq: OperationSeq, mortal: &Mortal) -> Option<&'static str> {
        let mut dead = mortal.dead.subscribe();
        let by = SystemClock.deadline(PATIENCE);
        self.runtime.block_on(async {
            tokio::select! {
                biased;
                moment = dead.wait_for(Option::is_some) => *moment.unwrap(),
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
async fn open(folder: &Path, adapter: &Arc<dyn Adapter>) -> Arc<Operations> {
    let by = SystemClock.deadline(PATIENCE);
    loop {
        let config = Config {
            poll_min: Duration::from_millis(20),
            poll_max: Duration::from_millis(50),
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
        let adapter: Arc<dyn Adapter> = match adapter.keeping() {
            Keeping::Native => Arc::clone(adapter),
            Keeping::Gateway => Arc::new(Annotate::new(
                name.clone(),
                Arc::clone(adapter),
                store.annotations(),
                Arc::clone(&clock),
            )),
        };
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
    loaded.unwrap_or_else(|it| panic!("{it}")).gate
}

/// What is there and what the VM holds, before or after a change.
fn was_done(bed: &dyn Bed, life: &Life, verb: Verb, path: &str) -> bool {
    let found = life.send(&Method::GET, path);
    let status = found.response.status().as_u16();
    match verb {
        Verb::Create => {
            assert!(status == 200 || status == 404, "there or not: {found:?}");
            status == 200
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
    let (vm, name) = (bed.vm(), bed.name());
    let backups = format!("/vms/{}/backups", vm.as_str());
    bed.write(1);
    let first = Life::begin(folder, &vm, &bed.born());
    let body = format!("{{\"name\":\"{}-{moment}\"}}", verb.as_str());
    let made = first.change(&Method::POST, &backups, &body, None);
    let made = first.end(made);
    assert_eq!(made.phase, Phase::Succeeded, "{name}: prepared: {made:?}");
    let path = format!("{backups}/{}", made.target().backup.as_str());
    first.stop();
    bed.write(2);

    let mortal = Mortal::new(bed.born(), moment);
    let dying: Arc<dyn Adapter> = Arc::<Mortal>::clone(&mortal);
    let second = Life::begin(folder, &vm, &dying);
    let killed = format!("{{\"name\":\"killed-{moment}\"}}");
    let restore = format!("{path}/restore");
    let (method, place, body) = match verb {
        Verb::Create => (Method::POST, &backups, killed.as_str()),
        Verb::Update => (Method::PUT, &path, "{\"tags\":[\"new\"]}"),
        Verb::Delete => (Method::DELETE, &path, ""),
        Verb::Restore => (Method::POST, &restore, ""),
    };
    let seq = second.change(&method, place, body, Some(&mortal));
    let died = second.dies(seq, &mortal);
    second.kill();
    drop((mortal, dying));
    let what = format!(
        "{name}: {} killed {}",
        verb.as_str(),
        died.unwrap_or("never")
    );

    // Carried out before the kill: whoever carries it out again takes this away.
    let marked = verb == Verb::Restore && bed.content() == 1;
    if marked {
        bed.write(3);
    }
    let adapter = bed.born();
    let capability = adapter.capability().clone();
    let third = Life::begin(folder, &vm, &adapter);
    let end = third.end(seq);
    let twice = marked && bed.content() != 3;
    if marked {
        bed.write(1);
    }
    let target = match verb {
        Verb::Create => format!("{backups}/{}", end.target().backup.as_str()),
        Verb::Update | Verb::Delete | Verb::Restore => path,
    };
    let done = was_done(bed, &third, verb, &target);
    third.stop();
    drop(adapter);
    let may_be_unknown = capability.verb(verb).unwrap().recovery == Recovery::NoTrace;
    let is_true = match end.phase {
        Phase::Succeeded => done,
        Phase::Failed | Phase::NotExecuted => !done,
        Phase::Unknown => may_be_unknown,
        Phase::Accepted
        | Phase::Submitting
        | Phase::Running
        | Phase::Uncertain
        | Phase::Cancelled => false,
    };
    let executions = bed.executions(end.key());
    let is_once = !twice && executions.is_none_or(|it| it == u64::from(done));
    let verdict = if is_true && is_once {
        Ok(())
    } else {
        Err(format!(
            "{what}: done: {done}, times: {executions:?}, twice: {twice}, told: {end:?}"
        ))
    };
    (died, verdict)
}

/// Every moment of every change that the adapter can do, one after the other. To be called outside any runtime.
pub(crate) fn kills(bed: &dyn Bed) {
    let folder = tempfile::tempdir().unwrap();
    let capability = bed.born().capability().clone();
    let mut table = String::new();
    for verb in Verb::ALL {
        let mut seen = Vec::new();
        if capability.verb(verb).is_some() {
            loop {
                let (moment, verdict) = killed_at(bed, folder.path(), verb, seen.len());
                verdict.unwrap_or_else(|untrue| panic!("{untrue}"));
                let Some(moment) = moment else { break };
                seen.push(moment);
                assert!(
                    seen.len() < MOMENTS_MAX,
                    "{}: {verb:?} never ends",
                    bed.name()
                );
            }
            for moment in [
                "before baseline",
                "after baseline",
                "before begin",
                "after begin",
            ] {
                assert!(
                    seen.contains(&moment),
                    "{}: {verb:?}: {moment}: {seen:?}",
                    bed.name()
                );
            }
        }
        let (name, count) = (bed.name(), seen.len());
        let verb = verb.as_str();
        table.push_str(&format!(
            "conformance: {name:<8} killed   {verb} at {count} moments\n"
        ));
    }
    // Straight to the terminal: the test runner swallows what passing tests print.
    std::io::Write::write_all(&mut std::io::stderr().lock(), table.as_bytes()).unwrap();
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
    ) -> Result<Begun, AdapterError> {
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
    ) -> Result<Found, AdapterError> {
        Ok(Found::Done)
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
