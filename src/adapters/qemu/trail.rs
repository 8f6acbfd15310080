//! What was done to the images of a stopped VM, found out later: by a gateway that comes after one that died.
//!
//! Before a restore every disk is marked, where no guest can write, and then gets a snapshot of our own, so that whoever
//! writes to it from then on changes its tables (see `qcow2.rs`). So each disk tells whether it was restored, and whether
//! anybody used it before or since. Our own snapshots are no backups, are never shown, and go when the restore ends.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde::Serialize;

use crate::adapters::qemu::check;
use crate::adapters::qemu::error::QemuError;
use crate::adapters::qemu::image::Act;
use crate::adapters::qemu::image::Guard;
use crate::adapters::qemu::image::Holds;
use crate::adapters::qemu::image::Mark;
use crate::adapters::qemu::image::QemuImg;
use crate::adapters::qemu::in_use::Stamp;
use crate::adapters::qemu::map;
use crate::adapters::qemu::map::Disk;
use crate::adapters::qemu::qcow2;
use crate::adapters::qemu::qcow2::Kinship;
use crate::model::Fault;

/// What was seen of a stopped VM before a change, part of the baseline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Trail {
    /// Of each disk, which snapshot of the backup's tag it has.
    pub(super) parts: Vec<Option<String>>,
    /// The tag of our own snapshots, of the disks before a restore. None of another change, or of one that may not begin.
    pub(super) own: Option<String>,
    /// The image of each disk, in the order of `parts`. Empty in the trails of earlier versions.
    #[serde(default)]
    pub(super) stamps: Vec<Stamp>,
    /// Why the disks could not be marked: the change is refused for that.
    #[serde(default)]
    pub(super) unmarked: Option<Fault>,
}

impl Trail {
    /// The same in the present order of the images; `None` when one of them is another file by now.
    pub(super) fn aligned(&self, now: &[Stamp]) -> Option<Self> {
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
            let was = |it: &Stamp| it.inode == stamp.inode;
            let at = self.stamps.iter().position(was)?;
            aligned.parts.push(self.parts.get(at)?.clone());
            aligned.stamps.push(self.stamps.get(at)?.clone());
        }
        Some(aligned)
    }

    /// Whether the image of that number changed since; `false` where an earlier version did not note it.
    pub(super) fn has_changed(&self, number: usize, now: &[Stamp]) -> bool {
        self.stamps
            .get(number)
            .is_some_and(|was| Some(was) != now.get(number))
    }
}

/// How far a restore came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Came {
    /// Every disk was restored.
    Through,
    /// No disk was, and none was used.
    Nowhere,
    /// Some disks were restored and others were not, and none was used.
    Half(Split),
    /// Disks were used before every one was restored.
    Used(Split),
    /// There is no telling.
    Unclear,
}

impl Came {
    /// The same where the images are other files by now, whose content says nothing about whether they were used.
    pub(super) fn elsewhere(self, images: &[PathBuf]) -> Self {
        match self {
            Self::Nowhere => Self::Used(Split {
                left: images.to_vec(),
                ..Split::default()
            }),
            Self::Half(split) => Self::Used(split),
            Self::Through | Self::Used(_) | Self::Unclear => self,
        }
    }
}

/// Images by what a restore that was broken off did to them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Split {
    pub(super) restored: Vec<PathBuf>,
    pub(super) left: Vec<PathBuf>,
    pub(super) unclear: Vec<PathBuf>,
}

impl Split {
    /// Whether it is sure that no disk was restored.
    pub(super) fn is_untouched(&self) -> bool {
        self.restored.is_empty() && self.unclear.is_empty()
    }

    /// What happened, as the first part of a sentence: `The restore put back disk a but not disk b`.
    pub(super) fn summary(&self) -> String {
        let labels = |images: &[PathBuf]| {
            let names: Vec<String> = images.iter().map(|image| map::file_name(image)).collect();
            check::listed(&names)
        };
        let (restored, unclear) = (labels(&self.restored), labels(&self.unclear));
        let back = match (self.restored.is_empty(), self.unclear.is_empty()) {
            (false, true) => restored,
            (true, false) => format!("perhaps {unclear}"),
            (false, false) => format!("{restored}, perhaps {unclear}"),
            (true, true) => "no disk".to_owned(),
        };
        let left = labels(&self.left);
        let not = if self.left.is_empty() {
            String::new()
        } else {
            format!(" but not {left}")
        };
        format!("The restore put back {back}{not}")
    }
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
    disks.iter().map(|disk| disk.part(tag)).collect()
}

