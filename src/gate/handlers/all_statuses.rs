//! Deviation D38: the changes of all operations that the caller may see, as one stream of server-sent events.
//!
//! The id of an event names a durable write in the history of the store. A client that was disconnected goes on after the last
//! one that it received, over restarts too: it gets the newest state of every operation that changed since, and misses only
//! states that were superseded. Nothing is buffered for a client: the stream keeps a number, takes the changes after it from
//! memory when the client takes the next piece, and from the store when the memory does not reach back so far.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;

use crate::gate::authn::AuthenticatedCaller;
use crate::gate::handlers::event_stream::HEARTBEAT;
use crate::gate::handlers::event_stream::StreamLife;
use crate::gate::handlers::event_stream::malformed_id;
use crate::gate::handlers::event_stream::parse_digits;
use crate::gate::handlers::event_stream::stream_response;
use crate::gate::handlers::operation_access::may_see;
use crate::gate::handlers::status_query::StatusQuery;
use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::gate::request::BodyStream;
use crate::gate::request_context::AuthenticatedRequest;
use crate::gate::request_target::query_parameter;
use crate::gate::response_draft::ResponseDraft;
use crate::gate::services::Services;
use crate::gate::wire;
use crate::model::Action;
use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::PrincipalName;
use crate::model::limits;
use crate::operations::ChangeFeed;
use crate::operations::ChangeNumber;
use crate::operations::ChangePart;
use crate::operations::ChangePosition;
use crate::operations::ChangeQuery;
use crate::operations::DurableChange;
use crate::operations::OperationsApi;
use crate::operations::Selector;
use crate::public_text;

/// The query parameters that narrow a stream.
const PARAMETERS: [&str; 3] = ["op", "principal", "vm"];

/// Begins the stream, after the last event that the caller has received.
pub(super) fn begin_stream(
    services: &Services,
    request: &AuthenticatedRequest<'_>,
    query: &StatusQuery,
    last_event: Option<&str>,
) -> Result<ResponseDraft, Refusal> {
    let position = last_event.map(parse_position).transpose()?;
    let filter = StreamFilter::parse(request, query)?;
    let feed = services.operations.change_feed();
    let feed = feed.ok_or_else(|| Refusal::from(Code::NotAcceptable))?;
    let after = position.and_then(|position| feed.resume(position));
    let stream = StatusStream {
        stage: Stage::Greeting {
            after,
            is_reset: position.is_some() && after.is_none(),
        },
        life: StreamLife::begin(services, request),
        operations: Arc::clone(&services.operations),
        caller: Arc::clone(request.caller),
        feed,
        filter,
        named: after,
        last_look: None,
        place: services.shared.stream_place(),
    };
    Ok(stream_response(Box::new(stream)))
}

/// Reads the id of an event: 16 hexadecimal digits, a dash and a number.
fn parse_position(id: &str) -> Result<ChangePosition, Refusal> {
    let read = || {
        let (mark, number) = id.split_once('-')?;
        let is_mark = mark.len() == 16 && mark.bytes().all(|byte| byte.is_ascii_hexdigit());
        let mark = u64::from_str_radix(mark, 16).ok().filter(|_| is_mark)?;
        let number = parse_digits(number)?;
        Some(ChangePosition { mark, number })
    };
    read().ok_or_else(malformed_id)
}

/// Which operations the caller asks for.
#[derive(Debug)]
struct StreamFilter {
    /// The one that was asked for, or the caller who observes nothing and so sees no operations of others.
    principal: Option<PrincipalName>,
    selector: Selector,
}

impl StreamFilter {
    fn parse(request: &AuthenticatedRequest<'_>, query: &StatusQuery) -> Result<Self, Refusal> {
        if request.received.is_strict {
            refuse_unknown_parameters(request.query)?;
        }
        let own = &request.caller.principal.name;
        let principal = match query_parameter(request.query, "principal")? {
            None => None,
            Some(name) if name == "me" => Some(own.clone()),
            Some(name) => Some(PrincipalName::new(&name).map_err(|error| {
                Refusal::invalid_text(Code::InvalidParameter, "principal", &error)
            })?),
        };
        let observes = request.caller.rights.allows_anywhere(Action::Observe);
        Ok(Self {
            principal: principal.or_else(|| (!observes).then(|| own.clone())),
            selector: query.selector()?,
        })
    }

    fn matches(&self, operation: &Operation) -> bool {
        let fits_principal = self.principal.as_ref();
        let fits_verb = self.selector.verb;
        let fits_vm = self.selector.vm.as_ref();
        fits_principal.is_none_or(|name| *name == operation.principal)
            && fits_verb.is_none_or(|verb| verb == operation.verb())
            && fits_vm.is_none_or(|vm| *vm == operation.target().vm)
    }
}

