//! Passes requests through to upstreams: selects an upstream, forwards the request and returns the response.
//!
//! `config` describes the upstreams of a route and `upstreams` holds the pools of all routes. `pool` selects an upstream and tracks
//! its health, `peer` sets how it is connected to, `health_check` resolves names and checks health. `forwarded_request` follows one
//! request and `response_head` makes response heads anew. `fast_path` forwards requests with no or a small body over the connections
//! that `idle_connections` keeps, and `upgrade` makes WebSocket upgrades reliable.

mod config;
mod fast_path;
mod forwarded_request;
mod health_check;
mod idle_connections;
mod peer;
mod pool;
mod response_head;
mod upgrade;
mod upstreams;
mod usual_framing;

#[cfg(test)]
mod tests;

pub use config::Authorities;
pub use config::Balance;
pub use config::HealthCheck;
pub use config::PoolConfig;
pub use config::Timeouts;
pub use config::Upstream;
pub use config::UpstreamAddress;
pub use config::UpstreamIdentity;
pub use config::UpstreamTlsError;
pub use config::UpstreamTrust;
pub use upstreams::Upstreams;

pub(super) use fast_path::FastPath;
pub(super) use fast_path::ForwardContext;
pub(super) use fast_path::read_fast_path_body;
pub(super) use forwarded_request::ForwardedRequest;
pub(super) use peer::NO_AUTHORITIES;
