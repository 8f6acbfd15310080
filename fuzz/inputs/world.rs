//! A gate over a service in memory, the same at the beginning of every input.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::OnceLock;

use async_trait::async_trait;
use snapgate::config;
use snapgate::gate;
use snapgate::gate::Gate;
use snapgate::gate::GateDecision;
use snapgate::gate::HandledRequest;
use snapgate::gate::PassThrough;
use snapgate::gate::ProcessState;
use snapgate::gate::RequestHead;
use snapgate::model::*;
use snapgate::operations::*;
use snapgate::runtime::ManualClock;
use snapgate::telemetry::Metrics;

use super::issuer;
use super::issuer::NOW;
use super::request::Request;
use super::request::Sent;
use super::settings::BACKEND;
use super::settings::ROUTES;
use super::settings::SETTINGS;
use super::settings::TOKENS;
use super::settings::private_text;

/// What became of one request.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) exchange: HandledRequest,
    /// What was accepted, with its proof.
    pub(crate) accepted: Vec<(Permit, Submission)>,
    /// What was asked to be stopped.
    pub(crate) cancelled: Vec<OperationSeq>,
    /// The limits with which the body was read.
    pub(crate) reads: Vec<usize>,
}

/// Answers the request from the beginning of the world.
pub(crate) fn answer(request: &Request) -> Outcome {
    answer_by(request, gate_config())
}

/// The same with other keys of the issuer.
pub(crate) fn answer_by_keys(request: &Request, keys: gate::KeySet) -> Outcome {
    let mut config = gate_config();
    config.credentials.issuers[0].keys = gate::KeyRing::fixed(keys);
    answer_by(request, config)
}

/// What became of a request where some are passed on.
#[derive(Debug)]
pub(crate) enum Fate {
    Answered(Box<Outcome>),
    Passed(Box<PassThrough>),
}

/// Decides about the request where there are routes to other servers.
pub(crate) fn fate(request: &Request) -> Fate {
    static CONFIG: OnceLock<gate::Config> = OnceLock::new();
    let config = CONFIG.get_or_init(|| loaded(&format!("{SETTINGS}{ROUTES}")));
    decide(request, config.clone())
}

fn answer_by(request: &Request, config: gate::Config) -> Outcome {
    match decide(request, config) {
        Fate::Answered(outcome) => *outcome,
        Fate::Passed(pass) => panic!("nothing is passed on here: {pass:?}"),
    }
}

fn decide(request: &Request, config: gate::Config) -> Fate {
    thread_local! {
        static RUNTIME: RefCell<tokio::runtime::Runtime> = RefCell::new(
            tokio::runtime::Builder::new_current_thread().build().unwrap(),
        );
    }
    /// Costs much to make, and decides nothing.
    static METRICS: OnceLock<Metrics> = OnceLock::new();
    let memory = Arc::new(Memory::new());
    let service: Arc<dyn OperationsApi> = Arc::<Memory>::clone(&memory);
    let gate = Gate::new(
        config,
        service,
        Arc::new(ManualClock::new(Timestamp::from_millis(u64::from(NOW)))),
        METRICS.get_or_init(|| Metrics::new().unwrap()).clone(),
        ProcessState::new([7; 32]),
    );
    let head = RequestHead {
        method: &request.method,
        target: &request.target,
        version: request.version,
        headers: &request.headers,
        peer: None,
        certificate: &[],
    };
    let mut body = Sent::new(request.body.clone());
    let decision = RUNTIME.with_borrow(|runtime| runtime.block_on(gate.handle(head, &mut body)));
    let state = memory.0.lock().unwrap();
    let reads = body.reads.into_inner().unwrap();
    match decision {
        GateDecision::PassThrough(pass) => {
            assert!(reads.is_empty(), "what is passed on is read by others");
            assert!(state.accepted.is_empty(), "and has no effect here");
            Fate::Passed(pass)
        }
        GateDecision::Answer(exchange) => Fate::Answered(Box::new(Outcome {
            exchange,
            accepted: state.accepted.clone(),
            cancelled: state.cancelled.clone(),
            reads,
        })),
    }
}

