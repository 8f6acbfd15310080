//! What is changed in the header fields of a request before it is passed on.

use std::sync::Arc;

use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::header;

use crate::gate::header_names::REQUEST_ID;
use crate::gate::header_names::TRACE_PARENT;
use crate::gate::header_names::TRACE_STATE;
use crate::gate::passthrough::field_rule::FieldRule;
use crate::gate::passthrough::route::AuthorizationRule;
use crate::gate::passthrough::route::PassThroughRoute;
use crate::gate::request::RequestHead;
use crate::model::RequestId;
use crate::model::TraceContext;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// What is changed in the header fields of a request before it is passed on.
#[derive(Clone, Debug)]
pub struct HeaderEdit {
    keeps_authorization: bool,
    keeps_trace_state: bool,
    fields: Arc<FieldRule>,
    /// Set in place of whatever the client sent.
    pub set: Vec<(HeaderName, HeaderValue)>,
}

impl HeaderEdit {
    /// Whether a field of the client is left out.
    #[must_use]
    pub fn drops(&self, name: &HeaderName) -> bool {
        self.fields.drops(name)
            || (*name == header::AUTHORIZATION && !self.keeps_authorization)
            || (*name == TRACE_STATE && !self.keeps_trace_state)
    }

    pub(super) fn for_request(
        route: &PassThroughRoute,
        head: &RequestHead<'_>,
        request: &RequestId,
        trace: TraceContext,
        scheme: &'static str,
    ) -> Self {
        let mut set = Vec::with_capacity(9);
        let mut add = |name: HeaderName, value: Result<HeaderValue, _>| {
            if let Ok(value) = value {
                set.push((name, value));
            }
        };
        let host = head.headers.get(header::HOST);
        let host = host.and_then(|host| host.to_str().ok()).unwrap_or_default();
        let peer = head.peer.map(|peer| peer.to_string());
        if let Some(peer) = &peer {
            add(FORWARDED_FOR, HeaderValue::from_str(peer));
        }
        add(FORWARDED_PROTO, Ok(HeaderValue::from_static(scheme)));
        if !host.is_empty() {
            add(FORWARDED_HOST, HeaderValue::from_str(host));
        }
        let forwarded = forwarded(peer.as_deref(), host, scheme);
        add(header::FORWARDED, HeaderValue::try_from(forwarded));
        let via = match head.version {
            http::Version::HTTP_10 => "1.0 snapgate",
            http::Version::HTTP_2 => "2 snapgate",
            _ => "1.1 snapgate",
        };
        add(header::VIA, Ok(extended_via(head.headers, via)));
        add(REQUEST_ID, HeaderValue::from_str(request.as_str()));
        add(TRACE_PARENT, HeaderValue::from_bytes(&trace.traceparent()));
        if let AuthorizationRule::Set(value) = &route.authorization {
            set.push((header::AUTHORIZATION, value.clone()));
        }
        Self {
            fields: Arc::clone(&route.fields),
            keeps_authorization: route.authorization == AuthorizationRule::Keep,
            // Only a trusted proxy's trace has a parent; the state of any other would belong to another trace.
            keeps_trace_state: trace.parent.is_some(),
            set,
        }
    }
}

/// The value of `Via` with this gateway, `own`, at its end (RFC 9110 section 7.6.3). A list, which may be spread over several fields.
#[must_use]
pub fn extended_via(headers: &HeaderMap, own: &'static str) -> HeaderValue {
    let only_own = HeaderValue::from_static(own);
    let before = headers.get_all(header::VIA).iter();
    let mut vias: Vec<&str> = before.filter_map(|value| value.to_str().ok()).collect();
    if vias.is_empty() {
        return only_own;
    }
    vias.push(own);
    HeaderValue::try_from(vias.join(", ")).unwrap_or(only_own)
}

/// The value of `Forwarded` (RFC 7239).
fn forwarded(peer: Option<&str>, host: &str, scheme: &str) -> String {
    let from = peer.unwrap_or("unknown");
    // An IPv6 address.
    let (open, close) = if from.contains(':') {
        ("\"[", "]\"")
    } else {
        ("", "")
    };
    let (named, end) = if host.is_empty() {
        ("", "")
    } else {
        (";host=\"", "\"")
    };
    [
        "for=", open, from, close, named, host, end, ";proto=", scheme,
    ]
    .concat()
}
