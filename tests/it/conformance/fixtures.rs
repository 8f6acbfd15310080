//! The adapters of this crate under the suite and its kills: `sim`, `files`, `libvirt`, LXD and Incus.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use snapgate::adapters::adapter::*;
use snapgate::adapters::files;
use snapgate::adapters::libvirt;
use snapgate::adapters::sim;
use snapgate::model::*;
use snapgate::runtime::{Clock, SystemClock, Tasks};

use crate::conformance::Bed;
use crate::conformance::kills::kill;
use crate::conformance::kills::kills;
use crate::conformance::kills::kills_of;
use crate::conformance::mortal_gateway::Moments;
use crate::conformance::suite::suite;
use crate::harness::PATIENCE;
use crate::harness::eventually;
use crate::incus::Flavor;
use crate::incus::Lxd;
use crate::incus::Way;
use crate::incus::failures::Mount;
use crate::libvirt::private_libvirtd::Lab;

pub(crate) struct SimBed(Arc<sim::Sim>);

impl Bed for SimBed {
    fn name(&self) -> &'static str {
        "sim"
    }
    fn adapter(&self) -> Arc<dyn Adapter> {
        Arc::<sim::Sim>::clone(&self.0)
    }
    fn vm(&self) -> VmId {
        VmId::new("33333").unwrap()
    }
    fn write(&self, content: u64) {
        assert!(self.0.control().write(&self.vm(), content), "written");
    }
    fn content(&self) -> u64 {
        self.0.control().content(&self.vm()).unwrap()
    }
    fn born(&self) -> Arc<dyn Adapter> {
        Arc::new(self.0.control().adapter(Tasks::default()))
    }
    fn executions(&self, key: RequestKey) -> Option<u64> {
        Some(self.0.control().executions(key))
    }
    fn moments(&self) -> Moments {
        Moments::All
    }
    fn break_restores(&self) -> Option<Box<dyn std::any::Any + Send>> {
        self.0.control().fail_next_task(FaultKind::BackendFailed);
        Some(Box::new(()))
    }
    fn names_remedies(&self) -> bool {
        true
    }
}

impl SimBed {
    pub(crate) fn new(recovery: Recovery) -> Self {
        let config = sim::Config {
            vms: vec![VmId::new("33333").unwrap()],
            backups: 0,
            duration: Duration::from_millis(30),
            recovery,
            ..sim::Config::default()
        };
        let made = sim::Sim::new(&config, SystemClock::shared(), Tasks::default());
        Self(Arc::new(made))
    }
}

#[apply(test)]
async fn sim_behaves() {
    suite(&SimBed::new(Recovery::ReplaySafe)).await;
}

#[apply(test)]
fn a_replay_safe_sim_is_killed_between_any_two_steps() {
    kills(&SimBed::new(Recovery::ReplaySafe));
}

#[apply(test)]
fn a_listable_sim_is_killed_between_any_two_steps() {
    kills(&SimBed::new(Recovery::Listable));
}

#[apply(test)]
fn a_traceless_sim_is_killed_between_any_two_steps() {
    kills(&SimBed::new(Recovery::NoTrace));
}

struct FilesBed(tempfile::TempDir, Mutex<Option<Arc<files::Files>>>);

impl FilesBed {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (root, backups) = (folder.path().join("vms"), folder.path().join("backups"));
        std::fs::create_dir_all(root.join("33333")).unwrap();
        std::fs::create_dir(backups).unwrap();
        Self(folder, Mutex::new(None))
    }

    fn disk(&self) -> std::path::PathBuf {
        self.0.path().join("vms/33333/disk.img")
    }
}