/// Marks every disk, and returns the tag under which `snapshots` of our own were made as well. Each image is opened for
/// writing before any is marked.
pub(super) async fn mark(
    program: &QemuImg,
    images: &[PathBuf],
    snapshots: bool,
    within: Duration,
) -> Result<String, QemuError> {
    let mut holds = Holds::take(program, images, within).await?;
    let mark = Mark::new()?;
    let own = format!("{}{mark}", map::OWN);
    let mut marked = Ok(());
    for image in images {
        holds.release(image, within).await;
        marked = program.mark(mark, image, within).await;
        if snapshots && marked.is_ok() {
            marked = program.act(Act::Create, &own, image, within).await;
        }
        if marked.is_err() {
            break;
        }
    }
    holds.release_all(within).await;
    if let Err(error) = marked {
        if snapshots && let Ok(disks) = program.disks(images, Guard::Shared, within).await {
            tidy(program, images, &disks, within).await;
        }
        return Err(error);
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
    let mut split = Split::default();
    for (disk, image) in disks.iter().zip(images) {
        let side = match disk {
            Is::Before | Is::BeforeUsed => &mut split.left,
            Is::After | Is::AfterUsed => &mut split.restored,
            Is::Unclear => &mut split.unclear,
        };
        side.push(image.clone());
    }
    if split.left.is_empty() {
        return if split.unclear.is_empty() {
            Came::Through
        } else {
            Came::Unclear
        };
    }
    let is_unused = disks
        .iter()
        .all(|disk| matches!(disk, Is::Before | Is::After));
    if !is_unused {
        return Came::Used(split);
    }
    if split.is_untouched() {
        Came::Nowhere
    } else {
        Came::Half(split)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_far_a_restore_came_is_told_from_each_disk() {
        let (a, b) = (PathBuf::from("a"), PathBuf::from("b"));
        let before = Is::Before;
        let split = |restored: &[&PathBuf], left: &[&PathBuf], unclear: &[&PathBuf]| {
            let owned = |images: &[&PathBuf]| images.iter().map(|image| (*image).clone()).collect();
            Split {
                restored: owned(restored),
                left: owned(left),
                unclear: owned(unclear),
            }
        };
        let rows = [
            ("none", before, before, Came::Nowhere),
            (
                "one",
                Is::After,
                before,
                Came::Half(split(&[&a], &[&b], &[])),
            ),
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
                Came::Used(split(&[], &[&a, &b], &[])),
            ),
            (
                "first used half-way",
                Is::AfterUsed,
                before,
                Came::Used(split(&[&a], &[&b], &[])),
            ),
            (
                "other used half-way",
                Is::After,
                Is::BeforeUsed,
                Came::Used(split(&[&a], &[&b], &[])),
            ),
            (
                "half-way, unclear",
                Is::Unclear,
                before,
                Came::Used(split(&[], &[&b], &[&a])),
            ),
            ("unclear", Is::After, Is::Unclear, Came::Unclear),
        ];
        for (name, one, two, expected) in rows {
            let found = came(&[one, two], &[a.clone(), b.clone()]);
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
                "The restore put back disk a but not disk b",
            ),
            (
                &["a", "c"],
                &["b"],
                &[],
                "The restore put back disks a, c but not disk b",
            ),
            (
                &[],
                &["b"],
                &["a"],
                "The restore put back perhaps disk a but not disk b",
            ),
            (
                &["a"],
                &[],
                &["b"],
                "The restore put back disk a, perhaps disk b",
            ),
        ];
        for (restored, left, unclear, expected) in rows {
            let split = Split {
                restored: paths(restored),
                left: paths(left),
                unclear: paths(unclear),
            };
            assert_eq!(split.summary(), expected, "{split:?}");
        }
    }

    #[test]
    fn a_trail_follows_its_images_into_another_order_and_never_to_another_file() {
        let stamp = |inode: u64, second: i64| {
            serde_json::from_value::<Stamp>(
                serde_json::json!({"inode": inode, "size": 1, "changed": [second, 0]}),
            )
            .unwrap()
        };
        let trail = Trail {
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
        let old: Trail = serde_json::from_str(r#"{"parts": [null], "own": null}"#).unwrap();
        let aligned = old.aligned(&now);
        assert_eq!(aligned, Some(old), "of an earlier version");
    }
}
