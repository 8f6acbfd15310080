//! A gateway that serves: built from its rooms in their order, reloaded, and drained in reverse.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::app::StartError;
use crate::app::backends;
use crate::app::doctor::LiveDoctor;
use crate::app::handler::GatewayHandler;
use crate::app::health::HealthChecks;
use crate::app::issuers::Issuers;
use crate::app::operator::OperatorApi;
use crate::app::trace_export::TraceExporter;
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
use crate::listener::Sockets;
use crate::listener::Tls;
use crate::listener::Upstreams;
use crate::operations::OpenStore;
use crate::operations::Operations;
use crate::operations::OperationsApi;
use crate::runtime::Clock;
use crate::runtime::SystemClock;
use crate::runtime::Tasks;
use crate::telemetry;
use crate::telemetry::Metrics;

/// How long the admin port waits for the last scrape when everything else has ended.
const ADMIN_PATIENCE: Duration = Duration::from_secs(1);

/// A gateway that serves.
#[derive(Debug)]
pub struct Running {
    health_checks: HealthChecks,
    handler: Arc<GatewayHandler>,
    operator_api: Arc<OperatorApi>,
    issuers: Issuers,
    trace_exporter: Option<TraceExporter>,
    upstreams: Arc<Upstreams>,
    runtime: tokio::runtime::Handle,
    operations: Arc<Operations>,
    api: Server,
    admin: Server,
    /// The active settings; parts that need a restart are as at the start.
    settings: Arc<Mutex<Settings>>,
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
    // The tasks of adapters are not awaited at shutdown: after the next start, `find` learns what became of them.
    let its_metrics = Metrics::clone(&metrics);
    let store = OpenStore::open(&settings.operations, Arc::clone(&clock), its_metrics).await?;
    let deps = backends::AdapterDeps {
        annotations: store.annotations(),
        clock: Arc::clone(&clock),
        metrics: Arc::clone(&metrics),
        tasks: Tasks::default(),
    };
    let backends = backends::build(&settings.backends, &deps)?;
    let health_checks = HealthChecks::start(&settings.backends, &backends, &deps);
    let examined = backends.clone();
    let operations = Operations::open_on(
        store,
        settings.operations.clone(),
        backends,
        Arc::clone(&clock),
        Metrics::clone(&metrics),
        tasks.clone(),
    )
    .await?;
    complete_public_url(&mut settings, sockets.api.address());
    let upstreams = start_upstreams(&mut settings, &clock, &metrics);
    // Neither are fetches of keys: an issuer that is down must not delay start or stop.
    let issuers = Issuers::new(Arc::clone(&clock), Arc::clone(&metrics), Tasks::default());
    issuers.prepare(&mut settings);
    let export = settings.trace_export.as_ref();
    let trace_exporter =
        export.and_then(|export| TraceExporter::start(export, &clock, &metrics, &Tasks::default()));
    let handler = handler_of(&settings, &operations, &clock, &metrics)?;
    let readiness: Arc<dyn Readiness> = Arc::<GatewayHandler>::clone(&handler);
    let api_handler: Arc<dyn Handler> = Arc::<GatewayHandler>::clone(&handler);
    let present = settings.clone();
    let settings = Arc::new(Mutex::new(settings));
    let doctor = LiveDoctor {
        settings: Arc::clone(&settings),
        backends: examined,
        operations: Arc::clone(&operations),
        clock: Arc::clone(&clock),
    };
    let operator_file = present.operations.operator_file();
    let operator_api = Arc::new(OperatorApi::new(doctor, &metrics, operator_file)?);
    let operator: Arc<dyn Operator> = Arc::<OperatorApi>::clone(&operator_api);
    let limits = &present.listener.limits;
    let serves = (readiness, operator);
    let admin = Server::admin(sockets.admin, serves, limits, &metrics, &clock)?;
    let tls = present.listener.tls.as_ref();
    let serves = (api_handler, Arc::clone(&upstreams));
    let api = Server::api(sockets.api, serves, limits, tls, &metrics, &clock)?;
    operator_api.open(admin.address());
    report_start(&present, &metrics, api.address(), admin.address());
    Ok(Running {
        health_checks,
        handler,
        operator_api,
        issuers,
        trace_exporter,
        upstreams,
        runtime: tokio::runtime::Handle::current(),
        operations,
        api,
        admin,
        settings,
        metrics,
        tasks,
    })
}

