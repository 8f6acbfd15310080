//! A gateway that serves: built from its rooms in their order, reloaded, and drained in reverse.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::app::StartError;
use crate::app::active::ActiveOperations;
use crate::app::cluster_clock::ClusterClock;
use crate::app::cluster_tokens::ClusterTokens;
use crate::app::doctor::LiveDoctor;
use crate::app::etcd_watch::EtcdWatch;
use crate::app::handler::GatewayHandler;
use crate::app::issuers::Issuers;
use crate::app::membership::MemberParts;
use crate::app::membership::Membership;
use crate::app::operator::OperatorApi;
use crate::app::peer::PeerHandler;
use crate::app::relay::PeerRelay;
use crate::app::term::Term;
use crate::app::term::TermDeps;
use crate::app::trace_export::TraceExporter;
use crate::cluster::Election;
use crate::cluster::SharedTokens;
use crate::config;
use crate::config::PeerChannel;
use crate::config::Problems;
use crate::config::Settings;
use crate::etcd::Connection;
use crate::gate::ProcessState;
use crate::gate::PublicUrl;
use crate::listener::Drained;
use crate::listener::Handler;
use crate::listener::Inherited;
use crate::listener::Operator;
use crate::listener::Readiness;
use crate::listener::Server;
use crate::listener::Socket;
use crate::listener::Sockets;
use crate::listener::Tls;
use crate::listener::Upstreams;
use crate::operations::OpenStore;
use crate::operations::Operations;
use crate::operations::OperationsApi;
use crate::operations::StoreLocation;
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
    handler: Arc<GatewayHandler>,
    operator_api: Arc<OperatorApi>,
    issuers: Issuers,
    trace_exporter: Option<TraceExporter>,
    etcd_watch: Option<EtcdWatch>,
    upstreams: Arc<Upstreams>,
    runtime: tokio::runtime::Handle,
    single: Option<Arc<Term>>,
    membership: Option<Arc<Membership>>,
    peers: Option<Server>,
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
    let deps = TermDeps {
        clock: Arc::clone(&clock),
        metrics: Arc::clone(&metrics),
        tasks: tasks.clone(),
    };
    let active = Arc::new(ActiveOperations::default());
    let single = single_term(&settings, &deps, &active).await?;
    complete_public_url(&mut settings, sockets.api.address());
    let upstreams = start_upstreams(&mut settings, &clock, &metrics);
    // Neither are fetches of keys: an issuer that is down must not delay start or stop.
    let issuers = Issuers::new(Arc::clone(&clock), Arc::clone(&metrics), Tasks::default());
    issuers.prepare(&mut settings);
    let export = settings.trace_export.as_ref();
    let trace_exporter =
        export.and_then(|export| TraceExporter::start(export, &clock, &metrics, &Tasks::default()));
    let service = service_of(single.as_ref(), &active);
    let handler = handler_of(&settings, service, &clock, &metrics)?;
    let readiness: Arc<dyn Readiness> = Arc::<GatewayHandler>::clone(&handler);
    let api_handler: Arc<dyn Handler> = Arc::<GatewayHandler>::clone(&handler);
    let present = settings.clone();
    let settings = Arc::new(Mutex::new(settings));
    let doctor = LiveDoctor {
        settings: Arc::clone(&settings),
        active: Arc::clone(&active),
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
    let etcd_watch = EtcdWatch::start(&present, &clock, &metrics);
    let member = member_parts(&settings, &active, &handler, &deps);
    let (membership, peers) = join(member, &present, &upstreams, &operator_api)?;
    report_start(&present, &metrics, api.address(), admin.address());
    Ok(Running {
        handler,
        operator_api,
        issuers,
        trace_exporter,
        etcd_watch,
        upstreams,
        runtime: tokio::runtime::Handle::current(),
        single,
        membership,
        peers,
        api,
        admin,
        settings,
        metrics,
        tasks,
    })
}

/// The one term of a gateway that is not a member of a cluster; `None` for a member.
async fn single_term(
    settings: &Settings,
    deps: &TermDeps,
    active: &ActiveOperations,
) -> Result<Option<Arc<Term>>, StartError> {
    if settings.cluster.is_some() {
        return Ok(None);
    }
    let (clock, metrics) = (Arc::clone(&deps.clock), Metrics::clone(&deps.metrics));
    let store = OpenStore::open(&settings.operations, clock, metrics).await?;
    let term = Term::begin(store, settings, deps).await?;
    active.begin(&term);
    Ok(Some(term))
}

/// The operations as the gate sees them: of a single gateway directly, because they are there for all its life.
fn service_of(
    single: Option<&Arc<Term>>,
    active: &Arc<ActiveOperations>,
) -> Arc<dyn OperationsApi> {
    match single {
        Some(term) => Arc::<Operations>::clone(&term.operations),
        None => Arc::<ActiveOperations>::clone(active),
    }
}

