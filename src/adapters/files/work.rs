//! One request at the disk: what it is known by, how it starts, and what became of it.

use std::fmt;
use std::fs::File;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use crate::adapters::files::Config;
use crate::adapters::files::change;
use crate::adapters::files::create;
use crate::adapters::files::error::FilesError;
use crate::adapters::files::error::Problem;
use crate::adapters::files::faults::Faults;
use crate::adapters::files::jobs::Job;
use crate::adapters::files::places::Closed;
use crate::adapters::files::places::Places;
use crate::adapters::files::restore;
use crate::adapters::files::tree::Dir;
use crate::adapters::port::Found;
use crate::model::Backup;
use crate::model::Change;
use crate::model::Evidence;
use crate::model::FaultKind;
use crate::model::Intent;
use crate::model::RequestKey;
use crate::model::Target;
use crate::model::Timestamp;
use crate::model::VmId;

/// A wish with what it is known by on the disk.
#[derive(Clone, Debug)]
pub(super) struct Request {
    /// The wish.
    pub(super) intent: Intent,
    /// The request key and what the baseline adds; letters, digits, `-` and `.` only.
    pub(super) mark: String,
}

impl Request {
    /// The request of that key. The random baseline keeps apart two stores that both count from 1.
    pub(super) fn new(intent: &Intent, key: RequestKey, baseline: Option<&Evidence>) -> Self {
        let mark = match baseline {
            Some(evidence) => {
                let short = blake3::hash(evidence.as_str().as_bytes()).to_hex();
                format!("{key}.{short}")
            }
            None => key.to_string(),
        };
        Self {
            intent: intent.clone(),
            mark,
        }
    }
}

/// Files that are closed after the end of the work was told: the last close of an image that was replaced
/// frees its room, which takes long.
pub(super) type Replaced = Vec<File>;

/// What is left to do after a request was checked.
pub(super) type Work = Box<dyn FnOnce(&Job) -> Result<Replaced, Problem> + Send>;

/// How a request started.
pub(super) enum Started {
    /// And ended.
    Done,
    /// This is left to do.
    Work(Work),
}

impl fmt::Debug for Started {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Done => "Done",
            Self::Work(_) => "Work",
        })
    }
}

/// The directories once they could be opened.
#[derive(Debug)]
pub(super) struct Disk {
    config: Config,
    faults: Faults,
    places: Mutex<Option<Arc<Places>>>,
}

impl Disk {
    /// Nothing is opened yet.
    pub(super) const fn new(config: Config, faults: Faults) -> Self {
        Self {
            config,
            faults,
            places: Mutex::new(None),
        }
    }

    /// Opens the directories, and recovers everything, unless that was done.
    pub(super) fn open(&self) -> Result<Arc<Places>, Closed> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = places.as_ref()
            && open.are_current(&self.config)
        {
            return Ok(Arc::clone(open));
        }
        // Lets go of the lock, should these be directories that were moved.
        *places = None;
        let open = Arc::new(Places::open(&self.config, &self.faults)?);
        recover_all(&open);
        *places = Some(Arc::clone(&open));
        Ok(open)
    }

    /// A backup that was read lately, unless anything of it has changed. Does not wait for a disk.
    pub(super) fn recalled(&self, target: &Target) -> Option<Backup> {
        // Who holds it may be recovering. A look of a thread that may block then waits instead.
        let places = self.places.try_lock().ok()?.as_ref().map(Arc::clone)?;
        places.recalled(target)
    }

    /// The directories for a request.
    pub(super) fn places(&self) -> Result<Arc<Places>, Problem> {
        self.open().map_err(|closed| match closed {
            Closed::Problem(problem) => problem,
            Closed::Error(error) => {
                let text = match error {
                    FilesError::InUse => "the backups are in use by another gateway",
                    FilesError::Nested => "the directories of VMs and backups are nested",
                    FilesError::NoOpenat2 => "this system lacks a call that keeps paths safe",
                };
                Problem::new(FaultKind::Unavailable, text)
            }
        })
    }

    /// Recovers the VM, checks the request and starts it.
    pub(super) fn start(&self, request: &Request, now: Timestamp) -> Result<Started, Problem> {
        let places = self.places()?;
        let vm = &request.intent.target.vm;
        if let Some(shelf) = places.shelf(vm)? {
            change::sweep(&shelf)?;
        }
        let recovered = places.vm(vm).and_then(|dir| restore::recover(&dir));
        match &request.intent.change {
            Change::Create(new) => {
                recovered?;
                create::start(&places, request, new, now)
            }
            Change::Restore(options) => {
                recovered?;
                restore::start(&places, request, options)
            }
            Change::Update(patch) => change::update(&places, request, patch),
            Change::Delete => change::delete(&places, request),
        }
    }

    /// Recovers the VM and looks what became of a request.
    pub(super) fn find(&self, request: &Request) -> Result<Found, Problem> {
        let places = self.places()?;
        let vm = &request.intent.target.vm;
        let found = |done| if done { Found::Done } else { Found::NotBegun };
        if let Some(shelf) = places.shelf(vm)? {
            change::sweep(&shelf)?;
        }
        match &request.intent.change {
            Change::Create(_) => create::is_done(&places, request).map(found),
            Change::Update(_) => change::is_updated(&places, request).map(found),
            Change::Delete => change::is_deleted(&places, request).map(found),
            Change::Restore(_) => {
                let dir = places.vm(vm)?;
                match restore::recover(&dir) {
                    Ok(()) => restore::is_done(&dir, &request.mark).map(found),
                    Err(problem) => {
                        tracing::warn!(%vm, problem = problem.in_full(), "a restore cannot be finished yet");
                        Ok(Found::NotYet)
                    }
                }
            }
        }
    }
}

fn recover_all(places: &Places) {
    let vms = |dir: &Dir| match dir.names() {
        Ok(names) => names,
        Err(errno) => {
            tracing::error!(%errno, "directories cannot be listed for recovery");
            Vec::new()
        }
    };
    let ids = |names: Vec<std::ffi::CString>| {
        let text = names.into_iter().filter_map(|name| name.into_string().ok());
        text.filter_map(|name| VmId::new(&name).ok())
            .collect::<Vec<_>>()
    };
    for vm in ids(vms(&places.root)) {
        let recovered = match places.vm(&vm) {
            Ok(dir) => restore::recover(&dir),
            Err(_not_a_vm) => Ok(()),
        };
        if let Err(problem) = recovered {
            tracing::error!(%vm, problem = problem.in_full(), "a VM cannot be recovered yet");
        }
    }
    for vm in ids(vms(&places.backups)) {
        let swept = match places.shelf(&vm) {
            Ok(Some(shelf)) => change::sweep(&shelf),
            Ok(None) | Err(_) => Ok(()),
        };
        if let Err(problem) = swept {
            tracing::error!(%vm, problem = problem.in_full(), "leftovers of a VM cannot be removed yet");
        }
    }
}
