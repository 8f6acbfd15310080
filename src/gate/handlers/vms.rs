//! The list of VMs over all backends, merged in order of their ids.
//!
//! Each backend is asked for one page from the cursor on, all at the same time, and none is waited for longer than
//! [`limits::VMS_DEADLINE`]. One that does not answer makes the list incomplete and says so; it never fails the list.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream;
use http::header;
use tokio::time::Instant;
use tokio::time::timeout_at;

use crate::gate::authn::AuthenticatedCaller;
use crate::gate::conditional;
use crate::gate::handlers::backend_vms::BackendVms;
use crate::gate::handlers::backend_vms::FoundVms;
use crate::gate::handlers::read::conditional_response;
use crate::gate::handlers::vm_query::VmQuery;
use crate::gate::id_cover::IdCover;
use crate::gate::refusal::Refusal;
use crate::gate::request_body::IncomingBody;
use crate::gate::request_context::AuthenticatedRequest;
use crate::gate::response_draft::ResponseDraft;
use crate::gate::services::Services;
use crate::gate::wire;
use crate::model::Action;
use crate::model::BackendName;
use crate::model::Backup;
use crate::model::BackupOrder;
use crate::model::BackupQuery;
use crate::model::BackupSortKey;
use crate::model::BackupState;
use crate::model::PublicText;
use crate::model::Vm;
use crate::model::VmId;
use crate::model::limits;
use crate::public_text;

/// One page over all backends.
struct MergedVms {
    vms: Vec<(Vm, BackendName)>,
    /// After which id the list goes on.
    next: Option<VmId>,
    gap: Option<PublicText>,
}

pub(in crate::gate) async fn list_vms(
    services: &Services,
    request: &AuthenticatedRequest<'_>,
    body: &mut IncomingBody<'_>,
) -> Result<ResponseDraft, Refusal> {
    let query = VmQuery::parse(request.query, request.received.is_strict)?;
    let media = request.media_type()?;
    body.skip().await?;
    let caller = request.caller;
    let deadline = services.clock.deadline(limits::VMS_DEADLINE);
    let deadline = Instant::from_std(deadline.instant());
    let page = read_page(services, caller, &query, deadline).await;
    let last_backups = read_last_backups(services, caller, &page.vms, deadline).await;
    let shows_backend = caller.rights.observes_everything();
    let entries = page.vms.iter().map(|(vm, backend)| wire::ListedVm {
        vm,
        backend: shows_backend.then_some(backend),
        last_backup: last_backups.get(&vm.id),
    });
    let bytes = wire::vms(services.public_url(), entries, page.gap.as_ref());
    let tag = conditional::entity_tag(&bytes);
    let mut draft = conditional_response(request.headers(), media, bytes, &tag)?;
    if let Some(next) = &page.next {
        draft.set(header::LINK, &query.next_link(next));
    }
    Ok(draft)
}

/// Asks every backend on which the caller may read a VM.
async fn read_page(
    services: &Services,
    caller: &AuthenticatedCaller,
    query: &VmQuery,
    deadline: Instant,
) -> MergedVms {
    let placements = &services.config.placements;
    let backends: BTreeSet<&BackendName> = placements.iter().map(|rule| &rule.backend).collect();
    let readable = caller.rights.readable_vms();
    let asked = backends.into_iter().filter_map(|backend| {
        let cover = readable_on(services, backend, &readable);
        // A backend on which the caller may read nothing is not asked, and its failures say nothing about the list.
        (!cover.is_empty()).then_some((backend, cover))
    });
    let answers = asked.map(|(backend, cover)| async move {
        let reading = BackendVms::new(services, caller, backend, query, cover).read();
        let answer = timeout_at(deadline, reading).await;
        (backend, answer.ok().and_then(Result::ok))
    });
    merge(join_all(answers).await, query)
}