/// What makes this gateway a member of its cluster; `None` for a single gateway.
fn member_parts(
    settings: &Arc<Mutex<Settings>>,
    active: &Arc<ActiveOperations>,
    handler: &Arc<GatewayHandler>,
    deps: &TermDeps,
) -> Option<MemberParts> {
    let (config, location, file) = {
        let settings = settings.lock();
        let store = settings.operations.store.clone();
        (settings.cluster.clone()?, store, settings.tokens.clone())
    };
    let StoreLocation::Etcd(etcd) = location else {
        return None;
    };
    let connection = Connection::new(&etcd);
    let cluster_clock = ClusterClock::new(
        connection.clone(),
        &etcd.prefix,
        config.name.clone(),
        Arc::clone(&deps.clock),
        Arc::clone(&deps.metrics),
    );
    let election = Election::new(
        connection.clone(),
        &etcd.prefix,
        config,
        Arc::clone(&deps.clock),
        Arc::clone(&deps.metrics),
    );
    let shared_tokens = SharedTokens::new(connection.clone(), &etcd.prefix);
    let tokens = ClusterTokens::new(shared_tokens, Arc::clone(handler), file);
    Some(MemberParts {
        etcd,
        connection,
        election,
        active: Arc::clone(active),
        handler: Arc::clone(handler),
        settings: Arc::clone(settings),
        tokens,
        cluster_clock,
        deps: deps.clone(),
    })
}

/// Takes part in the cluster, if there is one, and serves the other gateways.
fn join(
    member: Option<MemberParts>,
    settings: &Settings,
    upstreams: &Arc<Upstreams>,
    operator_api: &OperatorApi,
) -> Result<(Option<Arc<Membership>>, Option<Server>), StartError> {
    let Some(parts) = member else {
        return Ok((None, None));
    };
    let channel = settings.peers.as_ref();
    let peers = channel.map(|channel| serve_peers(&parts, channel, settings, upstreams));
    let peers = peers.transpose()?;
    let handler = Arc::clone(&parts.handler);
    let membership = Arc::new(Membership::start(parts));
    let readiness: Arc<dyn Readiness> = Arc::<Membership>::clone(&membership);
    handler.join(readiness);
    operator_api.join(&membership);
    Ok((Some(membership), peers))
}

/// Takes requests of other gateways, and hands them requests while one of them is active.
fn serve_peers(
    parts: &MemberParts,
    channel: &PeerChannel,
    settings: &Settings,
    upstreams: &Arc<Upstreams>,
) -> Result<Server, StartError> {
    let TermDeps { clock, metrics, .. } = &parts.deps;
    let handler: Arc<dyn Handler> = Arc::new(PeerHandler::new(Arc::clone(&parts.handler)));
    let socket = Socket::bind(channel.listen)?;
    let serves = (handler, Arc::clone(upstreams));
    let limits = &settings.listener.limits;
    let server = Server::api(socket, serves, limits, Some(&channel.tls), metrics, clock)?;
    let relay = PeerRelay::new(
        channel.clone(),
        (parts.election.view(), Arc::clone(&parts.active)),
        (parts.election.config().lease, settings.gate.limits.wait),
        Arc::clone(clock),
        Arc::clone(metrics),
    );
    parts.handler.hand_on_by(Arc::new(relay));
    Ok(server)
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
    service: Arc<dyn OperationsApi>,
    clock: &Arc<dyn Clock>,
    metrics: &Metrics,
) -> Result<Arc<GatewayHandler>, StartError> {
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
        match &self.single {
            Some(term) => term.store_failed().await,
            // A member of a cluster gives the leadership up instead.
            None => std::future::pending().await,
        }
    }

    /// Stops: says so, waits for running requests as long as they need but no longer than configured, lets the operations
    /// stand as they are on disk, and closes the admin port last.
    pub async fn drain(self) -> Drained {
        let (notice, patience) = {
            let settings = self.settings.lock();
            (settings.listener.drain_notice, settings.listener.drain)
        };
        self.handler.draining();
        // At once: the next active gateway takes over while this one still answers.
        if let Some(membership) = &self.membership {
            membership.leave().await;
        }
        self.api.ask_clients_to_leave();
        tokio::time::sleep(notice).await;
        self.handler.release();
        let drained = self.api.drain(patience).await;
        if let Some(peers) = self.peers {
            // Others turned to the next active gateway long ago.
            peers.drain(ADMIN_PATIENCE).await;
        }
        if let Some(membership) = &self.membership {
            membership.close().await;
        }
        self.operator_api.close();
        if let Some(term) = &self.single {
            term.end().await;
        }
        drop(self.etcd_watch);
        drop(tokio::time::timeout(patience, self.tasks.ended()).await);
        if let Some(exporter) = self.trace_exporter {
            exporter.stop().await;
        }
        self.admin.drain(ADMIN_PATIENCE).await;
        drained
    }
}
