//! The VMs of one backend that a caller may read, from an id on: listed where the VM manager lists, looked up where ids are named.

use futures_util::StreamExt as _;
use futures_util::stream;

use crate::gate::authn::AuthenticatedCaller;
use crate::gate::handlers::vm_query::VmQuery;
use crate::gate::id_cover::IdCover;
use crate::gate::id_cover::NextIds;
use crate::gate::services::Services;
use crate::model::Action;
use crate::model::BackendName;
use crate::model::Deadline;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::Vm;
use crate::model::VmId;
use crate::model::VmRange;
use crate::model::limits;

/// What was found of one backend.
#[derive(Debug, Default)]
pub(super) struct FoundVms {
    /// In order of their ids.
    pub(super) vms: Vec<Vm>,
    /// The last id up to which everything is known; `None`: there is nothing more.
    pub(super) known_to: Option<VmId>,
    /// Whether something could not be asked.
    pub(super) has_gaps: bool,
    /// Whether the VM manager does not list although the caller may read more than the ids that are named.
    pub(super) is_unlisted: bool,
}

/// One backend, being asked.
pub(super) struct BackendVms<'a> {
    services: &'a Services,
    caller: &'a AuthenticatedCaller,
    backend: &'a BackendName,
    query: &'a VmQuery,
    cover: IdCover,
    /// Everything up to this id was looked at.
    position: Option<VmId>,
    /// The last VM looked at that the caller may read, wanted or not: a place where the list can go on without naming others.
    last_readable: Option<VmId>,
    looked_at: usize,
    looked_up: usize,
    found: FoundVms,
    by: Deadline,
}

impl<'a> BackendVms<'a> {
    /// `cover` has at least every id on the backend that the caller may read.
    pub(super) fn new(
        services: &'a Services,
        caller: &'a AuthenticatedCaller,
        backend: &'a BackendName,
        query: &'a VmQuery,
        cover: IdCover,
    ) -> Self {
        let capability = services.operations.capability(backend);
        let mut asked = Self {
            services,
            caller,
            backend,
            query,
            cover,
            position: query.after.clone(),
            last_readable: None,
            looked_at: 0,
            looked_up: 0,
            found: FoundVms::default(),
            // Not the deadline of the list: a call that the list does not wait for is no failure of the backend.
            by: services.read_deadline(),
        };
        if !capability.is_some_and(|capability| capability.lists_vms) {
            asked.give_up_listing();
        }
        asked
    }

    /// Reads until one more VM than a page has is found, nothing more can be, or enough was looked at.
    pub(super) async fn read(mut self) -> Result<FoundVms, Fault> {
        let needed = usize::from(self.query.limit).saturating_add(1);
        loop {
            if self.found.vms.len() >= needed {
                self.found.known_to = self.found.vms.last().map(|vm| vm.id.clone());
                break;
            }
            let has_looked_enough = self.looked_at >= limits::VMS_LOOKED_AT_MAX
                || self.looked_up >= limits::VM_LOOKUPS_MAX;
            if has_looked_enough && self.last_readable.is_some() {
                self.found.known_to = self.last_readable.take();
                break;
            }
            if self.looked_at >= limits::VMS_PASSED_OVER_MAX {
                self.found.has_gaps = true;
                break;
            }
            let missing = needed.saturating_sub(self.found.vms.len());
            match self.cover.next_after(self.position.as_ref(), missing) {
                None => break,
                Some(NextIds::Single(ids)) => self.look_up(ids).await,
                Some(NextIds::After(after)) => {
                    if !self.list(after, missing).await? {
                        break;
                    }
                }
            }
        }
        Ok(self.found)
    }

    /// From now on only the ids that are named.
    fn give_up_listing(&mut self) {
        self.found.is_unlisted = self.cover.has_prefixes();
        self.cover = self.cover.only_exact();
    }

    /// Reads one page. Says whether there may be more.
    async fn list(&mut self, after: Option<VmId>, missing: usize) -> Result<bool, Fault> {
        let range = VmRange {
            limit: u16::try_from(missing)
                .unwrap_or(u16::MAX)
                .min(limits::PAGE_MAX),
            after: after.clone(),
        };
        let asked = self.services.operations.vms(self.backend, &range, self.by);
        let page = match asked.await {
            Ok(page) => page,
            Err(fault) if fault.kind == FaultKind::Unsupported => {
                self.give_up_listing();
                return Ok(true);
            }
            Err(fault) => return Err(fault),
        };
        self.found.has_gaps |= !page.complete;
        self.looked_at = self.looked_at.saturating_add(page.vms.len().max(1));
        let last = page.vms.last().map(|vm| vm.id.clone());
        for vm in page.vms {
            self.take(vm);
        }
        // A page that does not go on would be read for ever.
        let goes_on = last > after;
        self.position = last.or(after);
        Ok(page.more && goes_on)
    }

    /// Looks ids up that are named one by one. One that cannot be read leaves a gap and not an error: others may be.
    async fn look_up(&mut self, ids: Vec<VmId>) {
        self.position = ids.last().cloned();
        let ids: Vec<VmId> = ids.into_iter().filter(|id| self.may_read(id)).collect();
        self.looked_up = self.looked_up.saturating_add(ids.len());
        // Named in a grant of the caller, or covered by one: it says nothing new.
        let before = self.last_readable.take();
        self.last_readable = ids.last().cloned().or(before);
        let (operations, backend, by) = (&self.services.operations, self.backend, self.by);
        let lookups: Vec<_> = ids
            .iter()
            .map(|id| operations.vm(backend, id, by))
            .collect();
        let lookups: Vec<_> = stream::iter(lookups)
            .buffered(limits::VM_LOOKUPS_AT_ONCE)
            .collect()
            .await;
        for found in lookups {
            match found {
                Ok(vm) => self.take(vm),
                Err(fault) => self.found.has_gaps |= fault.kind != FaultKind::NoSuchVm,
            }
        }
    }

    /// Keeps the VM if it is on this backend, readable and wanted.
    fn take(&mut self, vm: Vm) {
        if !self.may_read(&vm.id) {
            return;
        }
        self.last_readable = Some(vm.id.clone());
        if self.query.fits_name(&vm.name) {
            self.found.vms.push(vm);
        }
    }

    /// Whether requests for this id reach this backend, and the caller may read it.
    fn may_read(&self, id: &VmId) -> bool {
        self.services.placements.find(id) == Some(self.backend)
            && self.caller.rights.actions_on_vm(id).contains(Action::Read)
    }
}
