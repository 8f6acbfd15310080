//! The backups of a VM, as far as a caller may see them.

use crate::gate::authn::AuthenticatedCaller;
use crate::gate::conditional;
use crate::gate::refusal::Refusal;
use crate::gate::services::Services;
use crate::gate::wire;
use crate::model::Action;
use crate::model::BackendName;
use crate::model::Backup;
use crate::model::Page;
use crate::model::VmId;
use crate::model::limits;

/// Backups that the caller may see, and whether there are more of these.
pub(super) struct VisibleBackups {
    pub(super) backups: Vec<Backup>,
    pub(super) has_more: bool,
}

/// The first page of a list that is read without parameters.
pub(super) const FIRST_PAGE: Page = Page {
    after: None,
    limit: limits::PAGE,
};

/// One page of what the caller may see. Its length and its cursor reveal nothing of backups that the caller may not see,
/// so pages of the backend are read until this one is full.
pub(super) async fn visible_backups(
    services: &Services,
    caller: &AuthenticatedCaller,
    backend: &BackendName,
    vm: &VmId,
    mut page: Page,
) -> Result<VisibleBackups, Refusal> {
    let deadline = services.read_deadline();
    let limit = usize::from(page.limit);
    let mut backups = Vec::new();
    loop {
        let found = services
            .operations
            .backups(backend, vm, &page, deadline)
            .await?;
        page.after = found.backups.last().map(|backup| backup.id.clone());
        for backup in found.backups {
            let allowed = caller.rights.actions_on_backup(vm, &backup.id);
            if !allowed.contains(Action::Read) {
                continue;
            }
            if backups.len() == limit {
                return Ok(VisibleBackups {
                    backups,
                    has_more: true,
                });
            }
            backups.push(backup);
        }
        if !found.more || page.after.is_none() {
            return Ok(VisibleBackups {
                backups,
                has_more: false,
            });
        }
    }
}

/// The entity tag of the list that this caller reads without parameters.
pub(super) async fn list_tag(
    services: &Services,
    caller: &AuthenticatedCaller,
    backend: &BackendName,
    vm: &VmId,
) -> Result<String, Refusal> {
    let found = visible_backups(services, caller, backend, vm, FIRST_PAGE).await?;
    let bytes = wire::backups(services.public_url(), vm, &found.backups);
    Ok(conditional::entity_tag(&bytes))
}

/// Every backup of the VM, whether the caller may see it or not.
pub(super) async fn all_backups(
    services: &Services,
    backend: &BackendName,
    vm: &VmId,
) -> Result<Vec<Backup>, Refusal> {
    let deadline = services.read_deadline();
    let mut page = Page {
        after: None,
        limit: limits::PAGE_MAX,
    };
    let mut all = Vec::new();
    loop {
        let found = services
            .operations
            .backups(backend, vm, &page, deadline)
            .await?;
        page.after = found.backups.last().map(|backup| backup.id.clone());
        all.extend(found.backups);
        if !found.more || page.after.is_none() {
            return Ok(all);
        }
    }
}
