//! A real etcd of one member, for as long as the value lives.

use std::hash::BuildHasher;
use std::hash::Hasher;
use std::hash::RandomState;
use std::net::TcpListener;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::sleep;

use crate::etcd::Config;
use crate::etcd::Connection;

/// How long a member may take until it answers.
const START_TIMEOUT: Duration = Duration::from_secs(20);

pub(in crate::operations::store) struct EtcdServer {
    folder: TempDir,
    client_url: String,
    peer_url: String,
    more: Vec<String>,
    process: Option<Child>,
}

impl EtcdServer {
    /// Starts one with these further arguments.
    pub(in crate::operations::store) fn start(more: &[&str]) -> Self {
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        // Both are bound at once, so that they differ.
        let ports = [(); 2].map(|()| free_port());
        let [client, peer] = ports.map(|port| port.local_addr().unwrap());
        let mut server = Self {
            folder: folder.unwrap(),
            client_url: format!("http://{client}"),
            peer_url: format!("http://{peer}"),
            more: more.iter().map(|text| (*text).to_owned()).collect(),
            process: None,
        };
        server.run();
        server
    }

    /// Starts the process, on the data that is there.
    pub(in crate::operations::store) fn run(&mut self) {
        let process = Command::new("etcd")
            .args(["--name", "one", "--log-level", "error"])
            .arg("--data-dir")
            .arg(self.folder.path().join("data"))
            .args(["--listen-client-urls", &self.client_url])
            .args(["--advertise-client-urls", &self.client_url])
            .args(["--listen-peer-urls", &self.peer_url])
            .args(["--initial-advertise-peer-urls", &self.peer_url])
            .args(["--initial-cluster", &format!("one={}", self.peer_url)])
            .args(&self.more)
            .env("ETCD_UNSUPPORTED_ARCH", "arm64")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.process = Some(process.expect("etcd is installed"));
    }

    /// A prefix of its own and a short lease.
    pub(in crate::operations::store) fn config(&self) -> Config {
        Config {
            lease: Duration::from_secs(5),
            ..Config::plain(vec![self.client_url.clone()])
        }
    }

    /// Waits until it has a leader.
    pub(in crate::operations::store) async fn ready(&self) -> Connection {
        let connection = Connection::new(&self.config());
        let waiting = async {
            loop {
                let statuses = connection.member_statuses().await;
                if statuses
                    .iter()
                    .any(|(_, status)| status.as_ref().is_ok_and(|status| status.has_leader))
                {
                    return;
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        let waited = tokio::time::timeout(START_TIMEOUT, waiting).await;
        waited.expect("etcd answers in time");
        connection
    }

    /// Sends a signal to the process.
    pub(in crate::operations::store) fn signal(&self, signal: rustix::process::Signal) {
        let process = self.process.as_ref().expect("it runs");
        let pid = rustix::process::Pid::from_child(process);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Kills it as a crash would.
    pub(in crate::operations::store) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }
}

impl Drop for EtcdServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A port below those that the kernel gives to connections: one of these could be in use when etcd starts.
fn free_port() -> TcpListener {
    loop {
        let random = RandomState::new().build_hasher().finish();
        let port = u16::try_from(random % 22_000)
            .unwrap()
            .saturating_add(10_000);
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
            return listener;
        }
    }
}
