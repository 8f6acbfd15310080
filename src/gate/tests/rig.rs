//! A gate over operations in memory, and requests written as text.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::Method;

use crate::gate::*;
use crate::model::Action;
use crate::model::BackendName;
use crate::model::Backup;
use crate::model::BackupId;
use crate::model::BackupName;
use crate::model::CertificateName;
use crate::model::OperationSeq;
use crate::model::Pattern;
use crate::model::Phase;
use crate::model::PrincipalName;
use crate::model::Target;
use crate::model::Timestamp;
use crate::model::VmId;
use crate::operations::memory_operations::MemoryOperations;
use crate::operations::memory_operations::MemoryState;
use crate::operations::memory_operations::sample_backup;
use crate::runtime::ManualClock;
use crate::telemetry::Metrics;

pub(super) struct Rig {
    pub(super) gate: Gate,
    pub(super) operations: Arc<MemoryOperations>,
    pub(super) clock: Arc<ManualClock>,
    pub(super) shared: Arc<ProcessState>,
    pub(super) config: Config,
    pub(super) peer: Option<std::net::IpAddr>,
    pub(super) certificate: Vec<CertificateName>,
}

pub(super) struct Text(pub(super) Option<Bytes>, pub(super) Option<BodyError>);

#[async_trait]
impl Body for Text {
    async fn read(&mut self, limit: usize) -> Result<Bytes, BodyError> {
        match (self.1, self.0.take().unwrap_or_default()) {
            (Some(error), _) => Err(error),
            (None, bytes) if bytes.len() > limit => Err(BodyError::TooLarge),
            (None, bytes) => Ok(bytes),
        }
    }

    fn is_present(&self) -> bool {
        self.0.is_some()
    }
}

pub(super) fn target(vm: &str, backup: &str) -> Target {
    Target {
        vm: VmId::new(vm).unwrap(),
        backup: BackupId::new(backup).unwrap(),
    }
}

pub(super) fn backup(id: &str, name: &str) -> Backup {
    sample_backup(BackupId::new(id).unwrap(), BackupName::new(name).unwrap())
}

fn config() -> Config {
    let user = |password: &str| User {
        password: PasswordHash::new(bcrypt::hash(password, 4).unwrap()).unwrap(),
        groups: Vec::new(),
    };
    let name = |text: &str| PrincipalName::new(text).unwrap();
    let all = vec![Pattern::new("*").unwrap()];
    let grant = |to: &str, actions: &[Action], vms: &str| Grant {
        to: vec![Grantee::User(name(to))],
        actions: actions.iter().copied().collect(),
        vms: vec![Pattern::new(vms).unwrap()],
        backups: all.clone(),
        line: 0,
    };
    let users =
        ["ann", "reader", "stranger", "shield"].map(|user_name| (name(user_name), user("pw")));
    Config {
        public_url: PublicUrl::new("http://example.com").unwrap(),
        allowed_origins: Vec::new(),
        page: false,
        specification: Specification::default(),
        trusted_proxies: TrustedProxies::default(),
        credentials: CredentialRule {
            certificates: BTreeMap::new(),
            users: BTreeMap::from(users),
            tokens: None,
            issuers: Vec::new(),
            remember: Duration::from_secs(60),
        },
        lockout: LockoutRule::default(),
        rates: RateLimits::default(),
        grants: vec![
            grant("ann", &Action::ALL, "*"),
            grant("reader", &[Action::Read], "3*"),
            grant("shield", &[Action::Read, Action::Protect], "3*"),
        ],
        placements: vec![Placement {
            pattern: Pattern::new("3*").unwrap(),
            backend: BackendName::new("hidden-backend").unwrap(),
        }],
        passthrough: Vec::new(),
        limits: Limits::default(),
    }
}

impl Rig {
    pub(super) fn new() -> Self {
        Self::with(config())
    }

