//! A gate over a service that answers at once, and the requests that are measured: what the benchmarks share.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::HeaderMap;
use http::HeaderValue;
use http::Method;
use snapgate::gate::Config;
use snapgate::gate::*;
use snapgate::model::*;
use snapgate::operations::*;
use snapgate::runtime::Clock;
use snapgate::runtime::ManualClock;
use snapgate::telemetry::Metrics;

/// That of the program.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Password of the one caller.
const PASSWORD: &str = "correct horse battery staple";

/// Holds one backup for whatever is asked, and accepts every change without storing it.
#[derive(Debug)]
struct Instant;

fn backup(id: &BackupId) -> Backup {
    Backup {
        id: id.clone(),
        identity: Identity::new(format!("{id}@1")),
        name: BackupName::new("web01_20261127").unwrap(),
        description: Some(Description::new("before the upgrade").unwrap()),
        kind: Some(BackupKind::Full),
        created: Timestamp::from_millis(1_764_200_000_000),
        tags: vec![Tag::new("nightly").unwrap(), Tag::new("keep").unwrap()],
        state: BackupState::Available,
        size: Some(4_294_967_296),
        protected: false,
    }
}

fn capability() -> Arc<Capability> {
    let able = VerbCapability {
        recovery: Recovery::ReplaySafe,
        settle: Duration::ZERO,
        cancel: false,
        progress: true,
    };
    Arc::new(Capability {
        kind: "instant",
        create: Some(able),
        update: Some(able),
        delete: Some(able),
        restore: Some(able),
        kinds: &[BackupKind::Full],
        restore_options: &[],
        online: true,
        memory: false,
        consistent: true,
    })
}

#[async_trait]
impl OperationsApi for Instant {
    fn capability(&self, _: &BackendName) -> Option<Arc<Capability>> {
        Some(capability())
    }

    async fn vm(&self, _: &BackendName, vm: &VmId, _: Deadline) -> Result<Vm, Fault> {
        Ok(Vm {
            id: vm.clone(),
            name: "web".to_owned(),
            description: None,
            run_state: Some(RunState::Started),
        })
    }

    async fn backups(
        &self,
        _: &BackendName,
        _: &VmId,
        _: &BackupQuery,
        _: Deadline,
    ) -> Result<BackupSelection, Fault> {
        // Nothing is found by the name of a new backup, so that changes are accepted.
        Ok(BackupSelection::default())
    }

    async fn backup(&self, _: &BackendName, target: &Target, _: Deadline) -> Result<Backup, Fault> {
        Ok(backup(&target.backup))
    }

    fn reserve(&self) -> OperationSeq {
        OperationSeq::new(1).unwrap()
    }

    fn mint_backup_id(
        &self,
        _: &BackendName,
        _: &NewBackup,
        seq: OperationSeq,
    ) -> Result<BackupId, Fault> {
        Ok(BackupId::new(&format!("new-{seq}")).unwrap())
    }

    async fn replay(
        &self,
        _: &PrincipalName,
        _: &KeyScope,
        _: &IdempotencyKey,
        _: Fingerprint,
    ) -> Result<Replay, StoreFault> {
        Ok(Replay::Unused)
    }

    async fn accept(
        &self,
        permit: Permit,
        submission: Submission,
    ) -> Result<Accepted, AcceptError> {
        Ok(Accepted::New(Arc::new(Operation {
            preconditions: submission.preconditions,
            note: submission.note,
            idempotency: submission.idempotency,
            ..Operation::accepted(
                submission.seq,
                permit.principal().name.clone(),
                submission.request,
                permit.backend().clone(),
                submission.intent,
                Timestamp::from_millis(1_764_200_000_000),
            )
        })))
    }

    async fn operation(&self, _: OperationSeq) -> Result<Option<Arc<Operation>>, StoreFault> {
        Ok(None)
    }

    async fn list(&self, _: &ListQuery) -> Result<ListPage, StoreFault> {
        Ok(ListPage::default())
    }

    fn find_running_delete(&self, _: &BackendName, _: &Target) -> Option<Arc<Operation>> {
        None
    }

    async fn wait(
        &self,
        _: OperationSeq,
        _: WaitFor,
        _: Deadline,
    ) -> Result<Option<Arc<Operation>>, StoreFault> {
        Ok(None)
    }

    async fn cancel(
        &self,
        _: OperationSeq,
        _: Option<Revision>,
    ) -> Result<Arc<Operation>, CancelError> {
        Err(CancelError::NoSuchOperation)
    }

    fn is_ready(&self) -> bool {
        true
    }
}

/// A body in memory.
struct Memory(Option<Bytes>);

