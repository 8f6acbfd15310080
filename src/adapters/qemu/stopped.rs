//! What is done to the images of a stopped VM: one `qemu-img` per disk, one disk after the other.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::sync::Notify;

use crate::adapters::port::TaskState;
use crate::adapters::qemu::error;
use crate::adapters::qemu::error::QemuError;
use crate::adapters::qemu::image::Act;
use crate::adapters::qemu::image::Mark;
use crate::adapters::qemu::image::QemuImg;
use crate::model::BackupId;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::Progress;
use crate::model::Target;
use crate::model::Verb;
use crate::model::VmId;
use crate::runtime::Clock;
use crate::runtime::Tasks;

/// Ended work that is remembered; the oldest is forgotten first.
const ENDED_MAX: usize = 1024;

/// One piece of work on the images of one VM.
#[derive(Clone, Debug)]
pub(super) struct Work {
    pub(super) job: String,
    pub(super) verb: Verb,
    pub(super) target: Target,
    pub(super) steps: Vec<Step>,
}

/// One thing done to one image.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) act: Act,
    /// The tag, when it is not the backup's but one of our own: whether that is done or not is no matter.
    pub(super) own: Option<String>,
    pub(super) image: PathBuf,
}

/// All work on images of this process.
#[derive(Debug, Default)]
pub(super) struct Works {
    known: Mutex<BTreeMap<String, Known>>,
    changed: Notify,
}

#[derive(Debug)]
struct Known {
    verb: Verb,
    target: Target,
    began: u64,
    state: State,
}

#[derive(Clone, Debug)]
enum State {
    Running(Progress),
    Done,
    Failed(Fault),
}

impl Works {
    fn known(&self) -> MutexGuard<'_, BTreeMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the work is; `None` when this process knows nothing of it.
    pub(super) fn state(&self, job: &str) -> Option<TaskState> {
        self.known().get(job).map(|it| match it.state.clone() {
            State::Running(progress) => TaskState::Running(Some(progress)),
            State::Done => TaskState::Done,
            State::Failed(fault) => TaskState::Failed(fault),
        })
    }

    /// Backups of the VM that are half made or half gone.
    pub(super) fn hidden(&self, vm: &VmId) -> Vec<BackupId> {
        let known = self.known();
        let half = known.values().filter(|it| {
            matches!(it.state, State::Running(_)) && it.verb == Verb::Create && it.target.vm == *vm
        });
        half.map(|it| it.target.backup.clone()).collect()
    }

    /// Whether work on the VM's images is under way.
    pub(super) fn is_at_work(&self, vm: &VmId) -> bool {
        self.known()
            .values()
            .any(|it| matches!(it.state, State::Running(_)) && it.target.vm == *vm)
    }

    pub(super) async fn stirred(&self) {
        self.changed.notified().await;
    }

    /// Begins, unless it was begun.
    pub(super) fn begin(
        self: &Arc<Self>,
        work: Work,
        program: QemuImg,
        within: Duration,
        clock: Arc<dyn Clock>,
        tasks: &Tasks,
    ) {
        let mut known = self.known();
        if known.contains_key(&work.job) {
            return;
        }
        forget_oldest(&mut known);
        known.insert(
            work.job.clone(),
            Known {
                verb: work.verb,
                target: work.target.clone(),
                began: clock.now().as_millis(),
                state: State::Running(Progress::NONE),
            },
        );
        drop(known);
        let this = Arc::clone(self);
        tasks.spawn(async move {
            let guard = Ended {
                works: &this,
                job: &work.job,
            };
            let state = this.run(&work, &program, within, clock.as_ref()).await;
            guard.works.set(guard.job, state);
        });
    }

    async fn run(
        &self,
        work: &Work,
        program: &QemuImg,
        within: Duration,
        clock: &dyn Clock,
    ) -> State {
        let tag = work.target.backup.as_str();
        let end = clock.deadline(within);
        let count = |it: usize| u64::try_from(it).unwrap_or(u64::MAX);
        for (done, Step { act, own, image }) in work.steps.iter().enumerate() {
            let left = || end.instant().saturating_duration_since(clock.instant());
            let acted = async {
                if *act == Act::Create {
                    // By this a disk to which the backup is restored is known again: see `trail.rs`.
                    program.mark(Mark::new()?, image, left()).await?;
                }
                let tag = own.as_deref().unwrap_or(tag);
                program.act(*act, tag, image, left()).await
            };
            let result = acted.await;
            if let (Err(error), Some(_)) = (&result, own) {
                tracing::warn!(job = work.job, private = %error, "own snapshot not removed");
            } else if let Err(error) = result {
                tracing::warn!(job = work.job, verb = work.verb.as_str(), private = %error, "images not worked on");
                self.undo(work, program, done, within).await;
                return State::Failed(failed(work.verb, &error, done));
            }
            let progress = Progress::of(count(done).saturating_add(1), count(work.steps.len()));
            self.set(&work.job, State::Running(progress));
        }
        State::Done
    }

    /// A backup that could not be made on all disks is removed from those that have it.
    async fn undo(&self, work: &Work, program: &QemuImg, done: usize, within: Duration) {
        let made = work.steps.iter().take(done);
        for Step { image, .. } in made.filter(|it| it.act == Act::Create) {
            let tag = work.target.backup.as_str();
            if let Err(error) = program.act(Act::Delete, tag, image, within).await {
                tracing::warn!(job = work.job, private = %error, "half-made backup not removed");
            }
        }
    }

    fn set(&self, job: &str, state: State) {
        if let Some(known) = self.known().get_mut(job) {
            known.state = state;
        }
        self.changed.notify_waiters();
    }
}

/// Work that ends without having said how has failed.
struct Ended<'a> {
    works: &'a Works,
    job: &'a str,
}

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        if matches!(self.works.state(self.job), Some(TaskState::Running(_))) {
            let text =
                "The work on the VM's images was broken off; look at the VM before you start it.";
            let fault = Fault::new(FaultKind::BackendFailed, text);
            self.works.set(self.job, State::Failed(fault));
        }
    }
}

fn forget_oldest(known: &mut BTreeMap<String, Known>) {
    while known.len() >= ENDED_MAX {
        let ended = known
            .iter()
            .filter(|(_, it)| !matches!(it.state, State::Running(_)));
        let Some(oldest) = ended
            .min_by_key(|(_, it)| it.began)
            .map(|(job, _)| job.clone())
        else {
            return;
        };
        known.remove(&oldest);
    }
}

fn failed(verb: Verb, error: &QemuError, done: usize) -> Fault {
    let fault = match error {
        QemuError::Refused(text) => error::fault(Some(verb), text),
        QemuError::Late => Fault::new(
            FaultKind::TimedOut,
            "The work on the VM's images took too long and was broken off.",
        ),
        QemuError::Absent(_)
        | QemuError::Denied(_)
        | QemuError::Held
        | QemuError::Blocked
        | QemuError::Lost(_)
        | QemuError::Nonsense(_) => Fault::new(
            FaultKind::BackendFailed,
            "The images of the VM could not be worked on.",
        ),
    };
    if verb == Verb::Restore && done > 0 {
        let text = "Some disks were restored and others were not: restore the VM again before it is started.";
        return Fault::new(fault.kind, format!("{} {text}", fault.text));
    }
    fault
}
