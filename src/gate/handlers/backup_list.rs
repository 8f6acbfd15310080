//! The backups of a VM, as far as a caller may see them.

use crate::gate::authn::AuthenticatedCaller;
use crate::gate::conditional;
use crate::gate::refusal::Refusal;
use crate::gate::services::Services;
use crate::gate::wire;
use crate::model::Action;
use crate::model::BackendName;
use crate::model::Backup;
use crate::model::BackupId;
use crate::model::BackupQuery;
use crate::model::BackupSelection;
use crate::model::BackupVisibility;
use crate::model::VmId;
use crate::model::limits;

/// What the caller may see of the backups that a query selects. Neither the length of a page nor the count reveals anything of
/// other backups.
pub(super) async fn visible_backups(
    services: &Services,
    caller: &AuthenticatedCaller,
    backend: &BackendName,
    vm: &VmId,
    mut query: BackupQuery,
) -> Result<BackupSelection, Refusal> {
    if !caller.rights.allows_on_all_backups(vm, Action::Read) {
        let (rights, vm) = (caller.rights.clone(), vm.clone());
        let may_read =
            move |backup: &BackupId| rights.actions_on_backup(&vm, backup).contains(Action::Read);
        query.filter.visible = Some(BackupVisibility::new(may_read));
    }
    let deadline = services.read_deadline();
    let found = services.operations.backups(backend, vm, &query, deadline);
    Ok(found.await?)
}

/// The entity tag of the list that this caller reads without parameters.
pub(super) async fn list_tag(
    services: &Services,
    caller: &AuthenticatedCaller,
    backend: &BackendName,
    vm: &VmId,
) -> Result<String, Refusal> {
    let found = visible_backups(services, caller, backend, vm, BackupQuery::default()).await?;
    let bytes = wire::backups(services.public_url(), vm, &found.backups, None);
    Ok(conditional::entity_tag(&bytes))
}

/// Every backup of the VM, whether the caller may see it or not.
pub(super) async fn all_backups(
    services: &Services,
    backend: &BackendName,
    vm: &VmId,
) -> Result<Vec<Backup>, Refusal> {
    let deadline = services.read_deadline();
    let mut query = BackupQuery {
        limit: limits::PAGE_MAX,
        ..BackupQuery::default()
    };
    let mut all: Vec<Backup> = Vec::new();
    loop {
        let found = services
            .operations
            .backups(backend, vm, &query, deadline)
            .await?;
        all.extend(found.backups);
        query.after = all.last().map(|last| query.order.key.position_of(last));
        if !found.more || query.after.is_none() {
            return Ok(all);
        }
    }
}
