//! What is known of a request, stage by stage. Each stage is made from the one before and proves that its checks passed:
//! [`ReceivedRequest`], [`AuthenticatedRequest`], [`AuthorizedRequest`]. None of them changes once it is made.

use std::sync::Arc;

use http::HeaderMap;

use crate::gate::authn::AuthenticatedCaller;
use crate::gate::client_address::ClientAddress;
use crate::gate::cross_site::RequestOrigin;
use crate::gate::limiter::AdmittedRequest;
use crate::gate::negotiate;
use crate::gate::prefer::Preferences;
use crate::gate::refusal::Refusal;
use crate::gate::request::RequestHead;
use crate::gate::request_target::TargetParts;
use crate::gate::route::Endpoint;
use crate::model::BackendName;
use crate::model::RequestId;
use crate::model::TraceContext;

/// A request as it came, with what can be read from its head without a decision.
#[derive(Debug)]
pub(super) struct ReceivedRequest<'a> {
    pub(super) head: RequestHead<'a>,
    /// `None` when the target is malformed.
    pub(super) target: Option<TargetParts<'a>>,
    pub(super) id: RequestId,
    /// The trace that it is a part of: that of a trusted proxy, or one that begins here.
    pub(super) trace: TraceContext,
    pub(super) client: ClientAddress,
    /// Where the page is from that made the request, if one did.
    pub(super) origin: RequestOrigin<'a>,
    pub(super) preferences: Preferences,
    /// Whether the request is read strictly: it asks for that, or the configuration does.
    pub(super) is_strict: bool,
    /// Whether another gateway of the cluster handed it on.
    pub(super) is_relayed: bool,
}

/// A request to an endpoint whose caller is known and within its limits, and whose specification version is supported.
#[derive(Debug)]
pub(super) struct AuthenticatedRequest<'a> {
    pub(super) received: &'a ReceivedRequest<'a>,
    pub(super) query: &'a str,
    pub(super) endpoint: &'static Endpoint,
    pub(super) caller: &'a Arc<AuthenticatedCaller>,
    /// The slot among the concurrent requests, held while the request is handled.
    pub(super) admitted: AdmittedRequest,
}

impl AuthenticatedRequest<'_> {
    pub(super) const fn headers(&self) -> &HeaderMap {
        self.received.head.headers
    }

    /// The media type of the response.
    pub(super) fn media_type(&self) -> Result<&'static str, Refusal> {
        let is_strict = self.received.is_strict;
        negotiate::choose_media_type(self.headers(), self.endpoint.response, is_strict)
    }
}

/// A request on a VM that its caller may make, and the backend that the VM is placed on.
#[derive(Debug)]
pub(super) struct AuthorizedRequest<'a> {
    pub(super) request: &'a AuthenticatedRequest<'a>,
    pub(super) backend: &'a BackendName,
}
