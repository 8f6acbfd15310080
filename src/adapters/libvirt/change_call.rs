//! The call that carries out one change, run as a task: a last check, the call itself, and what is left if it fails.

use std::time::Duration;

use crate::adapters::adapter::AdapterError;
use crate::adapters::checks::Checks;
use crate::adapters::libvirt::definition_checks;
use crate::adapters::libvirt::error;
use crate::adapters::libvirt::inspector::Inspector;
use crate::adapters::libvirt::inspector::RestoreSettings;
use crate::adapters::libvirt::loaded_snapshot::LoadedSnapshot;
use crate::adapters::libvirt::map::VmActivity;
use crate::adapters::libvirt::native::Domain;
use crate::adapters::libvirt::native::Snapshot;
use crate::adapters::libvirt::rpc::RpcError;
use crate::adapters::libvirt::snapshot_xml::SnapshotLocation;
use crate::model::Deadline;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::PublicText;
use crate::public_text;

/// Time to look at the VM after a change failed.
const AFTER_FAILURE_TIMEOUT: Duration = Duration::from_secs(10);

/// One call that changes something.
pub(super) enum ChangeCall {
    /// Makes a snapshot from this XML.
    Create(Domain, String),
    /// Writes this XML of a snapshot back, which is the current one or not.
    Redefine(Domain, String, bool),
    /// Removes the snapshot.
    Delete(Box<LoadedSnapshot>),
    /// Restores the VM from the snapshot.
    Restore(Box<LoadedSnapshot>, RestoreSettings),
}

/// What a task calls with.
pub(super) struct CallRunner {
    pub(super) inspector: Inspector,
    pub(super) by: Deadline,
}

/// Why a call failed, and what a caller may see of it.
pub(super) struct CallFailure {
    pub(super) fault: Fault,
    /// Whether it may have been carried out all the same.
    pub(super) may_have_happened: bool,
    pub(super) private: String,
}

impl From<RpcError> for CallFailure {
    fn from(error: RpcError) -> Self {
        Self {
            fault: error::fault(&error),
            may_have_happened: error.may_have_happened(),
            private: error.to_string(),
        }
    }
}

impl From<AdapterError> for CallFailure {
    /// Of a last look before anything was done.
    fn from(error: AdapterError) -> Self {
        Self {
            private: error.private().to_owned(),
            fault: error.fault,
            may_have_happened: false,
        }
        .before_any_change()
    }
}

impl CallFailure {
    /// Of a call before which nothing was changed, and that changes nothing itself.
    fn of_look(error: RpcError) -> Self {
        Self {
            may_have_happened: false,
            ..Self::from(error)
        }
        .before_any_change()
    }

    /// Of the first call that changes something.
    fn of_first_change(error: RpcError) -> Self {
        let was_sent = was_sent(&error);
        let failure = Self::from(error);
        if was_sent {
            failure
        } else {
            failure.before_any_change()
        }
    }

    /// Adds that nothing was changed, where the text does not say so: refusals do.
    fn before_any_change(self) -> Self {
        if matches!(
            self.fault.kind,
            FaultKind::Unavailable | FaultKind::TimedOut
        ) {
            self.followed_by(&public_text!("Nothing was changed."))
        } else {
            self
        }
    }

    fn followed_by(mut self, text: &PublicText) -> Self {
        self.fault.text = self.fault.text.followed_by(text);
        self
    }

    fn failed(text: PublicText, private: impl Into<String>) -> Self {
        Self {
            fault: Fault::new(FaultKind::BackendFailed, text),
            may_have_happened: false,
            private: private.into(),
        }
    }
}

/// Whether libvirt may have received the call.
const fn was_sent(error: &RpcError) -> bool {
    error.may_have_happened() || error.code().is_some()
}

impl CallRunner {
    /// Makes the call and judges its end.
    pub(super) async fn perform(&self, call: ChangeCall) -> Result<(), CallFailure> {
        let client = &self.inspector.client;
        match call {
            ChangeCall::Create(domain, xml) => self.create(&domain, &xml).await,
            ChangeCall::Redefine(domain, xml, is_current) => {
                let redefined = client.redefine(&domain, &xml, is_current, self.by).await;
                redefined.map_err(CallFailure::of_first_change)
            }
            ChangeCall::Delete(which) => self.delete(&which).await,
            ChangeCall::Restore(from, settings) => self.restore(&from, settings).await,
        }
    }

    /// Time to look at the VM after a change failed.
    fn look_deadline(&self) -> Deadline {
        self.inspector.clock.deadline(AFTER_FAILURE_TIMEOUT)
    }

    async fn create(&self, domain: &Domain, xml: &str) -> Result<(), CallFailure> {
        let client = &self.inspector.client;
        let Err(error) = client.create(domain, xml, self.by).await else {
            return Ok(());
        };
        let was_on = domain.id >= 0;
        let mut failure = CallFailure::of_first_change(error);
        let state = client.state(domain, self.look_deadline()).await;
        if !failure.may_have_happened
            && was_on
            && state.is_ok_and(|state| state.activity() == VmActivity::Off)
        {
            failure = failure.followed_by(&public_text!("The VM is off now. Start it again."));
        }
        Err(failure)
    }

