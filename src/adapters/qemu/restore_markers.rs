//! Marks on the disks of a VM that is off, from which a gateway that comes after one that died learns how far a restore came.
//!
//! Before a restore every disk is marked, where no guest can write, and then gets a snapshot of our own, so that every
//! later write changes its L1 table (see `qcow2.rs`). Each disk then shows whether it was restored, and whether it was
//! used before or since. Our own snapshots are no backups, are never shown, and go when the restore ends.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde::Serialize;

use crate::adapters::qemu::check;
use crate::adapters::qemu::disk::Disk;
use crate::adapters::qemu::disk::file_name;
use crate::adapters::qemu::error::QemuError;
use crate::adapters::qemu::image::DiskMark;
use crate::adapters::qemu::image::HeldImages;
use crate::adapters::qemu::image::ImageLocking;
use crate::adapters::qemu::image::QemuImg;
use crate::adapters::qemu::image::SnapshotAction;
use crate::adapters::qemu::in_use::FileStamp;
use crate::adapters::qemu::own_names;
use crate::adapters::qemu::qcow2;
use crate::adapters::qemu::qcow2::SnapshotRelation;
use crate::model::Fault;

/// What was seen of a stopped VM before a change, part of the baseline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OfflineBaseline {
    /// Of each disk, which snapshot of the backup's tag it has.
    pub(super) parts: Vec<Option<String>>,
    /// The tag of our own snapshots, of the disks before a restore. None of another change, or of one that may not begin.
    pub(super) own: Option<String>,
    /// The image of each disk, in the order of `parts`. Empty in the trails of earlier versions.
    #[serde(default)]
    pub(super) stamps: Vec<FileStamp>,
    /// Why the disks could not be marked: the change is refused for that.
    #[serde(default)]
    pub(super) unmarked: Option<Fault>,
}

impl OfflineBaseline {
    /// The same in the present order of the images; `None` when one of them is another file by now.
    pub(super) fn aligned(&self, now: &[FileStamp]) -> Option<Self> {
        if self.stamps.is_empty() {
            return Some(self.clone());
        }
        if self.stamps.len() != now.len() {
            return None;
        }
        let mut aligned = Self {
            parts: Vec::new(),
            own: self.own.clone(),
            stamps: Vec::new(),
            unmarked: self.unmarked.clone(),
        };
        for stamp in now {
            let was = |value: &FileStamp| value.inode == stamp.inode;
            let at = self.stamps.iter().position(was)?;
            aligned.parts.push(self.parts.get(at)?.clone());
            aligned.stamps.push(self.stamps.get(at)?.clone());
        }
        Some(aligned)
    }

    /// Whether the image of that number changed since; `false` where an earlier version did not note it.
    pub(super) fn has_changed(&self, number: usize, now: &[FileStamp]) -> bool {
        self.stamps
            .get(number)
            .is_some_and(|was| Some(was) != now.get(number))
    }
}

/// How far a restore came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RestoreProgress {
    /// Every disk was restored.
    Complete,
    /// No disk was, and none was used.
    NotStarted,
    /// Some disks were restored and others were not, and none was used.
    Partial(RestoreSplit),
    /// Disks were used before every one was restored.
    DisksUsed(RestoreSplit),
    /// There is no telling.
    Unclear,
}

impl RestoreProgress {
    /// The same where the images are other files by now, whose content says nothing about whether they were used.
    pub(super) fn elsewhere(self, images: &[PathBuf]) -> Self {
        match self {
            Self::NotStarted => Self::DisksUsed(RestoreSplit {
                not_restored: images.to_vec(),
                ..RestoreSplit::default()
            }),
            Self::Partial(split) => Self::DisksUsed(split),
            Self::Complete | Self::DisksUsed(_) | Self::Unclear => self,
        }
    }
}

/// Images by what a restore that was broken off did to them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct RestoreSplit {
    pub(super) restored: Vec<PathBuf>,
    pub(super) not_restored: Vec<PathBuf>,
    pub(super) unclear: Vec<PathBuf>,
}

impl RestoreSplit {
    /// Whether it is sure that no disk was restored.
    pub(super) fn is_untouched(&self) -> bool {
        self.restored.is_empty() && self.unclear.is_empty()
    }

