//! The last stage: what all responses have in common, and what is reported of the request.

use std::net::IpAddr;

use bytes::Bytes;
use http::HeaderValue;
use http::Method;
use http::StatusCode;
use http::header;

use crate::gate::audit_entry::AuditOutcome;
use crate::gate::cross_site::add_cors_headers;
use crate::gate::handled_request::HandledRequest;
use crate::gate::header_names::PREFERENCE_APPLIED;
use crate::gate::header_names::RATE_LIMIT;
use crate::gate::header_names::RATE_LIMIT_POLICY;
use crate::gate::header_names::REQUEST_ID;
use crate::gate::negotiate;
use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::gate::request;
use crate::gate::request_context::ReceivedRequest;
use crate::gate::request_report::RequestReport;
use crate::gate::response_draft::ResponseDraft;
use crate::gate::version;
use crate::model::RequestId;
use crate::telemetry::Metrics;

/// The response, or the refusal as a response. `versions` are the supported specification versions, oldest first;
/// `depends_on_origin` says whether responses differ by the origin of the page that asks.
pub(super) fn finish(
    received: ReceivedRequest<'_>,
    mut report: RequestReport,
    result: Result<ResponseDraft, Refusal>,
    close: bool,
    (versions, depends_on_origin): (&[HeaderValue], bool),
    metrics: &Metrics,
) -> HandledRequest {
    let method = received.head.method;
    let is_head = *method == Method::HEAD;
    let refusal = result.as_ref().err().map(|refusal| refusal.code().as_str());
    if let Some(code) = refusal {
        metrics.requests.record_refusal(code);
        report.note(|entry| {
            entry.outcome = AuditOutcome::Refused;
            entry.refusal = Some(code);
        });
    }
    let mut draft = result.unwrap_or_else(|refusal| {
        let accept = received.head.headers.get_all(header::ACCEPT);
        let media = negotiate::choose_error_type(accept.iter());
        ResponseDraft::refused(&refusal, media, received.id.as_str(), method)
    });
    if !draft.is_complete {
        add_common_headers(&mut draft, &received, &report, versions);
        let headers = &mut draft.headers;
        add_cors_headers(headers, method, received.origin, depends_on_origin);
    }
    let mut response = http::Response::new(if is_head { Bytes::new() } else { draft.body });
    *response.status_mut() = draft.status;
    *response.headers_mut() = draft.headers;
    HandledRequest {
        response,
        pieces: draft.pieces.filter(|_| !is_head),
        request: received.id,
        trace: Some(received.trace),
        client: received.client.address,
        route: report.route,
        method: request::method_word(method),
        principal: report.principal,
        refusal,
        operation: report.operation,
        close,
        audit: report.audit.map(Box::new),
    }
}

fn add_common_headers(
    draft: &mut ResponseDraft,
    received: &ReceivedRequest<'_>,
    report: &RequestReport,
    versions: &[HeaderValue],
) {
    let is_bodiless = [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED].contains(&draft.status);
    if !is_bodiless && draft.pieces.is_none() {
        let length = HeaderValue::from(draft.body.len());
        draft.headers.insert(header::CONTENT_LENGTH, length);
    }
    if let Some(quota) = &report.quota {
        draft.set(RATE_LIMIT_POLICY, &quota.policy_field());
        draft.set(RATE_LIMIT, &quota.remaining_field());
    }
    draft.set(REQUEST_ID, received.id.as_str());
    let version = report.version.and_then(|version| versions.get(version.0));
    if let Some(version) = version.or_else(|| versions.last()) {
        draft.headers.insert(version::ECHO, version.clone());
    }
    if received.preferences.strict {
        let applied = HeaderValue::from_static("handling=strict");
        draft.headers.append(PREFERENCE_APPLIED, applied);
    }
}

/// The refusal of a request whose head could not be parsed.
#[must_use]
pub fn refuse_unreadable(request: RequestId, client: Option<IpAddr>) -> HandledRequest {
    let refusal = Refusal::from(Code::MalformedRequest);
    let media = negotiate::choose_error_type(std::iter::empty());
    let mut draft = ResponseDraft::refused(&refusal, media, request.as_str(), &Method::GET);
    draft.set(REQUEST_ID, request.as_str());
    let mut response = http::Response::new(draft.body);
    *response.status_mut() = draft.status;
    *response.headers_mut() = draft.headers;
    HandledRequest {
        response,
        pieces: None,
        request,
        trace: None,
        client,
        route: "none",
        method: "OTHER",
        principal: None,
        refusal: Some(refusal.code().as_str()),
        operation: None,
        close: true,
        audit: None,
    }
}
