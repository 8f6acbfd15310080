//! Passing requests on: the upstreams of every route, which of them is asked, and what is done on the way.
//!
//! `config` says what a route's upstreams are, `pool` chooses one and remembers how it did, `peer` says how it is
//! connected to, `probe` looks up names and asks after health, `carry` follows one request, `answer` makes heads of answers anew, `direct` passes on what has no
//! body over connections that `idle` keeps, `upgrade` makes WebSockets reliable.

mod answer;
mod config;
mod fast_path;
mod forwarded_request;
mod health_check;
mod idle;
mod peer;
mod pool;
mod upgrade;

#[cfg(test)]
mod tests;

pub use config::Authorities;
pub use config::Balance;
pub use config::Identity;
pub use config::PoolConfig;
pub use config::Probe;
pub use config::Timeouts;
pub use config::Trust;
pub use config::TrustError;
pub use config::Upstream;
pub use config::UpstreamAddress;
pub use pool::Upstreams;

pub(super) use fast_path::Around;
pub(super) use fast_path::Direct;
pub(super) use fast_path::is_plain;
pub(super) use forwarded_request::Carry;
