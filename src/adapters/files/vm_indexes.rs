//! The VMs whose backups are kept in memory: those used last, within a limit of memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;
use rustix::io::Errno;

use crate::adapters::files::dir_fd::Dir;
use crate::adapters::files::error::Problem;
use crate::adapters::files::failpoints::Failpoints;
use crate::adapters::files::watched_vm::NotWatched;
use crate::adapters::files::watched_vm::WatchedVm;
use crate::model::Backup;
use crate::model::BackupId;
use crate::model::VmId;
use crate::model::limits::INDEX_BYTES_MAX;
use crate::model::limits::INDEX_VMS_MAX;

/// VMs with fewer backups are read each time: that costs less than a watch for each.
const BACKUPS_MIN: usize = 16;
/// Requests that read the backups of a VM after these could not be watched, before that is tried again.
const SKIPPED_AFTER_FAILURE: u32 = 100;
/// VMs that are remembered as not to be watched.
const SKIPPED_KEPT: usize = 1000;

/// One VM, locked while its backups are read or searched. `None` before they were read, and after that failed.
type VmSlot = Arc<Mutex<Option<WatchedVm>>>;

#[derive(Debug)]
struct IndexTable {
    /// Each with the bytes that it took when it was used last.
    vms: LruCache<VmId, (VmSlot, usize)>,
    /// How many requests are not to try.
    skipped: BTreeMap<VmId, u32>,
    warned: bool,
}

/// The VMs of one backend whose backups are kept in memory.
#[derive(Debug)]
pub(super) struct VmIndexes {
    failpoints: Failpoints,
    table: Mutex<IndexTable>,
}

impl VmIndexes {
    /// Nothing is read yet.
    pub(super) fn new(failpoints: Failpoints) -> Self {
        Self {
            failpoints,
            table: Mutex::new(IndexTable {
                vms: LruCache::new(INDEX_VMS_MAX),
                skipped: BTreeMap::new(),
                warned: false,
            }),
        }
    }

    /// What `answer` finds in the backups of a VM as they are now. `None` where they are not kept: the caller reads the folder
    /// itself. `read` reads one backup. Blocks; the first time, for as long as it takes to read all of them.
    pub(super) fn with_vm<T>(
        &self,
        vm: &VmId,
        vm_backups: &Dir,
        read: impl Fn(&BackupId) -> Result<Option<Backup>, Problem>,
        answer: impl FnOnce(&WatchedVm) -> T,
    ) -> Option<T> {
        let slot = self.find_slot(vm, vm_backups)?;
        let mut watched = slot.lock();
        if watched.as_ref().is_some_and(|kept| !kept.is_of(vm_backups)) {
            *watched = None;
        }
        let refreshed = refresh(&mut watched, vm_backups, &self.failpoints, &read);
        // One that lost events, or whose folder changed its rights, is read anew once.
        let refreshed = match refreshed {
            Err(NotWatched::Watch(Errno::STALE)) => {
                *watched = None;
                refresh(&mut watched, vm_backups, &self.failpoints, &read)
            }
            other => other,
        };
        let answered = match refreshed {
            Ok(()) => watched
                .as_ref()
                .map(|kept| (answer(kept), kept.index().bytes())),
            Err(reason) => {
                *watched = None;
                self.skip(vm, &reason);
                None
            }
        };
        drop(watched);
        let (answer, bytes) = answered?;
        self.note_bytes(vm, bytes);
        Some(answer)
    }

    /// The slot of the VM, made for one that has backups enough.
    fn find_slot(&self, vm: &VmId, vm_backups: &Dir) -> Option<VmSlot> {
        let mut table = self.table.lock();
        if let Some((slot, _)) = table.vms.get(vm) {
            return Some(Arc::clone(slot));
        }
        if let Some(left) = table.skipped.get_mut(vm) {
            *left = left.saturating_sub(1);
            if *left > 0 {
                return None;
            }
            table.skipped.remove(vm);
        }
        drop(table);
        if vm_backups.names().ok()?.len() < BACKUPS_MIN {
            return None;
        }
        let mut table = self.table.lock();
        let (slot, _) = table.vms.get_or_insert(vm.clone(), Default::default);
        Some(Arc::clone(slot))
    }

    fn skip(&self, vm: &VmId, reason: &NotWatched) {
        let mut table = self.table.lock();
        table.vms.pop(vm);
        if table.skipped.len() >= SKIPPED_KEPT {
            table.skipped.clear();
        }
        table.skipped.insert(vm.clone(), SKIPPED_AFTER_FAILURE);
        match reason {
            NotWatched::Watch(errno) if !table.warned => {
                table.warned = true;
                let remedy = match *errno {
                    Errno::NOSPC => "raise fs.inotify.max_user_watches",
                    Errno::MFILE => {
                        "raise fs.inotify.max_user_instances or the limit of open files"
                    }
                    Errno::MLINK => "remove the other names of the manifests",
                    _ => "see the error",
                };
                tracing::warn!(%vm, %errno, remedy, "backups of a VM cannot be watched, every list reads all manifests");
            }
            NotWatched::Watch(errno) => {
                tracing::debug!(%vm, %errno, "backups of a VM cannot be watched");
            }
            NotWatched::Read(problem) => {
                tracing::debug!(%vm, problem = problem.log_text(), "backups of a VM cannot be indexed");
            }
        }
    }

    /// Notes what a VM takes, and forgets others until all fit.
    fn note_bytes(&self, vm: &VmId, bytes: usize) {
        let mut table = self.table.lock();
        if let Some((_, noted)) = table.vms.peek_mut(vm) {
            *noted = bytes;
        }
        let mut all: usize = table.vms.iter().map(|(_, (_, bytes))| *bytes).sum();
        let mut forgotten = Vec::new();
        while all > INDEX_BYTES_MAX
            && let Some((_, (slot, bytes))) = table.vms.pop_lru()
        {
            all = all.saturating_sub(bytes);
            forgotten.push(slot);
        }
        drop(table);
        // The kernel takes a while to remove the watches of a large one.
        drop(forgotten);
    }
}

fn refresh(
    watched: &mut Option<WatchedVm>,
    vm_backups: &Dir,
    failpoints: &Failpoints,
    read: &impl Fn(&BackupId) -> Result<Option<Backup>, Problem>,
) -> Result<(), NotWatched> {
    let kept = match watched {
        Some(kept) => kept,
        None => watched.insert(WatchedVm::new(vm_backups, failpoints)?),
    };
    kept.refresh(vm_backups, read)
}
