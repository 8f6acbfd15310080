//! Answers queries for adapters whose VM manager can only list everything.

use crate::adapters::adapter::Adapter;
use crate::adapters::adapter::AdapterError;
use crate::model::BackupQuery;
use crate::model::BackupSelection;
use crate::model::Deadline;
use crate::model::FaultKind;
use crate::model::Page;
use crate::model::VmId;
use crate::model::limits;
use crate::public_text;

/// The answer to a query from the adapter's own list.
///
/// A walk in the order of ids costs what [`Adapter::list_backups`] does. Everything else reads the backups of the VM once, and as
/// many as [`limits::BACKUPS_SEARCHED_MAX`].
///
/// # Errors
/// Those of [`Adapter::list_backups`], and [`FaultKind::Unsupported`] where the VM has more backups.
pub async fn query_by_listing(
    adapter: &dyn Adapter,
    vm: &VmId,
    query: &BackupQuery,
    by: Deadline,
) -> Result<BackupSelection, AdapterError> {
    if query.is_walk_by_id() {
        return walk_by_id(adapter, vm, query, by).await;
    }
    let everything = Page {
        after: None,
        limit: limits::BACKUPS_SEARCHED_MAX,
    };
    let all = adapter.list_backups(vm, &everything, by).await?;
    if all.more {
        return Err(too_many_backups().of_one_vm());
    }
    Ok(query.select(all.backups))
}

/// Reads pages in the order of ids until one page of what may be seen is full.
async fn walk_by_id(
    adapter: &dyn Adapter,
    vm: &VmId,
    query: &BackupQuery,
    by: Deadline,
) -> Result<BackupSelection, AdapterError> {
    let hidden = u16::try_from(query.filter.hidden.len()).unwrap_or(limits::PAGE_MAX);
    let mut page = Page {
        after: query.after.as_ref().map(|after| after.id.clone()),
        // Enough for one look, unless there are backups that the caller may not see.
        limit: query.limit.saturating_add(hidden),
    };
    let mut answer = BackupSelection::default();
    loop {
        let found = adapter.list_backups(vm, &page, by).await?;
        page.after = found.backups.last().map(|backup| backup.id.clone());
        for backup in found.backups {
            if !query.filter.matches(&backup) {
                continue;
            }
            if answer.backups.len() == query.page_length() {
                answer.more = true;
                return Ok(answer);
            }
            answer.backups.push(backup);
        }
        if !found.more || page.after.is_none() {
            return Ok(answer);
        }
        if answer.backups.len() == query.page_length() && query.filter.shows_all_but_hidden() {
            answer.more = true;
            return Ok(answer);
        }
    }
}

/// The refusal of a query that would read more backups than are allowed.
#[must_use]
pub fn too_many_backups() -> AdapterError {
    let most = limits::BACKUPS_SEARCHED_MAX;
    let text = public_text!(
        "The VM has more than {most} backups, which this VM manager cannot filter, sort or count. List them without parameters."
    );
    AdapterError::refused(FaultKind::Unsupported, text)
}