#[async_trait]
impl Body for Memory {
    async fn read(&mut self, _: usize) -> Result<Bytes, BodyError> {
        Ok(self.0.take().unwrap_or_default())
    }

    fn is_present(&self) -> bool {
        self.0.is_some()
    }
}

/// One caller with a bcrypt hash and so many grants, of which the last is the one that fits.
fn config(grants: usize) -> Config {
    let caller = PrincipalName::new("ann").unwrap();
    let grant = |vms: &str| Grant {
        to: vec![Grantee::User(caller.clone())],
        actions: Action::ALL.iter().copied().collect(),
        vms: vec![Pattern::new(vms).unwrap()],
        backups: vec![Pattern::new("*").unwrap()],
        line: 0,
    };
    let others = (1..grants).map(|number| grant(&format!("other-{number}-*")));
    let user = User {
        // The lowest cost there is: what is measured is the request after the one that was verified.
        password: PasswordHash::new(bcrypt::hash(PASSWORD, 4).unwrap()).unwrap(),
        groups: Vec::new(),
    };
    Config {
        public_url: PublicUrl::new("http://127.0.0.1:8080").unwrap(),
        specification: Specification::default(),
        trusted_proxies: TrustedProxies::default(),
        credentials: CredentialRule {
            certificates: BTreeMap::new(),
            issuers: Vec::new(),
            users: BTreeMap::from([(caller.clone(), user)]),
            tokens: None,
            remember: Duration::from_secs(300),
        },
        lockout: LockoutRule::default(),
        rates: RateLimits::default(),
        grants: others.chain([grant("web*")]).collect(),
        placements: vec![Placement {
            pattern: Pattern::new("web*").unwrap(),
            backend: BackendName::new("lab").unwrap(),
        }],
        passthrough: Vec::new(),
        limits: Limits::default(),
    }
}

/// A gate whose clock stands still.
pub struct Rig {
    gate: Gate,
    metrics: Metrics,
}

/// A request that can be sent any number of times.
pub struct Request {
    method: Method,
    target: String,
    headers: HeaderMap,
    body: Option<Bytes>,
}

impl Request {
    /// With credentials, version and media types, as every request of a client has them.
    pub fn new(method: Method, target: &str, body: Option<&'static str>) -> Self {
        let mut headers = HeaderMap::new();
        let mut set = |name: &'static str, value: &str| {
            headers.insert(name, HeaderValue::from_str(value).unwrap());
        };
        let pair = STANDARD.encode(format!("ann:{PASSWORD}"));
        set("host", "127.0.0.1:8080");
        set("user-agent", "bench/1.0");
        set("authorization", &format!("Basic {pair}"));
        set("x-cloud-client-specification-version", "0.1");
        set(
            "accept",
            "application/vnd.com.sun.cloud.Backup+json, application/json;q=0.5",
        );
        if let Some(body) = body {
            set("content-type", "application/vnd.com.sun.cloud.Backup+json");
            set("content-length", &body.len().to_string());
        }
        Self {
            method,
            target: target.to_owned(),
            headers,
            body: body.map(|body| Bytes::from_static(body.as_bytes())),
        }
    }

    /// The GET that the whole comparison with other servers is about.
    pub fn get() -> Self {
        Self::new(Method::GET, "/vms/web01/backups/b1", None)
    }

    /// A change of name, description and tags.
    pub fn update() -> Self {
        let body = r#"{"name":"web01_renamed","description":"kept","tags":["a","b","c"]}"#;
        Self::new(Method::PUT, "/vms/web01/backups/b1", Some(body))
    }
}

impl Rig {
    /// With so many grants.
    pub fn new(grants: usize) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(ManualClock::new(Timestamp::from_millis(5_000)));
        let metrics = Metrics::new().unwrap();
        let shared = ProcessState::new([7; 32]);
        Self {
            gate: Gate::new(
                config(grants),
                Arc::new(Instant),
                clock,
                metrics.clone(),
                shared,
            ),
            metrics,
        }
    }

    /// Sends the request and counts it as the listener does.
    pub async fn send(&self, request: &Request) -> HandledRequest {
        let head = RequestHead {
            method: &request.method,
            target: request.target.as_bytes(),
            version: http::Version::HTTP_11,
            headers: &request.headers,
            peer: Some(std::net::Ipv4Addr::LOCALHOST.into()),
            certificate: &[],
        };
        let mut body = Memory(request.body.clone());
        let GateDecision::Answer(exchange) = self.gate.handle(head, &mut body).await else {
            panic!("nothing is passed on here");
        };
        let status = exchange.response.status().as_u16();
        let took = Duration::from_micros(50);
        self.metrics
            .requests
            .record_request(exchange.route, exchange.method, status, took);
        exchange
    }
}
