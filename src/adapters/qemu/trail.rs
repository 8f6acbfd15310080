//! What was done to the images of a stopped VM, found out later: by a gateway that comes after one that died.
//!
//! Before a restore every disk is marked, where no guest can write, and then gets a snapshot of our own, so that whoever
//! writes to it from then on changes its tables (see `qcow2.rs`). So each disk tells whether it was restored, and whether
//! anybody used it before or since. Our own snapshots are no backups, are never shown, and go when the restore ends.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde::Serialize;

use crate::adapters::qemu::error::QemuError;
use crate::adapters::qemu::image::Act;
use crate::adapters::qemu::image::Mark;
use crate::adapters::qemu::image::QemuImg;
use crate::adapters::qemu::map;
use crate::adapters::qemu::map::Disk;
use crate::adapters::qemu::qcow2;
use crate::adapters::qemu::qcow2::Kinship;

/// What was seen of a stopped VM before a change, part of the baseline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Trail {
    /// Of each disk, which snapshot of the backup's tag it has.
    pub(super) parts: Vec<Option<String>>,
    /// The tag of our own snapshots, of the disks before a restore. None of another change, or of one that may not begin.
    pub(super) own: Option<String>,
}

/// How far a restore came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Came {
    /// Every disk was restored.
    Through,
    /// No disk was, and nobody used them.
    Nowhere,
    /// These disks were not, the others were, and nobody used any of them.
    Half(Vec<PathBuf>),
    /// Somebody used the disks before every one was restored. Whether any was.
    Used(Restored),
    /// There is no telling.
    Unclear,
}

/// Whether disks were restored before somebody used them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Restored {
    None,
    Some,
}

/// One disk after a restore began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Is {
    /// Not restored, and as it was.
    Before,
    /// Not restored, and written to.
    BeforeUsed,
    /// Restored, and as it was then.
    After,
    /// Restored, and written to since.
    AfterUsed,
    Unclear,
}

/// Which snapshot of that tag each disk has.
pub(super) fn parts(disks: &[Disk], tag: &str) -> Vec<Option<String>> {
    disks.iter().map(|it| it.part(tag)).collect()
}

/// Marks every disk, makes a snapshot of each, and returns its tag. Takes QEMU's own lock on each.
pub(super) async fn mark(
    program: &QemuImg,
    images: &[PathBuf],
    within: Duration,
) -> Result<String, QemuError> {
    let mark = Mark::new()?;
    let own = format!("{}{mark}", map::OWN);
    for image in images {
        program.mark(mark, image, within).await?;
        program.act(Act::Create, &own, image, within).await?;
    }
    Ok(own)
}

/// Removes snapshots of our own, also what a gateway that died has left. What fails is left for the next time.
pub(super) async fn tidy(program: &QemuImg, images: &[PathBuf], disks: &[Disk], within: Duration) {
    for (image, disk) in images.iter().zip(disks) {
        for own in disk.own() {
            if let Err(error) = program.act(Act::Delete, own, image, within).await {
                tracing::warn!(private = %error, "own snapshot not removed");
            }
        }
    }
}

/// How far the restore of the backup of that tag came, told without any change.
pub(super) async fn followed(own: &str, images: &[PathBuf], tag: &str) -> Result<Came, QemuError> {
    let mut disks = Vec::with_capacity(images.len());
    for image in images {
        disks.push(match qcow2::kinship(image, own).await? {
            Kinship::Same => Is::Before,
            Kinship::Descends => Is::BeforeUsed,
            // Also where it was removed, since it was restored.
            Kinship::Unclear => match qcow2::kinship(image, tag).await? {
                Kinship::Same => Is::After,
                Kinship::Descends => Is::AfterUsed,
                Kinship::Unclear => Is::Unclear,
            },
        });
    }
    Ok(came(&disks, images))
}

fn came(disks: &[Is], images: &[PathBuf]) -> Came {
    let is_before = |it: &Is| matches!(it, Is::Before | Is::BeforeUsed);
    let before = disks.iter().filter(|it| is_before(it)).count();
    if before == 0 {
        let is_unclear = disks.contains(&Is::Unclear);
        return if is_unclear {
            Came::Unclear
        } else {
            Came::Through
        };
    }
    let restored = if before == disks.len() {
        Restored::None
    } else {
        Restored::Some
    };
    let is_unused = disks.iter().all(|it| matches!(it, Is::Before | Is::After));
    match restored {
        _ if !is_unused => Came::Used(restored),
        Restored::None => Came::Nowhere,
        Restored::Some => {
            let left = disks.iter().zip(images).filter(|(it, _)| is_before(it));
            Came::Half(left.map(|(_, image)| image.clone()).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_far_a_restore_came_is_told_from_each_disk() {
        let (a, b) = (PathBuf::from("a"), PathBuf::from("b"));
        let before = Is::Before;
        let half = || Came::Half(vec![b.clone()]);
        let rows = [
            ("none", before, before, Came::Nowhere),
            ("one", Is::After, before, half()),
            ("both", Is::After, Is::After, Came::Through),
            ("both, used since", Is::AfterUsed, Is::After, Came::Through),
            (
                "all used since",
                Is::AfterUsed,
                Is::AfterUsed,
                Came::Through,
            ),
            (
                "used before",
                Is::BeforeUsed,
                before,
                Came::Used(Restored::None),
            ),
            (
                "first used half-way",
                Is::AfterUsed,
                before,
                Came::Used(Restored::Some),
            ),
            (
                "other used half-way",
                Is::After,
                Is::BeforeUsed,
                Came::Used(Restored::Some),
            ),
            (
                "half-way, unclear",
                Is::Unclear,
                before,
                Came::Used(Restored::Some),
            ),
            ("unclear", Is::After, Is::Unclear, Came::Unclear),
        ];
        for (name, one, two, expected) in rows {
            let found = came(&[one, two], &[a.clone(), b.clone()]);
            assert_eq!(found, expected, "{name}");
        }
    }
}
