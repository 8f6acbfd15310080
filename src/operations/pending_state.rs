//! Backups as callers see them: what the VM manager has, with the state that unfinished operations give it.

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
/// The operations must be older than the backup: taken from the ledger before the VM manager was asked, so that
/// one that ends in between leaves a state that is late instead of a backup that is missing.
pub(crate) fn overlaid(mut backup: Backup, unfinished: &[Arc<Operation>]) -> Backup {
    if let Some(first) = unfinished.iter().find(|it| it.target().backup == backup.id) {
        backup.state = state_during(&first.intent.change);
    }
    backup
}

/// The backup of that id if it is being made.
pub(crate) fn in_the_making(id: &BackupId, unfinished: &[Arc<Operation>]) -> Option<Backup> {
    unfinished
        .iter()
        .find(|it| it.target().backup == *id)
        .and_then(|it| planned(it))
}

/// The page with states overlaid and the backups that are being made put in their places.
pub(crate) fn merged(
    wanted: &Page,
    found: BackupPage,
    unfinished: &[Arc<Operation>],
) -> BackupPage {
    let last = found.backups.last().map(|backup| backup.id.clone());
    let mut backups: Vec<Backup> = found
        .backups
        .into_iter()
        .map(|backup| overlaid(backup, unfinished))
        .collect();
    for planned in unfinished.iter().filter_map(|it| planned(it)) {
        let after = wanted.after.as_ref().is_none_or(|it| planned.id > *it);
        // What sorts behind a page that is followed by another one belongs to that one.
        let within = !found.more || last.as_ref().is_some_and(|it| planned.id < *it);
        if after && within && !backups.iter().any(|backup| backup.id == planned.id) {
            backups.push(planned);
        }
    }
    backups.sort_by(|one, other| one.id.cmp(&other.id));
    let limit = usize::from(wanted.limit.max(1));
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

/// What a create will make, as far as it is known.
fn planned(operation: &Operation) -> Option<Backup> {
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

    fn with(seq: u64, id: &str, change: Change) -> Arc<Operation> {
        let mut it = operation(seq, "vm", id);
        it.intent.change = change;
        Arc::new(it)
    }

    #[test]
    fn the_first_unfinished_operation_gives_the_state() {
        let restore = || Change::Restore(RestoreOptions::default());
        let rows = [
            ("nothing", vec![], BackupState::Available),
            (
                "another backup",
                vec![with(1, "c", Change::Delete)],
                BackupState::Available,
            ),
            (
                "delete",
                vec![with(1, "b", Change::Delete)],
                BackupState::Deleting,
            ),
            (
                "restore",
                vec![with(1, "b", restore())],
                BackupState::Restoring,
            ),
            (
                "restore, then delete",
                vec![with(1, "b", restore()), with(2, "b", Change::Delete)],
                BackupState::Restoring,
            ),
            (
                "update",
                vec![with(
                    1,
                    "b",
                    Change::Update(crate::model::BackupPatch::default()),
                )],
                BackupState::Updating,
            ),
            (
                "there, but its create has not ended",
                vec![with(1, "b", Change::Create(new_backup("n")))],
                BackupState::Creating,
            ),
        ];
        for (name, unfinished, expected) in rows {
            assert_eq!(overlaid(backup("b"), &unfinished).state, expected, "{name}");
        }
    }

    /// A name; after, limit, what the VM manager has and whether it has more; what is shown.
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
            with(1, "d", Change::Create(new_backup("n"))),
            with(2, "a", Change::Create(new_backup("n"))),
            with(3, "z", Change::Create(new_backup("n"))),
        ];
        for (name, after, limit, found, more, expected, more_expected) in PAGES {
            let page = Page {
                after: after.map(|it| BackupId::new(it).unwrap()),
                limit,
            };
            let found = BackupPage {
                backups: found.iter().map(|id| backup(id)).collect(),
                more,
            };
            let merged = merged(&page, found, &creates);
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
