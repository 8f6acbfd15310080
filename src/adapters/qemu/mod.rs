//! QEMU: a running VM through its monitor socket, a stopped one through `qemu-img`. A backup is an internal snapshot.
//!
//! See docs/adapters/qemu.md. Jobs carry our own ids and stay in QEMU until the next one begins, so what became of a
//! request is known for as long as that QEMU lives.

mod check;
mod config;
mod error;
mod identity;
mod image;
mod in_use;
mod keys;
mod map;
mod qcow2;
mod qmp;
mod rest;
mod running;
mod stopped;
mod trail;

pub use config::Config;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;
use serde::Serialize;

use crate::adapters::adapter::Adapter;
use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::BeginOutcome;
use crate::adapters::adapter::Capability;
use crate::adapters::adapter::FindOutcome;
use crate::adapters::adapter::Health;
use crate::adapters::adapter::MetadataOwner;
use crate::adapters::adapter::Recovery;
use crate::adapters::adapter::TaskState;
use crate::adapters::adapter::VerbCapability;
use crate::model::Backup;
use crate::model::BackupId;
use crate::model::BackupKind;
use crate::model::BackupPage;
use crate::model::Change;
use crate::model::Deadline;
use crate::model::Evidence;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::Identity;
use crate::model::Intent;
use crate::model::NewBackup;
use crate::model::Page;
use crate::model::RequestKey;
use crate::model::RunState;
use crate::model::Target;
use crate::model::TaskRef;
use crate::model::Verb;
use crate::model::Vm;
use crate::model::VmId;
use crate::runtime::Clock;
use crate::runtime::Tasks;
use config::Place;
use error::QemuError;
use image::Guard;
use image::QemuImg;
use in_use::Storage;
use map::Seen;
use qmp::Monitor;
use running::Asked;
use stopped::Works;
use trail::Trail;

/// VMs whose monitors are remembered before those that are not connected are forgotten.
const MONITORS_KEPT: usize = 1024;

/// VMs of which it is remembered what they ran on.
const VMS_KEPT: usize = 10_000;

const fn verb(recovery: Recovery) -> Option<VerbCapability> {
    Some(VerbCapability {
        recovery,
        // A command is taken off the socket in order: who is answered later knows of those before.
        settle: Duration::from_secs(1),
        cancel: false,
        progress: false,
    })
}

static CAPABILITY: Capability = Capability {
    kind: "qemu",
    // The id of a new backup is never used twice, and a backup is deleted by its identity: asking again is harmless.
    create: verb(Recovery::ReplaySafe),
    update: None,
    delete: verb(Recovery::ReplaySafe),
    // A second restore would throw away what was written since. Who calls again is told by the list of jobs, or by the
    // marks on the disks of a stopped VM, whether there was a first one and how far it came.
    restore: verb(Recovery::ReplaySafe),
    kinds: &[BackupKind::Snapshot],
    restore_options: &[],
    online: true,
    memory: true,
    consistent: true,
};

/// Where a VM is at work just now.
enum At {
    /// A QEMU runs it.
    Running(Arc<Monitor>),
    /// It is off; its images are at hand.
    Stopped,
}

type Slot = Arc<tokio::sync::Mutex<Option<Arc<Monitor>>>>;

/// VMs of QEMU seen through the port.
#[derive(Debug)]
pub struct Qemu {
    config: Config,
    program: QemuImg,
    clock: Arc<dyn Clock>,
    tasks: Tasks,
    monitors: Mutex<BTreeMap<VmId, Slot>>,
    works: Arc<Works>,
    /// Of each VM that was seen, the images that it wrote to when it ran last; none of one that was only seen stopped.
    ran_last: Mutex<BTreeMap<VmId, Vec<PathBuf>>>,
}

/// What must be remembered to find a task again.
#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    job: String,
    vm: VmId,
    verb: Verb,
    /// The backup's tag; none in what earlier versions remembered.
    #[serde(default)]
    tag: Option<String>,
    /// Whether the guest ran before; `None` when the VM was off.
    ran: Option<bool>,
}

/// What was seen before a request.
#[derive(Debug, Serialize, Deserialize)]
struct Before {
    /// What set the QEMU process apart; `None` when the VM was off.
    life: Option<String>,
    /// Whether the guest ran.
    ran: bool,
    /// Only when the VM was off.
    #[serde(default)]
    trail: Option<Trail>,
}

impl Qemu {
    /// Ready at once; nothing is connected before it is asked for.
    #[must_use]
    pub fn new(config: Config, clock: Arc<dyn Clock>, tasks: Tasks) -> Self {
        Self {
            program: QemuImg {
                img: config.qemu_img.clone(),
                io: config.qemu_io.clone(),
            },
            config,
            clock,
            tasks,
            monitors: Mutex::default(),
            works: Arc::default(),
            ran_last: Mutex::default(),
        }
    }

