//! The time limit of one call: the configured one or the caller's deadline, whichever comes first.

use std::future::Future;
use std::time::Duration;

use tokio::time::timeout;

use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::Retry;
use crate::adapters::layers::Call;
use crate::model::FaultKind;
use crate::model::PublicText;
use crate::public_text;

fn late_text() -> PublicText {
    public_text!("The backend did not answer in time. Try again later.")
}

/// Makes the call and gives up on it after so long.
///
/// A call that was given up may have had an effect unless it is a read.
pub(super) async fn with_time_limit<T>(
    call: Call,
    within: Duration,
    work: impl Future<Output = Result<T, AdapterError>>,
) -> Result<T, AdapterError> {
    match timeout(within, work).await {
        Ok(result) => result,
        Err(elapsed) if call.is_read() => Err(no_time_left().because(elapsed)),
        Err(elapsed) => {
            Err(AdapterError::uncertain(FaultKind::TimedOut, late_text()).because(elapsed))
        }
    }
}

/// What a call fails with for which no time was left, so that it was not made.
pub(super) fn no_time_left() -> AdapterError {
    let mut error = AdapterError::refused(FaultKind::TimedOut, late_text());
    error.retry = Retry::Temporary;
    error
}
