//! How a VM is reached: through the monitor of the QEMU that runs it, or through its images while it is off.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::adapters::adapter::AdapterError;
use crate::adapters::qemu::config::Config;
use crate::adapters::qemu::config::VmPaths;
use crate::adapters::qemu::disk::VmView;
use crate::adapters::qemu::error::QemuError;
use crate::adapters::qemu::image::ImageLocking;
use crate::adapters::qemu::image::QemuImg;
use crate::adapters::qemu::in_use;
use crate::adapters::qemu::in_use::ImagePresence;
use crate::adapters::qemu::online;
use crate::adapters::qemu::qmp::Monitor;
use crate::model::Deadline;
use crate::model::FaultKind;
use crate::model::RunState;
use crate::model::Vm;
use crate::model::VmId;
use crate::public_text;
use crate::runtime::Clock;
use crate::runtime::Tasks;

/// VMs whose monitors are remembered before those that are not connected are forgotten.
const MONITORS_KEPT: usize = 1024;

/// VMs of which it is remembered what they ran on.
const VMS_KEPT: usize = 10_000;

/// How a VM can be worked on right now.
pub(super) enum VmMode {
    /// A QEMU runs it.
    Online(Arc<Monitor>),
    /// It is off, and its images are there.
    Offline,
}

/// One connection per VM: locked while it is being made, so that two requests do not make two.
type MonitorSlot = Arc<tokio::sync::Mutex<Option<Arc<Monitor>>>>;

/// The monitors and images of all VMs of one backend.
#[derive(Debug)]
pub(super) struct VmAccess {
    pub(super) config: Config,
    pub(super) program: QemuImg,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) tasks: Tasks,
    monitors: Mutex<BTreeMap<VmId, MonitorSlot>>,
    /// Of each VM that was seen, the images that it wrote to when it ran last; none of one that was only seen off.
    last_written: Mutex<BTreeMap<VmId, Vec<PathBuf>>>,
}

impl VmAccess {
    /// Connects nothing yet.
    pub(super) fn new(config: Config, clock: Arc<dyn Clock>, tasks: Tasks) -> Self {
        Self {
            program: QemuImg {
                img: config.qemu_img.clone(),
                io: config.qemu_io.clone(),
            },
            config,
            clock,
            tasks,
            monitors: Mutex::default(),
            last_written: Mutex::default(),
        }
    }

    /// Remembers that there is such a VM, and what it writes to when it runs.
    fn remember_vm(&self, vm: &VmId, written: Option<&[PathBuf]>) {
        let mut known = self.last_written.lock();
        if known.len() >= VMS_KEPT && !known.contains_key(vm) {
            known.pop_first();
        }
        let last = known.entry(vm.clone()).or_default();
        if let Some(written) = written {
            *last = written.to_vec();
        }
    }

    /// The images that the VM wrote to when it ran last, as far as this gateway saw it run.
    pub(super) fn last_written(&self, vm: &VmId) -> Vec<PathBuf> {
        self.last_written
            .lock()
            .get(vm)
            .cloned()
            .unwrap_or_default()
    }

    fn is_known(&self, vm: &VmId) -> bool {
        self.last_written.lock().contains_key(vm)
    }

    /// Where the VM's monitor and images are by configuration.
    ///
    /// # Errors
    /// [`FaultKind::NoSuchVm`] when the id would lead out of the configured folders.
    pub(super) fn paths_of(&self, vm: &VmId) -> Result<VmPaths, AdapterError> {
        self.config.place(vm).ok_or_else(no_such_vm)
    }

    /// Time that is left until the deadline.
    pub(super) fn time_left(&self, by: Deadline) -> Duration {
        by.instant().saturating_duration_since(self.clock.instant())
    }

    fn slot(&self, vm: &VmId) -> MonitorSlot {
        let mut monitors = self.monitors.lock();
        if monitors.len() > MONITORS_KEPT {
            // A slot that someone else holds may be about to get its connection.
            monitors.retain(|_, slot| {
                Arc::strong_count(slot) > 1 || slot.try_lock().is_ok_and(|held| held.is_some())
            });
        }
        Arc::clone(monitors.entry(vm.clone()).or_default())
    }

