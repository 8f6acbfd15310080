//! Snapshots that the daemon removes by itself: `snapshots.expiry` of the instance or a profile, or set by a person.

use std::time::Duration;

use crate::adapters::adapter::AdapterError;
use crate::adapters::incus::Incus;
use crate::adapters::incus::client::NEVER;
use crate::adapters::incus::map;
use crate::adapters::incus::map::Label;
use crate::adapters::incus::no_such;
use crate::adapters::incus::wire;
use crate::model::Deadline;
use crate::model::FaultKind;
use crate::model::Target;
use crate::model::Timestamp;
use crate::model::VmId;

/// How long a backup that is restored is kept from then on: the daemon would remove it while it is being read.
const KEPT_FOR_RESTORE: Duration = Duration::from_secs(24 * 3600);
/// How many warnings about backups that expire are remembered, so that each is logged once.
const WARNED_MAX: usize = 1000;

/// When the daemon removes the snapshot; `None` when it never does.
pub(super) fn of(snapshot: &wire::Snapshot) -> Option<Timestamp> {
    // `NEVER` lies before the times that can be read.
    map::timestamp(&snapshot.expires_at)
}

impl Incus {
    /// Makes a backup that is or becomes protected one that the daemon keeps. Returns the expiry that it had.
    pub(super) async fn keep(
        &self,
        target: &Target,
        snapshot: &wire::Snapshot,
        by: Deadline,
    ) -> Result<Option<String>, AdapterError> {
        if of(snapshot).is_none() {
            return Ok(None);
        }
        self.expire(target, NEVER, by).await?;
        let (vm, id) = (target.vm.as_str(), target.backup.as_str());
        let now = self.api.snapshot(vm, id, by).await;
        let now = now
            .map_err(|error| error.of_read(FaultKind::NoSuchVm))?
            .ok_or_else(|| no_such(FaultKind::NoSuchBackup))?;
        if of(&now).is_some() {
            let text = "The VM manager keeps an expiry on the backup, so it cannot be protected; its protection was not \
                        changed. Remove the expiry of the snapshot there, then try again.";
            return Err(AdapterError::refused(FaultKind::Conflict, text));
        }
        tracing::info!(vm, backup = id, expiry = %snapshot.expires_at, "expiry removed from a protected backup");
        Ok(Some(snapshot.expires_at.clone()))
    }

    /// Keeps a backup that is about to expire for as long as a restore from it may take.
    pub(super) async fn keep_for_restore(
        &self,
        target: &Target,
        snapshot: &wire::Snapshot,
        by: Deadline,
    ) -> Result<(), AdapterError> {
        let least = self.clock.now().plus(KEPT_FOR_RESTORE);
        match of(snapshot) {
            Some(expires) if expires < least => self.expire(target, &least.to_string(), by).await,
            Some(_) | None => Ok(()),
        }
    }

    /// Sets the expiry of a snapshot and waits until it is set.
    pub(super) async fn expire(
        &self,
        target: &Target,
        at: &str,
        by: Deadline,
    ) -> Result<(), AdapterError> {
        let (vm, id) = (target.vm.as_str(), target.backup.as_str());
        let sent = self.api.set_expiry(vm, id, at, by).await;
        let sent = sent.map_err(|error| error.of_write(FaultKind::NoSuchBackup))?;
        self.settled(&sent, by).await
    }

    /// Logs, once for each, protected backups that the daemon will remove all the same: their expiry was set behind the
    /// gateway's back, or by an older gateway.
    pub(super) fn warn_of_expiry(&self, vm: &VmId, snapshot: &wire::Snapshot, label: &Label) {
        if !label.protected || of(snapshot).is_none() {
            return;
        }
        let backup = wire::last_segment(&snapshot.name);
        let key = format!("{vm}/{backup}/{}", snapshot.expires_at);
        let is_new = {
            let warned = self.warned.lock();
            let mut warned = warned.unwrap_or_else(std::sync::PoisonError::into_inner);
            warned.len() < WARNED_MAX && warned.insert(key)
        };
        if is_new {
            tracing::warn!(
                %vm,
                backup,
                expires = %snapshot.expires_at,
                "the VM manager will remove a protected backup; set its protection again to keep it"
            );
        }
    }
}
