//! Works on the images of a VM that is off, as tasks: one `qemu-img` per disk, one disk after the other.

use std::collections::BTreeMap;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use parking_lot::MutexGuard;
use tokio::sync::Notify;

use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::TaskState;
use crate::adapters::qemu::check;
use crate::adapters::qemu::disk::file_name;
use crate::adapters::qemu::error;
use crate::adapters::qemu::error::QemuError;
use crate::adapters::qemu::image::HeldImages;
use crate::adapters::qemu::image::QemuImg;
use crate::adapters::qemu::image::SnapshotAction;
use crate::adapters::qemu::in_use;
use crate::adapters::qemu::qcow2;
use crate::adapters::qemu::qcow2::SnapshotRelation;
use crate::adapters::qemu::restore_markers::RestoreSplit;
use crate::model::BackupId;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::Progress;
use crate::model::PublicText;
use crate::model::Target;
use crate::model::Verb;
use crate::model::VmId;
use crate::public_text;
use crate::runtime::Clock;
use crate::runtime::Tasks;
use crate::runtime::work_context;

/// How long a program of ours may take to let go of an image.
const RELEASE: Duration = Duration::from_secs(10);
/// Ended work that is remembered; the oldest is forgotten first.
const ENDED_MAX: usize = 1024;

/// One piece of work on the images of one VM.
#[derive(Debug)]
pub(super) struct OfflineJob {
    pub(super) job: String,
    pub(super) verb: Verb,
    pub(super) target: Target,
    pub(super) steps: Vec<ImageStep>,
    /// Every image of the VM.
    pub(super) images: Vec<PathBuf>,
    /// What keeps other programs off the images until each is worked on.
    pub(super) held: HeldImages,
    /// The tag of our own snapshots of what the disks were before.
    pub(super) before: Option<String>,
}

/// One thing done to one image.
#[derive(Clone, Debug)]
pub(super) struct ImageStep {
    pub(super) action: SnapshotAction,
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
pub(super) struct OfflineWorker {
    known: Mutex<BTreeMap<String, JobRecord>>,
    changed: Notify,
}

#[derive(Debug)]
struct JobRecord {
    verb: Verb,
    target: Target,
    began: u64,
    state: JobState,
}

#[derive(Clone, Debug)]
enum JobState {
    Running(Progress),
    Done,
    Failed(Fault),
}

impl OfflineWorker {
    fn known(&self) -> MutexGuard<'_, BTreeMap<String, JobRecord>> {
        self.known.lock()
    }

    /// How the work is; `None` when this process knows nothing of it.
    pub(super) fn state(&self, job: &str) -> Option<TaskState> {
        self.known()
            .get(job)
            .map(|record| match record.state.clone() {
                JobState::Running(progress) => TaskState::Running(Some(progress)),
                JobState::Done => TaskState::Done(None),
                JobState::Failed(fault) => TaskState::Failed(fault),
            })
    }

    /// Backups of the VM that are half made or half gone.
    pub(super) fn unfinished_backups(&self, vm: &VmId) -> Vec<BackupId> {
        let known = self.known();
        let half = known.values().filter(|record| {
            matches!(record.state, JobState::Running(_))
                && record.verb == Verb::Create
                && record.target.vm == *vm
        });
        half.map(|half| half.target.backup.clone()).collect()
    }

    /// Whether work on the VM's images is under way.
    pub(super) fn is_busy(&self, vm: &VmId) -> bool {
        self.known()
            .values()
            .any(|record| matches!(record.state, JobState::Running(_)) && record.target.vm == *vm)
    }

    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Begins, unless it was begun.
    pub(super) fn begin(
        self: &Arc<Self>,
        mut work: OfflineJob,
        program: QemuImg,
        within: Duration,
        clock: Arc<dyn Clock>,
        tasks: &Tasks,
    ) {
        let mut known = self.known();
        // Checked and inserted under one lock: two calls at once must not start the work twice.
        if known.contains_key(&work.job) {
            return;
        }
        forget_oldest(&mut known);
        known.insert(
            work.job.clone(),
            JobRecord {
                verb: work.verb,
                target: work.target.clone(),
                began: clock.now().as_millis(),
                state: JobState::Running(Progress::NONE),
            },
        );
        drop(known);
        let this = Arc::clone(self);
        // Goes on when the caller gives up: an image that is half worked on must not depend on a client's patience.
        tasks.spawn(work_context::inherit(async move {
            let guard = FailIfDropped {
                worker: &this,
                job: work.job.clone(),
            };
            let state = this.run(&mut work, &program, within, clock.as_ref()).await;
            // Before the end is visible: who sees it may start the VM at once, and would find its images held.
            std::mem::take(&mut work.held).release_all(RELEASE).await;
            guard.worker.set(&guard.job, state);
        }));
    }