fn refuse_unknown_parameters(query: &str) -> Result<(), Refusal> {
    let names = query.split('&').map(|pair| pair.split('=').next());
    let mut names = names.flatten().filter(|name| !name.is_empty());
    match names.find(|name| !PARAMETERS.contains(name)) {
        None => Ok(()),
        Some(name) => {
            let text = public_text!("A stream of all Statuses does not take this parameter.");
            Err(Refusal::says(Code::InvalidParameter, text).on(name.to_owned()))
        }
    }
}

/// How far a stream is.
#[derive(Clone, Copy, Debug)]
enum Stage {
    /// Nothing was sent; the caller has what changed up to `after`, or nothing.
    Greeting {
        after: Option<ChangeNumber>,
        is_reset: bool,
    },
    /// Of the unfinished operations that changed between two numbers, those above `page_after` are left to be sent. Their events
    /// have no ids: a client that is cut off here starts again where it was.
    Unfinished {
        after: Option<ChangeNumber>,
        up_to: ChangeNumber,
        page_after: Option<OperationSeq>,
        finished_after: ChangeNumber,
    },
    /// All unfinished ones were sent; the finished ones that changed between two numbers are left.
    Finished {
        after: ChangeNumber,
        up_to: ChangeNumber,
    },
    /// Everything up to this number was sent.
    Following { after: ChangeNumber },
    /// Everything was sent.
    Ended,
}

/// What a stage led to.
enum Step {
    Send(String),
    Continue,
    End,
}

#[derive(Debug)]
struct StatusStream {
    life: StreamLife,
    operations: Arc<dyn OperationsApi>,
    feed: Arc<ChangeFeed>,
    caller: Arc<AuthenticatedCaller>,
    filter: StreamFilter,
    stage: Stage,
    /// The number that the caller would resume from.
    named: Option<ChangeNumber>,
    /// When it last looked at changes.
    last_look: Option<Instant>,
    /// Counts the streams, by the clones of it.
    place: Arc<()>,
}

impl StatusStream {
    fn greet(&mut self, after: Option<ChangeNumber>, is_reset: bool) -> Step {
        self.catch_up(after);
        let mut text = self.life.retry();
        if is_reset {
            // Without an id: the client asks for the same again until it has everything.
            text.push_str("event: reset\ndata: {}\n\n");
        }
        Step::Send(text)
    }

    /// Reads from the store what changed after this number, or the present when there is none.
    fn catch_up(&mut self, after: Option<ChangeNumber>) {
        let up_to = self.feed.latest();
        let recent = up_to.saturating_sub(limits::STREAM_RECENT_CHANGES);
        self.stage = Stage::Unfinished {
            after,
            up_to,
            page_after: None,
            finished_after: after.unwrap_or(recent),
        };
    }

    fn query(&self, part: ChangePart, range: (Option<ChangeNumber>, ChangeNumber)) -> ChangeQuery {
        ChangeQuery {
            part,
            after: range.0,
            up_to: range.1,
            principal: self.filter.principal.clone(),
            verb: self.filter.selector.verb,
            vm: self.filter.selector.vm.clone(),
            limit: limits::STREAM_PAGE,
        }
    }

    async fn send_unfinished(
        &mut self,
        range: (Option<ChangeNumber>, ChangeNumber),
        page_after: Option<OperationSeq>,
        finished_after: ChangeNumber,
    ) -> Step {
        let query = self.query(ChangePart::Unfinished { after: page_after }, range);
        // When the store cannot answer the stream ends, and the caller reconnects.
        let Ok(page) = self.operations.stored_changes(&query).await else {
            return Step::End;
        };
        let (after, up_to) = range;
        self.stage = match page.full_at {
            Some((_, seq)) => Stage::Unfinished {
                after,
                up_to,
                page_after: Some(seq),
                finished_after,
            },
            None => Stage::Finished {
                after: finished_after,
                up_to,
            },
        };
        let mut text = String::new();
        for change in page.changes.iter().filter(|change| self.is_visible(change)) {
            push_data(&mut text, change);
        }
        send_unless_empty(text)
    }

    async fn send_finished(&mut self, after: ChangeNumber, up_to: ChangeNumber) -> Step {
        // One read looks at so many numbers at most, however few of them the caller may see.
        let end = up_to.min(after.saturating_add(limits::STREAM_WINDOW));
        let query = self.query(ChangePart::Finished, (Some(after), end));
        let Ok(page) = self.operations.stored_changes(&query).await else {
            return Step::End;
        };
        let mut text = String::new();
        for change in &page.changes {
            self.push_event(&mut text, change);
        }
        let after = page.full_at.map_or(end, |(number, _)| number);
        if after < up_to {
            self.stage = Stage::Finished { after, up_to };
        } else {
            self.stage = Stage::Following { after: up_to };
            self.push_position(&mut text, up_to);
        }
        send_unless_empty(text)
    }

