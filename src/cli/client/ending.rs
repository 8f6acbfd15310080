//! How a command of the client ends, and the exit status that says so.

use serde_json::Value;
use serde_json::json;

use crate::client::ClientError;
use crate::client::Outcome;
use crate::client::Status;

/// How a command ended.
#[derive(Debug)]
pub(super) enum Ending {
    /// What was asked for was read or done.
    Done,
    /// The change was accepted, and its end was not to be waited for.
    Accepted(Status),
    /// The operation has ended in this way.
    Ended(Status),
    /// The wait is over, and the operation is not.
    StillRunning(Status),
    /// The operation goes on or has ended, and the gateway no longer shows its Status.
    Lost(Option<Status>, ClientError),
    /// A signal ended the waiting.
    Detached(Option<Status>),
    /// The person at the terminal said no, or the plan says that the operation would be refused.
    Declined(String),
    /// There was no answer that could be used.
    Failed(ClientError),
}

/// The exit statuses; `docs/client.md` lists them.
const SUCCEEDED: u8 = 0;
const FAILED: u8 = 1;
const REFUSED: u8 = 2;
const UNKNOWN: u8 = 3;
const STILL_RUNNING: u8 = 4;
const UNREACHABLE: u8 = 5;
const USAGE: u8 = 64;
/// What shells report of a program that Ctrl-C ended.
const DETACHED: u8 = 130;

impl Ending {
    /// The exit status of the program.
    pub(super) fn exit(&self) -> u8 {
        self.exit_and_word().0
    }

    fn exit_and_word(&self) -> (u8, &'static str) {
        match self {
            Self::Done => (SUCCEEDED, "done"),
            Self::Accepted(_) => (SUCCEEDED, "accepted"),
            Self::Ended(status) => match status.outcome() {
                Outcome::Succeeded => (SUCCEEDED, "succeeded"),
                Outcome::Failed => (FAILED, "failed"),
                Outcome::Unknown => (UNKNOWN, "unknown"),
                Outcome::Unfinished => (STILL_RUNNING, "running"),
            },
            Self::StillRunning(_) => (STILL_RUNNING, "running"),
            // The operation was accepted; whether it took place is not known here.
            Self::Lost(_, ClientError::Unreachable { .. }) => (UNREACHABLE, "unreachable"),
            Self::Lost(..) => (UNKNOWN, "unknown"),
            Self::Detached(_) => (DETACHED, "detached"),
            Self::Declined(_) => (REFUSED, "refused"),
            Self::Failed(error) => match error {
                ClientError::Usage(_) => (USAGE, "usage"),
                ClientError::Refused(_) => (REFUSED, "refused"),
                ClientError::Unreachable { .. } | ClientError::Invalid(_) => {
                    (UNREACHABLE, "unreachable")
                }
            },
        }
    }

    /// The last record of a command for programs.
    pub(super) fn record(&self, idempotency_key: Option<&str>) -> Value {
        let (exit, outcome) = self.exit_and_word();
        let mut record = json!({ "record": "result", "exit": exit, "outcome": outcome });
        let mut add = |name: &str, value: Value| {
            if let Some(members) = record.as_object_mut() {
                members.insert(name.to_owned(), value);
            }
        };
        if let Some(status) = self.status() {
            add("status", status.json.clone());
        }
        if let Some(error) = self.error() {
            add("error", error);
        }
        if let Some(key) = idempotency_key {
            add("idempotency_key", Value::from(key));
        }
        record
    }

    /// The Status that was seen last.
    pub(super) const fn status(&self) -> Option<&Status> {
        match self {
            Self::Accepted(status) | Self::Ended(status) | Self::StillRunning(status) => {
                Some(status)
            }
            Self::Lost(status, _) | Self::Detached(status) => status.as_ref(),
            Self::Done | Self::Declined(_) | Self::Failed(_) => None,
        }
    }

    fn error(&self) -> Option<Value> {
        match self {
            Self::Failed(error) | Self::Lost(_, error) => Some(match error {
                ClientError::Refused(refusal) => refusal.to_json(),
                ClientError::Usage(_)
                | ClientError::Unreachable { .. }
                | ClientError::Invalid(_) => json!({ "text": error.to_string() }),
            }),
            Self::Declined(why) => Some(json!({ "text": why })),
            Self::Done
            | Self::Accepted(_)
            | Self::Ended(_)
            | Self::StillRunning(_)
            | Self::Detached(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::client::Refusal;

    use super::*;

    fn status(progress: u8, state: &str, number: u16) -> Status {
        Status {
            progress,
            state: Some(state.to_owned()),
            status: (progress == 100).then_some(number),
            ..Status::default()
        }
    }

    #[test]
    fn every_ending_has_its_exit_status() {
        let unreachable = || ClientError::Unreachable {
            why: String::new(),
            was_sent: true,
        };
        let refused = || ClientError::Refused(Box::new(Refusal::default()));
        let rows = [
            (Ending::Done, 0, "done"),
            (Ending::Accepted(status(0, "QUEUED", 0)), 0, "accepted"),
            (Ending::Ended(status(100, "SUCCESS", 200)), 0, "succeeded"),
            (Ending::Ended(status(100, "FAILED", 502)), 1, "failed"),
            (Ending::Ended(status(100, "CANCELLED", 409)), 1, "failed"),
            (Ending::Ended(status(100, "UNKNOWN", 500)), 3, "unknown"),
            (Ending::StillRunning(status(5, "RUNNING", 0)), 4, "running"),
            (Ending::Lost(None, refused()), 3, "unknown"),
            (Ending::Lost(None, unreachable()), 5, "unreachable"),
            (Ending::Detached(None), 130, "detached"),
            (Ending::Declined(String::new()), 2, "refused"),
            (Ending::Failed(refused()), 2, "refused"),
            (Ending::Failed(unreachable()), 5, "unreachable"),
            (
                Ending::Failed(ClientError::Invalid(String::new())),
                5,
                "unreachable",
            ),
            (
                Ending::Failed(ClientError::Usage(String::new())),
                64,
                "usage",
            ),
        ];
        for (ending, exit, outcome) in rows {
            let record = ending.record(Some("k"));
            assert_eq!(ending.exit(), exit, "{ending:?}");
            assert_eq!(record["outcome"], outcome, "{record}");
            assert_eq!(record["exit"], exit, "{record}");
            assert_eq!(record["idempotency_key"], "k", "{record}");
        }
    }
}
