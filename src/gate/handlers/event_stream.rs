//! What streams of events have in common (WHATWG HTML, section 9.2 "Server-sent events"): how they begin, show signs of
//! life, and end.

use std::sync::Arc;

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
use crate::model::Deadline;
use crate::model::limits;
use crate::runtime::Clock;

/// The route of streams in metrics and the access log: they last as long as their operations, and would distort the durations
/// of other requests.
pub(super) const ROUTE_NAME: &str = "events";
/// A comment: a sign of life that means nothing.
pub(super) const HEARTBEAT: Bytes = Bytes::from_static(b":\n\n");

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Makes nginx and proxies like it forward every piece at once.
const BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// The id of the last event that the caller has received; `None` when it begins anew.
pub(super) fn last_event_id(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    let mut values = headers.get_all(LAST_EVENT_ID).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let text = value.to_str().ok().filter(|_| values.next().is_none());
    text.map(|text| Some(text.trim())).ok_or_else(malformed_id)
}

pub(super) fn malformed_id() -> Refusal {
    Refusal::from(Code::MalformedLastEventId).on("Last-Event-ID")
}

/// The number that digits alone stand for.
pub(super) fn parse_digits(text: &str) -> Option<u64> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits)
}

/// The response whose body is the stream.
pub(super) fn stream_response(stream: Box<dyn BodyStream>) -> ResponseDraft {
    let mut draft = ResponseDraft::empty(StatusCode::OK);
    draft.fix(header::CONTENT_TYPE, negotiate::EVENTS);
    draft.fix(header::CACHE_CONTROL, "no-store");
    draft.fix(BUFFERING, "no");
    draft.pieces = Some(stream);
    draft
}

/// How long a stream may last, and what ends it sooner.
#[derive(Debug)]
pub(super) struct StreamLife {
    shared: Arc<ProcessState>,
    pub(super) clock: Arc<dyn Clock>,
    ends: Deadline,
    /// Of the configuration that authenticated the caller: the next one may know it no longer, or permit it less.
    generation: u64,
    /// `None` where too many requests wait: the stream then sends what there is, and the caller reconnects later.
    slot: Option<WaiterSlot>,
}

impl StreamLife {
    pub(super) fn begin(services: &Services, request: &AuthenticatedRequest<'_>) -> Self {
        Self {
            shared: Arc::clone(&services.shared),
            clock: Arc::clone(&services.clock),
            ends: services.clock.deadline(services.config.limits.stream),
            generation: services.generation,
            slot: services.acquire_waiter(&request.caller.principal.name),
        }
    }

    /// How soon to reconnect when the stream ends.
    pub(super) fn retry(&self) -> String {
        let pause = if self.may_wait() {
            limits::STREAM_RETRY
        } else {
            limits::STREAM_RETRY_FULL
        };
        format!("retry: {}\n\n", pause.as_millis())
    }

    /// Whether the stream may wait for what is not there yet.
    pub(super) const fn may_wait(&self) -> bool {
        self.slot.is_some()
    }

    /// Whether the stream is over: its time is up, another configuration is active, or the gateway stops.
    pub(super) fn is_over(&self) -> bool {
        self.clock.instant() >= self.ends.instant()
            || self.shared.generation() != self.generation
            || self.shared.waiters_released.is_given()
    }

    /// Returns when another configuration becomes active or the gateway stops. Cancel-safe.
    pub(super) async fn interrupted(&self) {
        tokio::select! {
            biased;
            () = self.shared.waiters_released.given() => {}
            () = self.shared.generation_after(self.generation) => {}
        }
    }

    /// Until when the stream may be silent.
    pub(super) fn silence(&self) -> Deadline {
        let heartbeat = self.clock.deadline(limits::STREAM_HEARTBEAT);
        heartbeat.earlier(self.ends)
    }
}
