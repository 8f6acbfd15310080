//! Backends that are not there: at the start, later while they are unused, and again.

use std::fs;
use std::fs::File;
use std::path::Path;
use std::path::PathBuf;

use crate::client::Client;
use crate::harness::Process;
use crate::harness::SECRET_HASH;
use crate::harness::SIM;
use crate::harness::eventually;
use crate::harness::metric;

/// A gateway over `vms/` and `backups/` of a folder, and the VMs of a simulator.
struct Site {
    folder: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("vms/web")).unwrap();
        fs::create_dir(folder.path().join("backups")).unwrap();
        fs::write(folder.path().join("vms/web/disk.img"), "content").unwrap();
        Self { folder }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.at("log")).unwrap()
    }

    /// The log once it has this. A thread of its own writes the lines, after the event.
    fn wait_for_log(&self, expected: &str) -> String {
        eventually(expected, || self.log().contains(expected));
        self.log()
    }

    /// Writes a configuration whose gateway keeps its operations in that file.
    fn config(&self, name: &str, root: &Path) -> String {
        let sim = SIM.replace("SECRET_HASH", SECRET_HASH);
        let sim = sim.replace("operations.db", &format!("{name}.db"));
        let root = root.display();
        let text = format!(
            "[server]\nlisten = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n{sim}\n\
             [[backend]]\nname = \"disks\"\nkind = \"files\"\nvms = [\"web\"]\n\
             health_interval = \"1s\"\nbreaker_pause = \"1s\"\n\
             [backend.files]\nroot = \"{root}\"\nbackups = \"backups\"\nnew_folders = true\n"
        );
        let file = self.at(&format!("{name}.toml"));
        fs::write(&file, text).unwrap();
        file.to_str().unwrap().to_owned()
    }

    fn start(&self, config: &str) -> Process {
        let log = File::create(self.at("log")).unwrap();
        Process::start_logging(&["serve", "--config", config], log)
    }
}

fn is_up(process: &Process) -> bool {
    let up = metric(process.admin, "snapgate_backend_up{backend=\"disks\"}");
    up > 0.5
}

/// Whether anything is known yet.
fn is_looked_at(process: &Process) -> bool {
    let text = String::from_utf8(Client::bare(process.admin).get("/metrics").body).unwrap();
    text.contains("snapgate_backend_up{backend=\"disks\"}")
}

#[apply(test)]
fn a_folder_that_is_missing_at_the_start_leaves_the_gateway_running_until_it_is_there() {
    for missing in ["vms", "backups"] {
        let site = Site::new();
        fs::rename(site.at(missing), site.at("elsewhere")).unwrap();
        let config = site.config("operations", Path::new("vms"));
        let process = site.start(&config);
        let alice = Client::new(process.api, "alice", "secret");
        assert_eq!(alice.get("/vms/1").status, 200, "{missing}: other backends");
        assert_eq!(
            alice.get("/vms/web/backups").status,
            503,
            "{missing}: it alone"
        );
        eventually("it is looked at", || is_looked_at(&process));
        assert!(!is_up(&process), "{missing}: the metric says so");
        site.wait_for_log("backend unavailable backend=disks");
        fs::rename(site.at("elsewhere"), site.at(missing)).unwrap();
        eventually("it is available", || is_up(&process));
        assert_eq!(
            alice.get("/vms/web/backups").status,
            200,
            "{missing}: once it is there"
        );
        let log = site.wait_for_log("backend available backend=disks");
        assert!(!log.contains("Refused {"), "no internal names: {log}");
    }
}

#[apply(test)]
fn an_idle_backend_that_breaks_is_seen_without_a_request() {
    let site = Site::new();
    let process = site.start(&site.config("operations", Path::new("vms")));
    eventually("it is available", || is_up(&process));
    fs::rename(site.at("vms"), site.at("elsewhere")).unwrap();
    eventually("it is seen", || !is_up(&process));
    let log = site.wait_for_log("backend unavailable backend=disks");
    let root = site.at("vms").display().to_string();
    assert!(log.contains(&root), "the reason names the folder: {log}");
    fs::rename(site.at("elsewhere"), site.at("vms")).unwrap();
    eventually("it is back", || is_up(&process));
}

#[apply(test)]
fn backups_in_use_by_another_gateway_are_unavailable_until_it_stops() {
    let site = Site::new();
    let first = site.start(&site.config("first", Path::new("vms")));
    let alice = Client::new(first.api, "alice", "secret");
    assert_eq!(
        alice.get("/vms/web/backups").status,
        200,
        "the first has them"
    );
    let others = site.at("others");
    fs::create_dir_all(others.join("web")).unwrap();
    let second = site.start(&site.config("second", &others));
    let alice = Client::new(second.api, "alice", "secret");
    assert_eq!(alice.get("/vms/1").status, 200, "the second serves");
    assert_eq!(alice.get("/vms/web/backups").status, 503, "without them");
    eventually("it is looked at", || is_looked_at(&second));
    assert!(!is_up(&second), "and says so");
    first.kill();
    eventually("it takes them", || is_up(&second));
}

#[apply(test)]
fn a_clients_404_is_no_warning() {
    let site = Site::new();
    let process = site.start(&site.config("operations", Path::new("vms")));
    let alice = Client::new(process.api, "alice", "secret");
    assert_eq!(
        alice.get("/vms/web/backups/none").status,
        404,
        "no such backup"
    );
    assert_eq!(alice.get("/vms/1/backups/none").status, 404, "nor there");
    assert!(!site.log().contains("WARN"), "{}", site.log());
}
