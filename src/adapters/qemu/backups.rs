//! Snapshots as backups: one tag on every disk of the VM is one backup.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::adapters::qemu::disk::Disk;
use crate::adapters::qemu::disk::TagCoverage;
use crate::adapters::qemu::disk::tag_coverage;
use crate::adapters::qemu::identity;
use crate::adapters::qemu::own_names::OWN_SNAPSHOT_PREFIX;
use crate::model::Backup;
use crate::model::BackupId;
use crate::model::BackupKind;
use crate::model::BackupName;
use crate::model::BackupPage;
use crate::model::BackupState;
use crate::model::Page;
use crate::model::Timestamp;

/// The backup of that tag; `None` when it is on no disk, the tag cannot be an id, or it is one of our own.
pub(super) fn find_backup(disks: &[Disk], tag: &str) -> Option<Backup> {
    if tag.starts_with(OWN_SNAPSHOT_PREFIX) {
        return None;
    }
    let state = match tag_coverage(disks, tag)? {
        TagCoverage::Complete => BackupState::Available,
        TagCoverage::Partial | TagCoverage::Duplicated => BackupState::Error,
    };
    let dates = disks
        .iter()
        .flat_map(|disk| disk.snapshots_tagged(tag))
        .map(|part| {
            Duration::from_secs(part.date_sec).saturating_add(Duration::from_nanos(part.date_nsec))
        });
    let created = dates.min()?;
    let size = disks
        .iter()
        .flat_map(|disk| disk.snapshots_tagged(tag))
        .fold(0_u64, |sum, snapshot| {
            sum.saturating_add(snapshot.vm_state_size)
        });
    Some(Backup {
        id: BackupId::new(tag).ok()?,
        identity: identity::identity_of(disks, tag),
        name: BackupName::new(tag).ok()?,
        description: None,
        kind: Some(BackupKind::Snapshot),
        created: Timestamp::default().plus(created),
        tags: Vec::new(),
        state,
        size: (size > 0).then_some(size),
        protected: false,
    })
}

/// The backups of a VM without those that are `hidden`.
pub(super) fn backup_page(disks: &[Disk], wanted: &Page, hidden: &[BackupId]) -> BackupPage {
    let mut found = BTreeMap::new();
    for snapshot in disks.iter().flat_map(|disk| &disk.snapshots) {
        if let Some(backup) = find_backup(disks, &snapshot.name)
            && !hidden.contains(&backup.id)
        {
            found.insert(backup.id.clone(), backup);
        }
    }
    wanted.of(found.into_values())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::qemu::disk::Snapshot;
    use crate::adapters::qemu::disk::disks_with_memory;
    use crate::adapters::qemu::disk::numbered_like;

    /// Number, tag and bytes of memory.
    type Snapshots<'a> = &'a [(&'a str, &'a str, u64)];

    fn disk(node: &str, snapshots: Snapshots<'_>) -> Disk {
        let snapshots = snapshots.iter().map(|(id, name, size)| Snapshot {
            id: (*id).to_owned(),
            name: (*name).to_owned(),
            vm_state_size: *size,
            date_sec: 1_795_438_321,
            date_nsec: 453_200_000,
        });
        Disk {
            node: node.to_owned(),
            label: node.to_owned(),
            file: None,
            obstacle: None,
            snapshots: snapshots.collect(),
            has_bitmaps: false,
            can_snapshot: true,
            guest_bytes: None,
        }
    }

    #[test]
    fn a_tag_makes_a_whole_backup_only_when_on_every_disk_once() {
        let rows: [(&str, Snapshots<'_>, Snapshots<'_>, Option<TagCoverage>); 4] = [
            (
                "both",
                &[("1", "b", 9)],
                &[("4", "b", 0)],
                Some(TagCoverage::Complete),
            ),
            ("one", &[("1", "b", 9)], &[], Some(TagCoverage::Partial)),
            (
                "twice",
                &[("1", "b", 9), ("2", "b", 9)],
                &[("1", "b", 0)],
                Some(TagCoverage::Duplicated),
            ),
            ("none", &[("1", "c", 9)], &[], None),
        ];
        for (name, one, two, expected) in rows {
            let disks = [disk("d0", one), disk("d1", two)];
            assert_eq!(tag_coverage(&disks, "b"), expected, "{name}");
            let state = find_backup(&disks, "b").map(|backup| backup.state);
            let expected = expected.map(|expected| match expected {
                TagCoverage::Complete => BackupState::Available,
                TagCoverage::Partial | TagCoverage::Duplicated => BackupState::Error,
            });
            assert_eq!(state, expected, "{name}: state");
        }
    }

    #[test]
    fn backups_are_listed_in_order_and_in_pages() {
        let disks = [disk(
            "d0",
            &[
                ("3", "c", 5),
                ("1", "a", 7),
                ("2", "b", 0),
                ("4", "d", 1),
                ("5", "snapgate-before-00", 0),
            ],
        )];
        let hidden = [BackupId::new("d").unwrap()];
        let rows: [(Option<&str>, u16, &[&str], bool); 4] = [
            (None, 2, &["a", "b"], true),
            (None, 3, &["a", "b", "c"], false),
            (Some("b"), 5, &["c"], false),
            (Some("c"), 1, &[], false),
        ];
        for (after, limit, expected, more) in rows {
            let after = after.map(|id| BackupId::new(id).unwrap());
            let page = backup_page(
                &disks,
                &Page {
                    after: after.clone(),
                    limit,
                },
                &hidden,
            );
            let ids: Vec<&str> = page
                .backups
                .iter()
                .map(|backup| backup.id.as_str())
                .collect();
            assert_eq!(
                (ids.as_slice(), page.more),
                (expected, more),
                "{after:?} {limit}"
            );
        }
        let first = find_backup(&disks, "a").unwrap();
        assert_eq!(
            first.identity.as_str(),
            "1@1795438321.453200000",
            "identity"
        );
        assert_eq!(first.created.as_millis(), 1_795_438_321_453, "created");
        assert_eq!(
            (first.size, disks_with_memory(&disks, "b").count()),
            (Some(7), 0),
            "sizes"
        );
    }

    #[test]
    fn a_number_that_reads_like_the_tag_is_found_on_any_disk() {
        let disks = [
            disk("d0", &[("1", "2", 9), ("3", "x", 0)]),
            disk("d1", &[("1", "x", 0), ("2", "noon", 0), ("7", "7", 0)]),
        ];
        let rows = [
            ("2", Some("noon")),
            ("7", Some("7")),
            ("noon", None),
            ("9", None),
        ];
        for (tag, expected) in rows {
            let other = numbered_like(&disks, tag).map(|(_, value)| value.name.as_str());
            assert_eq!(other, expected, "{tag}");
        }
    }
}
