//! Opens the configured directories and carries out one request in them.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Instant;

use parking_lot::Mutex;

use crate::adapters::adapter::FindOutcome;
use crate::adapters::files::Config;
use crate::adapters::files::create;
use crate::adapters::files::dir_fd::Dir;
use crate::adapters::files::dir_fd::is_visible;
use crate::adapters::files::edit;
use crate::adapters::files::error::FilesError;
use crate::adapters::files::error::Problem;
use crate::adapters::files::failpoints::Failpoints;
use crate::adapters::files::folder_marks::UnmarkedFolders;
use crate::adapters::files::layout::Layout;
use crate::adapters::files::layout::LockedVm;
use crate::adapters::files::layout::OpenError;
use crate::adapters::files::preview;
use crate::adapters::files::request::Request;
use crate::adapters::files::request::StartOutcome;
use crate::adapters::files::restore;
use crate::adapters::files::watched_vm::list_tombstones;
use crate::model::Backup;
use crate::model::Change;
use crate::model::FaultKind;
use crate::model::Intent;
use crate::model::Preview;
use crate::model::Target;
use crate::model::Timestamp;
use crate::model::VmId;
use crate::public_text;

/// The directories once they could be opened.
#[derive(Debug)]
pub(super) struct Executor {
    config: Config,
    failpoints: Failpoints,
    layout: Mutex<Option<Arc<Layout>>>,
    reported: AtomicBool,
}

impl Executor {
    /// Nothing is opened yet.
    pub(super) const fn new(config: Config, failpoints: Failpoints) -> Self {
        Self {
            config,
            failpoints,
            layout: Mutex::new(None),
            reported: AtomicBool::new(false),
        }
    }

    /// Opens the directories, and removes what is left in them of no use, unless that was done.
    pub(super) fn open(&self) -> Result<Arc<Layout>, OpenError> {
        let mut layout = self.layout.lock();
        if let Some(open) = layout.as_ref() {
            let replaced = open.refuse_replaced();
            self.report(replaced.as_ref().err());
            return replaced
                .map_err(OpenError::Unavailable)
                .map(|()| Arc::clone(open));
        }
        let take = match self.config.new_folders {
            true => UnmarkedFolders::Empty,
            false => UnmarkedFolders::Used,
        };
        let opened = Layout::open(&self.config, take, &self.failpoints);
        if let Err(OpenError::Unavailable(problem)) = &opened {
            self.report(Some(problem));
        }
        let open = Arc::new(opened?);
        self.report(None);
        remove_all_leftovers(&open);
        *layout = Some(Arc::clone(&open));
        Ok(open)
    }

    /// Logs once that the folders are not to be used, and once that they are again.
    fn report(&self, problem: Option<&Problem>) {
        let was_reported = self.reported.swap(problem.is_some(), Ordering::Relaxed);
        match problem {
            Some(problem) if !was_reported => {
                tracing::error!(error = %problem, "a backend's folders cannot be used");
            }
            None if was_reported => tracing::info!("a backend's folders can be used again"),
            Some(_) | None => {}
        }
    }

    /// A backup that was read lately, unless anything that it was read from has changed.
    pub(super) fn cached_backup(&self, target: &Target) -> Option<Backup> {
        // The holder of the lock may be recovering for long; the caller must not wait for that, and reads on a blocking thread.
        let layout = self.layout.try_lock()?.as_ref().map(Arc::clone)?;
        layout.cached_backup(target)
    }

    /// The directories for a request.
    pub(super) fn layout(&self) -> Result<Arc<Layout>, Problem> {
        self.open().map_err(|closed| match closed {
            OpenError::Unavailable(problem) => problem,
            OpenError::Fatal(error) => {
                let text = match error {
                    FilesError::InUse(_) => public_text!("The backend's directories are in use by another gateway or backend. Stop it, then try again."),
                    FilesError::Nested => {
                        public_text!("The backend's `root` and `backups` are nested. Configure two separate directories.")
                    }
                    FilesError::NoOpenat2 => public_text!(
                        "The operating system does not support safe path lookup (openat2). Run the gateway on Linux 5.6 or later."
                    ),
                };
                Problem::new(FaultKind::Unavailable, text)
            }
        })
    }

