//! A whole gateway without sockets (gate, operations and store) that ends at a chosen moment and never finishes what it began.

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
use crate::conformance::AdapterFixture;
use crate::harness::PATIENCE;
use crate::harness::SECRET_HASH;

/// The name of the moment that the VM manager alone sees.
pub(crate) const DUE: &str = "half-way";

/// Which of the moments of a change a gateway is killed at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KillMoments {
    /// Every single one.
    All,
    /// The first of each name: one of the polls of a running task.
    FirstOfEach,
}

impl KillMoments {
    pub(crate) const fn holds(self, is_new: bool) -> bool {
        match self {
            Self::All => true,
            Self::FirstOfEach => is_new,
        }
    }
}

/// When a gateway is killed. Everything in it shares this.
#[derive(Debug)]
pub(crate) struct KillSwitch {
    pub(crate) kill_moments: KillMoments,
    /// Moments to live; none is left when it is dead.
    pub(crate) left: AtomicUsize,
    pub(crate) met: Mutex<BTreeSet<&'static str>>,
    /// Moments that were met and at which no gateway is killed.
    pub(crate) spared: AtomicUsize,
    pub(crate) dead: watch::Sender<Option<&'static str>>,
}

impl KillSwitch {
    pub(crate) fn after(kill_moments: KillMoments, left: usize) -> Arc<Self> {
        Arc::new(Self {
            kill_moments,
            left: AtomicUsize::new(left),
            met: Mutex::default(),
            spared: AtomicUsize::new(0),
            dead: watch::Sender::new(None),
        })
    }

    pub(crate) fn never() -> Arc<Self> {
        Self::after(KillMoments::All, usize::MAX)
    }

