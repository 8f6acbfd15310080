//! The adapters of this crate under the suite and its kills: `sim`, `files`, `libvirt`, LXD and Incus.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use snapgate::adapters::adapter::*;
use snapgate::adapters::files;
use snapgate::adapters::incus;
use snapgate::adapters::libvirt;
use snapgate::adapters::sim;
use snapgate::adapters::transport;
use snapgate::model::*;
use snapgate::runtime::{Clock, SystemClock, Tasks};

use crate::conformance::AdapterFixture;
use crate::conformance::kills::kill;
use crate::conformance::kills::kill_at_every_moment;
use crate::conformance::kills::kill_during;
use crate::conformance::mortal_gateway::KillMoments;
use crate::conformance::suite::run_suite;
use crate::harness::PATIENCE;
use crate::harness::eventually;
use crate::incus::Flavor;
use crate::incus::Lxd;
use crate::incus::Transport;
use crate::incus::failures::Mount;
use crate::libvirt::private_libvirtd::PrivateLibvirtd;

pub(crate) struct SimFixture(Arc<sim::Sim>);

impl AdapterFixture for SimFixture {
    fn set_other_vm(&self, id: &str, exists: bool) -> bool {
        let (control, id) = (self.0.control(), VmId::new(id).unwrap());
        if exists {
            control.add_vm(&id);
        } else {
            control.remove_vm(&id);
        }
        true
    }
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
    fn adapter_after_restart(&self) -> Arc<dyn Adapter> {
        Arc::new(self.0.control().adapter(Tasks::default()))
    }
    fn executions(&self, key: RequestKey) -> Option<u64> {
        Some(self.0.control().executions(key))
    }
    fn kill_moments(&self) -> KillMoments {
        KillMoments::All
    }
    fn break_restores(&self) -> Option<Box<dyn std::any::Any + Send>> {
        self.0.control().fail_next_task(FaultKind::BackendFailed);
        Some(Box::new(()))
    }
}

impl SimFixture {
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
    run_suite(&SimFixture::new(Recovery::ReplaySafe)).await;
}

#[apply(test)]
fn a_replay_safe_sim_is_killed_between_any_two_steps() {
    kill_at_every_moment(&SimFixture::new(Recovery::ReplaySafe));
}

#[apply(test)]
fn a_listable_sim_is_killed_between_any_two_steps() {
    kill_at_every_moment(&SimFixture::new(Recovery::Listable));
}

#[apply(test)]
fn a_traceless_sim_is_killed_between_any_two_steps() {
    kill_at_every_moment(&SimFixture::new(Recovery::NoTrace));
}

struct FilesFixture(tempfile::TempDir, Mutex<Option<Arc<files::Files>>>);

impl FilesFixture {
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

impl AdapterFixture for FilesFixture {
    fn set_other_vm(&self, id: &str, exists: bool) -> bool {
        let folder = self.0.path().join("vms").join(id);
        if exists {
            std::fs::create_dir(folder).unwrap();
            // Not every name is a VM.
            std::fs::write(self.0.path().join("vms/zz-file"), "").unwrap();
        } else {
            std::fs::remove_dir(folder).unwrap();
        }
        true
    }
    fn unreachable_adapter(&self) -> Option<Arc<dyn Adapter>> {
        let config = files::Config {
            root: self.0.path().join("not-mounted"),
            backups: self.0.path().join("backups"),
            new_folders: true,
        };
        let clock = SystemClock::shared();
        Some(Arc::new(files::Files::when_available(
            config,
            clock,
            Tasks::default(),
        )))
    }
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
    fn adapter_after_restart(&self) -> Arc<dyn Adapter> {
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
    fn kill_moments(&self) -> KillMoments {
        KillMoments::All
    }
}

#[apply(test)]
async fn files_behave() {
    let fixture = FilesFixture::new();
    drop(fixture.adapter_after_restart());
    run_suite(&fixture).await;
}

#[apply(test)]
fn files_are_killed_between_any_two_steps() {
    kill_at_every_moment(&FilesFixture::new());
}

/// A VM of a real libvirtd: the running one with one disk, or the one that is off and has two.
struct LibvirtFixture {
    libvirtd: PrivateLibvirtd,
    adapter: Arc<libvirt::Libvirt>,
    /// Waits until libvirtd has taken up everything that a killed gateway asked it, so that nothing is left to settle.
    hurries: bool,
    runs: bool,
}

impl LibvirtFixture {
    /// Skips the test where libvirt is not installed.
    fn start(hurries: bool) -> Self {
        let libvirtd = PrivateLibvirtd::start();
        let adapter = libvirtd.adapter();
        Self {
            libvirtd,
            adapter,
            hurries,
            runs: true,
        }
    }
}

impl LibvirtFixture {
    /// Waits for the lock of the VM, so that its disks are not in use.
    fn free(&self) {
        if self.runs {
            self.libvirtd.monitor("web01", "info status");
        } else {
            self.libvirtd
                .virsh(&["desc", "web02", "--config", "waited for"]);
        }
    }
}

impl AdapterFixture for LibvirtFixture {
    fn set_other_vm(&self, id: &str, exists: bool) -> bool {
        if !exists {
            self.libvirtd.virsh(&["undefine", id]);
            return true;
        }
        let file = self.libvirtd.folder().join(format!("{id}.xml"));
        let xml = format!(
            "<domain type='qemu'><name>{id}</name><memory unit='MiB'>16</memory><os><type arch='x86_64'>hvm</type></os></domain>"
        );
        std::fs::write(&file, xml).unwrap();
        self.libvirtd.virsh(&["define", file.to_str().unwrap()]);
        true
    }
    fn unreachable_adapter(&self) -> Option<Arc<dyn Adapter>> {
        let config = libvirt::Config {
            socket: self.libvirtd.folder().join("no-socket"),
            ..self.libvirtd.config()
        };
        let adapter = libvirt::Libvirt::new(config, SystemClock::shared(), Tasks::default());
        Some(Arc::new(adapter))
    }
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
            self.libvirtd.write(byte);
        } else {
            self.free();
            self.libvirtd.write_off("web02a.qcow2", byte);
            self.libvirtd.write_off("web02b.qcow2", byte);
        }
    }
    fn content(&self) -> u64 {
        self.found().expect("both disks are of one time")
    }
    fn found(&self) -> Option<u64> {
        self.free();
        if self.runs {
            return Some(u64::from(self.libvirtd.read("web01.qcow2")));
        }
        let one = self.libvirtd.read("web02a.qcow2");
        let two = self.libvirtd.read("web02b.qcow2");
        (one == two).then_some(u64::from(one))
    }
    fn adapter_after_restart(&self) -> Arc<dyn Adapter> {
        self.libvirtd.adapter()
    }
    fn pause(&self, paused: bool) -> bool {
        if self.runs {
            let command = if paused { "suspend" } else { "resume" };
            self.libvirtd.virsh(&[command, "web01"]);
        }
        self.runs
    }
    fn killed(&self) {
        if self.hurries {
            eventually("libvirtd misses the gateway", || {
                self.libvirtd.clients() == 0
            });
            self.free();
        }
    }
    fn settle(&self) -> Option<Duration> {
        self.hurries.then_some(Duration::from_secs(1))
    }
}

