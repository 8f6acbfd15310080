//! The adapter's own long work: its progress, its end, and which VM it holds.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use parking_lot::MutexGuard;
use tokio::sync::watch;

use crate::adapters::adapter::TaskState;
use crate::adapters::files::error::Problem;
use crate::model::Fault;
use crate::model::Progress;
use crate::model::VmId;

/// Ended jobs that are remembered, so that a late poll still gets its answer without a look at the disk.
const ENDED_MAX: usize = 1024;

const GOING: u8 = 0;
const CANCELLED: u8 = 1;
const COMMITTED: u8 = 2;

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum JobEnd {
    /// Done.
    Done,
    /// Failed, with nothing left of it.
    Failed(Fault),
    /// Stopped on request, with nothing left of it.
    Cancelled,
    /// The outcome follows from the disk only.
    Lost,
}

impl From<Problem> for JobEnd {
    fn from(problem: Problem) -> Self {
        match problem {
            Problem::Refused { fault, private, .. } => {
                tracing::warn!(fault = %fault.text, error = %private, "change of a VM failed");
                Self::Failed(fault)
            }
            Problem::HalfDone { fault, private } => {
                tracing::error!(fault = %fault.text, error = %private, "change of a VM left half done");
                Self::Failed(fault)
            }
            Problem::Cancelled => Self::Cancelled,
            Problem::Uncertain(private) => {
                tracing::error!(error = %private, "change of a VM interrupted, outcome to be determined");
                Self::Lost
            }
        }
    }
}

/// One piece of work.
#[derive(Debug)]
pub(super) struct Job {
    durable_id: String,
    cancellable: bool,
    course: AtomicU8,
    done: AtomicU64,
    total: AtomicU64,
    end: watch::Sender<Option<JobEnd>>,
}

impl Job {
    /// Work that has not begun.
    pub(super) fn new(durable_id: String, cancellable: bool) -> Self {
        Self {
            durable_id,
            cancellable,
            course: AtomicU8::new(GOING),
            done: AtomicU64::new(0),
            total: AtomicU64::new(0),
            end: watch::Sender::new(None),
        }
    }

    /// How many bytes there are to do.
    pub(super) fn expect(&self, bytes: u64) {
        self.total.store(bytes, Ordering::Relaxed);
    }

    /// So many more bytes are done.
    pub(super) fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Whether to go on.
    pub(super) fn check_cancelled(&self) -> Result<(), Problem> {
        if self.course.load(Ordering::Acquire) == CANCELLED {
            Err(Problem::Cancelled)
        } else {
            Ok(())
        }
    }

    /// The last moment at which it can be cancelled.
    pub(super) fn commit(&self) -> Result<(), Problem> {
        self.switch_course(COMMITTED)
            .map_err(|_was| Problem::Cancelled)
            .map(|_| ())
    }

    /// Asks it to stop, unless it is too late; `false` when it is of a kind that cannot be stopped.
    pub(super) fn cancel(&self) -> bool {
        if self.cancellable && self.switch_course(CANCELLED).is_err() {
            tracing::info!(task = %self.durable_id, "cancel request came too late");
        }
        self.cancellable
    }

    fn switch_course(&self, to: u8) -> Result<u8, u8> {
        self.course
            .compare_exchange(GOING, to, Ordering::AcqRel, Ordering::Acquire)
    }

    /// It ended.
    pub(super) fn finish(&self, end: JobEnd) {
        self.end.send_replace(Some(end));
    }

    /// How it ended, if it has.
    pub(super) fn end(&self) -> Option<JobEnd> {
        self.end.borrow().clone()
    }

    /// Returns once it ended.
    pub(super) async fn ended(&self) {
        // An error would mean that the job is gone, which is an end as well.
        drop(self.end.subscribe().wait_for(Option::is_some).await);
    }

    /// What a poll answers.
    pub(super) fn state(&self) -> TaskState {
        match self.end() {
            Some(JobEnd::Done) => TaskState::Done(None),
            Some(JobEnd::Failed(fault)) => TaskState::Failed(fault),
            Some(JobEnd::Cancelled) => TaskState::Cancelled,
            Some(JobEnd::Lost) => TaskState::Gone,
            None => {
                let total = self.total.load(Ordering::Relaxed);
                let done = self.done.load(Ordering::Relaxed);
                TaskState::Running((total > 0).then(|| Progress::of(done, total)))
            }
        }
    }
}

/// All jobs of one adapter, and the VMs that are held.
#[derive(Debug, Default)]
pub(super) struct Jobs(Mutex<JobTable>);

#[derive(Debug, Default)]
struct JobTable {
    jobs: BTreeMap<String, Arc<Job>>,
    order: VecDeque<String>,
    reserved_vms: BTreeMap<VmId, ()>,
}

/// Holds a VM until it is dropped: nothing else changes it or its backups meanwhile.
#[derive(Debug)]
pub(super) struct VmReservation {
    jobs: Arc<Jobs>,
    vm: VmId,
}

impl Drop for VmReservation {
    fn drop(&mut self) {
        self.jobs.state().reserved_vms.remove(&self.vm);
    }
}

impl Jobs {
    fn state(&self) -> MutexGuard<'_, JobTable> {
        self.0.lock()
    }

    /// Reserves the VM unless it is reserved.
    pub(super) fn reserve_vm(self: &Arc<Self>, vm: &VmId) -> Option<VmReservation> {
        let before = self.state().reserved_vms.insert(vm.clone(), ());
        before.is_none().then(|| VmReservation {
            jobs: Arc::clone(self),
            vm: vm.clone(),
        })
    }

    /// Whether a change of the VM holds it.
    pub(super) fn is_reserved(&self, vm: &VmId) -> bool {
        self.state().reserved_vms.contains_key(vm)
    }

    /// The job of that mark, if it is remembered.
    pub(super) fn find_job(&self, durable_id: &str) -> Option<Arc<Job>> {
        self.state().jobs.get(durable_id).map(Arc::clone)
    }

    /// Starts a job, in place of an ended one of that mark.
    pub(super) fn start(&self, durable_id: &str, cancellable: bool) -> Arc<Job> {
        let job = Arc::new(Job::new(durable_id.to_owned(), cancellable));
        let mut state = self.state();
        state.order.retain(|other| other != durable_id);
        state.order.push_back(durable_id.to_owned());
        state.jobs.insert(durable_id.to_owned(), Arc::clone(&job));
        while state.order.len() > ENDED_MAX {
            let JobTable { jobs, order, .. } = &mut *state;
            let ended = order
                .iter()
                .position(|id| jobs.get(id).is_none_or(|job| job.end().is_some()));
            let Some(oldest) = ended.and_then(|index| order.remove(index)) else {
                break;
            };
            jobs.remove(&oldest);
        }
        job
    }
}
