//! Sockets, TLS, HTTP, pass-through upstreams and the admin port. The only room that uses Pingora.
//!
//! The path of a connection: `sockets` (bound at start) -> `accept` (bounded number) -> `connection_lifecycle` (TLS handshake,
//! limits of time, drain) -> `http1_requests` over `connection` (checks received bytes with `request_tracker`), or `http2_requests` over
//! `http2_connection` -> Pingora's HTTP parser -> `api_app` (one request) -> `request_service` -> `request_body` and the [`Handler`] ->
//! `response_writer`, or `forward` for requests that are passed through, or `proxy` for those of them that Pingora forwards. The admin port
//! takes the same path up to `connection_lifecycle` and then `admin`.

mod accept;
mod admin;
mod admin_response;
mod api_app;
mod chunked_body;
mod config;
mod connection;
mod connection_lifecycle;
mod connection_phase;
mod corked_stream;
mod forward;
mod frame_boundary;
mod handler;
mod http1_requests;
mod http2_connection;
mod http2_requests;
mod operator;
mod per_ip_limit;
mod proxy;
mod request_body;
mod request_head;
mod request_service;
mod request_tracker;
mod response_writer;
mod server;
mod sockets;
#[cfg(test)]
mod tests;
mod tls;
mod unreadable_request;
mod upstream_date;

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
pub use operator::ClusterChange;
pub use operator::LogLevelChange;
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
pub use tls::SharedTicketKeys;
pub use tls::TicketKeysError;
pub use tls::Tls;
pub use tls::TlsError;

/// Log directives that silence Pingora, which logs every port scan and every client that disconnects as an error. Metrics
/// count what matters of it.
pub const QUIET: &str = "pingora_core=warn,pingora_proxy=off,pingora_core::services::listening=off,pingora_core::protocols=off";

/// The targets of Pingora's log messages, for which a level can be set.
pub const LOG_TARGETS: [&str; 4] = [
    "pingora_core",
    "pingora_pool",
    "pingora_proxy",
    "pingora_rustls",
];
