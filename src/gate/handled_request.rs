//! The answer to a request with everything that the access log and the audit trail need.

use std::net::IpAddr;

use bytes::Bytes;

use crate::gate::audit_entry::AuditEntry;
use crate::gate::request::BodyStream;
use crate::model::OperationSeq;
use crate::model::PrincipalName;
use crate::model::RequestId;
use crate::model::TraceContext;

/// The answer to a request, with what the access log needs.
#[derive(Debug)]
pub struct HandledRequest {
    /// The answer. Has `Content-Length` unless its status forbids one or the body comes in pieces; for HEAD the body
    /// is empty and the `Content-Length` that of the GET.
    pub response: http::Response<Bytes>,
    /// The body, where it comes in pieces; that of `response` is empty then.
    pub pieces: Option<Box<dyn BodyStream>>,
    /// The id of the request, which is also in the response.
    pub request: RequestId,
    /// The trace that the request is a part of; `None` where its head could not be read.
    pub trace: Option<TraceContext>,
    /// Whose request it was: the address of the connection, or what a trusted proxy said.
    pub client: Option<IpAddr>,
    /// The route as a bounded word, for instance `backup`.
    pub route: &'static str,
    /// The method as a bounded word; `OTHER` for unregistered ones.
    pub method: &'static str,
    /// Who called, once that was known.
    pub principal: Option<PrincipalName>,
    /// The stable code of the refusal, if it was refused.
    pub refusal: Option<&'static str>,
    /// The operation accepted or joined.
    pub operation: Option<OperationSeq>,
    /// Whether the connection must be closed after the answer: the body was not read to its end.
    pub close: bool,
    /// The line of the audit trail: present for every request that would have changed something, and for every one whose
    /// credentials were denied.
    pub audit: Option<Box<AuditEntry>>,
}
