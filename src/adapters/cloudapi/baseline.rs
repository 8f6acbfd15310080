//! What is remembered before a change is asked for.

use std::time::Duration;

use serde::Deserialize;
use serde::Serialize;

use crate::adapters::adapter::Adapter;
use crate::adapters::adapter::AdapterError;
use crate::adapters::cloudapi::CloudApi;
use crate::adapters::cloudapi::map;
use crate::model::Change;
use crate::model::Deadline;
use crate::model::Evidence;
use crate::model::FaultKind;
use crate::model::Intent;
use crate::model::Timestamp;
use crate::model::limits;
use crate::public_text;

/// How long a server is trusted to know keys and finished Statuses; snapgate keeps them a day at least.
const SERVER_MEMORY: Duration = Duration::from_secs(12 * 3600);

/// What is remembered before a change is asked for.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct RequestBaseline {
    /// Random, so that a request of the same number in a store that was made anew is another request.
    nonce: String,
    /// When it was.
    at: Timestamp,
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
}

impl CloudApi {
    pub(super) async fn read_baseline(
        &self,
        intent: &Intent,
        by: Deadline,
    ) -> Result<Option<Evidence>, AdapterError> {
        let known = if self.lists_statuses() {
            let (op, vm) = (map::status_op(intent.verb()), &intent.target.vm);
            let listed = self.api.statuses(op, vm, by).await;
            let listed = listed.map_err(|error| error.into_read_error(FaultKind::BackendFailed))?;
            let fits = |link: &String| link.len() <= limits::LINK_BYTES_MAX;
            let links = listed.into_iter().map(|status| status.status_uri);
            Some(
                links
                    .filter(fits)
                    .take(limits::STATUSES_KNOWN_MAX)
                    .collect(),
            )
        } else {
            None
        };
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes).map_err(|error| {
            AdapterError::unavailable(public_text!(
                "The gateway could not generate a request id; nothing was changed. Try again later."
            ))
            .because(error)
        })?;
        let before = RequestBaseline {
            nonce: format!("{:016x}", u64::from_le_bytes(bytes)),
            at: self.clock.now(),
            known,
            run_state: self.run_state(intent, by).await,
        };
        Ok(Evidence::new(serde_json::json!(before).to_string()))
    }

    /// Whether the VM runs, before a restore. The server may not say: then later changes of it are not noticed.
    async fn run_state(&self, intent: &Intent, by: Deadline) -> Option<String> {
        match intent.change {
            Change::Restore(_) => {
                let vm = self.read_vm(&intent.target.vm, by).await.ok()?;
                Some(vm.run_state?.as_str().to_owned())
            }
            Change::Create(_) | Change::Update(_) | Change::Delete => None,
        }
    }

    /// Whether the server still knows what became of it by key and Status.
    pub(super) fn is_remembered(&self, before: &RequestBaseline) -> bool {
        self.clock.now().since(before.at) < SERVER_MEMORY
    }

    /// The key of the request, which is the same for every repetition.
    pub(super) fn request_key(
        &self,
        name: &str,
        before: Option<&RequestBaseline>,
    ) -> Result<String, AdapterError> {
        match before {
            Some(before) if self.is_remembered(before) => Ok(format!("{name}-{}", before.nonce)),
            Some(_) => {
                let text = public_text!(
                    "The request is too old for the server to recognize a repetition. Check the VM and its backups."
                );
                Err(AdapterError::uncertain(FaultKind::OutcomeUnknown, text))
            }
            None => Ok(name.to_owned()),
        }
    }
}
