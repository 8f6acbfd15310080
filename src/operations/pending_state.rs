//! Backups as callers see them: those of the VM manager, with the states that unfinished operations give them.

use std::sync::Arc;

use crate::model::Backup;
use crate::model::BackupId;
use crate::model::BackupPage;
use crate::model::BackupState;
use crate::model::Change;
use crate::model::Identity;
use crate::model::Operation;
use crate::model::Page;

/// The backup with the state that the first unfinished operation on it gives it.
///
/// The operations must be taken before the VM manager is asked for the backup. One that ends in between then leaves a state
/// that is out of date for a moment, instead of a backup that is missing.
pub(crate) fn overlay(mut backup: Backup, unfinished: &[Arc<Operation>]) -> Backup {
    let first = unfinished
        .iter()
        .find(|operation| operation.target().backup == backup.id);
    if let Some(first) = first {
        backup.state = state_during(&first.intent.change);
    }
    backup
}

/// The backup of that id if it is being created.
pub(crate) fn find_planned(id: &BackupId, unfinished: &[Arc<Operation>]) -> Option<Backup> {
    unfinished
        .iter()
        .find(|operation| operation.target().backup == *id)
        .and_then(|operation| planned_backup(operation))
}

/// The page with the states of unfinished operations, and with the backups that are being created in their order.
pub(crate) fn merge_page(
    page: &Page,
    found: BackupPage,
    unfinished: &[Arc<Operation>],
) -> BackupPage {
    let last = found.backups.last().map(|backup| backup.id.clone());
    let mut backups: Vec<Backup> = found
        .backups
        .into_iter()
        .map(|backup| overlay(backup, unfinished))
        .collect();
    for planned in unfinished
        .iter()
        .filter_map(|operation| planned_backup(operation))
    {
        let is_after = page.after.as_ref().is_none_or(|after| planned.id > *after);
        // A backup that sorts behind this page belongs to the next one, if there is one.
        let is_within = !found.more || last.as_ref().is_some_and(|last| planned.id < *last);
        if is_after && is_within && !backups.iter().any(|backup| backup.id == planned.id) {
            backups.push(planned);
        }
    }
    backups.sort_by(|left, right| left.id.cmp(&right.id));
    let limit = usize::from(page.limit.max(1));
    let more = found.more || backups.len() > limit;
    backups.truncate(limit);
    BackupPage { backups, more }
}

const fn state_during(change: &Change) -> BackupState {
    match change {
        Change::Create(_) => BackupState::Creating,
        Change::Update(_) => BackupState::Updating,
        Change::Delete => BackupState::Deleting,
        Change::Restore(_) => BackupState::Restoring,
    }
}

/// The backup that a create will make, as far as it is known. Its identity is not.
fn planned_backup(operation: &Operation) -> Option<Backup> {
    match &operation.intent.change {
        Change::Create(new) => Some(Backup {
            id: operation.target().backup.clone(),
            identity: Identity::new(String::new()),
            name: new.name.clone(),
            description: new.description.clone(),
            kind: new.kind,
            created: operation.created,
            tags: new.tags.clone(),
            state: BackupState::Creating,
            size: None,
            protected: new.protected,
        }),
        Change::Update(_) | Change::Delete | Change::Restore(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::RestoreOptions;
    use crate::operations::testing::backup;
    use crate::operations::testing::new_backup;
    use crate::operations::testing::operation;

    fn with_change(seq: u64, id: &str, change: Change) -> Arc<Operation> {
        let mut operation = operation(seq, "vm", id);
        operation.intent.change = change;
        Arc::new(operation)
    }

    #[test]
    fn the_first_unfinished_operation_gives_the_state() {
        let restore = || Change::Restore(RestoreOptions::default());
        let rows = [
            ("nothing", vec![], BackupState::Available),
            (
                "another backup",
                vec![with_change(1, "c", Change::Delete)],
                BackupState::Available,
            ),
            (
                "delete",
                vec![with_change(1, "b", Change::Delete)],
                BackupState::Deleting,
            ),
            (
                "restore",
                vec![with_change(1, "b", restore())],
                BackupState::Restoring,
            ),
            (
                "restore, then delete",
                vec![
                    with_change(1, "b", restore()),
                    with_change(2, "b", Change::Delete),
                ],
                BackupState::Restoring,
            ),
            (
                "update",
                vec![with_change(
                    1,
                    "b",
                    Change::Update(crate::model::BackupPatch::default()),
                )],
                BackupState::Updating,
            ),
            (
                "it exists, but its create has not ended",
                vec![with_change(1, "b", Change::Create(new_backup("n")))],
                BackupState::Creating,
            ),
        ];
        for (name, unfinished, expected) in rows {
            assert_eq!(overlay(backup("b"), &unfinished).state, expected, "{name}");
        }
    }

    /// A name; after and limit; the backups of the VM manager and whether it has more; the expected page and whether there is more.
    type Row = (
        &'static str,
        Option<&'static str>,
        u16,
        &'static [&'static str],
        bool,
        &'static [&'static str],
        bool,
    );

    const PAGES: [Row; 6] = [
        (
            "last page",
            None,
            9,
            &["b", "e"],
            false,
            &["a", "b", "d", "e", "z"],
            false,
        ),
        ("more behind", None, 2, &["b", "e"], true, &["a", "b"], true),
        (
            "cut by the limit",
            None,
            3,
            &["b", "e"],
            false,
            &["a", "b", "d"],
            true,
        ),
        (
            "after",
            Some("b"),
            9,
            &["e"],
            false,
            &["d", "e", "z"],
            false,
        ),
        (
            "found already",
            None,
            9,
            &["a", "d"],
            false,
            &["a", "d", "z"],
            false,
        ),
        ("nothing found", None, 2, &[], false, &["a", "d"], true),
    ];

    #[test]
    fn pages_stay_ordered_and_bounded() {
        let creates = [
            with_change(1, "d", Change::Create(new_backup("n"))),
            with_change(2, "a", Change::Create(new_backup("n"))),
            with_change(3, "z", Change::Create(new_backup("n"))),
        ];
        for (name, after, limit, found, more, expected, more_expected) in PAGES {
            let page = Page {
                after: after.map(|id| BackupId::new(id).unwrap()),
                limit,
            };
            let found = BackupPage {
                backups: found.iter().map(|id| backup(id)).collect(),
                more,
            };
            let merged = merge_page(&page, found, &creates);
            let ids: Vec<_> = merged
                .backups
                .iter()
                .map(|backup| backup.id.as_str())
                .collect();
            assert_eq!(ids, expected, "{name}: ids");
            assert_eq!(merged.more, more_expected, "{name}: more");
        }
    }
}
