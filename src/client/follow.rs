//! Waiting for the end of one operation: its stream of events, resumed where it broke off, and polling where there is none.

use std::time::Duration;

use http::HeaderName;
use http::HeaderValue;
use http::Method;
use http::StatusCode;
use http::header;
use tokio::time::Instant;

use crate::client::ClientError;
use crate::client::event_parser::Event;
use crate::client::event_parser::EventParser;
use crate::client::gateway::EventBody;
use crate::client::gateway::Gateway;
use crate::client::gateway::Piece;
use crate::client::gateway::StreamAnswer;
use crate::client::gateway::interrupted;
use crate::client::observer::Observer;
use crate::client::patience::Failure;
use crate::client::patience::Outage;
use crate::client::request::Request;
use crate::client::wire::Outcome;
use crate::client::wire::Status;

pub(super) const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
const PREFER: HeaderName = HeaderName::from_static("prefer");
/// How long one poll may be held back: below the idle limits of common proxies.
const POLL_HOLD: Duration = Duration::from_secs(20);
const POLL_WAIT: HeaderValue = HeaderValue::from_static("wait=20");
/// Shortest time from one poll to the next, for servers that hold nothing back.
const POLL_PAUSE: Duration = Duration::from_secs(1);
/// Streams without a single event, one after the other, after which polling is tried: something in between keeps them back.
const EMPTY_STREAMS_MAX: u32 = 3;
/// The pause before a stream that ended in order is asked for again, unless it says how long. Gateways say two seconds.
const STREAM_PAUSE: Duration = Duration::from_secs(1);
/// The longest such pause that is followed.
const STREAM_PAUSE_MAX: Duration = Duration::from_secs(15);

/// How the Status is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Stream,
    Poll,
}

/// Follows one operation. What was seen last stays in it when the waiting is broken off.
#[derive(Debug)]
pub struct Follower<'a> {
    gateway: &'a Gateway,
    target: String,
    last: Option<Status>,
    last_event: Option<String>,
    last_tag: Option<HeaderValue>,
    way: Way,
    empty_streams: u32,
}

impl<'a> Follower<'a> {
    /// Follows the operation whose Status was seen.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] when its link does not lead to this gateway.
    pub fn of_status(gateway: &'a Gateway, status: Status) -> Result<Self, ClientError> {
        let target = gateway.url().link_target(&status.status_uri);
        let target = target.map_err(|error| ClientError::Invalid(error.to_string()))?;
        let mut follower = Self::at(gateway, target);
        follower.last = Some(status);
        Ok(follower)
    }

    /// Follows the operation at this path and query.
    #[must_use]
    pub const fn at(gateway: &'a Gateway, target: String) -> Self {
        Self {
            gateway,
            target,
            last: None,
            last_event: None,
            last_tag: None,
            way: Way::Stream,
            empty_streams: 0,
        }
    }

    /// What was seen last.
    #[must_use]
    pub const fn last(&self) -> Option<&Status> {
        self.last.as_ref()
    }

