//! Serves a port: started on a bound socket, drained at shutdown.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use pingora::apps::HttpServerApp;
use pingora::apps::HttpServerOptions;
use pingora::apps::http_app::HttpServer;
use pingora::protocols::http::v2::server::H2Options;
use pingora::protocols::http::v2::server::default_h2_options;
use pingora::protocols::l4::listener::Listener;
use pingora::proxy::http_proxy;
use pingora::server::configuration::ServerConf;

use crate::listener::Limits;
use crate::listener::Socket;
use crate::listener::accept::accept_connections;
use crate::listener::admin::AdminPages;
use crate::listener::admin::Readiness;
use crate::listener::api_app::ApiApp;
use crate::listener::connection_lifecycle::ConnectionGuard;
use crate::listener::connection_phase::REQUESTS_PER_CONNECTION;
use crate::listener::forward::FastPath;
use crate::listener::forward::NO_AUTHORITIES;
use crate::listener::forward::Upstreams;
use crate::listener::handler::Handler;
use crate::listener::http2_requests::wide_connections;
use crate::listener::operator::Operator;
use crate::listener::per_ip_limit::PerIpLimit;
use crate::listener::proxy::ApiProxy;
use crate::listener::request_service::RequestService;
use crate::listener::tls::Handshakes;
use crate::listener::tls::Tls;
use crate::listener::unreadable_request::UnreadableRequests;
use crate::model::limits;
use crate::runtime::Clock;
use crate::runtime::Stopper;
use crate::runtime::Tasks;
use crate::runtime::stop_pair;
use crate::telemetry::Metrics;

/// Flow-control window of a whole HTTP/2 connection, unless it uploads: one large request body.
const H2_WINDOW_BYTES: u32 = 64 * 1024;
/// Bytes buffered of a response that a client of HTTP/2 does not read.
const H2_BUFFER_BYTES: usize = 64 * 1024;
/// Reset streams remembered per connection.
const H2_RESETS_MAX: usize = 10;
/// Concurrent connections of the admin port: a few scrapers and probes.
const ADMIN_CONNECTIONS: usize = 64;
/// Limit for the end of connections that were cut.
const CUT_TIME_MAX: Duration = Duration::from_secs(1);

/// Why a port could not be served.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The runtime cannot use the socket.
    #[error("cannot serve {address}")]
    Socket {
        /// The address of the socket.
        address: SocketAddr,
        /// The system error.
        source: io::Error,
    },
    /// The null device is missing or not readable.
    #[error("cannot read {NO_AUTHORITIES}")]
    NullDevice(#[source] io::Error),
    /// Pingora rejected certificates that were checked before: a defect.
    #[error("cannot use the certificates")]
    Tls(#[source] Box<pingora::Error>),
}

/// The result of a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Connections whose requests did not finish in time and were cut.
    pub cut: usize,
    /// The duration of the drain.
    pub took: Duration,
}

/// Options in which the ports differ.
struct PortOptions {
    counted: bool,
    per_ip_limit: Option<Arc<PerIpLimit>>,
    unreadable: Option<UnreadableRequests>,
    tls: Option<Handshakes>,
}

/// Limits of an HTTP/2 connection: the configured number of concurrent requests, a window and buffers of 64 KiB, and Pingora's
/// limit for header lists, which is above that of the gate. Each stream may use the whole window of the connection, which bounds
/// the memory and grows for uploads.
fn http2_options(limits: &Limits) -> H2Options {
    let mut options = default_h2_options();
    options
        .max_concurrent_streams(limits.streams)
        .initial_window_size(limits::HTTP2_WIDE_WINDOW_BYTES)
        .initial_connection_window_size(H2_WINDOW_BYTES)
        .max_send_buffer_size(H2_BUFFER_BYTES)
        .max_concurrent_reset_streams(H2_RESETS_MAX);
    options
}

