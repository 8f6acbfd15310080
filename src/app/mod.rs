//! Puts the rooms together: builds adapters, operations, gate and listener in that order, reloads, drains in reverse.

mod backends;
mod handler;
mod health;
mod issuers;
mod operator;
mod probe;

pub use operator::Decision;
pub use operator::OperatorAccess;
pub use operator::OperatorAction;
pub use operator::OperatorName;
pub use probe::Probed;
pub use probe::probe;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use crate::app::handler::GatewayHandler;
use crate::app::health::HealthLooks;
use crate::app::issuers::Issuers;
use crate::app::operator::OperatorApi;
use crate::config;
use crate::config::Problems;
use crate::config::Settings;
use crate::gate::ProcessState;
use crate::gate::PublicUrl;
use crate::listener::Drained;
use crate::listener::Handler;
use crate::listener::Inherited;
use crate::listener::Operator;
use crate::listener::Readiness;
use crate::listener::Server;
use crate::listener::SocketError;
use crate::listener::Sockets;
use crate::listener::Tls;
use crate::listener::Upstreams;
use crate::model::BackendName;
use crate::operations::OpenError;
use crate::operations::OpenStore;
use crate::operations::Operations;
use crate::operations::OperationsApi;
use crate::runtime::Clock;
use crate::runtime::SystemClock;
use crate::runtime::Tasks;
use crate::telemetry;
use crate::telemetry::Metrics;
use crate::telemetry::MetricsError;

/// How long the admin port waits for the last scrape when everything else has ended.
const ADMIN_PATIENCE: Duration = Duration::from_secs(1);

/// Why the gateway could not be put together. Each is one sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A port cannot be listened on.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// A port cannot be served.
    #[error("cannot start to serve")]
    Server(#[from] crate::listener::StartError),
    /// The store of operations cannot be opened.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The metric catalogue is inconsistent: a defect.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// A backend cannot be used.
    #[error("backend {name}: {why}")]
    Backend {
        /// Which.
        name: BackendName,
        /// What to do about it.
        why: String,
    },
    /// The system has no randomness.
    #[error("the system gives no random numbers")]
    Random(#[from] getrandom::Error),
}

/// A gateway that serves.
#[derive(Debug)]
pub struct Running {
    looks: HealthLooks,
    front: Arc<GatewayHandler>,
    bench: Arc<OperatorApi>,
    issuers: Issuers,
    upstreams: Arc<Upstreams>,
    runtime: tokio::runtime::Handle,
    operations: Arc<Operations>,
    api: Server,
    admin: Server,
    /// What is in force, restart-bound parts as they were at the start.
    settings: Mutex<Settings>,
    metrics: Arc<Metrics>,
    tasks: Tasks,
}

/// Binds the ports and puts the gateway together.
///
/// # Errors
/// [`StartError`]; nothing is left running.
pub async fn start(settings: Settings) -> Result<Running, StartError> {
    let sockets = Sockets::bind(&settings.listener, Inherited::none())?;
    start_on(settings, sockets, Arc::new(Metrics::new()?)).await
}

/// Puts the gateway together on ports that are bound already.
///
/// # Errors
/// [`StartError`]; nothing is left running.
pub async fn start_on(
    mut settings: Settings,
    sockets: Sockets,
    metrics: Arc<Metrics>,
) -> Result<Running, StartError> {
    let clock = SystemClock::shared();
    let tasks = Tasks::default();
    // What adapters have begun is not waited for: it is found again after the next start.
    let its_metrics = Metrics::clone(&metrics);
    let store = OpenStore::open(&settings.operations, Arc::clone(&clock), its_metrics).await?;
    let around = backends::Around {
        annotations: store.annotations(),
        clock: Arc::clone(&clock),
        metrics: Arc::clone(&metrics),
        tasks: Tasks::default(),
    };
    let (backends, looks) = backends::start(&settings.backends, &around)?;
    let operations = Operations::open_on(
        store,
        settings.operations.clone(),
        backends,
        Arc::clone(&clock),
        Metrics::clone(&metrics),
        tasks.clone(),
    )
    .await?;
    public_url_of(&mut settings, sockets.api.address());
    let upstreams = upstreams_of(&mut settings, &clock, &metrics);
    // Nor is who fetches keys: an issuer that is down keeps nothing from starting or stopping.
    let issuers = Issuers::new(Arc::clone(&clock), Arc::clone(&metrics), Tasks::default());
    issuers.prepare(&mut settings);
    let front = front_of(&settings, &operations, &clock, &metrics)?;
    let readiness: Arc<dyn Readiness> = Arc::<GatewayHandler>::clone(&front);
    let handler: Arc<dyn Handler> = Arc::<GatewayHandler>::clone(&front);
    let bench = Arc::new(OperatorApi::new(
        Arc::clone(&operations),
        Arc::clone(&clock),
        Arc::clone(&metrics),
        settings.operations.operator_file(),
    )?);
    let operator: Arc<dyn Operator> = Arc::<OperatorApi>::clone(&bench);
    let limits = &settings.listener.limits;
    let admin = Server::admin(
        sockets.admin,
        (readiness, operator),
        limits,
        &metrics,
        &clock,
    )?;
    let tls = settings.listener.tls.as_ref();
    let its = (handler, Arc::clone(&upstreams));
    let api = Server::api(sockets.api, its, limits, tls, &metrics, &clock)?;
    metrics.process.set_active_config(&settings.hash, false);
    metrics.requests.set_certificate_expiry(&ends(tls));
    bench.open(admin.address());
    log_start(&settings, api.address(), admin.address());
    Ok(Running {
        looks,
        front,
        bench,
        issuers,
        upstreams,
        runtime: tokio::runtime::Handle::current(),
        operations,
        api,
        admin,
        settings: Mutex::new(settings),
        metrics,
        tasks,
    })
}

/// Logs in one line what an operator needs to know of a start.
fn log_start(settings: &Settings, api: SocketAddr, admin: SocketAddr) {
    let backends: Vec<&str> = settings
        .backends
        .iter()
        .map(|backend| backend.name.as_str())
        .collect();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        config_hash = %settings.hash,
        %api,
        tls = settings.listener.tls.is_some(),
        %admin,
        backends = %backends.join(", "),
        store = %settings.operations.store.display(),
        "gateway started"
    );
}

