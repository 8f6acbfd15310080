//! Reads request bodies from a Pingora session within limits of size and time.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use bytes::BytesMut;
use pingora::Error;
use pingora::ErrorType;
use pingora::protocols::http::ServerSession;
use tokio::sync::Mutex;

use crate::gate::Body;
use crate::gate::BodyError;
use crate::listener::Limits;
use crate::runtime::Clock;

/// Bytes of an unread body that are discarded after the response. Closing a connection with unread data resets it, and a reset
/// discards what the client has not read yet, the response included.
const DISCARDED_BYTES_MAX: usize = 1024 * 1024;
/// Time limit for discarding.
const DISCARD_TIME_MAX: Duration = Duration::from_secs(2);

/// How long a request is handled before the gateway starts to check whether its client has disconnected.
const GONE_CHECK_PAUSE: Duration = Duration::from_millis(250);

/// How fast a request body must arrive.
#[derive(Clone, Copy, Debug)]
pub(super) struct BodyPace {
    /// Time for the whole body; half of it for a single read.
    pub(super) timeout: Duration,
    /// Minimum average rate in bytes per second; 0 for no minimum.
    pub(super) rate: u64,
    /// Time from the start of the body before the rate applies.
    pub(super) grace: Duration,
}

impl BodyPace {
    pub(super) const fn from_limits(limits: &Limits) -> Self {
        Self {
            timeout: limits.body_timeout,
            rate: limits.body_rate,
            grace: limits.body_grace,
        }
    }

    /// The latest time after the start of the body for the byte after `bytes` bytes.
    fn deadline_of_next_byte(self, bytes: usize) -> Duration {
        let next = u64::try_from(bytes).unwrap_or(u64::MAX).saturating_add(1);
        let millis = next.saturating_mul(1000).checked_div(self.rate);
        millis.map_or(self.timeout, |millis| {
            self.grace
                .max(Duration::from_millis(millis))
                .min(self.timeout)
        })
    }
}

/// A session shared by the reader of its request body and the check whether its client has disconnected.
pub(super) type SharedSession<'a> = Mutex<&'a mut ServerSession>;

/// The body of the current request of a session.
pub(super) struct SessionBody<'a, 's> {
    session: &'a SharedSession<'s>,
    pace: BodyPace,
    clock: &'a dyn Clock,
    present: bool,
    /// Whether the whole request has been received.
    received: &'a AtomicBool,
}

impl<'a, 's> SessionBody<'a, 's> {
    /// `received` is true if the request has no body; it is set once the body has been read.
    pub(super) fn new(
        session: &'a SharedSession<'s>,
        pace: BodyPace,
        clock: &'a dyn Clock,
        received: &'a AtomicBool,
    ) -> Self {
        Self {
            session,
            pace,
            clock,
            present: !received.load(Ordering::Relaxed),
            received,
        }
    }

    async fn read_all(
        &self,
        session: &mut ServerSession,
        limit: usize,
    ) -> Result<Bytes, BodyError> {
        let mut whole = BytesMut::new();
        let began = self.clock.instant();
        loop {
            let took = self.clock.instant().saturating_duration_since(began);
            let left = self
                .pace
                .deadline_of_next_byte(whole.len())
                .saturating_sub(took);
            // Bytes that have arrived are read even if no time is left: the gateway itself may have caused the delay.
            let read = tokio::time::timeout(left, session.read_request_body()).await;
            let Ok(read) = read else {
                return Err(BodyError::TooSlow);
            };
            match read {
                Ok(Some(part)) if part.len() > limit.saturating_sub(whole.len()) => {
                    return Err(BodyError::TooLarge);
                }
                Ok(Some(part)) => whole.extend_from_slice(&part),
                Ok(None) => return Ok(whole.freeze()),
                Err(error) if *error.etype() == ErrorType::ReadTimedout => {
                    return Err(BodyError::TooSlow);
                }
                Err(error) => {
                    tracing::debug!(%error, "request body read failed");
                    return Err(BodyError::Broken);
                }
            }
        }
    }
}

/// Sends `100 Continue` if the client expects it.
async fn send_continue(session: &mut ServerSession, limit: Duration) -> Result<(), BodyError> {
    let head = session.req_header();
    // HTTP/1.0 has no interim responses.
    let waits = head.version >= http::Version::HTTP_11
        && head
            .headers
            .get(http::header::EXPECT)
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    if !waits {
        return Ok(());
    }
    // Pingora would treat the interim response as a final response before the end of the body, and close the connection.
    session.set_close_on_response_before_downstream_finish(false);
    let written = tokio::time::timeout(limit, session.write_continue_response()).await;
    session.set_close_on_response_before_downstream_finish(true);
    match written {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => {
            tracing::debug!(%error, "interim response write failed");
            Err(BodyError::Broken)
        }
        Err(_) => Err(BodyError::TooSlow),
    }
}

