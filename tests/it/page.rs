//! The page at `/ui/` in a real Chromium against whole gateways. The scenarios are in `tests/page/`; `.ci/run` installs the
//! libraries that they use into `target/page`.

use std::fmt::Display;
use std::fs;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;

use serde_json::json;
use tempfile::TempDir;

use crate::client::Client;
use crate::harness::FILES;
use crate::harness::Gateway;
use crate::harness::Process;
use crate::harness::SECRET_HASH;
use crate::harness::SIM;
use crate::harness::settings_for_alice;
use crate::http2;
use crate::http2::Secure;
use crate::qemu::private_qemu::PrivateQemu;
use crate::requirements::require_programs;
use crate::runner::skip;

const MODULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/page");
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/page/run.mjs");
const IMAGES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/images");
/// A name that would be an image, and more, if it were markup.
const MARKUP: &str = "<img src=x onerror=alert(1)>";
const DISK_BYTES: usize = 24 * 1024 * 1024;
/// Pictures in the README are small.
const PICTURE_BYTES_MAX: u64 = 150_000;

/// Skips the test unless there are a browser, and what drives it.
fn require_browser() {
    require_programs(&["chromium", "node"]);
    for module in ["playwright-core", "axe-core"] {
        let folder = Path::new(MODULES).join("node_modules").join(module);
        if !folder.exists() {
            skip(&format!("{} is not installed (.ci/run)", folder.display()));
        }
    }
}

/// Runs a scenario to its end; `act` does what it asks for on the way.
fn play(scenario: &str, host: impl Display, arguments: &[&str], mut act: impl FnMut(&str)) {
    let mut child = Command::new("node")
        .arg(SCRIPT)
        .arg(scenario)
        .arg(format!("http://{host}"))
        .args(arguments)
        .env("PAGE_MODULES", MODULES)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut errors = child.stderr.take().unwrap();
    let errors = std::thread::Builder::new()
        .spawn(move || {
            let mut text = String::new();
            drop(errors.read_to_string(&mut text));
            text
        })
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut printed = Vec::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        if let Some(what) = line.strip_prefix("ask ") {
            act(what);
            writeln!(input, "done").unwrap();
        }
        printed.push(line);
    }
    let status = child.wait().unwrap();
    let errors = errors.join().unwrap();
    let is_done = printed.last().is_some_and(|line| line == "done");
    assert!(
        status.success() && is_done,
        "{scenario}: {status}\n{}\n{errors}",
        printed.join("\n")
    );
}

fn nothing_is_asked_for(what: &str) {
    panic!("the scenario asks for {what}");
}

/// The configuration with the page.
fn with_page(settings: &str) -> String {
    assert!(settings.contains("[server]\n"), "a table to add it to");
    settings.replacen("[server]\n", "[server]\npage = true\n", 1)
}

/// `carol` may read and restore.
fn carol() -> String {
    format!(
        "[[user]]\nname = \"carol\"\npassword_hash = \"{SECRET_HASH}\"\n\
         [[grant]]\nto = [\"user:carol\"]\nactions = [\"read\", \"restore\"]\nvms = [\"*\"]\nbackups = [\"*\"]\n"
    )
}

/// A gateway with the page as a process, over a folder of files with the VM `web01`, whose only backup is `nightly`.
struct Site {
    folder: TempDir,
    process: Process,
}

impl Site {
    fn start() -> Self {
        Self::with(FILES, |folder| {
            fs::create_dir_all(folder.join("vms/web01")).unwrap();
            fs::create_dir_all(folder.join("backups")).unwrap();
        })
    }

    fn with(backend: &str, prepare: impl FnOnce(&Path)) -> Self {
        require_browser();
        let folder = tempfile::tempdir().unwrap();
        prepare(folder.path());
        let settings = with_page(&settings_for_alice(backend)) + &carol();
        fs::write(folder.path().join("snapgate.toml"), settings).unwrap();
        let process = serve(folder.path());
        Self { folder, process }
    }

    fn disk(&self) -> PathBuf {
        self.folder.path().join("vms/web01/disk.img")
    }

    fn fill(&self, byte: u8) {
        fs::write(self.disk(), vec![byte; DISK_BYTES]).unwrap();
    }

    /// Makes the backup `nightly` of the disk full of 1, and then fills it with 2.
    fn back_up(&self) {
        self.fill(1);
        self.create("web01", &json!({"name": "nightly", "tags": ["a", "b c"]}));
        self.fill(2);
    }

    fn create(&self, vm: &str, body: &serde_json::Value) {
        let client = Client::new(self.process.api, "alice", "secret");
        let accepted = client.post(&format!("/vms/{vm}/backups"), &body.to_string());
        let status = client.finished(&accepted.status_uri());
        assert_eq!(status["status"], 201, "{status}");
    }

    fn is_restored(&self) -> bool {
        let bytes = fs::read(self.disk()).unwrap();
        bytes.len() == DISK_BYTES && bytes.iter().all(|byte| *byte == 1)
    }