fn gate_config() -> gate::Config {
    static CONFIG: OnceLock<gate::Config> = OnceLock::new();
    CONFIG.get_or_init(|| loaded(SETTINGS)).clone()
}

fn loaded(settings: &str) -> gate::Config {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("snapgate.toml");
    std::fs::write(&path, settings).unwrap();
    std::fs::write(folder.path().join("tokens.json"), TOKENS).unwrap();
    std::fs::write(folder.path().join("sso.json"), issuer::key_set()).unwrap();
    let loaded = config::load(&path, &|_| None);
    loaded.unwrap_or_else(|error| panic!("{error}")).gate
}

#[derive(Debug, Default)]
struct State {
    backups: BTreeMap<Target, Backup>,
    operations: Vec<Arc<Operation>>,
    accepted: Vec<(Permit, Submission)>,
    cancelled: Vec<OperationSeq>,
}

#[derive(Debug)]
struct Memory(Mutex<State>);

fn target(vm: &str, backup: &str) -> Target {
    Target {
        vm: VmId::new(vm).unwrap(),
        backup: BackupId::new(backup).unwrap(),
    }
}

fn backup(id: &str, state: BackupState, protected: bool) -> Backup {
    Backup {
        id: BackupId::new(id).unwrap(),
        identity: Identity::new(format!("{id}@1")),
        name: BackupName::new(&format!("web01_{id}")).unwrap(),
        description: None,
        kind: Some(BackupKind::Full),
        created: Timestamp::from_millis(1_000),
        tags: vec![Tag::new("t").unwrap()],
        state,
        size: Some(7),
        protected,
    }
}

fn operation(number: u64, principal: &str, change: Change, phase: Phase) -> Operation {
    let identity = Some(Identity::new("456@1".to_owned()));
    let intent = Intent {
        target: target("33333", "456"),
        identity,
        change,
    };
    Operation {
        phase,
        ..Operation::accepted(
            OperationSeq::new(number).unwrap(),
            PrincipalName::new(principal).unwrap(),
            RequestId::new("earlier").unwrap(),
            BackendName::new(BACKEND).unwrap(),
            intent,
            Timestamp::from_millis(2_000),
        )
    }
}

impl Memory {
    /// Two VMs with a few backups, and a few operations of two callers.
    fn new() -> Self {
        let mut state = State::default();
        for vm in ["33333", "333333"] {
            for (id, is, protected) in [
                ("456", BackupState::Available, false),
                ("457", BackupState::Creating, false),
                ("458", BackupState::Available, true),
            ] {
                state
                    .backups
                    .insert(target(vm, id), backup(id, is, protected));
            }
        }
        let restore = Change::Restore(RestoreOptions::default());
        state.operations = vec![
            Arc::new(operation(1, "ann", restore, Phase::Running)),
            Arc::new(operation(2, "ann", Change::Delete, Phase::Succeeded)),
            Arc::new(operation(3, "reader", Change::Delete, Phase::Succeeded)),
        ];
        Self(Mutex::new(state))
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.0.lock().unwrap())
    }
}

#[async_trait]
impl OperationsApi for Memory {
    fn capability(&self, backend: &BackendName) -> Option<Arc<Capability>> {
        assert_eq!(backend.as_str(), BACKEND, "only what is configured");
        let able = VerbCapability {
            recovery: Recovery::ReplaySafe,
            settle: std::time::Duration::ZERO,
            cancel: false,
            progress: true,
        };
        Some(Arc::new(Capability {
            kind: "memory",
            create: Some(able),
            update: Some(able),
            delete: Some(able),
            restore: Some(able),
            kinds: &[BackupKind::Full],
            restore_options: &[("mode", "how")],
            online: true,
            memory: false,
            consistent: true,
        }))
    }

    async fn vm(&self, _backend: &BackendName, vm: &VmId, _by: Deadline) -> Result<Vm, Fault> {
        let known = ["33333", "333333"].contains(&vm.as_str());
        let found = known.then(|| Vm {
            id: vm.clone(),
            name: "web".to_owned(),
            description: None,
            run_state: Some(RunState::Started),
        });
        found.ok_or_else(|| Fault::new(FaultKind::NoSuchVm, private_text()))
    }