/// A port that is served. Dropping it closes all its connections at once.
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
    /// Serves the API port on the current runtime.
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
            // Attempts in total; `forward/forwarded_request.rs` decides which requests are retried.
            max_retries: 2,
            ..ServerConf::default()
        });
        let tls = tls.map(Handshakes::new).transpose();
        let port_options = PortOptions {
            counted: true,
            per_ip_limit: PerIpLimit::new(limits.connections_per_address, Arc::clone(&handler)),
            unreadable: Some(UnreadableRequests::new(Arc::clone(&handler))),
            tls: tls.map_err(StartError::Tls)?,
        };
        Self::start(socket, limits, metrics, clock, port_options, |guard| {
            let service = Arc::new(RequestService {
                handler,
                upstreams,
                fast_path: FastPath::new(),
                limits: guard.limits.clone(),
                clock: Arc::clone(clock),
                metrics: Arc::clone(metrics),
                leaving: guard.leaving.clone(),
            });
            let mut options = HttpServerOptions::default();
            // No HTTP/2 without TLS: Pingora would wait for a whole preface, which hangs on shorter requests.
            options.h2c = false;
            options.keepalive_request_limit = Some(REQUESTS_PER_CONNECTION);
            ApiApp {
                service: Arc::clone(&service),
                proxy: Arc::new(http_proxy(&conf, ApiProxy(service))),
                options,
                http2_options: http2_options(limits),
            }
        })
    }

    /// Serves the admin port on the current runtime.
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
        let port_options = PortOptions {
            counted: false,
            per_ip_limit: None,
            unreadable: None,
            tls: None,
        };
        Self::start(socket, &limits, metrics, clock, port_options, |_| {
            HttpServer::new_app(pages)
        })
    }

    fn start<A>(
        socket: Socket,
        limits: &Limits,
        metrics: &Arc<Metrics>,
        clock: &Arc<dyn Clock>,
        options: PortOptions,
        app: impl FnOnce(&ConnectionGuard) -> A,
    ) -> Result<Self, StartError>
    where
        A: HttpServerApp + Send + Sync + 'static,
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
            counted: options.counted,
            per_ip_limit: options.per_ip_limit,
            unreadable: options.unreadable,
            tls: options.tls,
            leaving,
            stop,
            cut,
            wide_connections: wide_connections(),
            open: AtomicUsize::new(0),
        });
        let tasks = Tasks::default();
        let app = Arc::new(app(&guard));
        drop(tasks.spawn(accept_connections(
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

    /// Uses these certificates for new handshakes. Existing connections are unaffected. Does nothing on a port without TLS.
    ///
    /// # Errors
    /// [`StartError::Tls`]; the old certificates stay active.
    pub fn replace_certificates(&self, tls: &Tls) -> Result<(), StartError> {
        match &self.guard.tls {
            Some(handshakes) => handshakes.replace(tls).map_err(StartError::Tls),
            None => Ok(()),
        }
    }

    /// The address of the port.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The number of open connections.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.guard.open.load(std::sync::atomic::Ordering::Acquire)
    }

    /// Asks clients to connect elsewhere, while requests are still accepted: every HTTP/1 response closes its connection, and
    /// open HTTP/2 connections get a GOAWAY.
    pub fn ask_clients_to_leave(&self) {
        self.leave.stop();
    }

    /// Stops the port: no new connections, idle ones end after a moment in which a request that is already on its way is still
    /// answered, and requests in progress get at most `timeout` to finish. What is left then is cut.
    pub async fn drain(self, timeout: Duration) -> Drained {
        let began = self.guard.clock.instant();
        self.leave.stop();
        self.stop.stop();
        // Counted before the cut: afterwards no connection is left to count.
        let in_time = tokio::time::timeout(timeout, self.tasks.ended()).await;
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
            tracing::warn!("cut connections have not ended yet");
        }
        Drained {
            cut,
            took: self.guard.clock.instant().saturating_duration_since(began),
        }
    }
}