    /// Notes that there is such a VM, and what it writes to when it runs.
    fn saw(&self, vm: &VmId, written: Option<&[PathBuf]>) {
        let mut known = self.ran_last.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= VMS_KEPT && !known.contains_key(vm) {
            known.pop_first();
        }
        let last = known.entry(vm.clone()).or_default();
        if let Some(written) = written {
            *last = written.to_vec();
        }
    }

    /// The images that the VM wrote to when it ran last, as far as this gateway saw it run.
    fn ran_last(&self, vm: &VmId) -> Vec<PathBuf> {
        let known = self.ran_last.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(vm).cloned().unwrap_or_default()
    }

    fn is_known(&self, vm: &VmId) -> bool {
        let known = self.ran_last.lock().unwrap_or_else(PoisonError::into_inner);
        known.contains_key(vm)
    }

    fn place(&self, vm: &VmId) -> Result<Place, AdapterError> {
        self.config.place(vm).ok_or_else(no_vm)
    }

    fn left(&self, by: Deadline) -> Duration {
        by.instant().saturating_duration_since(self.clock.instant())
    }

    fn slot(&self, vm: &VmId) -> Slot {
        let mut monitors = self.monitors.lock().unwrap_or_else(PoisonError::into_inner);
        if monitors.len() > MONITORS_KEPT {
            monitors.retain(|_, it| {
                Arc::strong_count(it) > 1 || it.try_lock().is_ok_and(|it| it.is_some())
            });
        }
        Arc::clone(monitors.entry(vm.clone()).or_default())
    }

    /// The connection to the VM's monitor, made anew when there is none.
    async fn monitor(
        &self,
        vm: &VmId,
        place: &Place,
        by: Deadline,
    ) -> Result<Arc<Monitor>, QemuError> {
        let slot = self.slot(vm);
        let connect = async {
            let mut held = slot.lock().await;
            if let Some(open) = held.as_ref().filter(|it| !it.is_closed()) {
                return Ok(Arc::clone(open));
            }
            *held = None;
            let greeting = self.config.greeting_timeout;
            let made = Monitor::connect(&place.qmp, greeting, by, &self.tasks).await?;
            *held = Some(Arc::clone(&made));
            Ok(made)
        };
        tokio::time::timeout_at(by.instant().into(), connect)
            .await
            .unwrap_or(Err(QemuError::Held))
    }

    /// Whether the VM runs: its monitor tells. What has no monitor and no images is no VM.
    async fn at(&self, vm: &VmId, place: &Place, by: Deadline) -> Result<At, AdapterError> {
        let absent = match self.monitor(vm, place, by).await {
            Ok(monitor) => return Ok(At::Running(monitor)),
            Err(error @ QemuError::Absent(_)) => error,
            Err(error) => return Err(error.of_read()),
        };
        let has_socket = tokio::fs::try_exists(&place.qmp).await.unwrap_or(false);
        if place.images.is_empty() {
            return Err(if has_socket {
                absent.of_read()
            } else {
                no_vm()
            });
        }
        let storage = in_use::storage(place, has_socket || self.is_known(vm)).await;
        match storage.map_err(QemuError::of_read)? {
            Storage::Complete => Ok(At::Stopped),
            Storage::Missing => Err(QemuError::Missing("no such file".to_owned()).of_read()),
            Storage::NoVm => Err(no_vm()),
        }
    }

    async fn look_running(
        &self,
        monitor: &Monitor,
        vm: &VmId,
        place: &Place,
        by: Deadline,
    ) -> Result<Arc<Seen>, AdapterError> {
        let seen = running::look(monitor, vm, &place.disks, by).await;
        let seen = seen.map_err(QemuError::of_read)?;
        self.saw(vm, Some(&seen.written));
        Ok(seen)
    }

    async fn look(&self, vm: &VmId, by: Deadline) -> Result<Arc<Seen>, AdapterError> {
        let place = self.place(vm)?;
        match self.at(vm, &place, by).await? {
            At::Running(monitor) => self.look_running(&monitor, vm, &place, by).await,
            At::Stopped => self.look_stopped(vm, &place, Guard::Shared, by).await,
        }
    }

