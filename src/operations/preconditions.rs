//! Checks the preconditions of an operation again, right before the VM manager is called.
//!
//! One operation of a VM runs at a time, so no change through this gateway comes between the check and the call. A change
//! that another program makes on the VM manager in between is not noticed.

use crate::adapters::adapter::Adapter;
use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::Effect;
use crate::model::Backup;
use crate::model::Deadline;
use crate::model::FaultKind;
use crate::model::Operation;
use crate::model::Page;
use crate::model::Precondition;
use crate::model::Target;
use crate::model::Version;
use crate::model::VmId;
use crate::model::limits;

/// Whether every precondition of the operation holds now. Changes nothing.
///
/// # Errors
/// [`FaultKind::PreconditionFailed`] when one does not, or whatever keeps the VM manager from answering; the operation
/// provably was not started by this.
pub(crate) async fn check(
    adapter: &dyn Adapter,
    operation: &Operation,
    by: Deadline,
) -> Result<(), AdapterError> {
    for precondition in &operation.preconditions {
        let holds = match precondition {
            Precondition::BackupUnchanged(version) => {
                let found = read_target(adapter, operation, by).await?;
                found.is_some_and(|backup| Version::of_backup(&backup) == *version)
            }
            Precondition::BackupPresent => read_target(adapter, operation, by).await?.is_some(),
            Precondition::ListUnchanged(version) => {
                read_list_version(adapter, &operation.target().vm, by).await? == *version
            }
            Precondition::PlanUnchanged(version) => {
                make_plan(adapter, operation, by).await? == Some(*version)
            }
        };
        if !holds {
            let fault = precondition.fault();
            return Err(AdapterError::refused(fault.kind, fault.text));
        }
    }
    Ok(())
}

/// The backup that the operation acts on, if it still exists: another one of the same id does not count.
async fn read_target(
    adapter: &dyn Adapter,
    operation: &Operation,
    by: Deadline,
) -> Result<Option<Backup>, AdapterError> {
    let target: &Target = operation.target();
    match adapter.read_backup(target, by).await {
        Ok(found) => {
            let identity = operation.intent.identity.as_ref();
            let is_same = identity.is_none_or(|identity| *identity == found.identity);
            Ok(Some(found).filter(|_| is_same))
        }
        Err(error) if error.fault.kind == FaultKind::NoSuchBackup => Ok(None),
        Err(error) => Err(without_effect(error)),
    }
}

/// The fingerprint of a plan of the operation made now; `None` when there is no such backup any more.
async fn make_plan(
    adapter: &dyn Adapter,
    operation: &Operation,
    by: Deadline,
) -> Result<Option<Version>, AdapterError> {
    let intent = &operation.intent;
    match adapter.preview(intent, by).await {
        Ok(preview) => Ok(Some(preview.fingerprint(&intent.change))),
        Err(error)
            if matches!(
                error.fault.kind,
                FaultKind::NoSuchBackup | FaultKind::NoSuchVm
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(without_effect(error)),
    }
}

async fn read_list_version(
    adapter: &dyn Adapter,
    vm: &VmId,
    by: Deadline,
) -> Result<Version, AdapterError> {
    let mut page = Page {
        after: None,
        limit: limits::PAGE_MAX,
    };
    let mut backups = Vec::new();
    loop {
        let found = adapter
            .list_backups(vm, &page, by)
            .await
            .map_err(without_effect)?;
        page.after = found.backups.last().map(|backup| backup.id.clone());
        backups.extend(found.backups);
        if !found.more || page.after.is_none() {
            return Ok(Version::of_backups(&backups));
        }
    }
}

/// A read has no effect, whatever its error says: the operation provably was not started.
const fn without_effect(mut error: AdapterError) -> AdapterError {
    error.effect = Effect::None;
    error
}