    async fn backups(
        &self,
        _backend: &BackendName,
        vm: &VmId,
        query: &BackupQuery,
        _by: Deadline,
    ) -> Result<BackupSelection, Fault> {
        self.with(|state| {
            let all = state.backups.iter().filter(|(at, _)| at.vm == *vm);
            Ok(query.select(all.map(|(_, backup)| backup.clone())))
        })
    }

    async fn backup(
        &self,
        _backend: &BackendName,
        target: &Target,
        _by: Deadline,
    ) -> Result<Backup, Fault> {
        let missing = || Fault::new(FaultKind::NoSuchBackup, private_text());
        self.with(|state| state.backups.get(target).cloned().ok_or_else(missing))
    }

    fn reserve(&self) -> OperationSeq {
        let count = self.with(|state| state.operations.len());
        OperationSeq::new(u64::try_from(count).unwrap() + 1).unwrap()
    }

    fn mint_backup_id(
        &self,
        _backend: &BackendName,
        _new: &NewBackup,
        seq: OperationSeq,
    ) -> Result<BackupId, Fault> {
        Ok(BackupId::new(&format!("new-{seq}")).unwrap())
    }

    async fn replay(
        &self,
        _principal: &PrincipalName,
        _scope: &KeyScope,
        _key: &IdempotencyKey,
        _fingerprint: Fingerprint,
    ) -> Result<Replay, StoreFault> {
        Ok(Replay::Unused)
    }

    async fn accept(
        &self,
        permit: Permit,
        submission: Submission,
    ) -> Result<Accepted, AcceptError> {
        self.with(|state| {
            let operation = Arc::new(Operation {
                seq: submission.seq,
                request: submission.request.clone(),
                intent: submission.intent.clone(),
                note: submission.note.clone(),
                idempotency: submission.idempotency.clone(),
                ..operation(
                    9,
                    permit.principal().name.as_str(),
                    Change::Delete,
                    Phase::Accepted,
                )
            });
            state.accepted.push((permit, submission));
            state.operations.push(Arc::clone(&operation));
            Ok(Accepted::New(operation))
        })
    }

    async fn operation(&self, seq: OperationSeq) -> Result<Option<Arc<Operation>>, StoreFault> {
        self.with(|state| {
            Ok(state
                .operations
                .iter()
                .find(|operation| operation.seq == seq)
                .cloned())
        })
    }

    async fn list(&self, query: &ListQuery) -> Result<ListPage, StoreFault> {
        assert!(
            (1..=limits::PAGE_MAX).contains(&query.limit),
            "a page within its limit"
        );
        self.with(|state| Ok(query.select(state.operations.iter().cloned())))
    }

    fn find_running_delete(
        &self,
        _backend: &BackendName,
        target: &Target,
    ) -> Option<Arc<Operation>> {
        self.with(|state| {
            let mut operations = state.operations.iter();
            let found = operations.find(|operation| {
                operation.verb() == Verb::Delete
                    && operation.target() == target
                    && !operation.phase.is_final()
            });
            found.cloned()
        })
    }

    async fn wait(
        &self,
        seq: OperationSeq,
        _until: WaitFor,
        _by: Deadline,
    ) -> Result<Option<Arc<Operation>>, StoreFault> {
        self.operation(seq).await
    }

    async fn cancel(
        &self,
        seq: OperationSeq,
        only_at: Option<Revision>,
    ) -> Result<Arc<Operation>, CancelError> {
        self.with(|state| {
            let found = state
                .operations
                .iter()
                .find(|operation| operation.seq == seq)
                .cloned();
            let found = found.ok_or(CancelError::NoSuchOperation)?;
            if only_at.is_some_and(|revision| revision != found.revision) {
                return Err(CancelError::Changed);
            }
            if found.phase.is_final() {
                return Err(CancelError::NotCancellable);
            }
            state.cancelled.push(seq);
            Ok(found)
        })
    }

    fn is_ready(&self) -> bool {
        true
    }
}
