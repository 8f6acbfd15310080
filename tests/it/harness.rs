//! Gateways for tests: in this process on free ports, or as processes that can be killed.

use std::fs;
use std::io::BufRead;
use std::io::BufReader;
use std::net::SocketAddr;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use snapgate::app;
use snapgate::app::Running;
use snapgate::config;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::client::Client;

/// Longest wait for something that must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A bcrypt hash of `secret` with the lowest cost there is, so that tests do not wait for it.
pub(crate) const SECRET_HASH: &str = "$2b$04$ABCDEFGHIJKLMNOPQRSTUux/yVoHLb2P5.QxxfIdIyVUJvRQqUe5S";

/// A gateway in this process.
#[derive(Debug)]
pub(crate) struct Gateway {
    runtime: Runtime,
    running: Option<Running>,
    pub(crate) api: SocketAddr,
    pub(crate) admin: SocketAddr,
    folder: TempDir,
}

/// A backend `files` that makes its folders: `vms` and `backups` beside the configuration.
pub(crate) const FILES: &str = r#"[[backend]]
name = "disks"
kind = "files"
vms = ["*"]
[backend.files]
root = "vms"
backups = "backups"
new_folders = true
"#;

/// A configuration with these tables, ports that the system chooses, and the user `alice` with every right.
pub(crate) fn settings_for_alice(tables: &str) -> String {
    format!(
        r#"[server]
listen = "127.0.0.1:0"
admin = "127.0.0.1:0"
[operations]
store = "operations.db"
{tables}
[[user]]
name = "alice"
password_hash = "{SECRET_HASH}"
[[grant]]
to = ["user:alice"]
actions = ["read", "create", "update", "protect", "delete", "restore", "observe"]
vms = ["*"]
backups = ["*"]
"#
    )
}

/// One backend `sim` with VMs 1 and 2, user `alice` with every right and `carol` who may restore but not delete.
pub(crate) const SIM: &str = r#"
[operations]
store = "operations.db"

[[backend]]
name = "lab"
kind = "sim"
vms = ["1", "2"]
[backend.sim]
simulated_vms = ["1", "2"]
duration = "50ms"

[[user]]
name = "alice"
password_hash = "SECRET_HASH"

[[user]]
name = "carol"
password_hash = "SECRET_HASH"

[[user]]
name = "stranger"
password_hash = "SECRET_HASH"

[[grant]]
to = ["user:alice"]
actions = ["read", "create", "update", "protect", "delete", "restore", "observe"]
vms = ["*"]
backups = ["*"]

[[grant]]
to = ["user:carol"]
actions = ["read", "restore"]
vms = ["1"]
backups = ["*"]
"#;

impl Gateway {
    /// Serves the configuration, whose `SECRET_HASH` stands for a hash of `secret`.
    pub(crate) fn start(settings: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self::start_in(folder, settings)
    }

    /// The same in a folder that already holds something.
    pub(crate) fn start_in(folder: TempDir, settings: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let path = write_config(folder.path(), settings);
        let loaded = config::load(&path, &|_| None).unwrap_or_else(|error| panic!("{error}"));
        let running = runtime.block_on(app::start(loaded)).unwrap();
        Self {
            api: running.api(),
            admin: running.admin(),
            running: Some(running),
            runtime,
            folder,
        }
    }

    /// Sends nothing but what a test says.
    pub(crate) fn bare(&self) -> Client {
        Client::bare(self.api)
    }

    /// A caller with the password `secret`.
    pub(crate) fn client(&self, user: &str) -> Client {
        Client::new(self.api, user, "secret")
    }

    /// Puts another configuration in place and reloads; returns whether it took effect.
    pub(crate) fn reload(&self, settings: &str) -> bool {
        let path = write_config(self.folder.path(), settings);
        let running = self.running.as_ref().unwrap();
        running.reload(config::load(&path, &|_| None))
    }

    /// What `/metrics` says of the series that begins like this; zero when there is none.
    pub(crate) fn metric(&self, series: &str) -> f64 {
        metric(self.admin, series)
    }
}

/// Begins to stop and returns what waits for the end.
pub(crate) fn stop_in_background(mut gateway: Gateway) -> std::thread::JoinHandle<Duration> {
    let running = gateway.running.take().unwrap();
    let begun = Instant::now();
    std::thread::Builder::new()
        .spawn(move || {
            gateway.runtime.block_on(running.drain());
            begun.elapsed()
        })
        .unwrap()
}

/// What `/metrics` says of the series that begins like this; zero when there is none.
pub(crate) fn metric(admin: SocketAddr, series: &str) -> f64 {
    let text = String::from_utf8(Client::bare(admin).get("/metrics").body).unwrap();
    text.lines()
        .filter(|line| line.starts_with(series))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

fn write_config(folder: &Path, settings: &str) -> PathBuf {
    let ports = "[server]\nlisten = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n";
    let path = folder.join("snapgate.toml");
    let text = settings.replace("SECRET_HASH", SECRET_HASH);
    let text = if text.contains("[server]") {
        text
    } else {
        format!("{ports}{text}")
    };
    fs::write(&path, text).unwrap();
    path
}

/// A gateway as a process of its own, killed with SIGKILL when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    pub(crate) api: SocketAddr,
    pub(crate) admin: SocketAddr,
    /// What it printed before it was ready.
    pub(crate) printed: Vec<String>,
}