    async fn follow(&mut self, after: ChangeNumber) -> Step {
        if !self.life.may_wait() || !self.pace().await {
            return Step::End;
        }
        let Some(changes) = self.feed.changes_after(after, limits::STREAM_BATCH) else {
            // The client took the last pieces so slowly that the memory has moved on.
            self.catch_up(Some(after));
            return Step::Continue;
        };
        let Some(last) = changes.last().map(|change| change.number) else {
            return self.wait(after).await;
        };
        self.stage = Stage::Following { after: last };
        // After a full batch there is more: a pause would let the memory move on.
        let is_full = changes.len() >= limits::STREAM_BATCH;
        self.last_look = (!is_full).then(|| self.life.clock.instant());
        let mut text = String::new();
        for change in newest_of_each(&changes) {
            self.push_event(&mut text, change);
        }
        send_unless_empty(text)
    }

    /// Waits for the next change as long as the stream may be silent.
    async fn wait(&mut self, after: ChangeNumber) -> Step {
        let by = self.life.silence().instant();
        let change = self.feed.wait_for_change_after(after);
        let woken = tokio::select! {
            biased;
            woken = tokio::time::timeout_at(by.into(), change) => woken,
            () = self.life.interrupted() => return Step::End,
        };
        if woken.is_ok() {
            return Step::Continue;
        }
        let mut text = String::new();
        self.push_position(&mut text, after);
        if text.is_empty() {
            text.push_str(&String::from_utf8_lossy(&HEARTBEAT));
        }
        Step::Send(text)
    }

    /// Leaves a pause after the last look, so that many changes share one, the longer the more streams there are. Returns
    /// whether the stream goes on.
    async fn pace(&self) -> bool {
        let Some(last) = self.last_look else {
            return true;
        };
        let gone = self.life.clock.instant().saturating_duration_since(last);
        // One clone is with the state of the process.
        let streams = Arc::strong_count(&self.place).saturating_sub(1);
        let streams = u32::try_from(streams).unwrap_or(u32::MAX);
        let each = limits::STREAM_PACE_EACH.saturating_mul(streams);
        let pace = each.clamp(limits::STREAM_PACE, limits::STREAM_PACE_MAX);
        let pause = pace.saturating_sub(gone);
        if pause.is_zero() {
            return true;
        }
        tokio::select! {
            biased;
            () = self.life.interrupted() => false,
            () = tokio::time::sleep(pause) => true,
        }
    }

    fn is_visible(&self, change: &DurableChange) -> bool {
        let operation = &change.operation;
        self.filter.matches(operation) && may_see(&self.caller, operation)
    }

    /// An event with an id, if the caller may see the operation.
    fn push_event(&mut self, text: &mut String, change: &DurableChange) {
        if self.is_visible(change) {
            self.named = Some(change.number);
            push_id(text, self.feed.position(change.number));
            push_data(text, change);
        }
    }

    /// An id without an event, so that the caller resumes from here, unless it does already.
    fn push_position(&mut self, text: &mut String, number: ChangeNumber) {
        if self.named != Some(number) {
            self.named = Some(number);
            push_id(text, self.feed.position(number));
            text.push('\n');
        }
    }
}

/// The newest change of each operation, in the order of their numbers.
fn newest_of_each(changes: &[Arc<DurableChange>]) -> Vec<&DurableChange> {
    let mut seen = BTreeSet::new();
    let newest = changes.iter().rev();
    let mut newest: Vec<&DurableChange> = newest
        .filter(|change| seen.insert(change.operation.seq))
        .map(|change| &**change)
        .collect();
    newest.reverse();
    newest
}

fn push_id(text: &mut String, position: ChangePosition) {
    let _infallible = writeln!(text, "id: {:016x}-{}", position.mark, position.number);
}

fn push_data(text: &mut String, change: &DurableChange) {
    text.push_str(change.text(represent));
}

/// The part of an event that is the same for all who may see it.
fn represent(operation: &Operation) -> String {
    let status = wire::status(operation);
    format!("data: {}\n\n", String::from_utf8_lossy(&status))
}

fn send_unless_empty(text: String) -> Step {
    if text.is_empty() {
        Step::Continue
    } else {
        Step::Send(text)
    }
}

#[async_trait]
impl BodyStream for StatusStream {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            let is_begun = !matches!(self.stage, Stage::Greeting { .. });
            if is_begun && self.life.is_over() {
                self.stage = Stage::Ended;
            }
            let step = match self.stage {
                Stage::Greeting { after, is_reset } => self.greet(after, is_reset),
                Stage::Unfinished {
                    after,
                    up_to,
                    page_after,
                    finished_after,
                } => {
                    let range = (after, up_to);
                    self.send_unfinished(range, page_after, finished_after)
                        .await
                }
                Stage::Finished { after, up_to } => self.send_finished(after, up_to).await,
                Stage::Following { after } => self.follow(after).await,
                Stage::Ended => Step::End,
            };
            match step {
                Step::Send(text) => {
                    return Some(Bytes::from(text));
                }
                Step::Continue => {}
                Step::End => {
                    self.stage = Stage::Ended;
                    return None;
                }
            }
        }
    }
}