#[apply(test)]
async fn libvirt_behaves() {
    let fixture = LibvirtFixture::start(false);
    run_suite(&fixture).await;
}

#[apply(test)]
fn libvirt_is_left_by_a_gateway_killed_between_any_two_steps() {
    let fixture = LibvirtFixture::start(true);
    kill_at_every_moment(&fixture);
}

#[apply(test)]
fn libvirt_is_left_with_a_stopped_vm_by_a_gateway_killed_between_any_two_steps() {
    let fixture = LibvirtFixture::start(true);
    kill_at_every_moment(&LibvirtFixture {
        runs: false,
        ..fixture
    });
}

/// With the adapter's own settle time, of which there is too much for every moment.
#[apply(test)]
fn a_gateway_killed_between_libvirts_restore_and_its_answer_settles() {
    let fixture = LibvirtFixture::start(false);
    kill(&fixture, Verb::Restore, 3, "after begin");
}

struct LxdFixture {
    lxd: Lxd,
    flavor: Flavor,
    way: Transport,
    vm: VmId,
}

impl LxdFixture {
    /// On the server of that flavor that was started for the tests.
    fn new(flavor: Flavor, way: Transport, name: &str) -> Self {
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

impl AdapterFixture for LxdFixture {
    fn unreachable_adapter(&self) -> Option<Arc<dyn Adapter>> {
        let config = incus::Config {
            address: transport::Address::Unix("/nowhere".into()),
            ..self.lxd.config(self.way)
        };
        Some(Arc::new(
            incus::Incus::new(&config, SystemClock::shared()).unwrap(),
        ))
    }
    fn name(&self) -> &'static str {
        match (self.flavor, self.way) {
            (Flavor::Lxd, Transport::Socket) => "incus on LXD, unix socket",
            (Flavor::Lxd, Transport::Tls) => "incus on LXD, TLS",
            (Flavor::Incus, Transport::Socket) => "incus on Incus, unix socket",
            (Flavor::Incus, Transport::Tls) => "incus on Incus, TLS",
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
}

#[apply(test)]
async fn incus_behaves_over_a_socket() {
    lxd_behaves(Transport::Socket, "socket").await;
}

#[apply(test)]
async fn incus_behaves_over_tls_with_a_restricted_certificate() {
    lxd_behaves(Transport::Tls, "tls").await;
}

async fn lxd_behaves(way: Transport, name: &str) {
    for flavor in Flavor::started() {
        run_suite(&LxdFixture::new(flavor, way, name)).await;
    }
}

/// Each change on a VM of its own: they spend their time waiting for LXD to settle.
#[apply(test)]
fn incus_is_left_by_a_gateway_killed_between_any_two_steps() {
    std::thread::scope(|scope| {
        let beds = Flavor::started().into_iter().flat_map(|flavor| {
            Verb::ALL.into_iter().map(move |verb| {
                let name = format!("killed-{}", verb.as_str());
                (verb, LxdFixture::new(flavor, Transport::Socket, &name))
            })
        });
        for (verb, fixture) in beds {
            let body = move || kill_during(&fixture, verb);
            drop(
                std::thread::Builder::new()
                    .spawn_scoped(scope, body)
                    .unwrap(),
            );
        }
    });
}