    /// The connection to the VM's monitor, made anew when there is none.
    pub(super) async fn monitor(
        &self,
        vm: &VmId,
        paths: &VmPaths,
        by: Deadline,
    ) -> Result<Arc<Monitor>, QemuError> {
        let slot = self.slot(vm);
        let connect = async {
            let mut held = slot.lock().await;
            if let Some(open) = held.as_ref().filter(|monitor| !monitor.is_closed()) {
                return Ok(Arc::clone(open));
            }
            *held = None;
            let greeting = self.config.greeting_timeout;
            let made = Monitor::connect(&paths.qmp, greeting, by, &self.tasks).await?;
            *held = Some(Arc::clone(&made));
            Ok(made)
        };
        tokio::time::timeout_at(by.instant().into(), connect)
            .await
            .unwrap_or(Err(QemuError::MonitorHeld))
    }

    /// The connection to the VM's monitor that is open already.
    pub(super) async fn open_monitor(&self, vm: &VmId) -> Option<Arc<Monitor>> {
        let open = self.slot(vm).lock().await.clone();
        open.filter(|monitor| !monitor.is_closed())
    }

    /// The product behind any monitor that is connected, without waiting for one.
    pub(super) fn connected_product(&self) -> Option<String> {
        let slots: Vec<MonitorSlot> = self.monitors.lock().values().cloned().collect();
        slots.into_iter().find_map(|slot| {
            let held = slot.try_lock().ok()?;
            let monitor = held.as_ref().filter(|monitor| !monitor.is_closed())?;
            Some(monitor.product().to_owned())
        })
    }

    /// Whether the VM runs, which its monitor decides. What has neither monitor nor images is no VM.
    pub(super) async fn locate(
        &self,
        vm: &VmId,
        paths: &VmPaths,
        by: Deadline,
    ) -> Result<VmMode, AdapterError> {
        let not_running = match self.monitor(vm, paths, by).await {
            Ok(monitor) => return Ok(VmMode::Online(monitor)),
            Err(error @ QemuError::NotRunning(_)) => error,
            Err(error) => return Err(error.into()),
        };
        // A socket that a QEMU left behind is evidence that there is such a VM.
        let has_socket = tokio::fs::try_exists(&paths.qmp).await.unwrap_or(false);
        if paths.images.is_empty() {
            return Err(if has_socket {
                not_running.into()
            } else {
                no_such_vm()
            });
        }
        match in_use::find_images(paths, has_socket || self.is_known(vm)).await? {
            ImagePresence::Complete => Ok(VmMode::Offline),
            ImagePresence::Missing => {
                Err(QemuError::ImageMissing("no such file".to_owned()).into())
            }
            ImagePresence::NoVm => Err(no_such_vm()),
        }
    }

    /// The VM as it is now, running or not.
    pub(super) async fn read_vm(
        &self,
        vm: &VmId,
        by: Deadline,
    ) -> Result<Arc<VmView>, AdapterError> {
        let paths = self.paths_of(vm)?;
        match self.locate(vm, &paths, by).await? {
            VmMode::Online(monitor) => self.read_online_vm(&monitor, vm, &paths, by).await,
            VmMode::Offline => {
                let locking = ImageLocking::Shared;
                self.read_offline_vm(vm, &paths, locking, by).await
            }
        }
    }

    /// A running VM as it is now.
    pub(super) async fn read_online_vm(
        &self,
        monitor: &Monitor,
        vm: &VmId,
        paths: &VmPaths,
        by: Deadline,
    ) -> Result<Arc<VmView>, AdapterError> {
        let view = online::read_vm(monitor, vm, &paths.disks, by).await?;
        self.remember_vm(vm, Some(&view.written));
        Ok(view)
    }

    /// A VM that is off as its images are now.
    pub(super) async fn read_offline_vm(
        &self,
        vm: &VmId,
        paths: &VmPaths,
        locking: ImageLocking,
        by: Deadline,
    ) -> Result<Arc<VmView>, AdapterError> {
        let within = self.time_left(by);
        let disks = self.program.disks(&paths.images, locking, within).await?;
        self.remember_vm(vm, None);
        Ok(Arc::new(VmView {
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
}

fn no_such_vm() -> AdapterError {
    AdapterError::refused(
        FaultKind::NoSuchVm,
        public_text!("There is no such VM. Check its id."),
    )
}
