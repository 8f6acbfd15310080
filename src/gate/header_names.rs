//! Header names and fixed header values that several stages of the gate write.

use http::HeaderName;
use http::HeaderValue;

/// `Vary` of everything that can be read.
pub(super) const VARY: HeaderValue = HeaderValue::from_static(
    "Accept, Authorization, Prefer, X-Cloud-Client-Specification-Version, \
     X-Compute-Client-Specification-Version, X-Cloud-Specification-Version",
);
/// The same where the response depends on the origin of the page too.
pub(super) const VARY_WITH_ORIGIN: HeaderValue = HeaderValue::from_static(
    "Accept, Authorization, Origin, Prefer, X-Cloud-Client-Specification-Version, \
     X-Compute-Client-Specification-Version, X-Cloud-Specification-Version",
);
/// W3C Trace Context.
pub(super) const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");
pub(super) const TRACE_STATE: HeaderName = HeaderName::from_static("tracestate");
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// What is allowed, and what of it is left: draft-ietf-httpapi-ratelimit-headers-10.
pub(super) const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
pub(super) const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
pub(super) const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");
/// Seconds after which an unfinished operation is worth another look.
pub(super) const RETRY_SOON: HeaderValue = HeaderValue::from_static("2");
