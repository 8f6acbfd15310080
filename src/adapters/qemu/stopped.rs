//! What is done to the images of a stopped VM: one `qemu-img` per disk, one disk after the other.

use std::collections::BTreeMap;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::sync::Notify;

use crate::adapters::adapter::TaskState;
use crate::adapters::qemu::check;
use crate::adapters::qemu::error;
use crate::adapters::qemu::error::QemuError;
use crate::adapters::qemu::image::Act;
use crate::adapters::qemu::image::Holds;
use crate::adapters::qemu::image::QemuImg;
use crate::adapters::qemu::in_use;
use crate::adapters::qemu::map;
use crate::adapters::qemu::qcow2;
use crate::adapters::qemu::qcow2::Kinship;
use crate::adapters::qemu::trail::Split;
use crate::model::BackupId;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::Progress;
use crate::model::Target;
use crate::model::Verb;
use crate::model::VmId;
use crate::runtime::Clock;
use crate::runtime::Tasks;

/// How long a program of ours may take to let go of an image.
const RELEASE: Duration = Duration::from_secs(10);
/// Ended work that is remembered; the oldest is forgotten first.
const ENDED_MAX: usize = 1024;

/// One piece of work on the images of one VM.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) job: String,
    pub(super) verb: Verb,
    pub(super) target: Target,
    pub(super) steps: Vec<Step>,
    /// Every image of the VM.
    pub(super) images: Vec<PathBuf>,
    /// What keeps other programs off the images until each is worked on.
    pub(super) held: Holds,
    /// The tag of our own snapshots of what the disks were before.
    pub(super) before: Option<String>,
}

/// One thing done to one image.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) act: Act,
    /// The tag; the number where a snapshot is applied, because a tag may read like another one's number.
    pub(super) name: String,
    /// Whether it is about a snapshot of our own: whether that is done or not is no matter.
    pub(super) own: bool,
    pub(super) image: PathBuf,
    /// The image's file as it was checked.
    pub(super) inode: u64,
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
        half.map(|half| half.target.backup.clone()).collect()
    }

    /// Whether work on the VM's images is under way.
    pub(super) fn is_at_work(&self, vm: &VmId) -> bool {
        self.known()
            .values()
            .any(|it| matches!(it.state, State::Running(_)) && it.target.vm == *vm)
    }

    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Begins, unless it was begun.
    pub(super) fn begin(
        self: &Arc<Self>,
        mut work: Work,
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
                job: work.job.clone(),
            };
            let state = this.run(&mut work, &program, within, clock.as_ref()).await;
            std::mem::take(&mut work.held).release_all(RELEASE).await;
            guard.works.set(&guard.job, state);
        });
    }

    async fn run(
        &self,
        work: &mut Work,
        program: &QemuImg,
        within: Duration,
        clock: &dyn Clock,
    ) -> State {
        let end = clock.deadline(within);
        let left = || end.instant().saturating_duration_since(clock.instant());
        let count = |it: usize| u64::try_from(it).unwrap_or(u64::MAX);
        for (done, step) in work.steps.iter().enumerate() {
            work.held.release(&step.image, left()).await;
            let acted = async {
                is_same_file(step).await?;
                program.act(step.act, &step.name, &step.image, left()).await
            };
            match acted.await {
                Ok(()) => {}
                Err(error) if step.own => {
                    tracing::warn!(job = work.job, private = %error, "own snapshot not removed");
                }
                Err(error) => {
                    tracing::warn!(job = work.job, verb = work.verb.as_str(), private = %error, "images not worked on");
                    let held = std::mem::take(&mut work.held);
                    held.release_all(RELEASE).await;
                    let after = After {
                        work,
                        program,
                        within,
                    };
                    let outcome = match work.verb {
                        Verb::Create => after.failed_create(done).await,
                        Verb::Delete => after.failed_delete(done),
                        Verb::Restore => after.failed_restore().await,
                        Verb::Update => String::new(),
                    };
                    let fault = reason(work.verb, &error);
                    let text = format!("{} {outcome}", fault.text);
                    return State::Failed(Fault::new(fault.kind, text.trim_end()));
                }
            }
            let rest = work.steps.iter().skip(done.saturating_add(1));
            if rest.clone().any(|it| !it.own && it.image != step.image) {
                work.held.take_again(program, &step.image, left()).await;
            }
            let progress = Progress::of(count(done).saturating_add(1), count(work.steps.len()));
            self.set(&work.job, State::Running(progress));
        }
        State::Done
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
    job: String,
}

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        if matches!(self.works.state(&self.job), Some(TaskState::Running(_))) {
            let text =
                "The work on the VM's images was broken off; look at the VM before you start it.";
            let fault = Fault::new(FaultKind::BackendFailed, text);
            self.works.set(&self.job, State::Failed(fault));
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

/// Whether the file that was checked is still at the image's path.
async fn is_same_file(step: &Step) -> Result<(), QemuError> {
    let now = in_use::stamps(std::slice::from_ref(&step.image)).await?;
    if now.first().is_some_and(|now| now.inode == step.inode) {
        return Ok(());
    }
    Err(QemuError::Replaced(step.image.display().to_string()))
}

fn reason(verb: Verb, error: &QemuError) -> Fault {
    match error {
        QemuError::Refused(text) => error::fault(Some(verb), text),
        QemuError::Late => Fault::new(
            FaultKind::TimedOut,
            "The work on the VM's images took too long and was stopped.",
        ),
        QemuError::Absent(_)
        | QemuError::Missing(_)
        | QemuError::Replaced(_)
        | QemuError::Denied(_)
        | QemuError::Held
        | QemuError::Blocked
        | QemuError::Lost(_)
        | QemuError::Nonsense(_) => error.clone().of_read().fault,
    }
}

/// Images in a sentence.
fn listed<'a>(images: impl Iterator<Item = &'a PathBuf>) -> String {
    let labels: Vec<String> = images.map(|image| map::file_name(image)).collect();
    check::listed(&labels)
}

