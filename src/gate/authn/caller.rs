//! An authenticated caller, and what the methods of authentication share.

use crate::gate::authz::Rights;
use crate::gate::limiter::ClientNetwork;
use crate::gate::process_state::ProcessState;
use crate::model::Principal;
use crate::model::TokenName;
use crate::runtime::Clock;
use crate::telemetry::Metrics;

/// A caller and its rights: the proof of authentication, handed out by [`Authenticator::identify`](super::Authenticator::identify)
/// only.
#[derive(Debug)]
pub(in crate::gate) struct AuthenticatedCaller {
    pub(in crate::gate) principal: Principal,
    pub(in crate::gate) rights: Rights,
    /// The API token that authenticated the caller; `None` for every other method.
    pub(in crate::gate) token: Option<TokenName>,
}

impl AuthenticatedCaller {
    /// A caller who was not authenticated by an API token.
    pub(super) const fn new(principal: Principal, rights: Rights) -> Self {
        Self {
            principal,
            rights,
            token: None,
        }
    }
}

/// What a method of authentication works with besides the credentials.
#[derive(Clone, Copy)]
pub(in crate::gate) struct AuthContext<'a> {
    pub(in crate::gate) shared: &'a ProcessState,
    pub(in crate::gate) clock: &'a dyn Clock,
    pub(in crate::gate) metrics: &'a Metrics,
    /// The network of the client, by which lockouts are counted; `None` where it cannot be told from others.
    pub(in crate::gate) network: Option<ClientNetwork>,
}
