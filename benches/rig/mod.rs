//! A gate over operations whose answers are fixed, and the requests that are measured: what the benchmarks share.

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
use snapgate::operations::memory_operations::FixedAnswers;
use snapgate::operations::memory_operations::MemoryOperations;
use snapgate::operations::memory_operations::full_capability;
use snapgate::operations::memory_operations::sample_backup;
use snapgate::runtime::Clock;
use snapgate::runtime::ManualClock;
use snapgate::telemetry::Metrics;

/// That of the program.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Password of the one caller.
const PASSWORD: &str = "correct horse battery staple";

/// Answers that do not depend on what is asked, so that the gate alone is measured.
fn operations() -> MemoryOperations {
    let name = BackupName::new("web01_20261127").unwrap();
    MemoryOperations::with_fixed_answers(FixedAnswers {
        backup: Backup {
            description: Some(Description::new("before the upgrade").unwrap()),
            created: Timestamp::from_millis(1_764_200_000_000),
            tags: vec![Tag::new("nightly").unwrap(), Tag::new("keep").unwrap()],
            size: Some(4_294_967_296),
            ..sample_backup(BackupId::new("b1").unwrap(), name)
        },
        capability: Arc::new(full_capability()),
        accepted_at: Timestamp::from_millis(1_764_200_000_000),
    })
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
        allowed_origins: Vec::new(),
        page: false,
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
                Arc::new(operations()),
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