    fn play(&self, scenario: &str, arguments: &[&str]) {
        play(scenario, self.process.api, arguments, nothing_is_asked_for);
    }
}

fn serve(folder: &Path) -> Process {
    let config = folder.join("snapgate.toml");
    Process::start(&["serve", "--config", config.to_str().unwrap()])
}

/// Two backends `sim`: `few` has 100 backups and `lots` 10,000.
const SIMULATED: &str = r#"[[backend]]
name = "few"
kind = "sim"
vms = ["few"]
[backend.sim]
simulated_vms = ["few"]
simulated_backups = 100
duration = "5s"
[[backend]]
name = "lots"
kind = "sim"
vms = ["lots"]
[backend.sim]
simulated_vms = ["lots"]
simulated_backups = 10000
"#;

#[apply(test)]
fn signing_in_is_up_to_the_page_and_leaves_nothing_behind() {
    Site::start().play("sign_in", &[]);
}

#[apply(test)]
fn the_policy_of_the_page_is_enforced_and_nothing_violates_it() {
    Site::start().play("policy", &[]);
}

#[apply(test)]
fn a_restore_on_the_page_brings_the_bytes_back() {
    let site = Site::start();
    site.back_up();
    site.play("restore", &["web01", "nightly", "disk.img"]);
    assert!(site.is_restored(), "every byte is back");
}

#[apply(test)]
fn a_restore_on_the_page_brings_the_disks_of_a_real_qemu_back() {
    require_browser();
    let qemu = PrivateQemu::started();
    let at = qemu.folder.path().display().to_string();
    let backend = format!(
        "[[backend]]\nname = \"host\"\nkind = \"qemu\"\nvms = [\"web01\"]\n[backend.qemu]\n\
         qmp = \"{at}/{{vm}}.qmp\"\nimages = [\"{at}/{{vm}}.qcow2\", \"{at}/{{vm}}-b.qcow2\"]\n"
    );
    let site = Site::with(&backend, |_folder| {});
    qemu.fill(0, 1);
    qemu.fill(1, 1);
    site.create("web01", &json!({"name": "nightly"}));
    qemu.fill(0, 2);
    qemu.fill(1, 2);
    site.play("restore", &["web01", "nightly", "disk0"]);
    assert_eq!(
        (qemu.filled(0), qemu.filled(1)),
        (1, 1),
        "both disks are back"
    );
    assert_eq!(qemu.status(), "running", "and the VM runs");
}

#[apply(test)]
fn a_restore_on_the_page_needs_no_mouse() {
    let site = Site::start();
    site.back_up();
    site.play("keyboard", &["web01", "nightly"]);
    assert!(site.is_restored(), "every byte is back");
}

#[apply(test)]
fn a_lost_answer_makes_no_second_restore_on_the_page() {
    let site = Site::start();
    site.back_up();
    site.play("lost_answer", &["web01", "nightly"]);
    assert!(site.is_restored(), "every byte is back");
}

#[apply(test)]
fn two_tabs_of_the_page_see_the_same_and_a_stale_plan_restores_nothing() {
    let site = Site::start();
    site.back_up();
    let another = site.folder.path().join("vms/web01/another.img");
    play(
        "two_tabs",
        site.process.api,
        &["web01", "nightly"],
        |what| {
            assert_eq!(what, "change", "the VM is to change");
            site.fill(2);
            fs::write(&another, "another disk").unwrap();
        },
    );
    assert!(!site.is_restored(), "the disk was left alone");
}

/// Plays a scenario in which the gateway is killed and comes back at the same address.
fn play_with_kills(site: Site, scenario: &str, arguments: &[&str]) -> TempDir {
    let api = site.process.api;
    let config = site.folder.path().join("snapgate.toml");
    let settings = fs::read_to_string(&config).unwrap();
    let fixed = settings.replacen(
        "listen = \"127.0.0.1:0\"",
        &format!("listen = \"{api}\""),
        1,
    );
    let mut process = Some(site.process);
    play(scenario, api, arguments, |what| match what {
        "kill" => {
            process.take().unwrap().kill();
            fs::write(&config, &fixed).unwrap();
        }
        "start" => process = Some(serve(site.folder.path())),
        other => nothing_is_asked_for(other),
    });
    drop(process);
    site.folder
}

#[apply(test)]
fn the_page_waits_through_a_gateway_that_is_killed_in_the_middle_of_a_restore() {
    // Its VM manager is another gateway, which goes on meanwhile.
    let far = Gateway::start(&settings_for_alice(SIMULATED));
    let backend = format!(
        "[[backend]]\nname = \"far\"\nkind = \"cloudapi\"\nvms = [\"few\"]\n[backend.cloudapi]\nurl = \"http://{}\"\n\
         username = \"alice\"\npassword = \"file:password\"\nserver_recovery = \"replay-safe\"\n",
        far.api
    );
    let site = Site::with(&backend, |folder| {
        fs::write(folder.join("password"), "secret").unwrap();
    });
    play_with_kills(site, "killed", &["few", "backup 456", "in the middle"]);
}

