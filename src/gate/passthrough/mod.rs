//! What is passed through to a VM manager's own interface, decided without a socket: which requests, and how they leave.
//!
//! The routes of this API come first and are never passed on, however their paths are spelled (see [`paths`]).

mod field_rule;
mod header_edit;
mod paths;
mod prepared;

#[cfg(test)]
mod tests;

pub use field_rule::FieldError;
pub use field_rule::FieldRule;
pub use header_edit::HeaderEdit;
pub use paths::PathPrefix;
pub use prepared::PassThrough;
pub use prepared::pass_through_failure;

pub(super) use prepared::PassThroughRoutes;
pub(super) use prepared::ROUTE_NAME;

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;

use crate::gate::config::Grantee;
use crate::model::PassName;

/// The methods that a route may pass on, and the default of `methods`. Never CONNECT and TRACE.
pub const PASS_THROUGH_METHODS: &[&str] =
    &["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

/// Names the upstreams of a route among all that were ever configured in this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolId(pub u64);

/// One `[[passthrough]]`, as far as it decides about requests. Where they go is the listener's business.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassThroughRoute {
    /// Its name, for logs and metrics.
    pub name: PassName,
    /// The paths it takes: this one and what is below it.
    pub prefix: PathPrefix,
    /// The hosts it takes, in lower case and without port; every host when empty.
    pub hosts: Vec<String>,
    /// Whether the prefix is taken off the path before it is passed on.
    pub strip: bool,
    /// Who may use it.
    pub access: PassThroughAccess,
    /// The methods it passes on, out of [`PASS_THROUGH_METHODS`].
    pub methods: Vec<&'static str>,
    /// What the upstream reads as `Host`.
    pub host: HostRule,
    /// What the upstream reads as `Authorization`.
    pub authorization: AuthorizationRule,
    /// Which fields of a request are left out.
    pub fields: Arc<FieldRule>,
    /// Whether WebSocket upgrades are passed on.
    pub upgrade: bool,
    /// What a request body is held to.
    pub body: BodyRule,
    /// Its upstreams; filled in when they are made.
    pub pool: PoolId,
}

/// Who may use a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PassThroughAccess {
    /// Everybody who reaches the gateway, without credentials.
    Open,
    /// Callers who are authenticated and named here, or in a group named here.
    Allowed(Vec<Grantee>),
}

/// What the upstream reads as `Host`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostRule {
    /// What the client sent.
    Keep,
    /// The host and port of the upstream.
    Upstream,
}

/// What the upstream reads as `Authorization`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthorizationRule {
    /// Nothing: the credentials of callers are for the gateway.
    Strip,
    /// What the client sent.
    Keep,
    /// The gateway's own credentials. Marked as sensitive, so that it does not print.
    Set(HeaderValue),
}

/// What a request body is held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyRule {
    /// Most bytes.
    pub bytes_max: u64,
    /// Longest pause between two pieces, and the time before the rate counts.
    pub pause: Duration,
    /// Fewest bytes a second on average.
    pub rate_min: u64,
}
