//! Spans that wait for the exporter: what is recorded of requests and operations. Nothing is recorded unless that was started.

use std::sync::OnceLock;

use parking_lot::Mutex;

use crate::model::Timestamp;
use crate::model::TraceContext;
use crate::model::limits;
use crate::telemetry::AccessRecord;
use crate::telemetry::spans::span::AttributeValue;
use crate::telemetry::spans::span::FinishedSpan;
use crate::telemetry::spans::span::SpanKind;

static QUEUE: OnceLock<SpanQueue> = OnceLock::new();

/// Spans that wait for the exporter.
#[derive(Debug, Default)]
struct SpanQueue(Mutex<TakenSpans>);

/// What the exporter takes at once.
#[derive(Debug, Default)]
pub struct TakenSpans {
    /// The spans, oldest first.
    pub spans: Vec<FinishedSpan>,
    /// How many were left out, because the exporter did not keep up.
    pub dropped: u64,
}

/// Begins to record spans. What is recorded must be taken by [`take_spans`].
pub fn start_recording_spans() {
    QUEUE.get_or_init(SpanQueue::default);
}

/// Whether spans are recorded.
#[must_use]
pub fn is_tracing_exported() -> bool {
    QUEUE.get().is_some()
}

/// Takes the recorded spans.
#[must_use]
pub fn take_spans() -> TakenSpans {
    QUEUE
        .get()
        .map(|queue| std::mem::take(&mut *queue.0.lock()))
        .unwrap_or_default()
}

fn record(make: impl FnOnce() -> FinishedSpan) {
    let Some(queue) = QUEUE.get() else {
        return;
    };
    let mut queue = queue.0.lock();
    if queue.spans.len() >= limits::SPANS_KEPT_MAX {
        queue.dropped = queue.dropped.saturating_add(1);
    } else {
        queue.spans.push(make());
    }
}

fn text(value: &str) -> AttributeValue {
    AttributeValue::Text(value.to_owned())
}

/// Records a completed request, if its trace is recorded.
pub fn record_request_span(access: &AccessRecord<'_>) {
    let Some(context) = access.trace.filter(|context| context.is_sampled) else {
        return;
    };
    record(|| {
        let path = access.target.split('?').next().unwrap_or_default();
        let client = access.client.map(|client| client.to_string());
        let client = client.unwrap_or_default();
        let mut attributes = vec![
            ("http.request.method", text(access.method)),
            ("http.route", text(access.route)),
            (
                "http.response.status_code",
                AttributeValue::Number(i64::from(access.status)),
            ),
            ("url.path", text(path)),
            ("client.address", AttributeValue::Text(client)),
            ("snapgate.request_id", text(access.request)),
        ];
        let optional = [
            ("enduser.id", access.principal),
            ("user_agent.original", access.user_agent),
            ("snapgate.passthrough", access.passthrough),
            ("snapgate.upstream", access.upstream),
        ];
        let known = optional.into_iter();
        attributes.extend(known.filter_map(|(name, value)| Some((name, text(value?)))));
        let operation = access.operation.map(|operation| operation.to_string());
        attributes.extend(operation.map(|number| ("snapgate.operation", text(&number))));
        FinishedSpan {
            context,
            name: format!("{} {}", access.method, access.route),
            kind: SpanKind::Server,
            ended: access.time,
            took: access.took,
            attributes,
            is_error: access.status >= 500,
        }
    });
}

/// An operation that ended.
#[derive(Clone, Copy, Debug)]
pub struct EndedOperation<'a> {
    /// Its number.
    pub operation: u64,
    /// The id of the request that asked for it.
    pub request: &'a str,
    /// What it did.
    pub verb: &'static str,
    /// The backend.
    pub backend: &'a str,
    /// The VM.
    pub vm: &'a str,
    /// The backup.
    pub backup: &'a str,
    /// How it ended, for instance `succeeded`.
    pub outcome: &'static str,
    /// The kind of fault.
    pub fault: Option<&'static str>,
    /// When it was accepted.
    pub created: Timestamp,
    /// When it ended.
    pub ended: Timestamp,
}

/// Records an operation that ended, if its trace is recorded.
pub fn record_operation_span(context: TraceContext, operation: &EndedOperation<'_>) {
    if !context.is_sampled {
        return;
    }
    record(|| {
        let mut attributes = vec![
            ("snapgate.operation", text(&operation.operation.to_string())),
            ("snapgate.request_id", text(operation.request)),
            ("snapgate.verb", text(operation.verb)),
            ("snapgate.backend", text(operation.backend)),
            ("snapgate.vm", text(operation.vm)),
            ("snapgate.backup", text(operation.backup)),
            ("snapgate.outcome", text(operation.outcome)),
        ];
        attributes.extend(operation.fault.map(|fault| ("error.type", text(fault))));
        FinishedSpan {
            context,
            name: operation.verb.to_owned(),
            kind: SpanKind::Internal,
            ended: operation.ended,
            took: operation.ended.since(operation.created),
            attributes,
            is_error: operation.fault.is_some(),
        }
    });
}