/// Work that failed, with what is to be done and said then.
struct After<'a> {
    work: &'a Work,
    program: &'a QemuImg,
    within: Duration,
}

impl After<'_> {
    /// A backup that could not be made on all disks is removed from those that have it.
    async fn failed_create(&self, done: usize) -> String {
        let tag = self.work.target.backup.as_str();
        let made = self.work.steps.iter().take(done);
        let mut left = Vec::new();
        for step in made.filter(|step| step.act == Act::Create) {
            let removed = self.program.act(Act::Delete, tag, &step.image, self.within);
            if let Err(error) = removed.await {
                tracing::warn!(job = self.work.job, private = %error, "half-made backup not removed");
                left.push(&step.image);
            }
        }
        if left.is_empty() {
            return "There is no backup.".to_owned();
        }
        format!(
            "A part of the backup is left on {}; delete the backup.",
            listed(left.into_iter())
        )
    }

    fn failed_delete(&self, done: usize) -> String {
        if done == 0 {
            return "Nothing was changed.".to_owned();
        }
        let images = || self.work.steps.iter().map(|step| &step.image);
        format!(
            "The backup is gone from {} and still on {}; delete it again.",
            listed(images().take(done)),
            listed(images().skip(done))
        )
    }

    /// Disks that were restored are put back to what they held before, so that the disks stay of one time.
    async fn failed_restore(&self) -> String {
        let tag = self.work.target.backup.as_str();
        let mut split = Split::default();
        for image in &self.work.images {
            let own = self.work.before.as_deref();
            let side = match own {
                Some(own) if self.is_before(image, own).await => &mut split.left,
                Some(_) | None => match qcow2::kinship(image, tag).await {
                    Ok(Kinship::Same) => &mut split.restored,
                    Ok(Kinship::Descends | Kinship::Unclear) | Err(_) => &mut split.unclear,
                },
            };
            side.push(image.clone());
        }
        if split.is_untouched() {
            if let (Some(own), images) = (self.work.before.as_deref(), &self.work.images) {
                for image in images {
                    if let Err(error) = self.program.act(Act::Delete, own, image, self.within).await
                    {
                        tracing::warn!(job = self.work.job, private = %error, "own snapshot not removed");
                    }
                }
            }
            return "Every disk holds what it held before the restore, and the VM is off."
                .to_owned();
        }
        format!(
            "{}, and the VM is off. Restore it again before it is started.",
            split.summary()
        )
    }

    /// Whether the disk holds what it held before the restore, after it was put back to that if it did not.
    async fn is_before(&self, image: &Path, own: &str) -> bool {
        if matches!(qcow2::kinship(image, own).await, Ok(Kinship::Same)) {
            return true;
        }
        let put_back = self.program.act(Act::Apply, own, image, self.within).await;
        if let Err(error) = put_back {
            tracing::warn!(job = self.work.job, private = %error, "a disk could not be put back");
        }
        matches!(qcow2::kinship(image, own).await, Ok(Kinship::Same))
    }
}
