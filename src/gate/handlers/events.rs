//! Deviation D21: the life of one Status as server-sent events (WHATWG HTML, section 9.2 "Server-sent events").
//!
//! An event is a whole Status, and its id names the revision: a client that was disconnected continues with the newest one
//! and misses only revisions that were superseded. The stream ends with the Status, or sooner; clients reconnect then, and
//! one that has the final Status gets 204, after which it does not reconnect.

use std::fmt::Write as _;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use http::StatusCode;
use http::header;

use crate::gate::handlers::event_stream::HEARTBEAT;
use crate::gate::handlers::event_stream::StreamLife;
use crate::gate::handlers::event_stream::malformed_id;
use crate::gate::handlers::event_stream::parse_digits;
use crate::gate::handlers::event_stream::stream_response;
use crate::gate::refusal::Refusal;
use crate::gate::request::BodyStream;
use crate::gate::request_context::AuthenticatedRequest;
use crate::gate::response_draft::ResponseDraft;
use crate::gate::services::Services;
use crate::gate::wire;
use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::Revision;
use crate::operations::OperationsApi;
use crate::operations::WaitFor;

/// Reads the id of an event: the number of the operation, a dash and the revision.
pub(super) fn parse_id(id: &str) -> Result<(OperationSeq, Revision), Refusal> {
    let read = || {
        let (seq, revision) = id.split_once('-')?;
        Some((
            OperationSeq::new(parse_digits(seq)?)?,
            Revision(parse_digits(revision)?),
        ))
    };
    read().ok_or_else(malformed_id)
}

/// Begins the stream of an operation, after the last event that the caller has received.
pub(super) fn begin_stream(
    services: &Services,
    request: &AuthenticatedRequest<'_>,
    operation: Arc<Operation>,
    last_event: Option<(OperationSeq, Revision)>,
) -> Result<ResponseDraft, Refusal> {
    if last_event.is_some_and(|(seq, _)| seq != operation.seq) {
        return Err(malformed_id());
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
    Ok(stream_response(Box::new(EventStream {
        operations: Arc::clone(&services.operations),
        life: StreamLife::begin(services, request),
        stage: StreamStage::Greeting { received },
        operation,
    })))
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
    life: StreamLife,
    stage: StreamStage,
    operation: Arc<Operation>,
}

impl EventStream {
    /// How soon to reconnect, and the current Status unless the caller has it.
    fn greeting(&self, received: Option<Revision>) -> Bytes {
        let mut text = self.life.retry();
        if received != Some(self.operation.revision) {
            text.push_str(&event(&self.operation));
        }
        Bytes::from(text)
    }

    /// Waits for the next change as long as the stream may be silent. `None` when it is over.
    async fn change(&mut self) -> Option<Bytes> {
        let is_over = !self.life.may_wait() || self.life.is_over();
        if is_over || self.operation.phase.is_final() {
            return None;
        }
        let known = self.operation.revision;
        let by = self.life.silence();
        let found = tokio::select! {
            biased;
            found = self.operations.wait(self.operation.seq, WaitFor::ChangeAfter(known), by) => found,
            () = self.life.interrupted() => return None,
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
