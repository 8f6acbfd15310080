//! Several gateways as processes, on one etcd and one fake VM manager.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use tempfile::TempDir;

use crate::client::Client;
use crate::cluster::etcd_bed::EtcdBed;
use crate::harness::PATIENCE;
use crate::harness::Process;
use crate::harness::SECRET_HASH;
use crate::harness::eventually;
use crate::ports::free_port;
use crate::tls::Authority;

/// How gateways are configured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup<'a> {
    pub(crate) recovery: &'a str,
    pub(crate) settle: &'a str,
    /// Whole seconds.
    pub(crate) lease: u64,
    pub(crate) simulator: &'a Path,
    /// Whether gateways on standby hand requests on.
    pub(crate) peers: bool,
    /// Whether each gateway has a clock of its own.
    pub(crate) clocks: bool,
}

/// Debian's package `faketime`.
pub(crate) const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

/// Gateways of one cluster; `None` in place of one that was killed.
#[derive(Debug)]
pub(crate) struct Gateways {
    folder: TempDir,
    /// Whether each has a clock of its own: see [`Gateways::set_clock`].
    clocks: bool,
    pub(crate) running: Vec<Option<Process>>,
}

const NAMES: [&str; 3] = ["a", "b", "c"];

impl Gateways {
    /// Starts so many, at most three, and waits until one is active.
    pub(crate) fn start(count: usize, etcd: &EtcdBed, setup: Setup<'_>) -> Self {
        Self::start_with(count, &|_| etcd.toml(), setup, &|_| String::new())
    }

    /// The same with the endpoints of etcd for each, by its number, and with more sections in its configuration, by its name.
    pub(crate) fn start_with(
        count: usize,
        endpoints: &dyn Fn(usize) -> String,
        setup: Setup<'_>,
        more: &dyn Fn(&str) -> String,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new();
        fs::write(folder.path().join("ca.pem"), &authority.pem).unwrap();
        for (number, name) in NAMES[..count].iter().enumerate() {
            let (certificate, key) = authority.identity("127.0.0.1");
            fs::write(folder.path().join(format!("{name}.pem")), certificate).unwrap();
            fs::write(folder.path().join(format!("{name}.key")), key).unwrap();
            let mut config = config(name, folder.path(), &endpoints(number), setup);
            config.push_str(&more(name));
            fs::write(folder.path().join(format!("{name}.toml")), config).unwrap();
        }
        if setup.clocks {
            for name in &NAMES[..count] {
                fs::write(folder.path().join(format!("{name}.clock")), "+0").unwrap();
            }
        }
        let mut gateways = Self {
            folder,
            clocks: setup.clocks,
            running: (0..count).map(|_| None).collect(),
        };
        (0..count).for_each(|number| gateways.restart(number));
        gateways.active();
        gateways
    }

    /// Starts one that is not running.
    pub(crate) fn restart(&mut self, number: usize) {
        let file = |ending| {
            self.folder
                .path()
                .join(format!("{}.{ending}", NAMES[number]))
        };
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(file("log"));
        let config = file("toml");
        let arguments = ["serve", "--config", config.to_str().unwrap()];
        let clock = file("clock");
        // The other clocks of the kernel go on as they are: no step moves them.
        let environment = [
            ("LD_PRELOAD", FAKETIME),
            ("FAKETIME_TIMESTAMP_FILE", clock.to_str().unwrap()),
            ("FAKETIME_CACHE_DURATION", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ];
        let environment = if self.clocks { &environment[..] } else { &[] };
        let started = Process::start_in(environment, &arguments, log.unwrap());
        self.running[number] = Some(started);
    }

    /// Sets the clock of one gateway so many seconds apart from that of the machine.
    pub(crate) fn set_clock(&self, number: usize, seconds: i64) {
        let file = self.file(&format!("{}.clock", NAMES[number]));
        // Replaced as a whole: the gateway reads it at any time.
        let new = file.with_extension("new");
        fs::write(&new, format!("{seconds:+}")).unwrap();
        fs::rename(new, file).unwrap();
    }

    pub(crate) fn get(&self, number: usize) -> &Process {
        self.running[number].as_ref().unwrap()
    }

    /// Where those are that run.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.running
            .iter()
            .flatten()
            .map(|gateway| gateway.api)
            .collect()
    }

    /// The one that is active, as soon as one is.
    pub(crate) fn active(&self) -> usize {
        self.active_besides(None).0
    }

    /// The active one besides one that must not be asked, and how long it took.
    pub(crate) fn active_besides(&self, other: Option<usize>) -> (usize, Duration) {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            for (number, gateway) in self.running.iter().enumerate() {
                let asked = gateway.as_ref().filter(|_| Some(number) != other);
                if asked.is_some_and(is_active) {
                    return (number, begun.elapsed());
                }
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("no gateway is active:\n{}", self.logs());
    }

    /// Waits until this one is on standby.
    pub(crate) fn wait_until_on_standby(&self, number: usize) {
        eventually("it is on standby", || !is_active(self.get(number)));
    }

    /// A file beside the configurations.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The last lines of the logs.
    pub(crate) fn logs(&self) -> String {
        let mut text = String::new();
        for name in &NAMES[..self.running.len()] {
            let log = fs::read_to_string(self.folder.path().join(format!("{name}.log")));
            let log = log.unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let last = lines.len().saturating_sub(15);
            text.push_str(&format!("--- {name}\n{}\n", lines[last..].join("\n")));
        }
        text
    }
}

/// Whether it is ready as the active one.
pub(crate) fn is_active(gateway: &Process) -> bool {
    let metrics = Client::bare(gateway.admin).get("/metrics");
    let text = String::from_utf8(metrics.body).unwrap();
    text.lines()
        .any(|line| line.starts_with("snapgate_cluster_active{") && line.ends_with(" 1"))
        && Client::bare(gateway.admin).get("/readyz").status == 200
}

fn config(name: &str, folder: &Path, endpoints: &str, setup: Setup<'_>) -> String {
    let peers = if setup.peers {
        format!(
            "listen = \"127.0.0.1:{}\"\nca = \"ca.pem\"\ncert = \"{name}.pem\"\nkey = \"{name}.key\"",
            free_port()
        )
    } else {
        String::new()
    };
    format!(
        r#"[server]
listen = "127.0.0.1:{api}"
admin = "127.0.0.1:{admin}"
trusted_proxies = ["127.0.0.1"]
drain_notice = "{notice}"
[operations]
store = "etcd"
operator_file = "{folder}/{name}.operator"
poll_min = "10ms"
poll_max = "50ms"
[etcd]
endpoints = {endpoints}
lease = "{lease}s"
[cluster]
name = "{name}"
{peers}
[[backend]]
name = "lab"
kind = "sim"
vms = ["*"]
concurrency = 8
[backend.sim]
simulator = "unix:{simulator}"
recovery = "{recovery}"
settle = "{settle}"
[[user]]
name = "alice"
password_hash = "{SECRET_HASH}"
[[grant]]
to = ["user:alice"]
actions = ["read", "update", "restore"]
vms = ["*"]
[log]
level = "info"
access = false
audit = "{folder}/{name}.audit"
"#,
        api = free_port(),
        admin = free_port(),
        notice = if setup.peers { "3s" } else { "0s" },
        folder = folder.display(),
        lease = setup.lease,
        simulator = setup.simulator.display(),
        recovery = setup.recovery,
        settle = setup.settle,
    )
}
