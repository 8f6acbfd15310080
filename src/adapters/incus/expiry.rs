//! Snapshots that the daemon removes by itself: `snapshots.expiry` of the instance or a profile, or set by a person.

use std::time::Duration;

use crate::adapters::adapter::AdapterError;
use crate::adapters::incus::Incus;
use crate::adapters::incus::client::NEVER;
use crate::adapters::incus::label::SnapshotLabel;
use crate::adapters::incus::map;
use crate::adapters::incus::missing_error;
use crate::adapters::incus::names;
use crate::adapters::incus::wire;
use crate::model::Deadline;
use crate::model::FaultKind;
use crate::model::Target;
use crate::model::Timestamp;
use crate::model::VmId;
use crate::public_text;

/// How long a backup that is restored is kept from then on: the daemon would remove it while it is being read.
const KEPT_FOR_RESTORE: Duration = Duration::from_secs(24 * 3600);
/// How many warnings about backups that expire are remembered, so that each is logged once.
const WARNED_MAX: usize = 1000;

/// When the daemon removes the snapshot; `None` when it never does.
pub(super) fn expiry_of(snapshot: &wire::Snapshot) -> Option<Timestamp> {
    // `NEVER` lies before the times that can be read.
    map::timestamp(&snapshot.expires_at)
}

impl Incus {
    /// Makes a backup that is or becomes protected one that the daemon keeps. Returns the expiry that it had.
    pub(super) async fn remove_expiry(
        &self,
        target: &Target,
        snapshot: &wire::Snapshot,
        by: Deadline,
    ) -> Result<Option<String>, AdapterError> {
        if expiry_of(snapshot).is_none() {
            return Ok(None);
        }
        self.write_expiry(target, NEVER, by).await?;
        let (vm, id) = (target.vm.as_str(), target.backup.as_str());
        let now = self.api.snapshot(vm, id, by).await;
        let now = now
            .map_err(|error| error.into_read_error(FaultKind::NoSuchVm))?
            .ok_or_else(|| missing_error(FaultKind::NoSuchBackup))?;
        if expiry_of(&now).is_some() {
            let text = public_text!(
                "The VM manager keeps an expiry on the backup, so the gateway cannot protect it; nothing was changed. \
                        Remove the expiry of the snapshot, then try again."
            );
            return Err(AdapterError::refused(FaultKind::Conflict, text));
        }
        tracing::info!(vm, backup = id, expiry = %snapshot.expires_at, "expiry of a protected backup removed");
        Ok(Some(snapshot.expires_at.clone()))
    }

    /// Keeps a backup that is about to expire for as long as a restore from it may take.
    pub(super) async fn extend_expiry_for_restore(
        &self,
        target: &Target,
        snapshot: &wire::Snapshot,
        by: Deadline,
    ) -> Result<(), AdapterError> {
        let least = self.clock.now().plus(KEPT_FOR_RESTORE);
        match expiry_of(snapshot) {
            Some(expires) if expires < least => {
                self.write_expiry(target, &least.to_string(), by).await
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Sets the expiry of a snapshot and waits until it is set.
    pub(super) async fn write_expiry(
        &self,
        target: &Target,
        at: &str,
        by: Deadline,
    ) -> Result<(), AdapterError> {
        let (vm, id) = (target.vm.as_str(), target.backup.as_str());
        let sent = self.api.set_expiry(vm, id, at, by).await;
        let sent = sent.map_err(|error| error.into_write_error(FaultKind::NoSuchBackup))?;
        self.wait_for_end(&sent, by).await
    }

    /// Logs, once for each, protected backups that the daemon will remove all the same: their expiry was set behind the
    /// gateway's back, or by an older gateway.
    pub(super) fn warn_of_expiry(
        &self,
        vm: &VmId,
        snapshot: &wire::Snapshot,
        label: &SnapshotLabel,
    ) {
        if !label.protected || expiry_of(snapshot).is_none() {
            return;
        }
        let backup = names::last_segment(&snapshot.name);
        let key = format!("{vm}/{backup}/{}", snapshot.expires_at);
        let is_new = {
            let mut warned = self.warned.lock();
            warned.len() < WARNED_MAX && warned.insert(key)
        };
        if is_new {
            tracing::warn!(
                %vm,
                backup,
                expires = %snapshot.expires_at,
                "protected backup will expire"
            );
        }
    }
}