#[apply(test)]
fn the_bytes_are_back_after_a_gateway_was_killed_under_the_page() {
    let site = Site::start();
    site.back_up();
    let folder = play_with_kills(site, "killed", &["web01", "nightly", "at any moment"]);
    let bytes = fs::read(folder.path().join("vms/web01/disk.img")).unwrap();
    assert_eq!(bytes.len(), DISK_BYTES, "whole");
    assert!(bytes.iter().all(|byte| *byte == 1), "every byte is back");
}

#[apply(test)]
fn names_that_are_markup_stay_text_on_the_page() {
    let site = Site::start();
    let vm = site.folder.path().join("vms/web01");
    fs::write(vm.join("vm.json"), json!({ "name": MARKUP }).to_string()).unwrap();
    site.fill(1);
    let description = format!("Description of {MARKUP}");
    site.create(
        "web01",
        &json!({"name": MARKUP, "description": description, "tags": [MARKUP]}),
    );
    site.play("hostile_names", &[MARKUP, MARKUP]);
}

#[apply(test)]
fn who_may_not_delete_reads_why_on_the_page() {
    let site = Site::start();
    site.back_up();
    site.play("no_right", &["web01", "nightly"]);
}

#[apply(test)]
fn the_page_leads_to_the_public_address_where_changes_are_refused() {
    let site = Site::start();
    site.back_up();
    let api = site.process.api;
    let public = format!("http://{api}/ui/");
    let other = format!("localhost:{}", api.port());
    play(
        "other_address",
        &other,
        &["web01", "nightly", &public],
        nothing_is_asked_for,
    );
    assert!(!site.is_restored(), "the disk was left alone");
}

#[apply(test)]
fn a_hidden_tab_of_the_page_gives_its_stream_back() {
    Site::start().play("hidden_tab", &[]);
}

#[apply(test)]
fn backups_are_made_edited_protected_and_deleted_on_the_page() {
    let site = Site::start();
    site.fill(1);
    site.play("edit", &["web01"]);
}

#[apply(test)]
fn an_operation_is_cancelled_on_the_page() {
    Site::with(SIMULATED, |_folder| {}).play("cancel", &["few", "backup 456"]);
}

#[apply(test)]
fn every_view_fits_narrow_and_wide_windows_and_axe_finds_nothing_serious() {
    let site = Site::start();
    site.back_up();
    site.play("layout", &["web01", "nightly"]);
}

#[apply(test)]
fn ten_thousand_backups_are_shown_about_as_quickly_as_a_hundred() {
    Site::with(SIMULATED, |_folder| {}).play("many", &["few", "lots"]);
}

/// `UPDATE_SCREENSHOTS=1` puts the pictures into `docs/images/`.
#[apply(test)]
fn the_pictures_in_the_readme_are_made_by_the_page() {
    let site = Site::start();
    site.back_up();
    let folder = tempfile::tempdir().unwrap();
    let into = match std::env::var_os("UPDATE_SCREENSHOTS") {
        Some(_) => Path::new(IMAGES),
        None => folder.path(),
    };
    site.play("screenshots", &["web01", "nightly", into.to_str().unwrap()]);
    let readme = fs::read_to_string("README.md").unwrap();
    for name in ["page-restore.png", "page-backups.png"] {
        for made in [into, Path::new(IMAGES)] {
            let bytes = fs::metadata(made.join(name)).unwrap().len();
            assert!(
                (1000..PICTURE_BYTES_MAX).contains(&bytes),
                "{name}: {bytes} bytes"
            );
        }
        assert!(
            readme.contains(&format!("docs/images/{name}")),
            "README shows {name}"
        );
    }
}

#[apply(test)]
fn the_page_is_served_over_http_1_and_http_2_alike() {
    let settings = with_page(&format!(
        "[server]\nlisten = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\npublic_url = \"https://localhost\"\n{SIM}"
    ));
    let secure = Secure::start(&settings);
    let connection = secure.connect();
    let plain = Gateway::start(&with_page(&format!(
        "[server]\nlisten = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n{SIM}"
    )));
    let client = Client::bare(plain.api);
    for path in ["/ui/", "/ui", "/ui/page.css", "/ui/main.js", "/ui/absent"] {
        let old = client.get(path);
        let new = connection.send(http2::request("GET", path), None);
        assert_eq!(old.status, new.status, "{path}");
        assert_eq!(old.body.len(), new.body.len(), "{path}");
        for name in [
            "content-security-policy",
            "x-content-type-options",
            "referrer-policy",
            "cross-origin-opener-policy",
            "cross-origin-resource-policy",
            "cache-control",
            "etag",
            "content-type",
        ] {
            let value = new
                .headers
                .get(name)
                .map_or("", |value| value.to_str().unwrap());
            assert_eq!(old.header(name), value, "{path}: {name}");
        }
        assert!(
            old.header("content-security-policy")
                .contains("default-src 'none'"),
            "{path}"
        );
    }
    let admin = Client::bare(plain.admin).get("/ui/");
    assert_eq!(admin.status, 404, "not on the admin port");
}
