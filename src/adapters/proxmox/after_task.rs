//! What is said of a task while it runs and after it failed: its progress, the reason, the state of the guest, the remedy.

use crate::adapters::proxmox::client::Guest;
use crate::adapters::proxmox::client::GuestKind;
use crate::adapters::proxmox::cluster::Proxmox;
use crate::adapters::proxmox::error;
use crate::adapters::proxmox::tasks;
use crate::model::Deadline;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::Progress;
use crate::model::PublicText;
use crate::public_text;

impl Proxmox {
    /// How far a task is, where its log says so.
    pub(super) async fn progress(&self, node: &str, upid: &str, by: Deadline) -> Option<Progress> {
        if !tasks::logs_progress(upid) {
            return None;
        }
        let log = self.api.log(node, upid, by).await.ok()?;
        tasks::progress_in(&log)
    }

    /// Why a task failed, and what the guest is now.
    pub(super) async fn failure(&self, upid: &str, text: &str, by: Deadline) -> Fault {
        let text = match tasks::node_of(upid) {
            // The end of a backup job names no reason; its log does.
            Some(node) if text.contains("job errors") => {
                let log = self.api.log(node, upid, by).await.unwrap_or_default();
                let reasons = log.into_iter().map(|line| line.t);
                let mut errors = reasons.filter(|line| line.contains("ERROR"));
                errors.next_back().unwrap_or_else(|| text.to_owned())
            }
            Some(_) | None => text.to_owned(),
        };
        tracing::warn!(upid, cause = %text, "task failed");
        let fault = error::fault_of_text(&text);
        let now = self.state_after(upid, by).await;
        let text = fault.text.followed_by(&now);
        // Proxmox VE unlocks the guest after a failed restore from an archive, and cleans up nothing. These kinds are refusals
        // of the task before it touched a disk.
        let is_early = matches!(fault.kind, FaultKind::Conflict | FaultKind::Busy);
        if tasks::replaces_guest(upid) && !is_early {
            let warning = public_text!(
                "Its disks may be partly replaced. Restore it again before it is used."
            );
            return Fault::new(fault.kind, text.followed_by(&warning));
        }
        Fault::new(fault.kind, text)
    }

    /// One sentence on the state of the guest after a task that did not succeed.
    async fn state_after(&self, upid: &str, by: Deadline) -> PublicText {
        let unknown = || {
            public_text!(
                "The state of the VM could not be read afterwards. Check the VM before it is used."
            )
        };
        let vm = tasks::guest_of(upid).and_then(|vmid| crate::model::VmId::new(vmid).ok());
        let Some(vm) = vm else {
            return unknown();
        };
        let Ok(guest) = self.locate_guest(&vm, by).await else {
            return unknown();
        };
        let Ok(status) = self.api.status(&guest, by).await else {
            return unknown();
        };
        let runs = if status.status == "running" {
            "The VM is running"
        } else {
            "The VM is off"
        };
        match status.lock.as_deref() {
            None => public_text!("{runs} and is not locked."),
            Some("rollback") => public_text!(
                "{runs}, its disks may be partly restored, and it is locked. Unlock it with `{}`, then restore it again before it is used.",
                unlock(&guest)
            ),
            Some("create" | "restore") => public_text!(
                "{runs}, it was partly replaced, and it is locked. Unlock it with `{}`, then restore it again before it is used.",
                unlock(&guest)
            ),
            Some(_) => public_text!(
                "{runs} and is locked. Unlock it with `{}` when no task is running on it.",
                unlock(&guest)
            ),
        }
    }
}

/// The operator's remedy for a lock that a dead task left.
fn unlock(guest: &Guest) -> String {
    match guest.kind {
        GuestKind::Qemu => format!("qm unlock {}", guest.vmid),
        GuestKind::Lxc => format!("pct unlock {}", guest.vmid),
    }
}

/// The refusal of a guest that is locked.
pub(super) fn locked(guest: &Guest, lock: &str) -> Fault {
    Fault::new(
        FaultKind::Conflict,
        public_text!(
            "The VM is locked ({lock}) by a task that is running or was interrupted. If no task is running, an operator \
             unlocks it with `{}`.",
            unlock(guest)
        ),
    )
}