    async fn run(
        &self,
        work: &mut OfflineJob,
        program: &QemuImg,
        within: Duration,
        clock: &dyn Clock,
    ) -> JobState {
        let end = clock.deadline(within);
        let left = || end.instant().saturating_duration_since(clock.instant());
        let count = |value: usize| u64::try_from(value).unwrap_or(u64::MAX);
        for (done, step) in work.steps.iter().enumerate() {
            // qemu-img takes the lock of the image itself and fails while we hold it. The gap is as short as can be.
            work.held.release(&step.image, left()).await;
            let acted = async {
                // Released a moment ago: another program may have put another file in its place, about which nothing
                // was checked.
                is_same_file(step).await?;
                program
                    .apply_snapshot_action(step.action, &step.name, &step.image, left())
                    .await
            };
            match acted.await {
                Ok(()) => {}
                // Snapshots of our own are evidence, not data. One that stays costs room, but no correctness.
                Err(error) if step.own => {
                    tracing::warn!(job = work.job, %error, "temporary snapshot not removed");
                }
                Err(error) => {
                    let verb = work.verb.as_str();
                    tracing::warn!(job = work.job, verb, %error, "change of VM images failed");
                    // Other programs must be able to open the images that are looked at next.
                    let held = std::mem::take(&mut work.held);
                    held.release_all(RELEASE).await;
                    let cleanup = FailureCleanup {
                        work,
                        program,
                        within,
                    };
                    let fault = reason(work.verb, &error);
                    let outcome = match work.verb {
                        Verb::Create => cleanup.failed_create(done).await,
                        Verb::Delete => cleanup.failed_delete(done),
                        Verb::Restore => cleanup.failed_restore().await,
                        Verb::Update => return JobState::Failed(fault),
                    };
                    // Why it failed, and then what it left: callers need both to decide what to do.
                    let text = fault.text.followed_by(&outcome);
                    return JobState::Failed(Fault::new(fault.kind, text));
                }
            }
            let rest = work.steps.iter().skip(done.saturating_add(1));
            if rest
                .clone()
                // Held again only while other images are still to come: a VM must not start on the disks of two
                // times.
                .any(|later| !later.own && later.image != step.image)
            {
                work.held.take_again(program, &step.image, left()).await;
            }
            let progress = Progress::of(count(done).saturating_add(1), count(work.steps.len()));
            self.set(&work.job, JobState::Running(progress));
        }
        JobState::Done
    }

    fn set(&self, job: &str, state: JobState) {
        if let Some(known) = self.known().get_mut(job) {
            known.state = state;
        }
        self.changed.notify_waiters();
    }
}

/// Work that ends without having said how has failed.
struct FailIfDropped<'a> {
    worker: &'a OfflineWorker,
    job: String,
}

impl Drop for FailIfDropped<'_> {
    fn drop(&mut self) {
        if matches!(self.worker.state(&self.job), Some(TaskState::Running(_))) {
            let text = public_text!(
                "The operation on the VM's images was interrupted. Check the VM's disks before you start it."
            );
            let fault = Fault::new(FaultKind::BackendFailed, text);
            self.worker.set(&self.job, JobState::Failed(fault));
        }
    }
}

fn forget_oldest(known: &mut BTreeMap<String, JobRecord>) {
    while known.len() >= ENDED_MAX {
        let ended = known
            .iter()
            .filter(|(_, value)| !matches!(value.state, JobState::Running(_)));
        // Running work is never forgotten: its caller could not find out what became of it.
        let Some(oldest) = ended
            .min_by_key(|(_, value)| value.began)
            .map(|(job, _)| job.clone())
        else {
            return;
        };
        known.remove(&oldest);
    }
}

/// Whether the file that was checked is still at the image's path.
async fn is_same_file(step: &ImageStep) -> Result<(), QemuError> {
    let now = in_use::read_stamps(std::slice::from_ref(&step.image)).await?;
    if now.first().is_some_and(|now| now.inode == step.inode) {
        return Ok(());
    }
    Err(QemuError::ImageReplaced(step.image.display().to_string()))
}

