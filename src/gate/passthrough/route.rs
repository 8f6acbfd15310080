//! A pass-through route as configured, and who may use it.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use http::Method;
use http::header;

use crate::gate::grant::Grantee;
use crate::gate::passthrough::field_rule::FieldRule;
use crate::gate::passthrough::paths::PathPrefix;
use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::model::PassName;
use crate::model::Principal;

/// The methods that a route may pass on, and the default of `methods`. Never CONNECT and TRACE.
pub const PASS_THROUGH_METHODS: &[&str] =
    &["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

/// Names the upstreams of a route among all that were ever configured in this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolId(pub u64);

/// One `[[passthrough]]`, as far as it decides about requests. Where they go is decided by the listener.
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
    /// Every client, without credentials.
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

impl PassThroughRoute {
    /// Whether the method is passed on.
    pub(in crate::gate) fn check_method(&self, method: &Method) -> Result<(), Refusal> {
        if self.methods.contains(&method.as_str()) {
            return Ok(());
        }
        let allow = self.methods.join(", ");
        Err(Refusal::from(Code::MethodNotAllowed).with(header::ALLOW, &allow))
    }

    /// Whether the caller may use the route: only callers that it names may.
    pub(in crate::gate) fn check_caller(&self, caller: Option<&Principal>) -> Result<(), Refusal> {
        let is_for = |grantee: &Grantee, principal: &Principal| match grantee {
            Grantee::User(name) => *name == principal.name,
            Grantee::Group(name) => principal.groups.contains(name),
        };
        match (&self.access, caller) {
            (PassThroughAccess::Open, _) => Ok(()),
            (PassThroughAccess::Allowed(all), Some(principal))
                if all.iter().any(|to| is_for(to, principal)) =>
            {
                Ok(())
            }
            (PassThroughAccess::Allowed(_), Some(_)) => Err(Refusal::from(Code::NotPermitted)),
            (PassThroughAccess::Allowed(_), None) => Err(Refusal::from(Code::Unauthenticated)),
        }
    }
}
