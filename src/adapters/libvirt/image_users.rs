//! Who else uses the images of a VM: other VMs, and images that are based on them.

use std::collections::BTreeSet;
use std::path::Path;
use std::path::PathBuf;

use crate::adapters::adapter::AdapterError;
use crate::adapters::libvirt::client::Client;
use crate::adapters::libvirt::definition_checks::refuse;
use crate::adapters::libvirt::definition_xml;
use crate::adapters::libvirt::definition_xml::DomainXml;
use crate::adapters::libvirt::definition_xml::VolumeXml;
use crate::adapters::libvirt::images;
use crate::adapters::libvirt::images::FileMark;
use crate::adapters::libvirt::native::Domain;
use crate::model::Deadline;
use crate::model::FaultKind;
use crate::public_text;

/// Most files beside an image that are looked at.
const FOLDER_ENTRIES_MAX: usize = 4096;

/// An image that a restore would change.
#[derive(Clone, Debug)]
pub(crate) struct RestoredImage {
    /// The disk, as the VM sees it.
    pub(crate) disk: String,
    /// Its image.
    pub(crate) path: PathBuf,
    mark: Option<FileMark>,
}

impl RestoredImage {
    /// The image at this path; whether it is looked at itself is up to the caller.
    pub(crate) async fn new(disk: &str, path: &Path, is_local: bool) -> Self {
        Self {
            disk: disk.to_owned(),
            path: path.to_owned(),
            mark: if is_local {
                images::file_mark(path).await
            } else {
                None
            },
        }
    }

    async fn is(&self, path: &Path, is_local: bool) -> bool {
        if self.path == path {
            return true;
        }
        // Another name of the same file, by a link for instance.
        let (true, Some(mark)) = (is_local, &self.mark) else {
            return false;
        };
        images::file_mark(path)
            .await
            .is_some_and(|other| other.is_same_file(mark))
    }
}

/// Whether this VM alone uses the images.
///
/// # Errors
/// [`FaultKind::Conflict`] naming the disk and who uses it, or whatever keeps libvirt from answering.
pub(crate) async fn check_unshared(
    client: &Client,
    vm: &Domain,
    targets: &[RestoredImage],
    is_local: bool,
    by: Deadline,
) -> Result<(), AdapterError> {
    let all = client.domains(by).await?;
    for other in all.iter().filter(|other| other.uuid != vm.uuid) {
        check_other_vm(client, other, targets, is_local, by).await?;
    }
    for target in targets {
        check_pool_volumes(client, target, is_local, by).await?;
        if is_local {
            check_folder(target).await?;
        }
    }
    Ok(())
}

async fn check_other_vm(
    client: &Client,
    other: &Domain,
    targets: &[RestoredImage],
    is_local: bool,
    by: Deadline,
) -> Result<(), AdapterError> {
    let mut texts = Vec::new();
    if other.id >= 0 {
        // What it uses now, and what it would use after its next start, as libvirt knows it.
        texts.extend(client.domain_xml(other, by).await);
    }
    // A VM that is gone by now uses nothing.
    texts.extend(client.persistent_xml(other, by).await);
    let mut used: BTreeSet<PathBuf> = BTreeSet::new();
    let mut based: BTreeSet<PathBuf> = BTreeSet::new();
    for text in &texts {
        let Ok(read) = DomainXml::read(text) else {
            continue;
        };
        for (_, source) in &read.definition.images {
            used.extend(definition_xml::path_of(source).map(Path::to_owned));
        }
        for disk in &read.definition.disks {
            let backing = disk.backing.iter().flatten();
            based.extend(
                backing
                    .filter_map(definition_xml::path_of)
                    .map(Path::to_owned),
            );
        }
    }
    if is_local {
        for path in &used {
            based.extend(images::chain(path).await);
        }
    }
    let name = &other.name;
    for target in targets {
        for path in &based {
            if target.is(path, is_local).await {
                return Err(refuse(
                    FaultKind::Conflict,
                    public_text!(
                        "The VM {name} is a linked clone: its disk is based on the image of disk {}, and a restore would destroy it. Nothing was changed. Make that VM independent first, or remove it.",
                        target.disk
                    ),
                )
                .because("virsh blockpull makes a linked clone independent"));
            }
        }
        for path in &used {
            if target.is(path, is_local).await {
                return Err(refuse(
                    FaultKind::Conflict,
                    public_text!(
                        "The VM {name} uses the image of disk {} too, and a restore would change it for both. Nothing was changed. Detach the disk from that VM first.",
                        target.disk
                    ),
                ));
            }
        }
    }
    Ok(())
}

async fn check_pool_volumes(
    client: &Client,
    target: &RestoredImage,
    is_local: bool,
    by: Deadline,
) -> Result<(), AdapterError> {
    let Some(path) = target.path.to_str() else {
        return Ok(());
    };
    let all = client.volumes_beside(path, by).await;
    for text in all? {
        let Ok(volume) = VolumeXml::read(&text) else {
            continue;
        };
        if let Some(backing) = &volume.backing
            && target.is(backing, is_local).await
        {
            return Err(based_on(target, &volume.name));
        }
    }
    Ok(())
}

/// Looks at every file in the folder of the image for one that is based on it.
async fn check_folder(target: &RestoredImage) -> Result<(), AdapterError> {
    let Some(folder) = target.path.parent() else {
        return Ok(());
    };
    // A folder that may not be listed says nothing.
    let Ok(mut entries) = tokio::fs::read_dir(folder).await else {
        return Ok(());
    };
    let mut left = FOLDER_ENTRIES_MAX;
    while let Ok(Some(entry)) = entries.next_entry().await {
        left = left.saturating_sub(1);
        if left == 0 {
            break;
        }
        let is_file = entry.file_type().await.is_ok_and(|kind| kind.is_file());
        let path = entry.path();
        if !is_file || path == target.path {
            continue;
        }
        if let Some(backing) = images::chain(&path).await.first()
            && target.is(backing, true).await
        {
            let name = entry.file_name().to_string_lossy().into_owned();
            return Err(based_on(target, &name));
        }
    }
    Ok(())
}

fn based_on(target: &RestoredImage, image: &str) -> AdapterError {
    refuse(
        FaultKind::Conflict,
        public_text!(
            "The image {image} is based on the image of disk {}, and a restore would destroy it. Nothing was changed. Make that image independent first, or remove it.",
            target.disk
        ),
    )
}