    async fn look_stopped(
        &self,
        vm: &VmId,
        place: &Place,
        guard: Guard,
        by: Deadline,
    ) -> Result<Arc<Seen>, AdapterError> {
        let disks = self
            .program
            .disks(&place.images, guard, self.left(by))
            .await
            .map_err(QemuError::of_read)?;
        self.saw(vm, None);
        Ok(Arc::new(Seen {
            vm: Vm {
                id: vm.clone(),
                name: vm.as_str().to_owned(),
                description: None,
                run_state: Some(RunState::Stopped),
            },
            disks,
            state: String::new(),
            written: Vec::new(),
        }))
    }

    /// Whether a restore that is to begin on a running VM was asked for when things were otherwise: then it is not begun.
    async fn is_settled(
        &self,
        monitor: &Monitor,
        intent: &Intent,
        place: &Place,
        before: &Before,
        by: Deadline,
    ) -> Result<Option<BeginOutcome>, AdapterError> {
        let life = running::planted(monitor, by).await;
        if before.life.is_some() && before.life == life.map_err(QemuError::of_read)? {
            return Ok(None);
        }
        let found = match &before.trail {
            Some(trail) => self.find_started(intent, place, trail).await?,
            None => FindOutcome::Unknowable,
        };
        match found {
            FindOutcome::Done => Ok(Some(BeginOutcome::Done)),
            FindOutcome::Failed(fault) => Err(AdapterError::refused(fault.kind, fault.text)),
            FindOutcome::NotBegun | FindOutcome::VmChanged => Err(rest::changed()),
            FindOutcome::HalfDone(_)
            | FindOutcome::Task(_)
            | FindOutcome::NotYet
            | FindOutcome::Unknowable => Err(AdapterError::uncertain(
                FaultKind::BackendFailed,
                "The VM was stopped and started before it could be restored.",
            )),
        }
    }

    async fn find_running(
        &self,
        monitor: &Monitor,
        intent: &Intent,
        job: &str,
        before: Option<&Before>,
        by: Deadline,
    ) -> Result<FindOutcome, AdapterError> {
        let verb = intent.verb();
        let vm = &intent.target.vm;
        let place = self.place(vm)?;
        let trail = before.and_then(|it| it.trail.as_ref());
        if let Some(trail) = trail
            && verb == Verb::Restore
        {
            return self.find_started(intent, &place, trail).await;
        }
        let ran = before.is_some_and(|it| it.ran);
        let asked = Asked {
            job,
            vm,
            verb,
            tag: Some(intent.target.backup.as_str()),
            ran,
        };
        match running::poll(monitor, asked, &place.disks, by).await? {
            TaskState::Running(_) => {
                return remember(job, intent, Some(ran)).map(FindOutcome::Task);
            }
            TaskState::Done => return Ok(FindOutcome::Done),
            TaskState::Failed(fault) => return Ok(FindOutcome::Failed(fault)),
            TaskState::Cancelled | TaskState::Gone => {}
        }
        let life = running::planted(monitor, by)
            .await
            .map_err(QemuError::of_read)?;
        // Without anything remembered it was never begun.
        let same = before.is_none_or(|it| it.life.is_some() && it.life == life);
        let seen = self.look_running(monitor, vm, &place, by).await?;
        if trail.is_some() && !is_begun(intent, &seen.disks) {
            return Ok(FindOutcome::VmChanged);
        }
        Ok(derive(intent, same, &seen.disks))
    }
}

/// Whether the disks show anything of a create or a delete.
fn is_begun(intent: &Intent, disks: &[map::Disk]) -> bool {
    let whole = map::whole(disks, intent.target.backup.as_str());
    match intent.verb() {
        Verb::Create => whole.is_some(),
        Verb::Delete => whole != Some(map::Whole::Yes),
        Verb::Update | Verb::Restore => true,
    }
}

/// What the state of the backup tells of a request that left no other trace.
fn derive(intent: &Intent, same_life: bool, disks: &[map::Disk]) -> FindOutcome {
    let whole = map::whole(disks, intent.target.backup.as_str());
    match intent.verb() {
        Verb::Create => match whole {
            Some(map::Whole::Yes) => FindOutcome::Done,
            Some(map::Whole::Partial | map::Whole::Twice) => FindOutcome::Failed(Fault::new(
                FaultKind::BackendFailed,
                "The backup was made on some disks only; delete it.",
            )),
            None if same_life => FindOutcome::NotBegun,
            None => FindOutcome::Failed(broken_off(
                "The work was broken off before the backup was made.",
            )),
        },
        Verb::Delete => match check::is_there(disks, intent) {
            Ok(true) if same_life => FindOutcome::NotBegun,
            Ok(true) => FindOutcome::Failed(broken_off(
                "The VM was stopped before the backup was deleted.",
            )),
            // Without some of its disks it shows as another one.
            Ok(false) | Err(_) if matches!(whole, Some(map::Whole::Partial)) => {
                FindOutcome::Failed(broken_off(
                    "The backup was deleted on some disks only; delete it again.",
                ))
            }
            // Another one of that id is a newer one: the one that was meant is gone.
            Ok(false) | Err(_) => FindOutcome::Done,
        },
        Verb::Restore if same_life => FindOutcome::NotBegun,
        Verb::Restore => FindOutcome::Unknowable,
        Verb::Update => FindOutcome::NotBegun,
    }
}