/// The gate over the operations, as the listener and the probes of readiness see it.
fn front_of(
    settings: &Settings,
    operations: &Arc<Operations>,
    clock: &Arc<dyn Clock>,
    metrics: &Metrics,
) -> Result<Arc<GatewayHandler>, StartError> {
    let service: Arc<dyn OperationsApi> = Arc::<Operations>::clone(operations);
    Ok(Arc::new(GatewayHandler::new(
        settings.gate.clone(),
        ProcessState::random()?,
        service,
        Arc::clone(clock),
        Metrics::clone(metrics),
    )))
}

/// When each certificate ends, in seconds since 1970.
fn ends(tls: Option<&Tls>) -> Vec<u64> {
    let all = tls.into_iter().flat_map(Tls::certificates);
    all.map(|it| it.validity().1.as_millis().wrapping_div(1000))
        .collect()
}

/// A port that the system chose is known only now; links must name it unless the operator named another URL.
fn public_url_of(settings: &mut Settings, bound: SocketAddr) {
    let configured = settings.listener.listen;
    let scheme = settings.gate.public_url.scheme();
    let derived = PublicUrl::new(&format!("{scheme}://{configured}"));
    if configured.port() == 0
        && derived.as_ref() == Some(&settings.gate.public_url)
        && let Some(url) = PublicUrl::new(&format!("{scheme}://{bound}"))
    {
        settings.gate.public_url = url;
    }
}

/// The upstreams of what is configured at the start.
fn upstreams_of(
    settings: &mut Settings,
    clock: &Arc<dyn Clock>,
    metrics: &Arc<Metrics>,
) -> Arc<Upstreams> {
    // Who looks after them is not waited for.
    let upstreams = Upstreams::new(Arc::clone(clock), Arc::clone(metrics), Tasks::default());
    prepare_upstreams(&upstreams, settings);
    upstreams
}

