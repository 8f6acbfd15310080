//! Deviation D21: the life of one Status as server-sent events (WHATWG HTML, section 9.2 "Server-sent events").
//!
//! An event is a whole Status, and its id names the revision: a client that was disconnected continues with the newest one
//! and misses only revisions that were superseded. The stream ends with the Status, or sooner; clients reconnect then, and
//! one that has the final Status gets 204, after which it does not reconnect.

use std::fmt::Write as _;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use http::HeaderMap;
use http::HeaderName;
use http::StatusCode;
use http::header;

use crate::gate::negotiate;
use crate::gate::process_state::ProcessState;
use crate::gate::process_state::WaiterSlot;
use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::gate::request::BodyStream;
use crate::gate::request_context::AuthenticatedRequest;
use crate::gate::response_draft::ResponseDraft;
use crate::gate::services::Services;
use crate::gate::wire;
use crate::model::Deadline;
use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::Revision;
use crate::model::limits;
use crate::operations::OperationsApi;
use crate::operations::WaitFor;
use crate::runtime::Clock;

/// The route of streams in metrics and the access log: they last as long as their operation, and would distort the durations of
/// other requests.
pub(super) const ROUTE_NAME: &str = "events";

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Makes nginx and proxies like it forward every piece at once.
const BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
/// A comment: a sign of life that means nothing.
const HEARTBEAT: Bytes = Bytes::from_static(b":\n\n");

/// The last event that the caller has received, as `Last-Event-ID` names it.
pub(super) fn last_event_id(
    headers: &HeaderMap,
) -> Result<Option<(OperationSeq, Revision)>, Refusal> {
    let mut values = headers.get_all(LAST_EVENT_ID).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let text = value.to_str().ok().filter(|_| values.next().is_none());
    let parts = text.and_then(|text| text.trim().split_once('-'));
    let read = parts.and_then(|(seq, revision)| {
        Some((
            OperationSeq::new(parse_digits(seq)?)?,
            Revision(parse_digits(revision)?),
        ))
    });
    read.map(Some).ok_or_else(malformed)
}

fn parse_digits(text: &str) -> Option<u64> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits)
}

fn malformed() -> Refusal {
    Refusal::from(Code::MalformedLastEventId).on("Last-Event-ID")
}

/// Begins the stream of an operation, after the last event that the caller has received.
pub(super) fn begin_stream(
    services: &Services,
    request: &AuthenticatedRequest<'_>,
    operation: Arc<Operation>,
    last_event: Option<(OperationSeq, Revision)>,
) -> Result<ResponseDraft, Refusal> {
    if last_event.is_some_and(|(seq, _)| seq != operation.seq) {
        return Err(malformed());
    }
    // An id that is newer than the record belongs to a store that was since put back to an older copy.
    let received = last_event
        .map(|(_, revision)| revision)
        .filter(|revision| *revision == operation.revision);
    if received.is_some() && operation.phase.is_final() {
        // 204 makes clients stop asking.
        let mut draft = ResponseDraft::empty(StatusCode::NO_CONTENT);
        draft.fix(header::CACHE_CONTROL, "no-store");
        return Ok(draft);
    }
    let mut draft = ResponseDraft::empty(StatusCode::OK);
    draft.fix(header::CONTENT_TYPE, negotiate::EVENTS);
    draft.fix(header::CACHE_CONTROL, "no-store");
    draft.fix(BUFFERING, "no");
    draft.pieces = Some(Box::new(EventStream {
        operations: Arc::clone(&services.operations),
        shared: Arc::clone(&services.shared),
        clock: Arc::clone(&services.clock),
        ends: services.clock.deadline(services.config.limits.stream),
        stage: StreamStage::Greeting { received },
        slot: services.acquire_waiter(&request.caller.principal.name),
        operation,
    }));
    Ok(draft)
}

/// How far a stream is.
#[derive(Clone, Copy, Debug)]
enum StreamStage {
    /// Nothing was sent; the caller has this revision.
    Greeting { received: Option<Revision> },
    /// The current revision was sent.
    Following,
    /// Everything was sent.
    Ended,
}

#[derive(Debug)]
struct EventStream {
    operations: Arc<dyn OperationsApi>,
    shared: Arc<ProcessState>,
    clock: Arc<dyn Clock>,
    ends: Deadline,
    stage: StreamStage,
    operation: Arc<Operation>,
    /// `None` where too many requests wait: the stream then sends the current Status, and the caller reconnects later.
    slot: Option<WaiterSlot>,
}

impl EventStream {
    /// How soon to reconnect, and the current Status unless the caller has it.
    fn greeting(&self, received: Option<Revision>) -> Bytes {
        let pause = if self.slot.is_some() {
            limits::STREAM_RETRY
        } else {
            limits::STREAM_RETRY_FULL
        };
        let mut text = format!("retry: {}\n\n", pause.as_millis());
        if received != Some(self.operation.revision) {
            text.push_str(&event(&self.operation));
        }
        Bytes::from(text)
    }

    /// Waits for the next change as long as the stream may be silent. `None` when it is over.
    async fn change(&mut self) -> Option<Bytes> {
        let _slot = self.slot.as_ref()?;
        if self.operation.phase.is_final() || self.clock.instant() >= self.ends.instant() {
            return None;
        }
        let known = self.operation.revision;
        let by = self
            .clock
            .deadline(limits::STREAM_HEARTBEAT)
            .earlier(self.ends);
        let found = tokio::select! {
            biased;
            found = self.operations.wait(self.operation.seq, WaitFor::ChangeAfter(known), by) => found,
            () = self.shared.waiters_released.given() => return None,
        };
        // When the store cannot answer or the record has expired, the stream ends; the caller reconnects and gets the refusal.
        let found = found.ok().flatten()?;
        if found.revision <= known {
            return Some(HEARTBEAT);
        }
        self.operation = found;
        Some(Bytes::from(event(&self.operation)))
    }
}

/// One event: the id, and the Status in one line.
fn event(operation: &Operation) -> String {
    let status = wire::status(operation);
    let mut text = String::with_capacity(status.len().saturating_add(64));
    let _infallible = write!(
        text,
        "id: {}-{}\ndata: ",
        operation.seq, operation.revision.0
    );
    text.push_str(&String::from_utf8_lossy(&status));
    text.push_str("\n\n");
    text
}

#[async_trait]
impl BodyStream for EventStream {
    async fn next(&mut self) -> Option<Bytes> {
        let piece = match self.stage {
            StreamStage::Greeting { received } => Some(self.greeting(received)),
            StreamStage::Following => self.change().await,
            StreamStage::Ended => None,
        };
        self.stage = if piece.is_some() {
            StreamStage::Following
        } else {
            StreamStage::Ended
        };
        piece
    }
}