impl Bed for FilesBed {
    fn name(&self) -> &'static str {
        "files"
    }
    fn adapter(&self) -> Arc<dyn Adapter> {
        self.1.lock().unwrap().clone().unwrap()
    }
    fn vm(&self) -> VmId {
        VmId::new("33333").unwrap()
    }
    fn write(&self, content: u64) {
        std::fs::write(self.disk(), content.to_string()).unwrap();
    }
    fn content(&self) -> u64 {
        let text = std::fs::read_to_string(self.disk()).unwrap();
        text.parse().unwrap()
    }
    fn born(&self) -> Arc<dyn Adapter> {
        let mut place = self.1.lock().unwrap();
        place.take();
        let until = SystemClock.deadline(PATIENCE);
        loop {
            let config = files::Config {
                root: self.0.path().join("vms"),
                backups: self.0.path().join("backups"),
                new_folders: true,
            };
            match files::Files::new(config, SystemClock::shared(), Tasks::default()) {
                Ok(made) => return Arc::<files::Files>::clone(place.insert(Arc::new(made))),
                // The threads of the one before have not let go yet.
                Err(error) => assert!(SystemClock.instant() < until.instant(), "{error}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    fn moments(&self) -> Moments {
        Moments::All
    }
}

#[apply(test)]
async fn files_behave() {
    let bed = FilesBed::new();
    drop(bed.born());
    suite(&bed).await;
}

#[apply(test)]
fn files_are_killed_between_any_two_steps() {
    kills(&FilesBed::new());
}

/// A VM of a real libvirtd: the running one with one disk, or the one that is off and has two.
struct LibvirtBed {
    lab: Lab,
    adapter: Arc<libvirt::Libvirt>,
    /// Waits until libvirtd has taken up everything that a killed gateway asked it, so that nothing is left to settle.
    hurries: bool,
    runs: bool,
}

impl LibvirtBed {
    /// Skips the test where libvirt is not installed.
    fn start(hurries: bool) -> Self {
        let lab = Lab::start();
        let adapter = lab.adapter();
        Self {
            lab,
            adapter,
            hurries,
            runs: true,
        }
    }
}

impl LibvirtBed {
    /// Waits for the lock of the VM, so that its disks are not in use.
    fn free(&self) {
        if self.runs {
            self.lab.monitor("web01", "info status");
        } else {
            self.lab.virsh(&["desc", "web02", "--config", "waited for"]);
        }
    }
}

impl Bed for LibvirtBed {
    fn name(&self) -> &'static str {
        if self.runs {
            "libvirt, running"
        } else {
            "libvirt, stopped"
        }
    }
    fn adapter(&self) -> Arc<dyn Adapter> {
        Arc::<libvirt::Libvirt>::clone(&self.adapter)
    }
    fn vm(&self) -> VmId {
        VmId::new(if self.runs { "web01" } else { "web02" }).unwrap()
    }
    fn write(&self, content: u64) {
        let byte = u8::try_from(content).unwrap();
        if self.runs {
            self.lab.write(byte);
        } else {
            self.free();
            self.lab.write_off("web02a.qcow2", byte);
            self.lab.write_off("web02b.qcow2", byte);
        }
    }
    fn content(&self) -> u64 {
        self.found().expect("both disks are of one time")
    }
    fn found(&self) -> Option<u64> {
        self.free();
        if self.runs {
            return Some(u64::from(self.lab.read("web01.qcow2")));
        }
        let one = self.lab.read("web02a.qcow2");
        let two = self.lab.read("web02b.qcow2");
        (one == two).then_some(u64::from(one))
    }
    fn born(&self) -> Arc<dyn Adapter> {
        self.lab.adapter()
    }
    fn killed(&self) {
        if self.hurries {
            eventually("libvirtd misses the gateway", || self.lab.clients() == 0);
            self.free();
        }
    }
    fn settle(&self) -> Option<Duration> {
        self.hurries.then_some(Duration::from_secs(1))
    }
}

#[apply(test)]
async fn libvirt_behaves() {
    let bed = LibvirtBed::start(false);
    suite(&bed).await;
}

#[apply(test)]
fn libvirt_is_left_by_a_gateway_killed_between_any_two_steps() {
    let bed = LibvirtBed::start(true);
    kills(&bed);
}

#[apply(test)]
fn libvirt_is_left_with_a_stopped_vm_by_a_gateway_killed_between_any_two_steps() {
    let bed = LibvirtBed::start(true);
    kills(&LibvirtBed { runs: false, ..bed });
}

/// With the adapter's own settle time, of which there is too much for every moment.
#[apply(test)]
fn a_gateway_killed_between_libvirts_restore_and_its_answer_settles() {
    let bed = LibvirtBed::start(false);
    kill(&bed, Verb::Restore, 3, "after begin");
}

struct LxdBed {
    lxd: Lxd,
    flavor: Flavor,
    way: Way,
    vm: VmId,
}

impl LxdBed {
    /// On the server of that flavor that was started for the tests.
    fn new(flavor: Flavor, way: Way, name: &str) -> Self {
        let lxd = Lxd::of(flavor);
        let vm = lxd.vm(name, 0);
        Self {
            lxd,
            flavor,
            way,
            vm,
        }
    }
}

impl Bed for LxdBed {
    fn name(&self) -> &'static str {
        match (self.flavor, self.way) {
            (Flavor::Lxd, Way::Socket) => "incus on LXD, unix socket",
            (Flavor::Lxd, Way::Tls) => "incus on LXD, TLS",
            (Flavor::Incus, Way::Socket) => "incus on Incus, unix socket",
            (Flavor::Incus, Way::Tls) => "incus on Incus, TLS",
        }
    }
    fn adapter(&self) -> Arc<dyn Adapter> {
        Arc::new(self.lxd.adapter(self.way))
    }
    fn vm(&self) -> VmId {
        self.vm.clone()
    }
    fn write(&self, content: u64) {
        std::fs::write(self.lxd.file(&self.vm), content.to_string()).unwrap();
    }
    fn content(&self) -> u64 {
        let text = std::fs::read_to_string(self.lxd.file(&self.vm)).unwrap();
        text.parse().unwrap()
    }
    fn break_restores(&self) -> Option<Box<dyn std::any::Any + Send>> {
        let file = self.lxd.file(&self.vm);
        let this = file.to_str()?.to_owned();
        Some(Box::new(Mount::new(&["--bind", &this], &file)))
    }
    fn names_remedies(&self) -> bool {
        true
    }
}

#[apply(test)]
async fn incus_behaves_over_a_socket() {
    lxd_behaves(Way::Socket, "socket").await;
}

#[apply(test)]
async fn incus_behaves_over_tls_with_a_restricted_certificate() {
    lxd_behaves(Way::Tls, "tls").await;
}

async fn lxd_behaves(way: Way, name: &str) {
    for flavor in Flavor::started() {
        suite(&LxdBed::new(flavor, way, name)).await;
    }
}

/// Each change on a VM of its own: they spend their time waiting for LXD to settle.
#[apply(test)]
fn incus_is_left_by_a_gateway_killed_between_any_two_steps() {
    std::thread::scope(|scope| {
        let beds = Flavor::started().into_iter().flat_map(|flavor| {
            Verb::ALL.into_iter().map(move |verb| {
                let name = format!("killed-{}", verb.as_str());
                (verb, LxdBed::new(flavor, Way::Socket, &name))
            })
        });
        for (verb, bed) in beds {
            let body = move || kills_of(&bed, verb);
            drop(
                std::thread::Builder::new()
                    .spawn_scoped(scope, body)
                    .unwrap(),
            );
        }
    });
}
