//! Which disks of a VM a restore would replace, and which would stay.

use crate::adapters::adapter::AdapterError;
use crate::adapters::libvirt::images::ImageInspection;
use crate::adapters::libvirt::inspector::Inspector;
use crate::adapters::libvirt::loaded_snapshot::LoadedSnapshot;
use crate::model::Deadline;
use crate::model::PreviewDisk;

/// What becomes of the disks of a VM.
#[derive(Debug)]
pub(crate) struct RestoredDisks {
    /// Those that the backup holds.
    pub(crate) overwritten: Vec<PreviewDisk>,
    /// All others.
    pub(crate) left: Vec<String>,
    /// Which VM it is, and where its disks are. Opaque.
    pub(crate) vm_mark: String,
}

impl Inspector {
    /// The disks of the VM as it is now, whatever else is to be said about a restore of it.
    pub(crate) async fn list_restored_disks(
        &self,
        from: &LoadedSnapshot,
        by: Deadline,
    ) -> Result<RestoredDisks, AdapterError> {
        let now = self.read_vm_in_any_state(&from.snapshot.domain, by).await?;
        let held = self.view_saved_disks(&from.xml, &now.live, by).await?;
        let is_held = |target: &str| held.iter().any(|disk| disk.target == target);
        let others = now.live.images.iter().map(|(target, _)| target);
        let left: Vec<String> = others.filter(|target| !is_held(target)).cloned().collect();
        let mut mark = blake3::Hasher::new();
        mark.update(&now.domain.uuid);
        for disk in &now.live.disks {
            // Debug text of plain strings: it only has to be another one for another source.
            mark.update(format!("{:?}", (&disk.target, &disk.source)).as_bytes());
        }
        let overwritten = held.into_iter().map(|disk| PreviewDisk {
            disk: disk.target,
            size: match disk.look {
                Some(ImageInspection::Read(image)) => Some(image.guest_bytes()),
                Some(ImageInspection::Missing | ImageInspection::Unknown(_)) | None => None,
            },
        });
        Ok(RestoredDisks {
            overwritten: overwritten.collect(),
            left,
            vm_mark: mark.finalize().to_hex().to_string(),
        })
    }
}
