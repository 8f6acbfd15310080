//! A gate over a service in memory, the same at the beginning of every input.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::OnceLock;

use snapgate::config;
use snapgate::gate;
use snapgate::gate::Gate;
use snapgate::gate::GateDecision;
use snapgate::gate::HandledRequest;
use snapgate::gate::PassThrough;
use snapgate::gate::ProcessState;
use snapgate::gate::RequestHead;
use snapgate::model::*;
use snapgate::operations::OperationsApi;
use snapgate::operations::Submission;
use snapgate::operations::memory_operations::MemoryOperations;
use snapgate::operations::memory_operations::MemoryState;
use snapgate::operations::memory_operations::sample_backup;
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
    let memory = Arc::new(MemoryOperations::new(state()));
    let service: Arc<dyn OperationsApi> = Arc::<MemoryOperations>::clone(&memory);
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
    let state = memory.state();
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

fn target(vm: &str, backup: &str) -> Target {
    Target {
        vm: VmId::new(vm).unwrap(),
        backup: BackupId::new(backup).unwrap(),
    }
}

fn backup(id: &str, state: BackupState, protected: bool) -> Backup {
    let name = BackupName::new(&format!("web01_{id}")).unwrap();
    Backup {
        state,
        protected,
        ..sample_backup(BackupId::new(id).unwrap(), name)
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

/// Two VMs with a few backups, and a few operations of two callers.
fn state() -> MemoryState {
    let restore = Change::Restore(RestoreOptions::default());
    let mut state = MemoryState {
        backend: Some(BackendName::new(BACKEND).unwrap()),
        operations: vec![
            Arc::new(operation(1, "ann", restore, Phase::Running)),
            Arc::new(operation(2, "ann", Change::Delete, Phase::Succeeded)),
            Arc::new(operation(3, "reader", Change::Delete, Phase::Succeeded)),
        ],
        cancels_later: true,
        ..MemoryState::default()
    };
    for vm in ["33333", "333333"] {
        let backups = [
            ("456", BackupState::Available, false),
            ("457", BackupState::Creating, false),
            ("458", BackupState::Available, true),
        ];
        let backups = backups.map(|(id, state, protected)| backup(id, state, protected));
        state.add_vm(&VmId::new(vm).unwrap(), backups);
    }
    state
}
