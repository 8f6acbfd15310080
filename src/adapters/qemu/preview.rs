//! What a restore or a delete would do, found by the checks of the change itself.

use std::sync::Arc;

use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::no_preview;
use crate::adapters::checks::Checks;
use crate::adapters::qemu::Qemu;
use crate::adapters::qemu::backups;
use crate::adapters::qemu::check;
use crate::adapters::qemu::config::VmPaths;
use crate::adapters::qemu::disk::VmView;
use crate::adapters::qemu::error::QemuError;
use crate::adapters::qemu::image::ImageLocking;
use crate::adapters::qemu::online;
use crate::adapters::qemu::vm_access::VmMode;
use crate::model::Deadline;
use crate::model::Intent;
use crate::model::Page;
use crate::model::Preview;
use crate::model::PreviewDisk;
use crate::model::PreviewPart;
use crate::model::RunState;
use crate::model::Verb;

/// All backups of a VM: its images hold far fewer.
const ALL: Page = Page {
    after: None,
    limit: u16::MAX,
};

impl Qemu {
    /// What the change would do. Changes nothing, and takes no lock on an image.
    pub(super) async fn preview_change(
        &self,
        intent: &Intent,
        by: Deadline,
    ) -> Result<Preview, AdapterError> {
        match intent.verb() {
            Verb::Restore | Verb::Delete => {}
            Verb::Create | Verb::Update => return Err(no_preview()),
        }
        let vm = &intent.target.vm;
        let paths = self.access.paths_of(vm)?;
        let mut checks = Checks::all();
        if self.worker.is_busy(vm) {
            checks.record(Err::<(), _>(AdapterError::from(QemuError::MainLoopBlocked)))?;
        }
        let seen = self.check_located(intent, &paths, &mut checks, by).await?;
        let tag = intent.target.backup.as_str();
        let hidden = self.worker.unfinished_backups(vm);
        let backup = backups::find_backup(&seen.disks, tag);
        let backup = backup
            .filter(|backup| !hidden.contains(&backup.id))
            .ok_or_else(check::no_such_backup)?;
        let all = backups::backup_page(&seen.disks, &ALL, &hidden);
        let mut preview = Preview::new(seen.vm.clone(), backup).with_newer(&all.backups);
        preview.refused = checks.into_refused();
        preview.vm_mark = Some(mark_of(&seen));
        if intent.verb() == Verb::Restore {
            // A loaded snapshot goes on running where the VM ran before, and a VM that is off stays off.
            preview.overwrites = seen
                .disks
                .iter()
                .map(|disk| PreviewDisk {
                    disk: disk.label.clone(),
                    size: disk.guest_bytes,
                })
                .collect();
            preview.unknown = vec![PreviewPart::Leaves, PreviewPart::Needs];
        }
        if preview.vm.run_state == Some(RunState::Stopped) {
            // Only opening an image for writing shows whether its storage takes writes, and a preview must not.
            preview.unknown.push(PreviewPart::Refused);
        }
        Ok(preview)
    }

    /// Runs the checks of a running VM or of one that is off, and returns the VM as it is.
    async fn check_located(
        &self,
        intent: &Intent,
        paths: &VmPaths,
        checks: &mut Checks,
        by: Deadline,
    ) -> Result<Arc<VmView>, AdapterError> {
        let vm = &intent.target.vm;
        match self.access.locate(vm, paths, by).await? {
            VmMode::Online(monitor) => {
                let seen = self.access.read_online_vm(&monitor, vm, paths, by).await?;
                // Another backup under the id is an answer of its own, as for a read.
                let meant = check::check_meant(&seen.disks, intent);
                meant.map_err(|error| checks.end_with(error))?;
                online::check_change(&monitor, &seen, paths, intent, checks, by).await?;
                Ok(seen)
            }
            VmMode::Offline => {
                let locking = ImageLocking::Shared;
                let seen = self.access.read_offline_vm(vm, paths, locking, by).await?;
                let meant = check::check_meant(&seen.disks, intent);
                meant.map_err(|error| checks.end_with(error))?;
                self.offline()
                    .check_change(intent, paths, checks, by)
                    .await?;
                Ok(seen)
            }
        }
    }
}

/// Which disks the VM has. Not what they hold: the marks that a restore leaves beforehand would change that.
fn mark_of(seen: &VmView) -> String {
    let mut mark = blake3::Hasher::new();
    for disk in &seen.disks {
        let file = disk.file.as_deref().unwrap_or_else(|| "".as_ref());
        for part in [disk.node.as_bytes(), file.as_os_str().as_encoded_bytes()] {
            mark.update(blake3::hash(part).as_bytes());
        }
    }
    mark.finalize().to_hex().to_string()
}
