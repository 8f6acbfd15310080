//! Deviation D37: the answers of Cross-Origin Resource Sharing (Fetch, section 3.2), for `server.allowed_origins` alone.
//!
//! Scripts set `Authorization` themselves and the API has no cookies, so credentials of the browser are not allowed:
//! there is no `Access-Control-Allow-Credentials`.

use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::Method;
use http::header;

use crate::gate::cross_site::rule::RequestOrigin;
use crate::gate::header_names::VARY;
use crate::gate::header_names::VARY_WITH_ORIGIN;

const REQUEST_METHOD: HeaderName = header::ACCESS_CONTROL_REQUEST_METHOD;

/// The request headers that the API knows.
const ALLOWED_HEADERS: HeaderValue = HeaderValue::from_static(
    "Accept, Authorization, Content-Type, Idempotency-Key, If-Match, If-None-Match, If-Plan, Last-Event-ID, Prefer, \
     X-Cloud-Client-Specification-Version, X-Cloud-Specification-Version, X-Compute-Client-Specification-Version, \
     X-Request-Id",
);

/// The response headers that a client of the API needs, besides those that scripts can always read.
const EXPOSED_HEADERS: HeaderValue = HeaderValue::from_static(
    "Allow, Content-Location, ETag, Link, Location, Preference-Applied, RateLimit, RateLimit-Policy, Retry-After, \
     WWW-Authenticate, X-Cloud-Specification-Version, X-Request-Id",
);

/// Seconds for which a browser may remember the answer to a preflight. An origin that is taken off the list can send what
/// was preflighted before, and is refused.
const PREFLIGHT_SECONDS: HeaderValue = HeaderValue::from_static("600");

/// Lets scripts of an allowed origin read the response. `depends` says that there are allowed origins, so that caches must
/// keep the responses for different origins apart.
pub(in crate::gate) fn add_cors_headers(
    headers: &mut HeaderMap,
    method: &Method,
    origin: RequestOrigin<'_>,
    depends: bool,
) {
    let is_read = *method == Method::HEAD || *method == Method::GET;
    if depends {
        let vary = if is_read {
            VARY_WITH_ORIGIN
        } else {
            HeaderValue::from_static("Origin")
        };
        // A preflight has set its own.
        if is_read || !headers.contains_key(header::VARY) {
            headers.insert(header::VARY, vary);
        }
    } else if is_read {
        headers.insert(header::VARY, VARY);
    }
    if let RequestOrigin::Allowed(origin) = origin {
        readable_by(headers, origin);
    }
}

/// Lets scripts of this origin read the response.
pub(in crate::gate) fn readable_by(headers: &mut HeaderMap, origin: &HeaderValue) {
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED_HEADERS);
}

/// Answers a preflight of an allowed origin: the methods are those of the route, which `Allow` names already.
pub(in crate::gate) fn add_preflight_headers(
    headers: &mut HeaderMap,
    request: &HeaderMap,
    origin: RequestOrigin<'_>,
) {
    let is_preflight = request.contains_key(REQUEST_METHOD);
    if !is_preflight || !matches!(origin, RequestOrigin::Allowed(_)) {
        return;
    }
    if let Some(methods) = headers.get(header::ALLOW).cloned() {
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
    }
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, ALLOWED_HEADERS);
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, PREFLIGHT_SECONDS);
    headers.insert(
        header::VARY,
        HeaderValue::from_static("Origin, Access-Control-Request-Method"),
    );
}
