//! Pingora: sockets, HTTP, and the admin port. The only room that knows it.
//!
//! A connection's way: `sockets` (bound at start) -> `accept` (bounded number) -> `guard` (handshake of `tls`,
//! time limits, drain) -> `connection` (HTTP/1: first lines as they came, heads kept for what follows) -> Pingora's
//! HTTP parser -> `proxy` (one request) -> `body` and the [`Handler`] -> the answer. The admin port goes the same way up to
//! the guard and then to `admin`.

mod accept;
mod admin;
mod chunked_body;
mod config;
mod connection;
mod connection_lifecycle;
mod forward;
mod handler;
mod operator;
mod per_ip_limit;
mod proxy;
mod request_body;
mod request_head;
mod request_tracker;
mod server;
mod sockets;
#[cfg(test)]
mod tests;
mod tls;

pub use admin::Readiness;
pub use config::Config;
pub use config::Limits;
pub use forward::Authorities;
pub use forward::Balance;
pub use forward::HealthCheck;
pub use forward::PoolConfig;
pub use forward::Timeouts;
pub use forward::Upstream;
pub use forward::UpstreamAddress;
pub use forward::UpstreamIdentity;
pub use forward::UpstreamTlsError;
pub use forward::UpstreamTrust;
pub use forward::Upstreams;
pub use handler::Handler;
pub use handler::SentResponse;
pub use handler::UpstreamResult;
pub use operator::OPERATOR_NAME;
pub use operator::Operator;
pub use operator::OperatorCaller;
pub use operator::OperatorError;
pub use server::Drained;
pub use server::Server;
pub use server::StartError;
pub use sockets::Inherited;
pub use sockets::Socket;
pub use sockets::SocketError;
pub use sockets::Sockets;
pub use tls::Certificate;
pub use tls::ClientCertificates;
pub use tls::Tls;
pub use tls::TlsError;

/// Log directives for what Pingora logs of its own accord: every scan of a port and every client that went away as an
/// error. What matters of it is counted in metrics.
pub const QUIET: &str = "pingora_core=warn,pingora_proxy=off,pingora_core::services::listening=off,pingora_core::protocols=off";

/// The targets of Pingora's log messages, of which a level can be set.
pub const LOG_TARGETS: [&str; 4] = [
    "pingora_core",
    "pingora_pool",
    "pingora_proxy",
    "pingora_rustls",
];
