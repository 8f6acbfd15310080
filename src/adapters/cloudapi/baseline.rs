//! Learns what must be remembered before a change is asked for.

use crate::adapters::adapter::Adapter;
use crate::adapters::adapter::AdapterError;
use crate::adapters::cloudapi::CloudApi;
use crate::adapters::cloudapi::map;
use crate::adapters::cloudapi::request_baseline::RequestBaseline;
use crate::model::Change;
use crate::model::Deadline;
use crate::model::Evidence;
use crate::model::FaultKind;
use crate::model::Intent;
use crate::model::limits;
use crate::public_text;

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
}