    pub(super) fn with(config: Config) -> Self {
        let mut state = MemoryState::default();
        for vm in ["33333", "333333"] {
            state.add_vm(&VmId::new(vm).unwrap(), [backup("456", "web01_YYYYMMDD")]);
        }
        let operations = Arc::new(MemoryOperations::new(state));
        let shared = ProcessState::new([1; 32]);
        let clock = Arc::new(ManualClock::new(Timestamp::from_millis(5_000)));
        let gate = Self::gate(config.clone(), &operations, &clock, &shared);
        Self {
            gate,
            operations,
            clock,
            shared,
            config,
            peer: None,
            certificate: Vec::new(),
        }
    }

    pub(super) fn reload(&mut self, change: impl FnOnce(&mut Config)) {
        change(&mut self.config);
        let config = self.config.clone();
        self.gate = Self::gate(config, &self.operations, &self.clock, &self.shared);
    }

    fn gate(
        config: Config,
        operations: &Arc<MemoryOperations>,
        clock: &Arc<ManualClock>,
        shared: &Arc<ProcessState>,
    ) -> Gate {
        let operations = Arc::<MemoryOperations>::clone(operations);
        let metrics = Metrics::new().unwrap();
        Gate::new(
            config,
            operations,
            Arc::<ManualClock>::clone(clock),
            metrics,
            Arc::clone(shared),
        )
    }

    /// Changes the operation of this number and wakes those who wait for it.
    pub(super) fn change_operation(&self, seq: u64, phase: Phase, percent: u8) {
        let seq = OperationSeq::new(seq).unwrap();
        let is_known = self.operations.change_operation(seq, phase, percent);
        assert!(is_known, "no operation {seq}");
    }

    /// `request` is `METHOD target`, then headers as lines, then perhaps an empty line and a body.
    /// Host is added; `as: name` becomes credentials; `v` becomes the version header.
    pub(super) async fn send(&self, request: &str) -> HandledRequest {
        self.send_body(request, None).await
    }

    pub(super) async fn send_body(
        &self,
        request: &str,
        error: Option<BodyError>,
    ) -> HandledRequest {
        match self.decide(request, error).await {
            GateDecision::Answer(exchange) => exchange,
            GateDecision::PassThrough(pass) => panic!("passed on: {pass:?}"),
        }
    }

    pub(super) async fn decide(&self, request: &str, error: Option<BodyError>) -> GateDecision {
        let (head, body) = match request.split_once("\n\n") {
            Some((head, body)) => (head, Some(Bytes::copy_from_slice(body.as_bytes()))),
            None => (request, None),
        };
        let mut lines = head.lines().map(str::trim);
        let (method, path) = lines.next().unwrap().split_once(' ').unwrap();
        let mut headers = HeaderMap::new();
        let mut add = |name: &str, value: &str| {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        };
        let mut host = true;
        for line in lines {
            match line
                .split_once(": ")
                .unwrap_or_else(|| (line.trim_end_matches(':'), ""))
            {
                ("no-host", _) => host = false,
                ("v", _) => add("X-Cloud-Client-Specification-Version", "0.1"),
                ("as", user) => {
                    let token = STANDARD.encode(format!("{user}:pw"));
                    add("Authorization", &format!("Basic {token}"));
                }
                (name, value) => add(name, value),
            }
        }
        if host {
            add("Host", "example.com");
        }
        let head = RequestHead {
            method: &Method::from_bytes(method.as_bytes()).unwrap(),
            target: path.as_bytes(),
            version: http::Version::HTTP_11,
            headers: &headers,
            peer: self.peer,
            certificate: &self.certificate,
        };
        self.gate.handle(head, &mut Text(body, error)).await
    }
}

pub(super) fn json(exchange: &HandledRequest) -> serde_json::Value {
    serde_json::from_slice(exchange.response.body()).unwrap()
}

pub(super) fn header<'a>(exchange: &'a HandledRequest, name: &str) -> &'a str {
    exchange
        .response
        .headers()
        .get(name)
        .map_or("", |header| header.to_str().unwrap())
}

pub(super) fn status(exchange: &HandledRequest) -> u16 {
    exchange.response.status().as_u16()
}
