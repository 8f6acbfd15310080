//! The state that a change is judged against, and the conditions of the request on it.

use http::HeaderMap;

use crate::gate::conditional;
use crate::gate::conditional::RequiredState;
use crate::gate::handlers::backup_list::all_backups;
use crate::gate::handlers::backup_list::list_tag;
use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::gate::request_context::AuthorizedRequest;
use crate::gate::services::Services;
use crate::gate::wire;
use crate::model::BackendName;
use crate::model::Backup;
use crate::model::BackupFilter;
use crate::model::BackupId;
use crate::model::BackupName;
use crate::model::BackupQuery;
use crate::model::FaultKind;
use crate::model::Intent;
use crate::model::NameFilter;
use crate::model::Precondition;
use crate::model::Target;
use crate::model::Version;
use crate::model::VmId;
use crate::operations::KnownChanges;

/// The conditions of a request, which hold now, and what must hold again when the change is carried out.
#[derive(Default)]
pub(super) struct Conditions {
    pub(super) preconditions: Vec<Precondition>,
    /// The changes that were known before the conditions were checked: one that comes in between is found at acceptance.
    pub(super) known_changes: KnownChanges,
}

/// The backup that a change is about, as it is now, and the conditions of the request, which it meets.
pub(super) async fn read_current_backup(
    services: &Services,
    authorized: &AuthorizedRequest<'_>,
    target: &Target,
) -> Result<(Backup, Conditions), Refusal> {
    let backend = authorized.backend;
    let headers = authorized.request.headers();
    // Before the read: a change that begins after this is not in what is read.
    let known_changes = services.operations.known_changes(backend, &target.vm);
    let deadline = services.read_deadline();
    let found = services.operations.backup(backend, target, deadline).await;
    let current = found.map_err(|fault| {
        let is_absent = fault.kind == FaultKind::NoSuchBackup;
        let refusal = Refusal::from(fault);
        if is_absent {
            conditional::missing_backup(headers, refusal)
        } else {
            refusal
        }
    })?;
    let preconditions = check_backup_conditions(services, headers, &target.vm, &current)?;
    Ok((
        current,
        Conditions {
            preconditions,
            known_changes,
        },
    ))
}

fn check_backup_conditions(
    services: &Services,
    headers: &HeaderMap,
    vm: &VmId,
    current: &Backup,
) -> Result<Vec<Precondition>, Refusal> {
    let tag = || conditional::entity_tag(&wire::backup(services.public_url(), vm, current));
    Ok(match conditional::check_preconditions(headers, tag)? {
        RequiredState::Any => Vec::new(),
        RequiredState::Presence => vec![Precondition::BackupPresent],
        RequiredState::Unchanged => {
            vec![Precondition::BackupUnchanged(Version::of_backup(current))]
        }
    })
}

/// The condition that a plan made now would be the one that the caller looked at.
pub(super) async fn check_plan(
    services: &Services,
    authorized: &AuthorizedRequest<'_>,
    intent: &Intent,
    plan: &str,
) -> Result<Precondition, Refusal> {
    let deadline = services.read_deadline();
    let forecast = services
        .operations
        .preview(authorized.backend, intent, deadline)
        .await;
    let forecast = forecast.map_err(|fault| {
        if matches!(fault.kind, FaultKind::NoSuchBackup | FaultKind::NoSuchVm) {
            // It was there a moment ago.
            Refusal::from(Code::PlanStale)
        } else {
            Refusal::from(fault)
        }
    })?;
    let found = forecast.preview.fingerprint(&intent.change);
    if found.to_string() == plan {
        Ok(Precondition::PlanUnchanged(found))
    } else {
        Err(Refusal::from(Code::PlanStale))
    }
}

/// The conditions of a create, which are about the list of the VM's backups as it is read without parameters.
pub(super) async fn check_list_conditions(
    services: &Services,
    authorized: &AuthorizedRequest<'_>,
    vm: &VmId,
) -> Result<Conditions, Refusal> {
    let backend = authorized.backend;
    let headers = authorized.request.headers();
    if !conditional::is_conditional(headers) {
        return Ok(Conditions::default());
    }
    let known_changes = services.operations.known_changes(backend, vm);
    let tag = list_tag(services, authorized.request.caller, backend, vm).await?;
    let preconditions = match conditional::check_preconditions(headers, || tag)? {
        // There always is a list.
        RequiredState::Any | RequiredState::Presence => Vec::new(),
        RequiredState::Unchanged => {
            let all = all_backups(services, backend, vm).await?;
            vec![Precondition::ListUnchanged(Version::of_backups(&all))]
        }
    };
    Ok(Conditions {
        preconditions,
        known_changes,
    })
}

/// Refuses a name that another backup of the VM has; `own` is the backup that may keep it.
pub(super) async fn check_name_is_free(
    services: &Services,
    backend: &BackendName,
    vm: &VmId,
    name: &BackupName,
    own: Option<&BackupId>,
) -> Result<(), Refusal> {
    let query = BackupQuery {
        filter: BackupFilter {
            name: Some(NameFilter::Exact(name.as_str().to_owned())),
            hidden: own.into_iter().cloned().collect(),
            ..BackupFilter::default()
        },
        limit: 1,
        ..BackupQuery::default()
    };
    let deadline = services.read_deadline();
    let taken = services
        .operations
        .backups(backend, vm, &query, deadline)
        .await?;
    if taken.backups.is_empty() {
        Ok(())
    } else {
        Err(Refusal::from(Code::NameTaken).on("name"))
    }
}
