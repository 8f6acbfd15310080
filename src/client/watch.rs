//! Following every operation that the caller may see, in one stream that is resumed wherever it breaks off.

use std::ops::ControlFlow;
use std::time::Duration;

use http::Method;
use serde_json::Value;

use crate::client::ClientError;
use crate::client::event_parser::EventParser;
use crate::client::follow::LAST_EVENT_ID;
use crate::client::gateway::EventBody;
use crate::client::gateway::Gateway;
use crate::client::gateway::Piece;
use crate::client::gateway::StreamAnswer;
use crate::client::gateway::interrupted;
use crate::client::observer::Observer;
use crate::client::patience::Failure;
use crate::client::patience::Outage;
use crate::client::request::Request;
use crate::client::wire::Status;
use crate::client::wire::parse_json;

/// The pause before a stream that ended in order is asked for again, unless it says how long.
const STREAM_PAUSE: Duration = Duration::from_secs(2);

/// Takes what a stream of all operations brings.
pub trait Watcher: Observer {
    /// An operation changed. [`ControlFlow::Break`] ends the watching.
    fn on_change(&mut self, status: &Status) -> ControlFlow<()>;

    /// The stream could not be resumed: the present follows, and what ended meanwhile may be missing.
    fn on_reset(&mut self);
}

/// Follows the operations that the query selects until the watcher ends it.
///
/// # Errors
/// [`ClientError`] when the gateway refuses the stream or does not answer for too long.
pub async fn watch(
    gateway: &Gateway,
    target: String,
    watcher: &mut dyn Watcher,
) -> Result<(), ClientError> {
    let mut watching = Watching {
        gateway,
        target,
        last_event: None,
    };
    let mut outage = Outage::new();
    loop {
        match watching.read_stream(&mut outage, watcher).await {
            Ok(ControlFlow::Break(())) => return Ok(()),
            Ok(ControlFlow::Continue(pause)) => tokio::time::sleep(pause).await,
            Err(Failure::Final(error)) => return Err(error),
            Err(Failure::Temporary(interruption)) => {
                gateway.pause(&mut outage, interruption, watcher).await?;
            }
        }
    }
}

struct Watching<'a> {
    gateway: &'a Gateway,
    target: String,
    last_event: Option<String>,
}

type Turn = Result<ControlFlow<(), Duration>, Failure>;

impl Watching<'_> {
    async fn read_stream(&mut self, outage: &mut Outage, watcher: &mut dyn Watcher) -> Turn {
        let mut request = Request::new(Method::GET, self.target.clone());
        if let Some(id) = &self.last_event {
            let with_id = request.text_header(LAST_EVENT_ID, id);
            request = with_id.map_err(Failure::Final)?;
        }
        match self.gateway.open_stream(&request).await? {
            StreamAnswer::Stream(body) => {
                outage.end();
                self.read_events(body, watcher).await
            }
            StreamAnswer::Over | StreamAnswer::NotOffered => {
                let text = "it has no stream of all operations".to_owned();
                Err(Failure::Final(ClientError::Invalid(text)))
            }
        }
    }

    async fn read_events(&mut self, mut body: EventBody, watcher: &mut dyn Watcher) -> Turn {
        let mut parser = EventParser::default();
        let mut pause = STREAM_PAUSE;
        loop {
            let bytes = match body.next().await {
                Piece::Bytes(bytes) => bytes,
                Piece::End(None) => return Ok(ControlFlow::Continue(pause)),
                Piece::End(Some(why)) => return Err(interrupted(&why, false)),
                Piece::Silence => return Err(interrupted("the stream is silent", false)),
            };
            let invalid = |error| Failure::Final(ClientError::Invalid(format!("{error}")));
            for event in parser.push(&bytes).map_err(invalid)? {
                pause = event.retry.unwrap_or(pause);
                if event.kind.as_deref() == Some("reset") {
                    watcher.on_reset();
                } else if let Some(data) = &event.data {
                    let json: Value = parse_json(data.as_bytes()).map_err(Failure::Final)?;
                    let status = Status::from_json(json).map_err(Failure::Final)?;
                    if watcher.on_change(&status).is_break() {
                        return Ok(ControlFlow::Break(()));
                    }
                }
                if event.id.is_some() {
                    self.last_event = event.id;
                }
            }
        }
    }
}