    /// The disks by outcome, for use within a sentence: `restored: disk a; not restored: disk b`.
    pub(super) fn summary(&self) -> String {
        let labels = |images: &[PathBuf]| -> Vec<String> {
            images.iter().map(|image| file_name(image)).collect()
        };
        let (restored, others) = (labels(&self.restored), labels(&self.not_restored));
        check::list_outcomes(&restored, &others, &labels(&self.unclear))
    }
}

/// One disk after a restore began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DiskAfterRestore {
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
    disks.iter().map(|disk| disk.identity_part(tag)).collect()
}

/// Marks every disk, and returns the tag under which `snapshots` of our own were made as well. Each image is opened for
/// writing before any is marked.
pub(super) async fn mark(
    program: &QemuImg,
    images: &[PathBuf],
    snapshots: bool,
    within: Duration,
) -> Result<String, QemuError> {
    let mut holds = HeldImages::take(program, images, within).await?;
    let mark = DiskMark::new()?;
    let own = format!("{}{mark}", own_names::OWN_SNAPSHOT_PREFIX);
    let mut marked = Ok(());
    for image in images {
        holds.release(image, within).await;
        marked = program.mark(mark, image, within).await;
        if snapshots && marked.is_ok() {
            marked = program
                .apply_snapshot_action(SnapshotAction::Create, &own, image, within)
                .await;
        }
        if marked.is_err() {
            break;
        }
    }
    holds.release_all(within).await;
    if let Err(error) = marked {
        if snapshots && let Ok(disks) = program.disks(images, ImageLocking::Shared, within).await {
            delete_own_snapshots(program, images, &disks, within).await;
        }
        return Err(error);
    }
    Ok(own)
}

/// Removes snapshots of our own, also what a gateway that died has left. What fails is left for the next time.
pub(super) async fn delete_own_snapshots(
    program: &QemuImg,
    images: &[PathBuf],
    disks: &[Disk],
    within: Duration,
) {
    for (image, disk) in images.iter().zip(disks) {
        for own in disk.own_tags() {
            if let Err(error) = program
                .apply_snapshot_action(SnapshotAction::Delete, own, image, within)
                .await
            {
                tracing::warn!(%error, snapshot = own, "temporary snapshot not removed");
            }
        }
    }
}

/// How far the restore of the backup of that tag came. Changes nothing.
pub(super) async fn read_restore_progress(
    own: &str,
    images: &[PathBuf],
    tag: &str,
) -> Result<RestoreProgress, QemuError> {
    let mut disks = Vec::with_capacity(images.len());
    for image in images {
        disks.push(match qcow2::relation_to_snapshot(image, own).await? {
            SnapshotRelation::Identical => DiskAfterRestore::Before,
            SnapshotRelation::WrittenSince => DiskAfterRestore::BeforeUsed,
            // Also where it was removed, since it was restored.
            SnapshotRelation::Unclear => match qcow2::relation_to_snapshot(image, tag).await? {
                SnapshotRelation::Identical => DiskAfterRestore::After,
                SnapshotRelation::WrittenSince => DiskAfterRestore::AfterUsed,
                SnapshotRelation::Unclear => DiskAfterRestore::Unclear,
            },
        });
    }
    Ok(restore_progress(&disks, images))
}