    /// Removes the snapshot from every disk. libvirt passes over disks of a VM that is off which it cannot open, and
    /// forgets the snapshot all the same.
    async fn delete(&self, which: &LoadedSnapshot) -> Result<(), CallFailure> {
        let inspector = &self.inspector;
        let mut checks = Checks::until_first();
        inspector.check_delete(which, &mut checks, self.by).await?;
        let domain = &which.snapshot.domain;
        let current = inspector.client.current(domain, self.by).await;
        let current = current.map_err(CallFailure::of_look)?;
        let is_current = current.as_ref() == Some(&which.snapshot.name);
        let deleted = inspector.client.delete(&which.snapshot, self.by).await;
        if let Err(error) = &deleted
            && error.code().is_none()
        {
            return Err(CallFailure::of_first_change(error.clone()));
        }
        let left = inspector.disks_holding(which, self.look_deadline()).await;
        let left = left.unwrap_or_default();
        let named = definition_checks::list_disks(left.iter().map(String::as_str));
        match deleted {
            Ok(()) if left.is_empty() => Ok(()),
            Ok(()) => {
                // Listed again, so that it is seen and can be deleted.
                let listed = inspector
                    .client
                    .redefine(domain, &which.text, is_current, self.by)
                    .await;
                Err(CallFailure::failed(
                    public_text!(
                        "The backup was deleted on some disks only and can no longer be restored: {named} still has its part. Delete the backup again."
                    ),
                    listed
                        .err()
                        .map(|error| error.to_string())
                        .unwrap_or_default(),
                ))
            }
            Err(error) => {
                let mut failure = CallFailure::from(error);
                let parts = which.xml.disks.iter();
                let parts = parts.filter(|part| part.place == SnapshotLocation::Internal);
                if left.len() < parts.count() && !left.is_empty() {
                    let partial = public_text!(
                        "Only {named} still has its part of the backup, which can no longer be restored. Delete the backup again."
                    );
                    failure = failure.followed_by(&partial);
                }
                Err(failure)
            }
        }
    }

    /// Restores the VM, and switches it off if it is to be off.
    async fn restore(
        &self,
        from: &LoadedSnapshot,
        settings: RestoreSettings,
    ) -> Result<(), CallFailure> {
        let (inspector, client) = (&self.inspector, &self.inspector.client);
        // What was found when this began may have changed since.
        let mut checks = Checks::until_first();
        let ready = inspector.check_restore(from, settings, &mut checks, self.by);
        let Some(ready) = ready.await? else {
            // Checks that end with the first refusal have returned it.
            return Err(CallFailure::failed(
                public_text!("The VM cannot be restored now. Nothing was changed."),
                "checks ended without a refusal",
            ));
        };
        let domain = &ready.domain;
        if ready.has_managed_save {
            let removed = client.remove_managed_save(domain, self.by).await;
            removed.map_err(CallFailure::of_first_change)?;
        }
        let to = Snapshot {
            name: from.snapshot.name.clone(),
            domain: domain.clone(),
        };
        if let Err(error) = client.revert(&to, ready.plan.revert, self.by).await {
            return Err(self
                .restore_failed(from, domain, ready.has_managed_save, error)
                .await);
        }
        if ready.plan.then_off
            && let Err(error) = client.destroy(domain, self.by).await
        {
            return Err(CallFailure::failed(
                public_text!(
                    "The VM was restored, but it is paused instead of off. Ask the operator to stop it."
                ),
                error.to_string(),
            ));
        }
        if client
            .has_managed_save(domain, self.by)
            .await
            .unwrap_or(false)
        {
            return Err(CallFailure::failed(
                public_text!(
                    "The VM was restored, but a saved memory state from before the restore appeared meanwhile. Discard it before the VM is started."
                ),
                "a managed save exists; virsh managedsave-remove discards it",
            ));
        }
        Ok(())
    }

    async fn restore_failed(
        &self,
        from: &LoadedSnapshot,
        before: &Domain,
        save_removed: bool,
        error: RpcError,
    ) -> CallFailure {
        if error.code().is_none() {
            return if save_removed && !was_sent(&error) {
                CallFailure::from(error).followed_by(&public_text!(
                    "The saved memory state of the VM was discarded; its disks were not changed."
                ))
            } else {
                CallFailure::of_first_change(error)
            };
        }
        let mut failure = CallFailure::from(error);
        let inspector = &self.inspector;
        let after = inspector
            .describe_after_failure(&from.xml, before, before.id, self.look_deadline())
            .await;
        if before.id >= 0 && after.is_off {
            let text = public_text!("The restore failed half-way.");
            failure.fault = Fault::new(FaultKind::BackendFailed, text);
        }
        failure.followed_by(&after.text)
    }
}
