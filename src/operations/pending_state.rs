//! Backups as callers see them: those of the VM manager, with the states that unfinished operations give them.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::model::Backup;
use crate::model::BackupId;
use crate::model::BackupQuery;
use crate::model::BackupSelection;
use crate::model::BackupState;
use crate::model::Change;
use crate::model::Identity;
use crate::model::Operation;
use crate::model::Verb;

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

/// The backups that must be read one by one beside the list, because what the VM manager lists of them may differ from what
/// callers see: those that are being created, and where the list is filtered by state, all that an operation changes. There
/// are few: the queue of a VM is bounded.
pub(crate) fn separate_ids(
    query: &BackupQuery,
    unfinished: &[Arc<Operation>],
) -> BTreeSet<BackupId> {
    let is_separate = |operation: &&Arc<Operation>| {
        query.filter.state.is_some() || operation.verb() == Verb::Create
    };
    let separate = unfinished.iter().filter(is_separate);
    separate
        .map(|operation| operation.target().backup.clone())
        .filter(|id| !query.filter.hidden.contains(id))
        .collect()
}

/// The page of the VM manager with the states of unfinished operations, and with the backups that were read separately in
/// their places.
pub(crate) fn merge_selection(
    query: &BackupQuery,
    found: BackupSelection,
    separate: Vec<Backup>,
    unfinished: &[Arc<Operation>],
) -> BackupSelection {
    let mut backups: Vec<Backup> = found
        .backups
        .into_iter()
        .map(|backup| overlay(backup, unfinished))
        .collect();
    let mut count = found.count;
    for backup in separate {
        if !query.filter.matches(&backup) {
            continue;
        }
        count = count.map(|count| count.saturating_add(1));
        if query.is_after(&backup) {
            backups.push(backup);
        }
    }
    backups.sort_by(|one, other| query.order.compare(one, other));
    // What sorts behind a full page is cut off here, and found again for the next.
    let more = found.more || backups.len() > query.page_length();
    backups.truncate(query.page_length());
    BackupSelection {
        backups,
        more,
        count,
    }
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
    use crate::model::BackupPosition;
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

    const PAGES: [Row; 5] = [
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
        ("nothing found", None, 2, &[], false, &["a", "d"], true),
    ];

    #[test]
    fn pages_stay_ordered_and_bounded() {
        let creates = ["d", "a", "z"].map(|id| with_change(1, id, Change::Create(new_backup("n"))));
        for (name, after, limit, found, more, expected, more_expected) in PAGES {
            let query = BackupQuery {
                after: after.map(|id| BackupPosition::of_id(BackupId::new(id).unwrap())),
                limit,
                count: true,
                ..BackupQuery::default()
            };
            let found = BackupSelection {
                backups: found.iter().map(|id| backup(id)).collect(),
                more,
                count: Some(5),
            };
            let separate = separate_ids(&query, &creates);
            assert_eq!(separate.len(), 3, "{name}: creates are read one by one");
            let planned = separate.iter().filter_map(|id| find_planned(id, &creates));
            let merged = merge_selection(&query, found, planned.collect(), &creates);
            let ids: Vec<_> = merged
                .backups
                .iter()
                .map(|backup| backup.id.as_str())
                .collect();
            assert_eq!(ids, expected, "{name}: ids");
            assert_eq!(merged.more, more_expected, "{name}: more");
            assert_eq!(merged.count, Some(8), "{name}: all are counted");
        }
    }

    #[test]
    fn a_filter_by_state_looks_at_what_callers_see() {
        let unfinished = [
            with_change(1, "b", Change::Delete),
            with_change(2, "c", Change::Create(new_backup("n"))),
        ];
        let rows = [
            (None, &["c"][..], ""),
            (Some(BackupState::Deleting), &["b", "c"], "b"),
            (Some(BackupState::Creating), &["b", "c"], "c"),
            (Some(BackupState::Available), &["b", "c"], ""),
        ];
        for (state, separate, expected) in rows {
            let mut query = BackupQuery::default();
            query.filter.state = state;
            let found = separate_ids(&query, &unfinished);
            let found: Vec<&str> = found.iter().map(BackupId::as_str).collect();
            assert_eq!(found, separate, "{state:?}");
            let read = [
                overlay(backup("b"), &unfinished),
                find_planned(&unfinished[1].target().backup, &unfinished).unwrap(),
            ];
            if state.is_some() {
                let empty = BackupSelection::default();
                let merged = merge_selection(&query, empty, read.to_vec(), &unfinished);
                let ids: String = merged
                    .backups
                    .iter()
                    .map(|backup| backup.id.as_str())
                    .collect();
                assert_eq!(ids, expected, "{state:?}");
            }
        }
    }
}
