//! How long a gateway that does not answer is asked again, and with which pauses.

use std::time::Duration;

use backon::BackoffBuilder;
use backon::ExponentialBackoff;
use backon::ExponentialBuilder;
use tokio::time::Instant;

use crate::client::ClientError;
use crate::client::error::Refusal;

/// Half of the pause before the first repetition; jitter adds up to the same again.
const FIRST_PAUSE: Duration = Duration::from_millis(150);
/// Half of the longest pause: a gateway that is back is noticed within ten seconds.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// The longest `Retry-After` that is followed; a longer one is cut.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// How long a gateway that does not answer is asked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Before its first answer: more likely the URL is wrong than that a gateway is starting.
    pub before_contact: Duration,
    /// After its first answer: it is being restarted or updated.
    pub after_contact: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            before_contact: Duration::from_secs(15),
            after_contact: Duration::from_secs(10 * 60),
        }
    }
}

impl Patience {
    /// The same before and after the first answer.
    #[must_use]
    pub const fn of(time: Duration) -> Self {
        Self {
            before_contact: time,
            after_contact: time,
        }
    }
}

/// Why a request has no answer that can be used.
#[derive(Debug)]
pub(super) enum Failure {
    /// Another try may help.
    Temporary(Interruption),
    /// No other try helps.
    Final(ClientError),
}

/// A failure that may pass.
#[derive(Debug)]
pub(super) struct Interruption {
    pub(super) why: String,
    /// How long the gateway wants not to be asked.
    pub(super) pause: Option<Duration>,
    /// Whether the gateway may have received the request.
    pub(super) was_sent: bool,
    /// What the gateway itself said, where it was the gateway that answered.
    pub(super) refusal: Option<Refusal>,
}

/// The time in which a gateway does not answer, from the first failure to the next answer.
#[derive(Debug)]
pub(super) struct Outage {
    since: Option<Instant>,
    pauses: ExponentialBackoff,
    was_sent: bool,
}

impl Outage {
    /// There is none yet.
    pub(super) fn new() -> Self {
        Self {
            since: None,
            pauses: pauses(),
            was_sent: false,
        }
    }

    /// The gateway answers.
    pub(super) fn end(&mut self) {
        if self.since.take().is_some() {
            self.pauses = pauses();
        }
    }

    /// The pause before the next try.
    ///
    /// # Errors
    /// When the patience is over: what the gateway said last, or that it cannot be reached.
    pub(super) fn next_pause(
        &mut self,
        interruption: Interruption,
        patience: Duration,
    ) -> Result<Duration, ClientError> {
        let now = Instant::now();
        let since = *self.since.get_or_insert(now);
        self.was_sent |= interruption.was_sent;
        let growing = self.pauses.next().unwrap_or(LONGEST_PAUSE);
        let asked = interruption.pause.unwrap_or_default();
        // A gateway that asks for a second is not asked sooner, whatever the own pauses are.
        let pause = growing.max(asked.min(RETRY_AFTER_MAX));
        let elapsed = now.saturating_duration_since(since);
        if elapsed.saturating_add(pause) <= patience {
            return Ok(pause);
        }
        Err(match interruption.refusal {
            // Each try was refused by the gateway itself: nothing was changed, and that is certain.
            Some(refusal) if !self.was_sent => ClientError::Refused(Box::new(refusal)),
            Some(_) | None => ClientError::Unreachable {
                why: interruption.why,
                was_sent: self.was_sent,
            },
        })
    }
}

fn pauses() -> ExponentialBackoff {
    // Without randomness clients that were interrupted together come back together, which is no reason to fail.
    let seed = getrandom::u64().unwrap_or_default();
    ExponentialBuilder::new()
        .with_min_delay(FIRST_PAUSE)
        .with_max_delay(LONGEST_PAUSE)
        .with_factor(2.0)
        .without_max_times()
        .with_jitter()
        .with_jitter_seed(seed)
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interruption(was_sent: bool, refused: bool, pause: Option<Duration>) -> Interruption {
        Interruption {
            why: "connection refused".to_owned(),
            pause,
            was_sent,
            refusal: refused.then(Refusal::default),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_until_the_patience_is_over_and_begin_anew_after_an_answer() {
        let patience = Duration::from_secs(20);
        let mut outage = Outage::new();
        let begun = Instant::now();
        let mut pauses = Vec::new();
        while let Ok(pause) = outage.next_pause(interruption(false, false, None), patience) {
            pauses.push(pause);
            tokio::time::sleep(pause).await;
        }
        assert!(pauses[0] <= Duration::from_millis(300), "{pauses:?}");
        assert!(begun.elapsed() > patience / 2, "long enough: {pauses:?}");
        assert!(begun.elapsed() <= patience, "no longer: {pauses:?}");
        outage.end();
        let again = outage.next_pause(interruption(false, false, None), patience);
        assert!(again.unwrap() <= Duration::from_millis(300), "anew");
        let asked = Some(Duration::from_secs(7));
        let pause = outage.next_pause(interruption(false, false, asked), patience);
        assert!(pause.unwrap() >= Duration::from_secs(7), "as asked");
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_are_certain_unless_a_request_was_lost_before() {
        for (lost_before, expected_refusal) in [(false, true), (true, false)] {
            let mut outage = Outage::new();
            let patience = Duration::from_secs(60);
            let lost = outage.next_pause(interruption(lost_before, false, None), patience);
            assert!(lost.is_ok(), "tried again");
            let error = outage
                .next_pause(interruption(false, true, None), Duration::ZERO)
                .unwrap_err();
            assert_eq!(
                error.refusal().is_some(),
                expected_refusal,
                "lost before: {lost_before}: {error:?}"
            );
        }
    }
}