#[async_trait]
impl Body for SessionBody<'_, '_> {
    async fn read(&mut self, limit: usize) -> Result<Bytes, BodyError> {
        if !self.present {
            return Ok(Bytes::new());
        }
        let mut session = self.session.lock().await;
        let session = &mut **session;
        // Refused before `100 Continue`, so that the client never sends the body.
        if declared_length(&session.req_header().headers).is_some_and(|length| length > limit) {
            return Err(BodyError::TooLarge);
        }
        let timeout = self.pace.timeout;
        send_continue(session, timeout).await?;
        session.set_read_timeout(Some(timeout.checked_div(2).unwrap_or(timeout)));
        let read = tokio::time::timeout(timeout, self.read_all(session, limit)).await;
        let read = read.unwrap_or(Err(BodyError::TooSlow));
        self.received.store(read.is_ok(), Ordering::Relaxed);
        read
    }

    fn is_present(&self) -> bool {
        self.present
    }
}

/// Resolves when the client of a request without a body, or whose body has been read, disconnects or resets its stream.
pub(super) async fn client_disconnected(session: &mut ServerSession) -> Box<Error> {
    match session.read_body_or_idle(true).await {
        Ok(_) => std::future::pending().await,
        Err(error) => error.into_down(),
    }
}

/// Resolves when the client has disconnected after it sent the whole request.
pub(super) async fn wait_for_disconnect(session: &SharedSession<'_>, received: &AtomicBool) {
    // Most responses are ready before that.
    tokio::time::sleep(GONE_CHECK_PAUSE).await;
    while !received.load(Ordering::Relaxed) {
        tokio::time::sleep(GONE_CHECK_PAUSE).await;
    }
    let mut session = session.lock().await;
    let error = client_disconnected(&mut session).await;
    tracing::debug!(%error, "client disconnected");
}

/// The declared `Content-Length`, if it is a number; saturates at `usize::MAX`.
fn declared_length(headers: &http::HeaderMap) -> Option<usize> {
    let value = headers.get(http::header::CONTENT_LENGTH)?.as_bytes();
    let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(value).ok().filter(|_| digits)?;
    Some(text.parse().unwrap_or(usize::MAX))
}

/// Closes the write side of the connection and discards what the client still sends, within limits, so that it sees the
/// response.
pub(super) async fn discard_body(session: &mut ServerSession) {
    if session.is_body_done() {
        return;
    }
    session.set_read_timeout(Some(DISCARD_TIME_MAX));
    session.shutdown().await;
    let discarded = tokio::time::timeout(DISCARD_TIME_MAX, async {
        let mut left = DISCARDED_BYTES_MAX;
        while let Ok(Some(part)) = session.read_request_body().await {
            left = left.saturating_sub(part.len());
            if left == 0 {
                break;
            }
        }
    })
    .await;
    if discarded.is_err() {
        tracing::debug!("client continues to send an unwanted body");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_follow_the_received_bytes() {
        let pace = |rate| BodyPace {
            timeout: Duration::from_secs(20),
            rate,
            grace: Duration::from_secs(5),
        };
        // name, bytes a second, bytes so far, milliseconds
        let rows = [
            ("the first byte", 1024, 0, 5_000),
            ("as much as the grace is worth", 1000, 4_999, 5_000),
            ("one byte more", 1000, 5_000, 5_001),
            ("twice that", 1000, 9_999, 10_000),
            ("more than there is time for", 1000, 40_000, 20_000),
            ("no rate", 0, 0, 20_000),
            ("more than can be counted", 1, usize::MAX, 20_000),
        ];
        for (name, rate, bytes, millis) in rows {
            let allowed = pace(rate).deadline_of_next_byte(bytes);
            assert_eq!(allowed, Duration::from_millis(millis), "{name}");
        }
    }

    #[test]
    fn declared_lengths_are_digits_only() {
        let rows = [
            ("absent", None, None),
            ("number", Some("12"), Some(12)),
            ("zero", Some("0"), Some(0)),
            ("signed", Some("+12"), None),
            ("list", Some("4, 4"), None),
            ("huge", Some("99999999999999999999999"), Some(usize::MAX)),
            ("empty", Some(""), None),
        ];
        for (name, value, expected) in rows {
            let mut headers = http::HeaderMap::new();
            if let Some(value) = value {
                headers.insert(http::header::CONTENT_LENGTH, value.parse().unwrap());
            }
            assert_eq!(declared_length(&headers), expected, "{name}");
        }
    }
}