    /// Returns when the operation has ended. Cancel-safe: it can be called again.
    ///
    /// # Errors
    /// [`ClientError::Refused`] when the gateway no longer shows the Status, [`ClientError::Unreachable`] when it does not
    /// answer for too long. The operation goes on in either case.
    pub async fn run(&mut self, observer: &mut dyn Observer) -> Result<Status, ClientError> {
        let mut outage = Outage::new();
        loop {
            if let Some(last) = &self.last
                && last.outcome() != Outcome::Unfinished
            {
                return Ok(last.clone());
            }
            let turn = match self.way {
                Way::Stream => self.read_stream(&mut outage, observer).await,
                Way::Poll => self.poll(&mut outage, observer).await,
            };
            match turn {
                Ok(pause) => tokio::time::sleep(pause).await,
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Temporary(interruption)) => {
                    self.gateway
                        .pause(&mut outage, interruption, observer)
                        .await?;
                }
            }
        }
    }

    /// One stream until it ends. Returns how long to wait before the next.
    async fn read_stream(
        &mut self,
        outage: &mut Outage,
        observer: &mut dyn Observer,
    ) -> Result<Duration, Failure> {
        let mut request = Request::new(Method::GET, self.target.clone());
        if let Some(id) = &self.last_event {
            let with_id = request.text_header(LAST_EVENT_ID, id);
            request = with_id.map_err(Failure::Final)?;
        }
        match self.gateway.open_stream(&request).await? {
            StreamAnswer::Stream(body) => {
                outage.end();
                self.read_events(body, observer).await
            }
            // The end was in the last event. It was read, or another client of the same id was here; polling shows it.
            StreamAnswer::Over | StreamAnswer::NotOffered => {
                self.way = Way::Poll;
                Ok(Duration::ZERO)
            }
        }
    }

    async fn read_events(
        &mut self,
        mut body: EventBody,
        observer: &mut dyn Observer,
    ) -> Result<Duration, Failure> {
        let mut parser = EventParser::default();
        let mut pause = STREAM_PAUSE;
        let mut is_empty = true;
        let why = loop {
            match body.next().await {
                Piece::Bytes(bytes) => {
                    let events = parser.push(&bytes);
                    let invalid = |error| ClientError::Invalid(format!("{error}"));
                    for event in events.map_err(|error| Failure::Final(invalid(error)))? {
                        pause = event.retry.unwrap_or(pause);
                        is_empty &= event.data.is_none();
                        self.take_event(event, observer).map_err(Failure::Final)?;
                    }
                    if self.has_ended() {
                        return Ok(Duration::ZERO);
                    }
                }
                Piece::End(why) => break why,
                Piece::Silence => {
                    self.way = Way::Poll;
                    return Ok(Duration::ZERO);
                }
            }
        };
        self.empty_streams = if is_empty {
            self.empty_streams.saturating_add(1)
        } else {
            0
        };
        if self.empty_streams >= EMPTY_STREAMS_MAX {
            self.way = Way::Poll;
        }
        match why {
            Some(why) => Err(interrupted(&why, false)),
            None => Ok(pause.min(STREAM_PAUSE_MAX)),
        }
    }

    fn take_event(&mut self, event: Event, observer: &mut dyn Observer) -> Result<(), ClientError> {
        if let Some(data) = &event.data {
            self.take_status(Status::parse(data.as_bytes())?, observer);
        }
        if event.id.is_some() {
            self.last_event = event.id;
        }
        Ok(())
    }

    /// One poll, which the gateway may hold back until something changes. Returns how long to wait before the next.
    async fn poll(
        &mut self,
        outage: &mut Outage,
        observer: &mut dyn Observer,
    ) -> Result<Duration, Failure> {
        let begun = Instant::now();
        let mut request = Request::new(Method::GET, self.target.clone()).header(PREFER, POLL_WAIT);
        request.hold = POLL_HOLD;
        if let Some(tag) = &self.last_tag {
            request = request.header(header::IF_NONE_MATCH, tag.clone());
        }
        let answer = self.gateway.try_once(&request).await?;
        outage.end();
        if answer.status != StatusCode::NOT_MODIFIED {
            self.last_tag = answer.headers.get(header::ETAG).cloned();
            let status = Status::parse(&answer.body).map_err(Failure::Final)?;
            self.take_status(status, observer);
        }
        if self.has_ended() || begun.elapsed() >= POLL_PAUSE {
            return Ok(Duration::ZERO);
        }
        let asked = answer.retry_after().unwrap_or_default();
        Ok(POLL_PAUSE.max(asked.min(STREAM_PAUSE_MAX)))
    }

    fn take_status(&mut self, status: Status, observer: &mut dyn Observer) {
        let is_new = self
            .last
            .as_ref()
            .is_none_or(|last| last.json != status.json);
        if is_new {
            observer.on_status(&status);
        }
        self.last = Some(status);
    }

    fn has_ended(&self) -> bool {
        let ended = |status: &Status| status.outcome() != Outcome::Unfinished;
        self.last.as_ref().is_some_and(ended)
    }
}
