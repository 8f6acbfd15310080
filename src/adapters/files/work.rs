//! One request at the disk: what it is known by, how it starts, and what became of it.

use std::fmt;
use std::fs::File;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use crate::adapters::adapter::FindOutcome;
use crate::adapters::files::Config;
use crate::adapters::files::change;
use crate::adapters::files::create;
use crate::adapters::files::error::FilesError;
use crate::adapters::files::error::Problem;
use crate::adapters::files::faults::Faults;
use crate::adapters::files::jobs::Job;
use crate::adapters::files::marks::Take;
use crate::adapters::files::places::Closed;
use crate::adapters::files::places::Locked;
use crate::adapters::files::places::Places;
use crate::adapters::files::restore;
use crate::adapters::files::tree::Dir;
use crate::adapters::files::tree::is_visible;
use crate::model::Backup;
use crate::model::Change;
use crate::model::Evidence;
use crate::model::FaultKind;
use crate::model::Intent;
use crate::model::RequestKey;
use crate::model::Target;
use crate::model::Timestamp;
use crate::model::VmId;

/// Between the random part of a baseline and the fingerprint of the disks.
const SEPARATOR: char = '.';

/// A wish with what it is known by on the disk.
#[derive(Clone, Debug)]
pub(super) struct Request {
    /// The wish.
    pub(super) intent: Intent,
    /// The request key and what the baseline adds; letters, digits, `-` and `.` only.
    pub(super) mark: String,
    disks_before: Option<String>,
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
        let disks_before = baseline.and_then(|evidence| evidence.as_str().split_once(SEPARATOR));
        Self {
            intent: intent.clone(),
            mark,
            disks_before: disks_before.map(|(_, fingerprint)| fingerprint.to_owned()),
        }
    }

    /// What the baseline saw of the disks, if it looked at them.
    pub(super) fn disks_before(&self) -> Option<&str> {
        self.disks_before.as_deref()
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
    reported: AtomicBool,
}

impl Disk {
    /// Nothing is opened yet.
    pub(super) const fn new(config: Config, faults: Faults) -> Self {
        Self {
            config,
            faults,
            places: Mutex::new(None),
            reported: AtomicBool::new(false),
        }
    }

    /// Opens the directories, and removes what is left in them of no use, unless that was done.
    pub(super) fn open(&self) -> Result<Arc<Places>, Closed> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = places.as_ref() {
            let replaced = open.refuse_replaced();
            self.report(replaced.as_ref().err());
            return replaced.map_err(Closed::Problem).map(|()| Arc::clone(open));
        }
        let take = match self.config.new_folders {
            true => Take::Empty,
            false => Take::Used,
        };
        let opened = Places::open(&self.config, take, &self.faults);
        if let Err(Closed::Problem(problem)) = &opened {
            self.report(Some(problem));
        }
        let open = Arc::new(opened?);
        self.report(None);
        sweep_all(&open);
        *places = Some(Arc::clone(&open));
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
                    FilesError::InUse(_) => "the folders are in use by another gateway or backend",
                    FilesError::Nested => "the directories of VMs and backups are nested",
                    FilesError::NoOpenat2 => "this system lacks a call that keeps paths safe",
                };
                Problem::new(FaultKind::Unavailable, text)
            }
        })
    }

    /// Checks the request and starts it.
    pub(super) fn start(&self, request: &Request, now: Timestamp) -> Result<Started, Problem> {
        let places = self.places()?;
        let locked = places.lock_vm(&request.intent.target.vm)?;
        if let Some(shelf) = &locked.shelf {
            change::sweep(shelf)?;
        }
        let Locked { vm, shelf } = locked;
        let started = match &request.intent.change {
            Change::Create(new) => {
                restore::settle(&vm)?;
                restore::sweep(&vm)?;
                create::start(&places, vm, request, new, now)
            }
            Change::Restore(options) => {
                restore::sweep(&vm)?;
                restore::start(&places, vm, request, options)
            }
            Change::Update(patch) => change::update(&places, request, patch),
            Change::Delete => change::delete(&places, request),
        }?;
        Ok(match started {
            Started::Done => Started::Done,
            // The folder of the backups stays locked as long.
            Started::Work(work) => Started::Work(Box::new(move |job| {
                let worked = work(job);
                drop(shelf);
                worked
            })),
        })
    }

    /// What a restore is compared with before it is begun again: the state of the VM's disks.
    pub(super) fn fingerprint(&self, vm: &VmId) -> Result<String, Problem> {
        restore::fingerprint(&self.places()?.vm(vm)?)
    }

    /// What became of a request. Changes nothing.
    pub(super) fn find(&self, request: &Request) -> Result<FindOutcome, Problem> {
        let places = self.places()?;
        let found = |done| {
            if done {
                FindOutcome::Done
            } else {
                FindOutcome::NotBegun
            }
        };
        match &request.intent.change {
            Change::Create(_) => create::is_done(&places, request).map(found),
            Change::Update(_) => change::is_updated(&places, request).map(found),
            Change::Delete => change::is_deleted(&places, request).map(found),
            Change::Restore(_) => match places.vm(&request.intent.target.vm) {
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

/// The part of a baseline about one restore.
pub(super) fn evidence(random: &str, fingerprint: &str) -> String {
    format!("{random}{SEPARATOR}{fingerprint}")
}

/// Removes what interrupted requests left of no use. Nothing of a swap is done or undone: that is for the request that it belongs to.
fn sweep_all(places: &Places) {
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
    let mut vms = ids(names(&places.root));
    vms.extend(ids(names(&places.backups)));
    vms.sort();
    vms.dedup();
    for vm in vms {
        if let Err(problem) = sweep_one(places, &vm) {
            tracing::warn!(%vm, problem = problem.in_full(), "what was left of an interrupted change stays for now");
        }
    }
}

fn sweep_one(places: &Places, vm: &VmId) -> Result<(), Problem> {
    match places.lock_vm(vm) {
        Ok(Locked { vm, shelf }) => {
            restore::sweep(&vm)?;
            shelf.as_ref().map_or(Ok(()), change::sweep)
        }
        // Backups of a VM that is gone.
        Err(Problem::Refused { fault, .. }) if fault.kind == FaultKind::NoSuchVm => {
            places.shelf(vm)?.as_ref().map_or(Ok(()), change::sweep)
        }
        Err(problem) => Err(problem),
    }
}
