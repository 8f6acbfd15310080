//! What is remembered before a change is asked for, and the key of its request.

use std::time::Duration;

use serde::Deserialize;
use serde::Serialize;

use crate::adapters::adapter::AdapterError;
use crate::model::Evidence;
use crate::model::FaultKind;
use crate::model::Timestamp;
use crate::public_text;

/// How long a server is trusted to know keys and finished Statuses; snapgate keeps them a day at least.
const SERVER_MEMORY: Duration = Duration::from_secs(12 * 3600);

/// What is remembered before a change is asked for.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct RequestBaseline {
    /// Random, so that a request of the same number in a store that was made anew is another request.
    pub(super) nonce: String,
    /// When it was.
    pub(super) at: Timestamp,
    /// The links of the Statuses that were there; `None` where the server does not list them.
    pub(super) known: Option<Vec<String>>,
    /// Whether the VM ran before a restore, in the words of the API; `None` where that was not learned.
    #[serde(default)]
    pub(super) run_state: Option<String>,
}

impl RequestBaseline {
    /// What was remembered, if it was by this adapter.
    pub(super) fn read(baseline: Option<&Evidence>) -> Option<Self> {
        serde_json::from_str(baseline?.as_str()).ok()
    }

    /// Whether the server still knows what became of the request by key and Status.
    pub(super) fn is_remembered(&self, now: Timestamp) -> bool {
        now.since(self.at) < SERVER_MEMORY
    }
}

/// The key of the request of that name, which is the same for every repetition.
pub(super) fn request_key(
    name: &str,
    before: Option<&RequestBaseline>,
    now: Timestamp,
) -> Result<String, AdapterError> {
    match before {
        Some(before) if before.is_remembered(now) => Ok(format!("{name}-{}", before.nonce)),
        Some(_) => {
            let text = public_text!(
                "The request is too old for the server to recognize a repetition. Check the VM and its backups."
            );
            Err(AdapterError::uncertain(FaultKind::OutcomeUnknown, text))
        }
        None => Ok(name.to_owned()),
    }
}