    /// Checks the request and starts it.
    pub(super) fn start(&self, request: &Request, now: Timestamp) -> Result<StartOutcome, Problem> {
        let layout = self.layout()?;
        let locked = layout.lock_vm(&request.intent.target.vm)?;
        if let Some(vm_backups) = &locked.vm_backups {
            let tombstones = layout.tombstones(&request.intent.target.vm, vm_backups)?;
            edit::remove_leftovers(vm_backups, &tombstones)?;
        }
        let LockedVm { vm, vm_backups } = locked;
        let started = match &request.intent.change {
            Change::Create(new) => {
                restore::refuse_half_done(&vm)?;
                restore::remove_leftovers(&vm)?;
                create::start(&layout, vm, request, new, now)
            }
            Change::Restore(options) => {
                restore::remove_leftovers(&vm)?;
                restore::start(&layout, vm, request, options)
            }
            Change::Update(patch) => edit::update(&layout, request, patch),
            Change::Delete => edit::delete(&layout, request),
        }?;
        Ok(match started {
            StartOutcome::Done => StartOutcome::Done,
            // The folder of the backups stays locked as long.
            StartOutcome::Pending(work) => StartOutcome::Pending(Box::new(move |job| {
                let worked = work(job);
                drop(vm_backups);
                worked
            })),
        })
    }

    /// What a restore or a delete would do. Changes nothing.
    pub(super) fn preview(
        &self,
        intent: &Intent,
        is_reserved: bool,
        now: Instant,
    ) -> Result<Preview, Problem> {
        preview::preview(&*self.layout()?, intent, is_reserved, now)
    }

    /// What a restore is compared with before it is begun again: the state of the VM's disks.
    pub(super) fn fingerprint(&self, vm: &VmId) -> Result<String, Problem> {
        restore::fingerprint(&self.layout()?.vm_dir(vm)?)
    }

    /// What became of a request. Changes nothing.
    pub(super) fn find(&self, request: &Request) -> Result<FindOutcome, Problem> {
        let layout = self.layout()?;
        let found = |done| {
            if done {
                FindOutcome::Done(None)
            } else {
                FindOutcome::NotBegun
            }
        };
        match &request.intent.change {
            Change::Create(_) => create::is_done(&layout, request).map(found),
            Change::Update(_) => edit::is_updated(&layout, request).map(found),
            Change::Delete => edit::is_deleted(&layout, request).map(found),
            Change::Restore(_) => match layout.vm_dir(&request.intent.target.vm) {
                Ok(vm) => restore::find(&vm, request),
                // It was removed as a whole.
                Err(Problem::Refused { fault, .. }) if fault.kind == FaultKind::NoSuchVm => {
                    Ok(FindOutcome::VmChanged)
                }
                Err(problem) => Err(problem),
            },
        }
    }
}

/// Removes what interrupted requests left of no use. Nothing of a swap is done or undone: that is for the request that it belongs to.
fn remove_all_leftovers(layout: &Layout) {
    let names = |dir: &Dir| match dir.names() {
        Ok(names) => names,
        Err(errno) => {
            tracing::error!(%errno, "the folders cannot be listed for what was left in them");
            Vec::new()
        }
    };
    let ids = |names: Vec<std::ffi::CString>| {
        let names = names.into_iter().filter_map(|name| name.into_string().ok());
        let names = names.filter(|name| is_visible(name));
        names
            .filter_map(|name| VmId::new(&name).ok())
            .collect::<Vec<_>>()
    };
    let mut vms = ids(names(&layout.root));
    vms.extend(ids(names(&layout.backups)));
    vms.sort();
    vms.dedup();
    for vm in vms {
        if let Err(problem) = remove_leftovers_of(layout, &vm) {
            tracing::warn!(%vm, problem = problem.log_text(), "what was left of an interrupted change stays for now");
        }
    }
}

fn remove_leftovers_of(layout: &Layout, vm: &VmId) -> Result<(), Problem> {
    match layout.lock_vm(vm) {
        Ok(LockedVm { vm, vm_backups }) => {
            restore::remove_leftovers(&vm)?;
            vm_backups.as_ref().map_or(Ok(()), remove_listed_leftovers)
        }
        // Backups of a VM that is gone.
        Err(Problem::Refused { fault, .. }) if fault.kind == FaultKind::NoSuchVm => layout
            .vm_backups(vm)?
            .as_ref()
            .map_or(Ok(()), remove_listed_leftovers),
        Err(problem) => Err(problem),
    }
}

/// The same in a folder of backups, which nothing has looked at yet.
fn remove_listed_leftovers(vm_backups: &Dir) -> Result<(), Problem> {
    edit::remove_leftovers(vm_backups, &list_tombstones(vm_backups)?)
}
