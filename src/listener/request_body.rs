//! The body of a request, read from a Pingora session within limits.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use bytes::BytesMut;
use pingora::ErrorType;
use pingora::protocols::http::ServerSession;
use tokio::sync::Mutex;

use crate::gate::Body;
use crate::gate::BodyError;
use crate::listener::Limits;
use crate::runtime::Clock;

/// Most bytes of an unwanted body that are read and thrown away so that the answer before it is not lost: a connection that
/// is closed with unread data is reset, and a reset takes away what the client has not read yet.
const DISCARDED_BYTES_MAX: usize = 1024 * 1024;
/// Longest time spent on that.
const DISCARD_TIME_MAX: Duration = Duration::from_secs(2);

/// How long a request is handled before anybody looks whether its client is still there.
const GONE_CHECK_PAUSE: Duration = Duration::from_millis(250);

/// How fast a body has to come.
#[derive(Clone, Copy, Debug)]
pub(super) struct BodyPace {
    /// The whole body may take so long, and half of that without a single byte.
    pub(super) patience: Duration,
    /// Bytes a second, on average; zero for any number.
    pub(super) rate: u64,
    /// Time before the rate counts.
    pub(super) grace: Duration,
}

impl BodyPace {
    pub(super) const fn of(limits: &Limits) -> Self {
        Self {
            patience: limits.body_timeout,
            rate: limits.body_rate,
            grace: limits.body_grace,
        }
    }

    /// How long after the start of the body the next byte may come when there were so many.
    fn allowed(self, bytes: usize) -> Duration {
        let next = u64::try_from(bytes).unwrap_or(u64::MAX).saturating_add(1);
        let millis = next.saturating_mul(1000).checked_div(self.rate);
        millis.map_or(self.patience, |it| {
            self.grace.max(Duration::from_millis(it)).min(self.patience)
        })
    }
}

/// A session that is shared by those who read the body of its request and those who look whether its client is there.
pub(super) type SharedSession<'a> = Mutex<&'a mut ServerSession>;

/// The body of the request a session is at.
pub(super) struct SessionBody<'a, 's> {
    session: &'a SharedSession<'s>,
    pace: BodyPace,
    clock: &'a dyn Clock,
    present: bool,
    /// Whether all of the request was read.
    received: &'a AtomicBool,
}

impl<'a, 's> SessionBody<'a, 's> {
    /// `received` says whether there is no body, and is set once it was read.
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

    async fn collect(&self, session: &mut ServerSession, limit: usize) -> Result<Bytes, BodyError> {
        let mut whole = BytesMut::new();
        let began = self.clock.instant();
        loop {
            let took = self.clock.instant().saturating_duration_since(began);
            let left = self.pace.allowed(whole.len()).saturating_sub(took);
            // What has come already is read even when no time is left: it may be us who took it.
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
                    tracing::debug!(%error, "body not read");
                    return Err(BodyError::Broken);
                }
            }
        }
    }
}

/// Asks the client to go on, if it waits for that.
async fn invite(session: &mut ServerSession, patience: Duration) -> Result<(), BodyError> {
    let head = session.req_header();
    // HTTP/1.0 knows no interim answers.
    let waits = head.version >= http::Version::HTTP_11
        && head
            .headers
            .get(http::header::EXPECT)
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    if !waits {
        return Ok(());
    }
    // Pingora would take the interim answer for an answer before the end of the body, and close the connection for it.
    session.set_close_on_response_before_downstream_finish(false);
    let written = tokio::time::timeout(patience, session.write_continue_response()).await;
    session.set_close_on_response_before_downstream_finish(true);
    match written {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => {
            tracing::debug!(%error, "interim answer not written");
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
        // Refused before the client is invited: it then never sends what nobody wants.
        if announced(&session.req_header().headers).is_some_and(|length| length > limit) {
            return Err(BodyError::TooLarge);
        }
        let patience = self.pace.patience;
        invite(session, patience).await?;
        session.set_read_timeout(Some(patience.checked_div(2).unwrap_or(patience)));
        let read = tokio::time::timeout(patience, self.collect(session, limit)).await;
        let read = read.unwrap_or(Err(BodyError::TooSlow));
        self.received.store(read.is_ok(), Ordering::Relaxed);
        read
    }

    fn is_present(&self) -> bool {
        self.present
    }
}

/// Returns when the client has gone away after it sent the whole request.
pub(super) async fn gone(session: &SharedSession<'_>, received: &AtomicBool) {
    // Most answers are made before that.
    tokio::time::sleep(GONE_CHECK_PAUSE).await;
    while !received.load(Ordering::Relaxed) {
        tokio::time::sleep(GONE_CHECK_PAUSE).await;
    }
    let mut session = session.lock().await;
    match session.read_body_or_idle(true).await {
        Ok(_) => std::future::pending().await,
        Err(error) => tracing::debug!(%error, "client gone"),
    }
}

/// The length the client announced, when it is a number. Larger than memory counts as the largest number.
fn announced(headers: &http::HeaderMap) -> Option<usize> {
    let value = headers.get(http::header::CONTENT_LENGTH)?.as_bytes();
    let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(value).ok().filter(|_| digits)?;
    Some(text.parse().unwrap_or(usize::MAX))
}

/// Ends our side of the connection and reads what the client is still sending, within bounds, so that it sees the answer.
pub(super) async fn discard(session: &mut ServerSession) {
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
        tracing::debug!("client goes on sending an unwanted body");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_allowed_by_what_has_come() {
        let pace = |rate| BodyPace {
            patience: Duration::from_secs(20),
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
            let allowed = pace(rate).allowed(bytes);
            assert_eq!(allowed, Duration::from_millis(millis), "{name}");
        }
    }

    #[test]
    fn announced_lengths_are_digits_only() {
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
            assert_eq!(announced(&headers), expected, "{name}");
        }
    }
}