/// One line with what a support request needs to know first, and the metrics of the configuration.
fn report_start(settings: &Settings, metrics: &Metrics, api: SocketAddr, admin: SocketAddr) {
    metrics.process.set_active_config(&settings.hash, false);
    let tls = settings.listener.tls.as_ref();
    metrics
        .requests
        .set_certificate_expiry(&certificate_ends(tls));
    let backends = settings.backends.iter();
    let backends: Vec<String> = backends
        .map(|backend| format!("{} ({})", backend.name, backend.config.kind()))
        .collect();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        configuration = %settings.hash,
        %api,
        tls = settings.listener.tls.is_some(),
        %admin,
        backends = backends.join(", "),
        store = %settings.operations.store,
        "gateway started"
    );
}

/// The gate over the operations, as the listener and the probes of readiness see it.
fn handler_of(
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
fn certificate_ends(tls: Option<&Tls>) -> Vec<u64> {
    let all = tls.into_iter().flat_map(Tls::certificates);
    all.map(|certificate| certificate.validity().1.as_millis().wrapping_div(1000))
        .collect()
}

/// A port that the system chose is known only now; links must name it unless the operator named another URL.
fn complete_public_url(settings: &mut Settings, bound: SocketAddr) {
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
fn start_upstreams(
    settings: &mut Settings,
    clock: &Arc<dyn Clock>,
    metrics: &Arc<Metrics>,
) -> Arc<Upstreams> {
    // Their health checks are not awaited at shutdown.
    let upstreams = Upstreams::new(Arc::clone(clock), Arc::clone(metrics), Tasks::default());
    prepare_upstreams(&upstreams, settings);
    upstreams
}

/// Makes the upstreams of pass-through routes, and assigns them to their routes.
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
        let settings = self.settings.lock();
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

    /// Applies a configuration as far as possible without a restart; an invalid one changes nothing.
    /// Returns whether it was applied.
    pub fn reload(&self, loaded: Result<Settings, Problems>) -> bool {
        let mut settings = match loaded {
            Ok(settings) => settings,
            Err(problems) => {
                self.metrics.process.record_config_reload("refused");
                tracing::error!(%problems, "configuration rejected");
                return false;
            }
        };
        complete_public_url(&mut settings, self.api());
        let mut current = self.settings.lock();
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
            // A reload without a change was requested explicitly: fetched keys are refreshed as well.
            self.issuers.hurry();
        }
        self.handler.reload(settings.gate.clone());
        let certificates = settings.listener.tls.as_ref();
        let replaced = certificates.map_or(Ok(()), |tls| self.api.replace_certificates(tls));
        match replaced {
            Ok(()) => self
                .metrics
                .requests
                .set_certificate_expiry(&certificate_ends(certificates)),
            Err(error) => tracing::error!(%error, "certificates not replaced"),
        }
        telemetry::reopen_audit_trail();
        self.metrics
            .process
            .set_active_config(&settings.hash, !restart.is_empty());
        self.metrics.process.record_config_reload(result);
        if restart.is_empty() {
            tracing::info!(hash = %settings.hash, result, "configuration reloaded");
        } else {
            tracing::warn!(hash = %settings.hash, keys = %restart.join(", "), "configuration reloaded, restart required");
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

    /// The files of the active configuration, and the hash over their contents.
    #[must_use]
    pub fn loaded(&self) -> (Vec<PathBuf>, String) {
        let settings = self.settings.lock();
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
            let settings = self.settings.lock();
            (settings.listener.drain_notice, settings.listener.drain)
        };
        self.handler.draining();
        self.api.ask_clients_to_leave();
        tokio::time::sleep(notice).await;
        self.handler.release();
        let drained = self.api.drain(patience).await;
        self.health_checks.stop().await;
        self.operator_api.close();
        self.operations.stop().await;
        drop(tokio::time::timeout(patience, self.tasks.ended()).await);
        if let Some(exporter) = self.trace_exporter {
            exporter.stop().await;
        }
        self.admin.drain(ADMIN_PATIENCE).await;
        drained
    }
}