    /// Passes, or ends the gateway: then it never returns.
    pub(crate) async fn moment(&self, name: &'static str) {
        if self.dead.borrow().is_none() {
            let is_new = self.met.lock().unwrap().insert(name);
            if !self.kill_moments.holds(is_new) {
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

/// An adapter whose gateway is killed at a moment: from then on nothing it is asked is ever answered.
#[derive(Debug)]
struct MortalAdapter {
    pub(crate) inner: Arc<dyn Adapter>,
    pub(crate) capability: Capability,
    /// Whether it is the VM manager's own adapter below the one that keeps names: then only the calls are moments.
    pub(crate) beneath: bool,
    pub(crate) kill_switch: Arc<KillSwitch>,
}

impl MortalAdapter {
    pub(crate) fn around(
        inner: Arc<dyn Adapter>,
        beneath: bool,
        kill_switch: &Arc<KillSwitch>,
    ) -> Self {
        let capability = inner.capability().clone();
        Self {
            inner,
            capability,
            beneath,
            kill_switch: Arc::clone(kill_switch),
        }
    }

    /// With another settle time than the adapter's own.
    pub(crate) fn settling(mut self, settle: Option<Duration>) -> Self {
        let capability = &mut self.capability;
        let verbs = [
            &mut capability.create,
            &mut capability.update,
            &mut capability.delete,
            &mut capability.restore,
        ];
        for verb in verbs.into_iter().flatten() {
            verb.settle = settle.unwrap_or(verb.settle);
        }
        self
    }

    pub(crate) async fn moment(&self, name: &'static str) {
        if !self.beneath {
            self.kill_switch.moment(name).await;
        }
    }
}

#[async_trait]
impl Adapter for MortalAdapter {
    fn capability(&self) -> &Capability {
        &self.capability
    }
    fn metadata_owner(&self) -> MetadataOwner {
        self.inner.metadata_owner()
    }
    fn mint_backup_id(&self, new: &NewBackup, key: RequestKey) -> Result<BackupId, AdapterError> {
        self.inner.mint_backup_id(new, key)
    }
    async fn preview(&self, intent: &Intent, by: Deadline) -> Result<Preview, AdapterError> {
        self.inner.preview(intent, by).await
    }
    fn needs_baseline(&self, intent: &Intent) -> bool {
        self.inner.needs_baseline(intent)
    }
    async fn health(&self, by: Deadline) -> Result<Health, AdapterError> {
        self.inner.health(by).await
    }
    async fn read_vm(&self, vm: &VmId, by: Deadline) -> Result<Vm, AdapterError> {
        self.inner.read_vm(vm, by).await
    }
    async fn list_vms(&self, range: &VmRange, by: Deadline) -> Result<VmPage, AdapterError> {
        self.inner.list_vms(range, by).await
    }
    async fn list_backups(
        &self,
        vm: &VmId,
        page: &Page,
        by: Deadline,
    ) -> Result<BackupPage, AdapterError> {
        self.inner.list_backups(vm, page, by).await
    }
    async fn query_backups(
        &self,
        vm: &VmId,
        query: &BackupQuery,
        by: Deadline,
    ) -> Result<BackupSelection, AdapterError> {
        self.inner.query_backups(vm, query, by).await
    }

    async fn read_backup(&self, target: &Target, by: Deadline) -> Result<Backup, AdapterError> {
        self.inner.read_backup(target, by).await
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
        self.kill_switch.moment(before).await;
        let answer = self.inner.begin(intent, key, baseline, by).await;
        self.kill_switch.moment(after).await;
        answer
    }
    async fn poll(&self, task: &TaskRef, by: Deadline) -> Result<TaskState, AdapterError> {
        self.moment("before poll").await;
        let answer = self.inner.poll(task, by).await;
        let after = match &answer {
            Ok(TaskState::Running(_)) | Err(_) => "after poll, running",
            Ok(_) => "after poll, ended",
        };
        self.moment(after).await;
        answer
    }
    async fn changed(&self, task: &TaskRef) {
        self.inner.changed(task).await;
    }
    async fn find_outcome(
        &self,
        intent: &Intent,
        key: RequestKey,
        baseline: Option<&Evidence>,
        by: Deadline,
    ) -> Result<FindOutcome, AdapterError> {
        self.moment("before find").await;
        let answer = self.inner.find_outcome(intent, key, baseline, by).await;
        self.moment("after find").await;
        answer
    }
    async fn cancel(&self, task: &TaskRef, by: Deadline) -> Result<(), AdapterError> {
        self.inner.cancel(task, by).await
    }

    fn is_identity_of(&self, stored: &Identity, backup: &Backup) -> bool {
        self.inner.is_identity_of(stored, backup)
    }
}

/// One body, whole.
struct WholeBody(Bytes);

#[async_trait]
impl Body for WholeBody {
    async fn read(&mut self, _limit: usize) -> Result<Bytes, BodyError> {
        Ok(self.0.clone())
    }
    fn is_present(&self) -> bool {
        !self.0.is_empty()
    }
}

/// One life of the gateway.
pub(crate) struct MortalGateway {
    pub(crate) runtime: Runtime,
    pub(crate) operations: Arc<Operations>,
    pub(crate) gate: Gate,
}

impl MortalGateway {
    /// Starts on what the life before left.
    pub(crate) fn begin(
        folder: &Path,
        fixture: &dyn AdapterFixture,
        kill_switch: &Arc<KillSwitch>,
    ) -> Self {
        let (vm, adapter) = (fixture.vm(), fixture.adapter_after_restart());
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let operations = runtime.block_on(open(folder, &adapter, fixture, kill_switch));
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
    pub(crate) fn recovery(&self, verb: Verb) -> Option<Recovery> {
        let name = BackendName::new("bed").unwrap();
        let capability = self.operations.capability(&name).unwrap();
        capability.verb(verb).map(|verb| verb.recovery)
    }

    pub(crate) fn send(&self, method: &Method, path: &str) -> HandledRequest {
        self.runtime.block_on(self.ask(method, path, ""))
    }

    pub(crate) async fn ask(&self, method: &Method, path: &str, body: &str) -> HandledRequest {
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
        let mut body = WholeBody(Bytes::copy_from_slice(body.as_bytes()));
        match self.gate.handle(head, &mut body).await {
            GateDecision::Answer(exchange) => exchange,
            GateDecision::PassThrough(_) => panic!("{method} {path}: nothing is passed on here"),
        }
    }

    /// Sends a change and returns the number of its operation. A client whose gateway is killed first has no answer.
    pub(crate) fn change(
        &self,
        method: &Method,
        path: &str,
        body: &str,
        kill_switch: &KillSwitch,
    ) -> OperationSeq {
        let mut dead = kill_switch.dead.subscribe();
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
        found
            .unwrap()
            .operations
            .first()
            .expect("it was accepted")
            .seq
    }

    /// Waits for the end of the operation.
    pub(crate) fn end(&self, seq: OperationSeq) -> Arc<Operation> {
        let by = SystemClock.deadline(PATIENCE);
        let found = self.operations.wait(seq, WaitFor::End, by);
        let found = self.runtime.block_on(found).unwrap().expect("it is kept");
        assert!(found.phase.is_final(), "it ends: {found:?}");
        found
    }

    /// Waits until the gateway is to be killed, or the operation is over without.
    pub(crate) fn dies(
        &self,
        seq: OperationSeq,
        kill_switch: &KillSwitch,
        fixture: &dyn AdapterFixture,
    ) -> Option<&'static str> {
        let mut dead = kill_switch.dead.subscribe();
        let by = SystemClock.deadline(PATIENCE);
        self.runtime.block_on(async {
            let due = async {
                while !fixture.is_kill_due() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::select! {
                biased;
                moment = dead.wait_for(Option::is_some) => *moment.unwrap(),
                () = due => {
                    kill_switch.dead.send_replace(Some(DUE));
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
    pub(crate) fn kill(self) {
        drop(self.gate);
        drop(self.operations);
        self.runtime.shutdown_timeout(PATIENCE);
    }

    /// Ends it in an orderly way.
    pub(crate) fn stop(self) {
        self.runtime.block_on(self.operations.stop());
        self.kill();
    }
}

/// Opens what the life before left, once that has let go of the file.
async fn open(
    folder: &Path,
    adapter: &Arc<dyn Adapter>,
    fixture: &dyn AdapterFixture,
    kill_switch: &Arc<KillSwitch>,
) -> Arc<Operations> {
    let by = SystemClock.deadline(PATIENCE);
    loop {
        let config = Config {
            poll_min: Duration::from_millis(20),
            poll_max: Duration::from_millis(50),
            probe_window: fixture.evidence_window().unwrap_or(limits::PROBE_WINDOW),
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
                Arc::new(MortalAdapter::around(
                    Arc::clone(adapter),
                    true,
                    kill_switch,
                )),
                store.annotations(),
                Arc::clone(&clock),
            )),
        };
        let adapter =
            Arc::new(MortalAdapter::around(adapter, false, kill_switch).settling(fixture.settle()));
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
