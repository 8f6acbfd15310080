//! Deviation D21: the life of one Status as server-sent events (WHATWG HTML, section 9.2 "Server-sent events").
//!
//! An event is a whole Status, and its id says which: a client that was away takes up with the newest one and misses
//! only what was overtaken meanwhile. The stream ends with the Status, or sooner; clients ask again then, and the one
//! that knows the end is told so with 204, after which it asks no more.

use std::fmt::Write as _;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use http::HeaderMap;
use http::HeaderName;
use http::StatusCode;
use http::header;

use crate::gate::negotiate;
use crate::gate::pipeline::Call;
use crate::gate::pipeline::Gate;
use crate::gate::process_state::ProcessState;
use crate::gate::process_state::WaiterSlot;
use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::gate::reply::Reply;
use crate::gate::request::BodyStream;
use crate::gate::wire;
use crate::model::Deadline;
use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::Revision;
use crate::model::limits;
use crate::operations::OperationsApi;
use crate::operations::WaitFor;
use crate::runtime::Clock;

/// The word for streams in metrics and the access log: they last as long as what they tell of, and would hide how long
/// other requests take.
pub(in crate::gate) const ROUTE_NAME: &str = "events";

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Asks proxies of the kind of nginx to hand on every piece at once.
const BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
/// A comment: a sign of life that means nothing.
const HEARTBEAT: Bytes = Bytes::from_static(b":\n\n");

/// The event that the caller has seen last, as `Last-Event-ID` names it.
pub(in crate::gate) fn last_id(
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
            OperationSeq::new(number(seq)?)?,
            Revision(number(revision)?),
        ))
    });
    read.map(Some).ok_or_else(malformed)
}

fn number(text: &str) -> Option<u64> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits)
}

fn malformed() -> Refusal {
    Refusal::from(Code::MalformedLastEventId).on("Last-Event-ID")
}

impl Gate {
    /// Begins the stream of an operation, after the event that the caller has seen last.
    pub(in crate::gate) fn events(
        &self,
        call: &Call<'_>,
        operation: Arc<Operation>,
        last: Option<(OperationSeq, Revision)>,
    ) -> Result<Reply, Refusal> {
        if last.is_some_and(|(seq, _)| seq != operation.seq) {
            return Err(malformed());
        }
        // An id that is newer than the record is of a store that was since put back to an older copy.
        let told = last
            .map(|(_, revision)| revision)
            .filter(|it| *it == operation.revision);
        if told.is_some() && operation.phase.is_final() {
            let mut reply = Reply::empty(StatusCode::NO_CONTENT);
            reply.fix(header::CACHE_CONTROL, "no-store");
            return Ok(reply);
        }
        let place = self.acquire_waiter(call);
        let mut reply = Reply::empty(StatusCode::OK);
        reply.fix(header::CONTENT_TYPE, negotiate::EVENTS);
        reply.fix(header::CACHE_CONTROL, "no-store");
        reply.fix(BUFFERING, "no");
        reply.pieces = Some(Box::new(Events {
            service: Arc::clone(&self.service),
            shared: Arc::clone(&self.shared),
            clock: Arc::clone(&self.clock),
            ends: self.clock.deadline(self.config.limits.stream),
            stage: Stage::Greeting { told },
            operation,
            place,
        }));
        Ok(reply)
    }
}

/// How far a stream is.
#[derive(Clone, Copy, Debug)]
enum Stage {
    /// Nothing was sent; the caller knows this revision.
    Greeting { told: Option<Revision> },
    /// The present revision was sent.
    Following,
    /// Everything was.
    Over,
}

#[derive(Debug)]
struct Events {
    service: Arc<dyn OperationsApi>,
    shared: Arc<ProcessState>,
    clock: Arc<dyn Clock>,
    ends: Deadline,
    stage: Stage,
    operation: Arc<Operation>,
    /// `None` where too many wait already: the present Status is told, and the caller asks again later.
    place: Option<WaiterSlot>,
}

impl Events {
    /// How soon to ask again, and the present Status unless it is known.
    fn greeting(&self, told: Option<Revision>) -> Bytes {
        let pause = if self.place.is_some() {
            limits::STREAM_RETRY
        } else {
            limits::STREAM_RETRY_FULL
        };
        let mut text = format!("retry: {}\n\n", pause.as_millis());
        if told != Some(self.operation.revision) {
            text.push_str(&event(&self.operation));
        }
        Bytes::from(text)
    }

    /// Waits for the next change as long as the stream may be silent. `None` when it is over.
    async fn change(&mut self) -> Option<Bytes> {
        let _place = self.place.as_ref()?;
        if self.operation.phase.is_final() || self.clock.instant() >= self.ends.instant() {
            return None;
        }
        let seen = self.operation.revision;
        let by = self
            .clock
            .deadline(limits::STREAM_HEARTBEAT)
            .earlier(self.ends);
        let found = tokio::select! {
            biased;
            found = self.service.wait(self.operation.seq, WaitFor::ChangeAfter(seen), by) => found,
            () = self.shared.waiters_released.given() => return None,
        };
        // A store that cannot answer, or a record that is gone: the caller asks again, and is told then.
        let found = found.ok().flatten()?;
        if found.revision <= seen {
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
impl BodyStream for Events {
    async fn next(&mut self) -> Option<Bytes> {
        let piece = match self.stage {
            Stage::Greeting { told } => Some(self.greeting(told)),
            Stage::Following => self.change().await,
            Stage::Over => None,
        };
        self.stage = if piece.is_some() {
            Stage::Following
        } else {
            Stage::Over
        };
        piece
    }
}