/// The program under test.
pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_snapgate"));
    command.env_remove("NOTIFY_SOCKET").stdin(Stdio::null());
    command
}

/// Status, standard output and standard error of a command on this configuration.
pub(crate) fn command_output(arguments: &[&str], config: &Path) -> (i32, String, String) {
    let output = program()
        .args(arguments)
        .arg("--config")
        .arg(config)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let code = output.status.code().unwrap();
    (code, text(output.stdout), text(output.stderr))
}

/// What `serve` with this configuration says before it ends by itself, as it must.
pub(crate) fn refused_start(config: &Path) -> String {
    let log = tempfile::NamedTempFile::new().unwrap();
    let mut gateway = program()
        .args(["serve", "--config"])
        .arg(config)
        .stdout(Stdio::null())
        .stderr(log.reopen().unwrap())
        .spawn()
        .unwrap();
    let until = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = gateway.try_wait().unwrap() {
            break status;
        }
        if Instant::now() >= until {
            gateway.kill().unwrap();
            gateway.wait().unwrap();
            panic!("it serves");
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    assert!(!status.success(), "refused: {status}");
    fs::read_to_string(log.path()).unwrap()
}

/// What `check --probe` says about a configuration: exit code and standard output.
pub(crate) fn probe(config: &str) -> (Option<i32>, String) {
    let output = program()
        .args(["check", "--config", config, "--probe"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    (output.status.code(), text)
}

impl Process {
    /// Starts the demo in this folder, on free ports.
    pub(crate) fn start_demo(folder: &Path, more: &[&str]) -> Self {
        let folder = folder.to_str().unwrap();
        let arguments = [
            "demo",
            "--dir",
            folder,
            "--listen",
            "127.0.0.1:0",
            "--admin",
            "127.0.0.1:0",
        ];
        Self::start(&[&arguments, more].concat())
    }

    /// Starts it with these arguments and waits until it says where it listens.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        Self::launch(arguments, |_pid| {})
            .unwrap_or_else(|printed| panic!("it ended before it was ready: {printed:?}"))
    }

    /// The same, with standard error in a file.
    pub(crate) fn start_logging(arguments: &[&str], log: fs::File) -> Self {
        Self::start_in(&[], arguments, log)
    }

    /// The same with variables of the environment.
    pub(crate) fn start_in(
        environment: &[(&str, &str)],
        arguments: &[&str],
        log: fs::File,
    ) -> Self {
        let mut command = program();
        command.args(arguments).envs(environment.iter().copied());
        Self::launch_with(command, log.into(), |_pid| {})
            .unwrap_or_else(|printed| panic!("it ended before it was ready: {printed:?}"))
    }

    /// The same with something to do as soon as its process id is known.
    ///
    /// # Errors
    /// What it printed, when it ended before it was ready.
    pub(crate) fn launch(arguments: &[&str], born: impl FnOnce(u32)) -> Result<Self, Vec<String>> {
        let mut command = program();
        command.args(arguments);
        Self::launch_with(command, Stdio::null(), born)
    }

    fn launch_with(
        mut command: Command,
        log: Stdio,
        born: impl FnOnce(u32),
    ) -> Result<Self, Vec<String>> {
        let mut child = command.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        born(child.id());
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut printed = Vec::new();
        let (mut api, mut admin) = (None, None);
        while api.is_none() || admin.is_none() {
            let Some(line) = lines.next() else {
                child.wait().unwrap();
                return Err(printed);
            };
            let line = line.unwrap();
            let address = |prefix: &str| line.strip_prefix(prefix)?.parse().ok();
            api = api
                .or_else(|| address("listening on http://"))
                .or_else(|| address("listening on https://"));
            admin = admin.or_else(|| address("admin on http://"));
            printed.push(line);
        }
        // The rest of what it prints is read so that it never blocks on a full pipe.
        std::thread::Builder::new()
            .spawn(move || lines.for_each(drop))
            .unwrap();
        Ok(Self {
            child,
            api: api.unwrap(),
            admin: admin.unwrap(),
            printed,
        })
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended by itself, or was killed, within that time.
    pub(crate) fn ends_within(&mut self, time: Duration) -> bool {
        let until = Instant::now() + time;
        loop {
            if self.child.try_wait().unwrap().is_some() {
                return true;
            }
            if Instant::now() >= until {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Ends it with SIGKILL, as a crash would.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends a signal by name, for instance `TERM`.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill")
            .args(["-s", name, &self.child.id().to_string()])
            .status()
            .unwrap();
        assert!(sent.success(), "signal {name} sent");
    }

    /// Waits for its end and returns the exit code.
    pub(crate) fn wait(mut self) -> Option<i32> {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < until, "it did not end in time");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Waits until the predicate holds.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < until, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