fn reason(verb: Verb, error: &QemuError) -> Fault {
    match error {
        QemuError::Refused(text) => error::fault(Some(verb), text),
        QemuError::TimedOut => Fault::new(
            FaultKind::TimedOut,
            public_text!(
                "The operation on the VM's images did not finish in time and was stopped."
            ),
        ),
        QemuError::NotRunning(_)
        | QemuError::ImageMissing(_)
        | QemuError::ImageReplaced(_)
        | QemuError::AccessDenied(_)
        | QemuError::MonitorHeld
        | QemuError::MainLoopBlocked
        | QemuError::ConnectionLost(_)
        | QemuError::UnexpectedAnswer(_) => AdapterError::from(error.clone()).fault,
    }
}

/// Images in a sentence.
fn list_images<'a>(images: impl Iterator<Item = &'a PathBuf>) -> String {
    let labels: Vec<String> = images.map(|image| file_name(image)).collect();
    check::list_disks(&labels)
}

/// Work that failed, with what is to be done and said then.
struct FailureCleanup<'a> {
    work: &'a OfflineJob,
    program: &'a QemuImg,
    within: Duration,
}

impl FailureCleanup<'_> {
    /// A backup that could not be made on all disks is removed from those that have it.
    async fn failed_create(&self, done: usize) -> PublicText {
        let tag = self.work.target.backup.as_str();
        let made = self.work.steps.iter().take(done);
        let mut left = Vec::new();
        for step in made.filter(|step| step.action == SnapshotAction::Create) {
            let action = SnapshotAction::Delete;
            let removed = self
                .program
                .apply_snapshot_action(action, tag, &step.image, self.within);
            if let Err(error) = removed.await {
                tracing::warn!(job = self.work.job, %error, "partial backup not removed");
                left.push(&step.image);
            }
        }
        if left.is_empty() {
            return public_text!("There is no backup.");
        }
        let disks = list_images(left.into_iter());
        public_text!("A part of the backup remains on {disks}. Delete the backup.")
    }

    fn failed_delete(&self, done: usize) -> PublicText {
        if done == 0 {
            return public_text!("Nothing was changed.");
        }
        let images = || self.work.steps.iter().map(|step| &step.image);
        let (gone, left) = (
            list_images(images().take(done)),
            list_images(images().skip(done)),
        );
        public_text!(
            "The backup was deleted on {gone} and still exists on {left}. Delete it again."
        )
    }

    /// Disks that were restored are put back to what they held before, so that all hold data of one point in time.
    async fn failed_restore(&self) -> PublicText {
        let tag = self.work.target.backup.as_str();
        let mut split = RestoreSplit::default();
        for image in &self.work.images {
            let own = self.work.before.as_deref();
            let side = match own {
                Some(own) if self.is_before(image, own).await => &mut split.not_restored,
                Some(_) | None => match qcow2::relation_to_snapshot(image, tag).await {
                    Ok(SnapshotRelation::Identical) => &mut split.restored,
                    Ok(SnapshotRelation::WrittenSince | SnapshotRelation::Unclear) | Err(_) => {
                        &mut split.unclear
                    }
                },
            };
            side.push(image.clone());
        }
        if split.is_untouched() {
            self.remove_own_snapshots().await;
            return public_text!(
                "Every disk holds what it held before the restore, and the VM is off."
            );
        }
        let disks = split.summary();
        public_text!(
            "The restore is incomplete ({disks}), and the VM is off. Restore it again before it is started."
        )
    }

    /// They are no longer needed once every disk is as it was before.
    async fn remove_own_snapshots(&self) {
        let Some(own) = self.work.before.as_deref() else {
            return;
        };
        for image in &self.work.images {
            let action = SnapshotAction::Delete;
            let removed = self
                .program
                .apply_snapshot_action(action, own, image, self.within);
            if let Err(error) = removed.await {
                tracing::warn!(job = self.work.job, %error, "temporary snapshot not removed");
            }
        }
    }

    /// Whether the disk holds what it held before the restore, after it was put back to that if it did not.
    async fn is_before(&self, image: &Path, own: &str) -> bool {
        if matches!(
            qcow2::relation_to_snapshot(image, own).await,
            Ok(SnapshotRelation::Identical)
        ) {
            return true;
        }
        let put_back = self
            .program
            .apply_snapshot_action(SnapshotAction::Apply, own, image, self.within)
            .await;
        if let Err(error) = put_back {
            tracing::warn!(job = self.work.job, %error, "disk not put back after a failed restore");
        }
        matches!(
            qcow2::relation_to_snapshot(image, own).await,
            Ok(SnapshotRelation::Identical)
        )
    }
}