fn before(baseline: Option<&Evidence>) -> Option<Before> {
    baseline.and_then(|baseline| serde_json::from_str(baseline.as_str()).ok())
}

fn broken_off(text: &str) -> Fault {
    Fault::new(FaultKind::BackendFailed, text)
}

fn no_vm() -> AdapterError {
    AdapterError::refused(FaultKind::NoSuchVm, "There is no such VM.")
}

fn remember(job: &str, intent: &Intent, ran: Option<bool>) -> Result<TaskRef, AdapterError> {
    let remembered = Remembered {
        job: job.to_owned(),
        vm: intent.target.vm.clone(),
        verb: intent.verb(),
        tag: Some(intent.target.backup.as_str().to_owned()),
        ran,
    };
    let text = serde_json::to_string(&remembered).unwrap_or_default();
    TaskRef::new(text).ok_or_else(|| {
        let text = "The task cannot be remembered.";
        AdapterError::uncertain(FaultKind::BackendFailed, text)
    })
}

fn recall(task: &TaskRef) -> Option<Remembered> {
    serde_json::from_str(task.as_str()).ok()
}

#[async_trait]
impl Adapter for Qemu {
    fn capability(&self) -> &Capability {
        &CAPABILITY
    }

    fn metadata_owner(&self) -> MetadataOwner {
        MetadataOwner::Gateway
    }

    fn is_identity_of(&self, stored: &Identity, backup: &Backup) -> bool {
        identity::is_of(backup.id.as_str(), stored, &backup.identity)
    }

    /// `snapgate-<number of the operation>`: never a mere number, which `qemu-img` may take for another thing.
    fn mint_backup_id(&self, _new: &NewBackup, key: RequestKey) -> Result<BackupId, AdapterError> {
        BackupId::new(&key.to_string()).map_err(|error| {
            AdapterError::refused(FaultKind::Invalid, "the name cannot be used").because(error)
        })
    }

    /// VMs are asked one by one when they are needed; of the backend as a whole there is only the program for images.
    async fn health(&self, by: Deadline) -> Result<Health, AdapterError> {
        let open: Vec<Slot> = self
            .monitors
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect();
        for slot in open {
            if let Ok(held) = slot.try_lock()
                && let Some(monitor) = held.as_ref().filter(|it| !it.is_closed())
            {
                let product = monitor.product().to_owned();
                return Ok(Health { product });
            }
        }
        if self.config.images.is_empty() {
            let product = "QEMU".to_owned();
            return Ok(Health { product });
        }
        let version = self.program.version(self.left(by)).await;
        version.map(|product| Health { product }).map_err(|error| {
            AdapterError::unavailable("A program for images (qemu_img, qemu_io) cannot be run.")
                .because(error)
        })
    }

    async fn vm(&self, vm: &VmId, by: Deadline) -> Result<Vm, AdapterError> {
        Ok(self.look(vm, by).await?.vm.clone())
    }

    async fn list(&self, vm: &VmId, page: &Page, by: Deadline) -> Result<BackupPage, AdapterError> {
        let seen = self.look(vm, by).await?;
        Ok(map::page(&seen.disks, page, &self.works.hidden(vm)))
    }

    async fn read(&self, target: &Target, by: Deadline) -> Result<Backup, AdapterError> {
        let seen = self.look(&target.vm, by).await?;
        if self.works.hidden(&target.vm).contains(&target.backup) {
            return Err(check::none());
        }
        map::backup(&seen.disks, target.backup.as_str()).ok_or_else(check::none)
    }

    async fn baseline(
        &self,
        intent: &Intent,
        _key: RequestKey,
        by: Deadline,
    ) -> Result<Option<Evidence>, AdapterError> {
        let vm = &intent.target.vm;
        let place = self.place(vm)?;
        let before = match self.at(vm, &place, by).await? {
            At::Running(monitor) => {
                let seen = self.look_running(&monitor, vm, &place, by).await?;
                let life = running::life(&monitor, by).await;
                Before {
                    life: Some(life.map_err(QemuError::of_read)?),
                    ran: seen.vm.run_state == Some(RunState::Started),
                    trail: None,
                }
            }
            At::Stopped => Before {
                life: None,
                ran: false,
                trail: Some(self.trail(intent, &place, by).await?),
            },
        };
        let text = serde_json::to_string(&before).unwrap_or_default();
        Ok(Evidence::new(text))
    }

