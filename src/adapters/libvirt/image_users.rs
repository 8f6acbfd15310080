//! Who else uses the images of a VM: other VMs, and images that are based on them.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::path::PathBuf;

use futures_util::TryStreamExt;
use futures_util::stream::FuturesUnordered;

use crate::adapters::adapter::AdapterError;
use crate::adapters::libvirt::backing_files;
use crate::adapters::libvirt::backing_files::ReferredFile;
use crate::adapters::libvirt::backing_files::ReferredFiles;
use crate::adapters::libvirt::client::Client;
use crate::adapters::libvirt::definition_checks::refuse;
use crate::adapters::libvirt::definition_xml;
use crate::adapters::libvirt::definition_xml::DomainXml;
use crate::adapters::libvirt::definition_xml::VolumeXml;
use crate::adapters::libvirt::images;
use crate::adapters::libvirt::images::FileMark;
use crate::adapters::libvirt::native::Domain;
use crate::adapters::libvirt::native::error_code;
use crate::model::Deadline;
use crate::model::FaultKind;
use crate::public_text;

/// Other VMs that are looked at together: as many calls as libvirtd works on for one client.
const VMS_AT_ONCE: usize = 5;
/// Most files beside an image that are looked at.
const FOLDER_ENTRIES_MAX: usize = 100_000;

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

    /// Whether this file is that image, perhaps under another name, by a link for instance.
    fn is(&self, file: &ReferredFile) -> bool {
        let marks = self.mark.as_ref().zip(file.mark.as_ref());
        self.path == file.path || marks.is_some_and(|(own, other)| own.is_same_file(other))
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
    let mut checks = FuturesUnordered::new();
    for other in all.iter().filter(|other| other.uuid != vm.uuid) {
        if checks.len() >= VMS_AT_ONCE {
            checks.try_next().await?;
        }
        checks.push(check_other_vm(client, other, targets, is_local, by));
    }
    while checks.try_next().await?.is_some() {}
    for target in targets {
        check_pool_volumes(client, target, is_local, by).await?;
        if is_local {
            check_folders(target).await?;
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
    let mut used: BTreeSet<PathBuf> = BTreeSet::new();
    let mut based: BTreeSet<PathBuf> = BTreeSet::new();
    for read in definitions_of(client, other, by).await? {
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
    let used = used.into_iter().collect();
    let based = based.into_iter().collect();
    let ReferredFiles { own: used, below } = refer(used, based, is_local).await?;
    let name = &other.name;
    for target in targets {
        for file in &below {
            if target.is(file) {
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
        for file in &used {
            if target.is(file) {
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

/// What the VM uses now, and what it would use after its next start, as libvirt knows it; nothing of a VM that is gone by now.
///
/// # Errors
/// Its definition cannot be read. It may use any image then.
async fn definitions_of(
    client: &Client,
    vm: &Domain,
    by: Deadline,
) -> Result<Vec<DomainXml>, AdapterError> {
    let name = &vm.name;
    let unknown = || {
        refuse(
            FaultKind::Unavailable,
            public_text!(
                "The definition of the VM {name} could not be read, so it is not known whether it uses a disk of this VM. Nothing was changed. Try again, or allow the gateway to read that VM."
            ),
        )
    };
    let mut texts = vec![client.persistent_xml(vm, by).await];
    if vm.id >= 0 {
        texts.push(client.domain_xml(vm, by).await);
    }
    let mut found = Vec::new();
    for text in texts {
        let text = match text {
            Ok(text) => text,
            Err(error) if error.code() == Some(error_code::NO_DOMAIN) => continue,
            Err(error) if error.code().is_some() => return Err(unknown().because(error)),
            Err(error) => return Err(error.into()),
        };
        let read = DomainXml::read(&text).map_err(|error| unknown().because(error))?;
        found.push(read);
    }
    Ok(found)
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
    let all = all.map_err(|error| match error.code() {
        Some(_) => not_looked_at(error),
        // No answer of libvirt about its volumes, but a connection that failed.
        None => error.into(),
    });
    for found in all? {
        let text = match found.xml {
            Ok(text) => text,
            // Its file was removed without libvirt, which still lists it.
            Err(_) if is_local && is_gone(Path::new(&found.key)).await => continue,
            Err(error) => return Err(volume_unknown(target, &found.name).because(error)),
        };
        let volume = VolumeXml::read(&text).map_err(not_looked_at)?;
        let Some(backing) = volume.backing else {
            continue;
        };
        let files = refer(Vec::new(), vec![backing], is_local).await?;
        if files.below.iter().any(|file| target.is(file)) {
            return Err(based_on(target, &volume.name));
        }
    }
    Ok(())
}

/// Whether there is no file at this path. Whatever else keeps it from being seen is no proof.
async fn is_gone(path: &Path) -> bool {
    path.is_absolute() && matches!(tokio::fs::try_exists(path).await, Ok(false))
}

fn volume_unknown(target: &RestoredImage, name: &str) -> AdapterError {
    refuse(
        FaultKind::Unavailable,
        public_text!(
            "The volume {name} of the storage pool could not be read, so it is not known whether it is based on the image of disk {}. Nothing was changed. Refresh the pool with `virsh pool-refresh`, then try again.",
            target.disk
        ),
    )
}

/// Looks at every file in the folder of the image, and of the file that it leads to, for one that is based on it.
async fn check_folders(target: &RestoredImage) -> Result<(), AdapterError> {
    let mut folders = BTreeSet::new();
    folders.extend(target.path.parent().map(Path::to_owned));
    let real = tokio::fs::canonicalize(&target.path).await.ok();
    folders.extend(real.as_deref().and_then(Path::parent).map(Path::to_owned));
    for folder in folders {
        let based = backing_files::based_in_folder(&folder, FOLDER_ENTRIES_MAX).await;
        let Some(based) = based.map_err(not_looked_at)? else {
            return Err(refuse(
                FaultKind::Conflict,
                public_text!(
                    "The folder of the image of disk {} has more than {FOLDER_ENTRIES_MAX} files, so an image that is based on it may be among them. Nothing was changed. Move the image to a folder with fewer files.",
                    target.disk
                ),
            ));
        };
        for (name, below) in based {
            if target.is(&below) {
                return Err(based_on(target, &name.to_string_lossy()));
            }
        }
    }
    Ok(())
}

/// The files that are used, with all images below them, and those that they are said to be based on. On another host they are
/// known by their names alone.
async fn refer(
    used: Vec<PathBuf>,
    based: Vec<PathBuf>,
    is_local: bool,
) -> Result<ReferredFiles, AdapterError> {
    if is_local {
        let found = backing_files::look_at(used, based).await;
        return found.map_err(not_looked_at);
    }
    Ok(ReferredFiles {
        own: used.into_iter().map(ReferredFile::remote).collect(),
        below: based.into_iter().map(ReferredFile::remote).collect(),
    })
}

fn not_looked_at(error: impl fmt::Display) -> AdapterError {
    let text = public_text!("The images that other VMs use could not be looked at. Try again.");
    refuse(FaultKind::Unavailable, text).because(error)
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
