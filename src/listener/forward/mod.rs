//! Passing requests on: the upstreams of every route, which of them is asked, and what is done on the way.
//!
//! `config` says what a route's upstreams are, `pool` chooses one and remembers how it did, `peer` says how it is
//! connected to, `probe` looks up names and asks after health, `carry` follows one request, `answer` makes heads of answers anew, `fast_path` passes on what has no
//! body over connections that `idle` keeps, `upgrade` makes WebSockets reliable.

mod config;
mod fast_path;
mod forwarded_request;
mod health_check;
mod idle_connections;
mod peer;
mod pool;
mod response_head;
mod upgrade;

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
pub use pool::Upstreams;

pub(super) use fast_path::FastPath;
pub(super) use fast_path::ForwardContext;
pub(super) use fast_path::is_fast_path_request;
pub(super) use forwarded_request::ForwardedRequest;