    async fn begin(
        &self,
        intent: &Intent,
        key: RequestKey,
        baseline: Option<&Evidence>,
        by: Deadline,
    ) -> Result<BeginOutcome, AdapterError> {
        if let Change::Create(new) = &intent.change
            && new.kind.is_some_and(|kind| kind != BackupKind::Snapshot)
        {
            return Err(AdapterError::refused(
                FaultKind::Unsupported,
                "QEMU makes backups of type snapshot alone",
            ));
        }
        let vm = &intent.target.vm;
        let place = self.place(vm)?;
        let job = key.to_string();
        if self.works.state(&job).is_some() {
            return remember(&job, intent, None).map(BeginOutcome::Task);
        }
        if self.works.is_at_work(vm) {
            return Err(QemuError::Blocked.of_read());
        }
        let before = before(baseline);
        let before = before.as_ref();
        let (begun, ran) = match self.at(vm, &place, by).await? {
            At::Running(monitor) => {
                if intent.verb() == Verb::Restore
                    && let Some(before) = before
                    && let Some(done) = self
                        .is_settled(&monitor, intent, &place, before, by)
                        .await?
                {
                    return Ok(done);
                }
                let seen = self.look_running(&monitor, vm, &place, by).await?;
                let ran = seen.vm.run_state == Some(RunState::Started);
                let begun = running::begin(&monitor, &seen, &place, intent, &job, by).await?;
                (begun, Some(ran))
            }
            At::Stopped => {
                let begun = self.begin_stopped(intent, &place, &job, before, by);
                (begun.await?, None)
            }
        };
        match begun {
            Some(done) => Ok(done),
            None => remember(&job, intent, ran).map(BeginOutcome::Task),
        }
    }

    async fn poll(&self, task: &TaskRef, by: Deadline) -> Result<TaskState, AdapterError> {
        let Some(known) = recall(task) else {
            return Ok(TaskState::Gone);
        };
        let Some(ran) = known.ran else {
            return Ok(self.works.state(&known.job).unwrap_or(TaskState::Gone));
        };
        let place = self.place(&known.vm)?;
        match self.monitor(&known.vm, &place, by).await {
            Ok(monitor) => {
                let asked = Asked {
                    job: &known.job,
                    vm: &known.vm,
                    verb: known.verb,
                    tag: known.tag.as_deref(),
                    ran,
                };
                running::poll(&monitor, asked, &place.disks, by).await
            }
            Err(QemuError::Absent(_)) => Ok(TaskState::Gone),
            Err(error) => Err(error.of_read()),
        }
    }

    async fn changed(&self, task: &TaskRef) {
        let Some(known) = recall(task) else {
            return std::future::pending().await;
        };
        if known.ran.is_none() {
            return self.works.changed().await;
        }
        let open = self.slot(&known.vm).lock().await.clone();
        match open.filter(|open| !open.is_closed()) {
            // What was told before we listen is told at once.
            Some(monitor) if monitor.job(&known.job).as_deref() == Some("concluded") => {}
            Some(monitor) => monitor.changed().await,
            None => std::future::pending().await,
        }
    }

    async fn find(
        &self,
        intent: &Intent,
        key: RequestKey,
        baseline: Option<&Evidence>,
        by: Deadline,
    ) -> Result<FindOutcome, AdapterError> {
        let job = key.to_string();
        match self.works.state(&job) {
            Some(TaskState::Running(_)) => {
                return remember(&job, intent, None).map(FindOutcome::Task);
            }
            Some(TaskState::Done) => return Ok(FindOutcome::Done),
            Some(TaskState::Failed(fault)) => return Ok(FindOutcome::Failed(fault)),
            Some(TaskState::Cancelled | TaskState::Gone) | None => {}
        }
        let vm = &intent.target.vm;
        let before = before(baseline);
        let place = self.place(vm)?;
        match self.at(vm, &place, by).await? {
            At::Running(monitor) => {
                self.find_running(&monitor, intent, &job, before.as_ref(), by)
                    .await
            }
            At::Stopped => {
                let before = before.as_ref();
                self.find_stopped(intent, &place, before, by).await
            }
        }
    }

    async fn cancel(&self, _task: &TaskRef, _by: Deadline) -> Result<(), AdapterError> {
        Err(AdapterError::refused(
            FaultKind::Unsupported,
            "QEMU cannot stop work on a snapshot.",
        ))
    }
}
