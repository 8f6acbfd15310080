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
use pingora::protocols::http::v2::server::H2Options;
use pingora::protocols::http::v2::server::default_h2_options;
use pingora::protocols::l4::listener::Listener;
use pingora::proxy::http_proxy;
use pingora::server::configuration::ServerConf;

use crate::listener::Limits;
use crate::listener::Socket;
use crate::listener::accept::accept;
use crate::listener::admin::AdminPages;
use crate::listener::admin::Readiness;
use crate::listener::connection_lifecycle::ConnectionGuard;
use crate::listener::connection_lifecycle::REQUESTS_PER_CONNECTION;
use crate::listener::forward::FastPath;
use crate::listener::forward::Upstreams;
use crate::listener::handler::Handler;
use crate::listener::operator::Operator;
use crate::listener::per_ip_limit::PerIpLimit;
use crate::listener::proxy::ApiProxy;
use crate::listener::tls::Handshakes;
use crate::listener::tls::Tls;
use crate::runtime::Clock;
use crate::runtime::Stopper;
use crate::runtime::Tasks;
use crate::runtime::stop_pair;
use crate::telemetry::Metrics;

/// The certificate authorities Pingora trusts for upstreams unless a peer brings its own: none. Pingora panics when the
/// file it is given (or without one the system's store) cannot be read, and nothing here needs the system's store.
pub(super) const NO_AUTHORITIES: &str = "/dev/null";
/// What a client may send on one HTTP/2 stream, and on all of a connection, before it is read: one large request body.
const H2_WINDOW_BYTES: u32 = 64 * 1024;
/// What is kept of an answer that a client of HTTP/2 does not take.
const H2_BUFFER_BYTES: usize = 64 * 1024;
/// Streams that were reset and are remembered, of one connection.
const H2_RESETS_MAX: usize = 10;
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
    /// The certificates were checked, but Pingora does not take them: a defect.
    #[error("cannot use the certificates")]
    Tls(#[source] Box<pingora::Error>),
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Requests that were not finished in time and were cut off.
    pub cut: usize,
    /// How long it took.
    pub took: Duration,
}

/// How the connections of a port differ from those of another.
struct PortOptions {
    counted: bool,
    per_ip_limit: Option<Arc<PerIpLimit>>,
    tls: Option<Handshakes>,
}

/// What one HTTP/2 connection may take: as many requests at once as configured, windows and buffers of 64 KiB, and Pingora's
/// bound for a list of header fields, above our own.
fn http2_options(limits: &Limits) -> H2Options {
    let mut options = default_h2_options();
    options
        .max_concurrent_streams(limits.streams)
        .initial_window_size(H2_WINDOW_BYTES)
        .initial_connection_window_size(H2_WINDOW_BYTES)
        .max_send_buffer_size(H2_BUFFER_BYTES)
        .max_concurrent_reset_streams(H2_RESETS_MAX);
    options
}

/// A port in service. Dropping it closes everything at once.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    guard: Arc<ConnectionGuard>,
    leave: Stopper,
    stop: Stopper,
    cut: Stopper,
    tasks: Tasks,
}

impl Server {
    /// Puts the API port into service on the current runtime.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn api(
        socket: Socket,
        (handler, upstreams): (Arc<dyn Handler>, Arc<Upstreams>),
        limits: &Limits,
        tls: Option<&Tls>,
        metrics: &Arc<Metrics>,
        clock: &Arc<dyn Clock>,
    ) -> Result<Self, StartError> {
        File::open(NO_AUTHORITIES).map_err(StartError::NullDevice)?;
        let conf = Arc::new(ServerConf {
            ca_file: Some(NO_AUTHORITIES.to_owned()),
            // Attempts in all; which requests get a second one is decided in `forward/carry.rs`.
            max_retries: 2,
            ..ServerConf::default()
        });
        let tls = tls.map(Handshakes::new).transpose();
        let serves = PortOptions {
            counted: true,
            per_ip_limit: PerIpLimit::new(limits.connections_per_address, Arc::clone(&handler)),
            tls: tls.map_err(StartError::Tls)?,
        };
        Self::start(socket, limits, metrics, clock, serves, |guard| {
            let mut app = http_proxy(
                &conf,
                ApiProxy {
                    handler,
                    upstreams,
                    fast_path: FastPath::new(),
                    limits: guard.limits.clone(),
                    clock: Arc::clone(clock),
                    metrics: Arc::clone(metrics),
                    leaving: guard.leaving.clone(),
                },
            );
            let mut options = HttpServerOptions::default();
            // No HTTP/2 without TLS: looking for its preface hangs on requests that are shorter than it.
            options.h2c = false;
            // The gate refuses it, as every method it does not know; Pingora would do so where nobody sees it.
            options.allow_connect_method_proxying = true;
            options.keepalive_request_limit = Some(REQUESTS_PER_CONNECTION);
            options.h2_idle_timeout = Some(limits.idle_timeout);
            app.server_options = Some(options);
            app.h2_options = Some(http2_options(limits));
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
        let pages = AdminPages {
            readiness,
            operator,
            metrics: Arc::clone(metrics),
            limits: limits.clone(),
        };
        let serves = PortOptions {
            counted: false,
            per_ip_limit: None,
            tls: None,
        };
        Self::start(socket, &limits, metrics, clock, serves, |_| {
            HttpServer::new_app(pages)
        })
    }

    fn start<A>(
        socket: Socket,
        limits: &Limits,
        metrics: &Arc<Metrics>,
        clock: &Arc<dyn Clock>,
        serves: PortOptions,
        app: impl FnOnce(&ConnectionGuard) -> A,
    ) -> Result<Self, StartError>
    where
        A: ServerApp + Send + Sync + 'static,
    {
        let address = socket.address();
        let listener = tokio::net::TcpListener::from_std(socket.into_std())
            .map_err(|source| StartError::Socket { address, source })?;
        let (leaver, leaving) = stop_pair();
        let (stopper, stop) = stop_pair();
        let (cutter, cut) = stop_pair();
        let guard = Arc::new(ConnectionGuard {
            limits: limits.clone(),
            clock: Arc::clone(clock),
            metrics: Arc::clone(metrics),
            counted: serves.counted,
            per_ip_limit: serves.per_ip_limit,
            tls: serves.tls,
            leaving,
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
            leave: leaver,
            stop: stopper,
            cut: cutter,
            tasks,
        })
    }

    /// Makes handshakes with these certificates from now on; connections there are stay as they are. Nothing on a port that
    /// is not encrypted.
    ///
    /// # Errors
    /// [`StartError::Tls`]; the old ones stay.
    pub fn replace_certificates(&self, tls: &Tls) -> Result<(), StartError> {
        match &self.guard.tls {
            Some(handshakes) => handshakes.replace(tls).map_err(StartError::Tls),
            None => Ok(()),
        }
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

    /// Asks clients to go elsewhere, while everything is still accepted: every answer of HTTP/1 is the last one of its
    /// connection, and HTTP/2 connections that are open now are told to end (GOAWAY).
    pub fn leave(&self) {
        self.leave.stop();
    }

    /// Takes the port out of service: nothing more is accepted, idle connections end after a moment in which a request that is
    /// on its way is still answered, and requests that are being handled are waited for, but no longer than `patience`.
    /// What is left then is cut off.
    pub async fn drain(self, patience: Duration) -> Drained {
        let began = self.guard.clock.instant();
        self.leave.stop();
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