/// Makes the upstreams of pass-through routes, and tells the routes which are theirs.
fn prepare_upstreams(upstreams: &Upstreams, settings: &mut Settings) {
    let ids = upstreams.activate(&settings.upstreams);
    for (route, id) in settings.gate.passthrough.iter_mut().zip(ids) {
        route.pool = id;
    }
}

impl Running {
    /// Where the API is served.
    #[must_use]
    pub const fn api(&self) -> SocketAddr {
        self.api.address()
    }

    /// Whether the API is encrypted: `https` or `http`.
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        let settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        if settings.listener.tls.is_some() {
            "https"
        } else {
            "http"
        }
    }

    /// Where metrics and health are served.
    #[must_use]
    pub const fn admin(&self) -> SocketAddr {
        self.admin.address()
    }

    /// Puts a configuration in force as far as that is possible without a restart; with mistakes in it, not at all.
    /// Returns whether it is in force.
    pub fn reload(&self, loaded: Result<Settings, Problems>) -> bool {
        let mut settings = match loaded {
            Ok(settings) => settings,
            Err(problems) => {
                self.metrics.process.record_config_reload("refused");
                tracing::error!(%problems, "configuration refused, the old one stays in force");
                return false;
            }
        };
        public_url_of(&mut settings, self.api());
        let mut current = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        let restart = config::restart_needed(&current, &settings);
        let result = if current.hash == settings.hash {
            "unchanged"
        } else {
            "ok"
        };
        {
            // Upstreams and issuers start tasks, and a reload may come from outside of the runtime.
            let _runtime = self.runtime.enter();
            prepare_upstreams(&self.upstreams, &mut settings);
            self.issuers.prepare(&mut settings);
        }
        if result == "unchanged" {
            // Somebody asked for it: what is not in a file is read again as well.
            self.issuers.hurry();
        }
        self.front.reload(settings.gate.clone());
        let certificates = settings.listener.tls.as_ref();
        let replaced = certificates.map_or(Ok(()), |it| self.api.replace_certificates(it));
        match replaced {
            Ok(()) => self
                .metrics
                .requests
                .set_certificate_expiry(&ends(certificates)),
            Err(error) => tracing::error!(%error, "the certificates stay as they were"),
        }
        telemetry::reopen_audit_trail();
        self.metrics
            .process
            .set_active_config(&settings.hash, !restart.is_empty());
        self.metrics.process.record_config_reload(result);
        if restart.is_empty() {
            tracing::info!(hash = %settings.hash, result, "configuration in force");
        } else {
            tracing::warn!(hash = %settings.hash, keys = %restart.join(", "), "configuration in force but for keys that need a restart");
        }
        // What needs a restart stays as it was, so that the next comparison is with what really runs.
        *current = Settings {
            gate: settings.gate,
            key_sources: settings.key_sources,
            upstreams: settings.upstreams,
            files: settings.files,
            hash: settings.hash,
            ..current.clone()
        };
        true
    }

    /// The files of the configuration in force, and the hash over their contents.
    #[must_use]
    pub fn loaded(&self) -> (Vec<PathBuf>, String) {
        let settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        (settings.files.clone(), settings.hash.clone())
    }

    /// Returns when the store of operations failed in a way that only ending the process can answer.
    pub async fn failed(&self) {
        self.operations.failed().given().await;
    }

    /// Stops: says so, waits for running requests as long as they need but no longer than configured, lets the operations
    /// stand as they are on disk, and closes the admin port last.
    pub async fn drain(self) -> Drained {
        let (notice, patience) = {
            let settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
            (settings.listener.drain_notice, settings.listener.drain)
        };
        self.front.draining();
        self.api.ask_clients_to_leave();
        tokio::time::sleep(notice).await;
        self.front.release();
        let drained = self.api.drain(patience).await;
        self.looks.stop().await;
        self.bench.close();
        self.operations.stop().await;
        drop(tokio::time::timeout(patience, self.tasks.ended()).await);
        self.admin.drain(ADMIN_PATIENCE).await;
        drained
    }
}
