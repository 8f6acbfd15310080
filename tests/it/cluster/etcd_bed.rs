//! A real etcd cluster for as long as the value lives: `tests/beds/etcd.sh`.

use std::fs::File;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;

use tempfile::TempDir;

use crate::ports::free_port;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/beds/etcd.sh");

/// A cluster of members on this machine.
#[derive(Debug)]
pub(crate) struct EtcdBed {
    folder: TempDir,
    pub(crate) endpoints: Vec<String>,
}

impl EtcdBed {
    /// Starts so many members and waits until they are healthy.
    pub(crate) fn start(members: usize) -> Self {
        Self::start_with(members, &[])
    }

    /// The same with variables of the script.
    pub(crate) fn start_with(members: usize, variables: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut bed = Self {
            folder,
            endpoints: Vec::new(),
        };
        let ports: Vec<_> = (0..2 * members).map(|_| free_port().to_string()).collect();
        let ports = ports.join(" ");
        let variables = [variables, &[("PORTS", ports.as_str())]].concat();
        bed.run_with(&["up"], &[&members.to_string()], &variables);
        let endpoints = bed.run("endpoints", &[]);
        bed.endpoints = endpoints.lines().map(str::to_owned).collect();
        bed
    }

    /// A file of the cluster, such as `client.pem` with `TLS`.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.place().join(name)
    }

    fn place(&self) -> PathBuf {
        self.folder.path().join("etcd")
    }

    fn run(&self, command: &str, arguments: &[&str]) -> String {
        self.run_with(&[command], arguments, &[])
    }

    fn run_with(&self, command: &[&str], arguments: &[&str], variables: &[(&str, &str)]) -> String {
        let output = Command::new(SCRIPT)
            .args(command)
            .arg(self.place())
            .args(arguments)
            .envs(variables.iter().copied())
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{command:?} {arguments:?}: {error}"
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Sends a signal to a member.
    pub(crate) fn signal(&self, member: usize, signal: &str) {
        self.run("signal", &[&member.to_string(), signal]);
    }

    /// Cuts a member off from the others and from all gateways, or takes that back. Needs `NETWORKS`.
    pub(crate) fn cut(&self, member: usize, is_cut: bool) {
        let command = if is_cut { "cut" } else { "mend" };
        self.run(command, &[&member.to_string()]);
    }

    /// Starts a member that was killed.
    pub(crate) fn restart(&self, member: usize) {
        self.run("start", &[&member.to_string()]);
    }

    /// The member that leads.
    pub(crate) fn leader(&self) -> usize {
        self.run("leader", &[]).trim().parse().unwrap()
    }

    /// Runs `etcdctl`.
    pub(crate) fn ctl(&self, arguments: &[&str]) -> String {
        self.run("ctl", arguments)
    }

    /// The same; `None` when it fails.
    pub(crate) fn try_ctl(&self, arguments: &[&str]) -> Option<String> {
        self.try_ctl_with(arguments, Stdio::null())
    }

    /// Writes the content of a file, which may be longer than an argument; `None` when it fails.
    pub(crate) fn try_put(&self, key: &str, value: &Path) -> Option<String> {
        self.try_ctl_with(&["put", key], File::open(value).unwrap().into())
    }

    fn try_ctl_with(&self, arguments: &[&str], input: Stdio) -> Option<String> {
        let mut command = Command::new(SCRIPT);
        let output = command
            .arg("ctl")
            .arg(self.place())
            .args(arguments)
            .stdin(input)
            .output()
            .unwrap();
        output
            .status
            .success()
            .then(|| String::from_utf8(output.stdout).unwrap())
    }

    /// The endpoints as a list of the configuration.
    pub(crate) fn toml(&self) -> String {
        let quoted: Vec<String> = self
            .endpoints
            .iter()
            .map(|url| format!("{url:?}"))
            .collect();
        format!("[{}]", quoted.join(", "))
    }
}

impl Drop for EtcdBed {
    fn drop(&mut self) {
        drop(Command::new(SCRIPT).arg("down").arg(self.place()).output());
    }
}
