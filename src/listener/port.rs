//! A port in service: started on a socket, drained at the end.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use pingora::apps::HttpServerOptions;
use pingora::apps::ServerApp;
use pingora::apps::http_app::HttpServer;
use pingora::protocols::l4::listener::Listener;
use pingora::proxy::http_proxy;
use pingora::server::configuration::ServerConf;

use crate::listener::Limits;
use crate::listener::Socket;
use crate::listener::accept::accept;
use crate::listener::admin::Pages;
use crate::listener::admin::Readiness;
use crate::listener::guard::Guard;
use crate::listener::handler::Handler;
use crate::listener::operator::Operator;
use crate::listener::proxy::Proxy;
use crate::runtime::Clock;
use crate::runtime::Stopper;
use crate::runtime::Tasks;
use crate::runtime::stop_pair;
use crate::telemetry::Metrics;

/// The certificate authorities Pingora trusts for upstreams unless a peer brings its own: none. Pingora panics when the
/// file it is given (or without one the system's store) cannot be read, and nothing here needs the system's store.
const NO_AUTHORITIES: &str = "/dev/null";
/// Requests of one connection before it is closed: frees what its buffers grew to.
const REQUESTS_PER_CONNECTION: u32 = 10_000;
/// Connections at once on the admin port: a few scrapers and probes.
const ADMIN_CONNECTIONS: usize = 64;
/// Longest wait for connections that were cut to be gone.
const CUT_TIME_MAX: Duration = Duration::from_secs(1);

/// Why a port could not be put into service.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The socket cannot be watched by this runtime.
    #[error("cannot serve {address}")]
    Socket {
        /// Where it listens.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// A device every Unix has is missing or not readable.
    #[error("cannot read {NO_AUTHORITIES}")]
    NullDevice(#[source] io::Error),
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Requests that were not finished in time and were cut off.
    pub cut: usize,
    /// How long it took.
    pub took: Duration,
}

/// A port in service. Dropping it closes everything at once.
#[derive(Debug)]
pub struct Port {
    address: SocketAddr,
    guard: Arc<Guard>,
    stop: Stopper,
    cut: Stopper,
    tasks: Tasks,
}

impl Port {
    /// Puts the API port into service on the current runtime.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn api(
        socket: Socket,
        handler: Arc<dyn Handler>,
        limits: &Limits,
        metrics: &Arc<Metrics>,
        clock: &Arc<dyn Clock>,
    ) -> Result<Self, StartError> {
        File::open(NO_AUTHORITIES).map_err(StartError::NullDevice)?;
        let conf = Arc::new(ServerConf {
            ca_file: Some(NO_AUTHORITIES.to_owned()),
            max_retries: 1,
            ..ServerConf::default()
        });
        Self::start(socket, limits, metrics, clock, true, |guard| {
            let mut app = http_proxy(
                &conf,
                Proxy {
                    handler,
                    limits: guard.limits.clone(),
                    clock: Arc::clone(clock),
                    metrics: Arc::clone(metrics),
                    stop: guard.stop.clone(),
                },
            );
            let mut options = HttpServerOptions::default();
            // No HTTP/2 without TLS: looking for its preface hangs on requests that are shorter than it.
            options.h2c = false;
            options.keepalive_request_limit = Some(REQUESTS_PER_CONNECTION);
            options.h2_idle_timeout = Some(limits.idle_timeout);
            app.server_options = Some(options);
            app
        })
    }

    /// Puts the admin port into service on the current runtime.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn admin(
        socket: Socket,
        (readiness, operator): (Arc<dyn Readiness>, Arc<dyn Operator>),
        limits: &Limits,
        metrics: &Arc<Metrics>,
        clock: &Arc<dyn Clock>,
    ) -> Result<Self, StartError> {
        let limits = Limits {
            connections: ADMIN_CONNECTIONS,
            ..limits.clone()
        };
        let pages = Pages {
            readiness,
            operator,
            metrics: Arc::clone(metrics),
            limits: limits.clone(),
        };
        Self::start(socket, &limits, metrics, clock, false, |_| {
            HttpServer::new_app(pages)
        })
    }

    fn start<A>(
        socket: Socket,
        limits: &Limits,
        metrics: &Arc<Metrics>,
        clock: &Arc<dyn Clock>,
        counted: bool,
        app: impl FnOnce(&Guard) -> A,
    ) -> Result<Self, StartError>
    where
        A: ServerApp + Send + Sync + 'static,
    {
        let address = socket.address();
        let listener = tokio::net::TcpListener::from_std(socket.into_std())
            .map_err(|source| StartError::Socket { address, source })?;
        let (stopper, stop) = stop_pair();
        let (cutter, cut) = stop_pair();
        let guard = Arc::new(Guard {
            limits: limits.clone(),
            clock: Arc::clone(clock),
            metrics: Arc::clone(metrics),
            counted,
            stop,
            cut,
            open: AtomicUsize::new(0),
        });
        let tasks = Tasks::default();
        let app = Arc::new(app(&guard));
        drop(tasks.spawn(accept(
            Listener::from(listener),
            app,
            Arc::clone(&guard),
            tasks.clone(),
        )));
        Ok(Self {
            address,
            guard,
            stop: stopper,
            cut: cutter,
            tasks,
        })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections open now.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.guard.open.load(std::sync::atomic::Ordering::Acquire)
    }

    /// Takes the port out of service: nothing more is accepted, idle connections end at once, and requests that are being
    /// handled are waited for, but no longer than `patience`. What is left then is cut off.
    pub async fn drain(self, patience: Duration) -> Drained {
        let began = self.guard.clock.instant();
        self.stop.stop();
        let in_time = tokio::time::timeout(patience, self.tasks.ended()).await;
        let cut = if in_time.is_ok() {
            0
        } else {
            self.connections()
        };
        self.cut.stop();
        if tokio::time::timeout(CUT_TIME_MAX, self.tasks.ended())
            .await
            .is_err()
        {
            tracing::warn!("connections that were cut are not gone yet");
        }
        Drained {
            cut,
            took: self.guard.clock.instant().saturating_duration_since(began),
        }
    }
}
