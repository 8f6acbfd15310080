//! One finished piece of work of a trace.

use std::time::Duration;

use crate::model::Timestamp;
use crate::model::TraceContext;

/// What kind of work a span is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::telemetry) enum SpanKind {
    /// A request that was answered.
    Server,
    /// An operation that ended.
    Internal,
}

/// A value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::telemetry) enum AttributeValue {
    Text(String),
    Number(i64),
}

/// One finished piece of work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FinishedSpan {
    pub(super) context: TraceContext,
    pub(super) name: String,
    pub(super) kind: SpanKind,
    pub(super) ended: Timestamp,
    pub(super) took: Duration,
    pub(super) attributes: Vec<(&'static str, AttributeValue)>,
    /// Whether it failed by a fault of the gateway or the backend.
    pub(super) is_error: bool,
}