/// What of the readable ids can be on the backend: where a more exact placement leads elsewhere, nothing is.
fn readable_on(services: &Services, backend: &BackendName, readable: &IdCover) -> IdCover {
    let placements = &services.placements;
    let mut cover = IdCover::default();
    let rules = services.config.placements.iter();
    for rule in rules.filter(|rule| rule.backend == *backend) {
        let mut placed = IdCover::new([&rule.pattern]).common(readable);
        placed.retain(
            |beginning| placements.find_beginning(beginning) == Some(backend),
            |id| placements.find(id) == Some(backend),
        );
        cover.add(placed);
    }
    cover
}

/// The first of all that was found, as far as every backend that answered is known.
fn merge(answers: Vec<(&BackendName, Option<FoundVms>)>, query: &VmQuery) -> MergedVms {
    let (mut has_gaps, mut is_unlisted) = (false, false);
    let mut known_to: Option<VmId> = None;
    let mut vms = Vec::new();
    for (backend, answer) in answers {
        let Some(found) = answer else {
            has_gaps = true;
            continue;
        };
        has_gaps |= found.has_gaps;
        is_unlisted |= found.is_unlisted;
        known_to = match (known_to, found.known_to) {
            (Some(one), Some(two)) => Some(one.min(two)),
            (one, two) => one.or(two),
        };
        vms.extend(found.vms.into_iter().map(|vm| (vm, backend.clone())));
    }
    vms.sort_by(|(one, _), (other, _)| one.id.cmp(&other.id));
    // Behind that id another backend may have VMs that were not looked at yet.
    vms.retain(|(vm, _)| known_to.as_ref().is_none_or(|known| vm.id <= *known));
    let limit = usize::from(query.limit);
    let next = if vms.len() > limit {
        vms.truncate(limit);
        vms.last().map(|(vm, _)| vm.id.clone())
    } else {
        known_to
    };
    let gap = match (has_gaps, is_unlisted) {
        (false, false) => None,
        (true, _) => Some(public_text!(
            "Some VM managers did not answer, so VMs may be missing from this list. Try again later."
        )),
        (false, true) => Some(public_text!(
            "Some VM managers do not list their VMs, so VMs may be missing from this list. Read a VM by its id."
        )),
    };
    MergedVms { vms, next, gap }
}

/// The newest backup of each VM of the page, as far as that is known in time. Pages longer than the default have none: each VM
/// costs a list of backups.
async fn read_last_backups(
    services: &Services,
    caller: &AuthenticatedCaller,
    vms: &[(Vm, BackendName)],
    deadline: Instant,
) -> BTreeMap<VmId, Backup> {
    let mut newest = BTreeMap::new();
    if vms.len() > limits::LAST_BACKUPS_MAX {
        return newest;
    }
    let reads = vms.iter().map(|(vm, backend)| async move {
        let backup = read_newest(services, caller, backend, &vm.id).await;
        backup.map(|backup| (vm.id.clone(), backup))
    });
    let reads: Vec<_> = reads.collect();
    let mut reads = stream::iter(reads).buffer_unordered(limits::VM_LOOKUPS_AT_ONCE);
    // What is not known by then is left out.
    while let Ok(Some(read)) = timeout_at(deadline, reads.next()).await {
        newest.extend(read);
    }
    newest
}

/// The newest complete backup that the caller may read; `None` also where a whole page of newer ones is hidden or unfinished.
async fn read_newest(
    services: &Services,
    caller: &AuthenticatedCaller,
    backend: &BackendName,
    vm: &VmId,
) -> Option<Backup> {
    let query = BackupQuery {
        order: BackupOrder {
            key: BackupSortKey::Created,
            descending: true,
        },
        limit: limits::PAGE_MAX,
        ..BackupQuery::default()
    };
    let by = services.read_deadline();
    let found = services
        .operations
        .backups(backend, vm, &query, by)
        .await
        .ok()?;
    let is_shown = |backup: &Backup| {
        let is_complete = match backup.state {
            BackupState::Available | BackupState::Updating | BackupState::Restoring => true,
            BackupState::Creating | BackupState::Deleting | BackupState::Error => false,
        };
        let allowed = caller.rights.actions_on_backup(vm, &backup.id);
        is_complete && allowed.contains(Action::Read)
    };
    found.backups.into_iter().find(is_shown)
}