fn restore_progress(disks: &[DiskAfterRestore], images: &[PathBuf]) -> RestoreProgress {
    let mut split = RestoreSplit::default();
    for (disk, image) in disks.iter().zip(images) {
        let side = match disk {
            DiskAfterRestore::Before | DiskAfterRestore::BeforeUsed => &mut split.not_restored,
            DiskAfterRestore::After | DiskAfterRestore::AfterUsed => &mut split.restored,
            DiskAfterRestore::Unclear => &mut split.unclear,
        };
        side.push(image.clone());
    }
    if split.not_restored.is_empty() {
        return if split.unclear.is_empty() {
            RestoreProgress::Complete
        } else {
            RestoreProgress::Unclear
        };
    }
    let is_unused = disks
        .iter()
        .all(|disk| matches!(disk, DiskAfterRestore::Before | DiskAfterRestore::After));
    if !is_unused {
        return RestoreProgress::DisksUsed(split);
    }
    if split.is_untouched() {
        RestoreProgress::NotStarted
    } else {
        RestoreProgress::Partial(split)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::too_many_lines, reason = "one story, step by step")]
    fn how_far_a_restore_came_follows_from_each_disk() {
        let (a, b) = (PathBuf::from("a"), PathBuf::from("b"));
        let before = DiskAfterRestore::Before;
        let split = |restored: &[&PathBuf], left: &[&PathBuf], unclear: &[&PathBuf]| {
            let owned = |images: &[&PathBuf]| images.iter().map(|image| (*image).clone()).collect();
            RestoreSplit {
                restored: owned(restored),
                not_restored: owned(left),
                unclear: owned(unclear),
            }
        };
        let rows = [
            ("none", before, before, RestoreProgress::NotStarted),
            (
                "one",
                DiskAfterRestore::After,
                before,
                RestoreProgress::Partial(split(&[&a], &[&b], &[])),
            ),
            (
                "both",
                DiskAfterRestore::After,
                DiskAfterRestore::After,
                RestoreProgress::Complete,
            ),
            (
                "both, used since",
                DiskAfterRestore::AfterUsed,
                DiskAfterRestore::After,
                RestoreProgress::Complete,
            ),
            (
                "all used since",
                DiskAfterRestore::AfterUsed,
                DiskAfterRestore::AfterUsed,
                RestoreProgress::Complete,
            ),
            (
                "used before",
                DiskAfterRestore::BeforeUsed,
                before,
                RestoreProgress::DisksUsed(split(&[], &[&a, &b], &[])),
            ),
            (
                "first used half-way",
                DiskAfterRestore::AfterUsed,
                before,
                RestoreProgress::DisksUsed(split(&[&a], &[&b], &[])),
            ),
            (
                "other used half-way",
                DiskAfterRestore::After,
                DiskAfterRestore::BeforeUsed,
                RestoreProgress::DisksUsed(split(&[&a], &[&b], &[])),
            ),
            (
                "half-way, unclear",
                DiskAfterRestore::Unclear,
                before,
                RestoreProgress::DisksUsed(split(&[], &[&b], &[&a])),
            ),
            (
                "unclear",
                DiskAfterRestore::After,
                DiskAfterRestore::Unclear,
                RestoreProgress::Unclear,
            ),
        ];
        for (name, one, two, expected) in rows {
            let found = restore_progress(&[one, two], &[a.clone(), b.clone()]);
            assert_eq!(found, expected, "{name}");
        }
    }

    #[test]
    fn a_split_names_its_disks() {
        let paths = |names: &[&str]| {
            names
                .iter()
                .map(|name| PathBuf::from("/d").join(name))
                .collect()
        };
        type Names = &'static [&'static str];
        let rows: [(Names, Names, Names, &str); 4] = [
            (
                &["a"],
                &["b"],
                &[],
                "restored: disk a; not restored: disk b",
            ),
            (
                &["a", "c"],
                &["b"],
                &[],
                "restored: disks a, c; not restored: disk b",
            ),
            (&[], &["b"], &["a"], "not restored: disk b; unknown: disk a"),
            (&["a"], &[], &["b"], "restored: disk a; unknown: disk b"),
        ];
        for (restored, left, unclear, expected) in rows {
            let split = RestoreSplit {
                restored: paths(restored),
                not_restored: paths(left),
                unclear: paths(unclear),
            };
            assert_eq!(split.summary(), expected, "{split:?}");
        }
    }

    #[test]
    fn a_trail_follows_its_images_into_another_order_and_never_to_another_file() {
        let stamp = |inode: u64, second: i64| {
            serde_json::from_value::<FileStamp>(
                serde_json::json!({"inode": inode, "size": 1, "changed": [second, 0]}),
            )
            .unwrap()
        };
        let trail = OfflineBaseline {
            parts: vec![Some("1@5.6".to_owned()), None],
            own: None,
            stamps: vec![stamp(7, 1), stamp(8, 1)],
            unmarked: None,
        };
        let other_order = trail.aligned(&[stamp(8, 1), stamp(7, 2)]).unwrap();
        assert_eq!(
            other_order.parts,
            [None, Some("1@5.6".to_owned())],
            "in the present order"
        );
        let now = [stamp(8, 1), stamp(7, 2)];
        assert!(!other_order.has_changed(0, &now), "the same as before");
        assert!(other_order.has_changed(1, &now), "changed since");
        assert_eq!(
            trail.aligned(&[stamp(7, 1), stamp(9, 1)]),
            None,
            "another file"
        );
        assert_eq!(trail.aligned(&[stamp(7, 1)]), None, "one is gone");
        let old: OfflineBaseline =
            serde_json::from_str(r#"{"parts": [null], "own": null}"#).unwrap();
        let aligned = old.aligned(&now);
        assert_eq!(aligned, Some(old), "of an earlier version");
    }
}
