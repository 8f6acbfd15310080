//! The commands that call a gateway, as whole programs: what they print, which status they end with, and what they survive.

mod completion;
mod consent;
mod encrypted;
mod endings;
mod examples;
mod names;
mod profiles;
mod restarts;

use std::collections::BTreeMap;
use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::Value;
use serde_json::json;

use crate::harness::program;

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ended {
    pub(crate) fn from_output(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Self {
            status: output.status.code().unwrap(),
            out: text(output.stdout),
            err: text(output.stderr),
        }
    }

    /// The records of `--output json`.
    pub(crate) fn records(&self) -> Vec<Value> {
        let lines = self.out.lines();
        lines
            .map(|line| {
                serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
            })
            .collect()
    }

    /// The last record, which every command ends with.
    pub(crate) fn result(&self) -> Value {
        let last = self.records().pop().unwrap_or_else(|| panic!("{self:?}"));
        assert_eq!(last["record"], "result", "{self:?}");
        assert_eq!(last["exit"], self.status, "{self:?}");
        last
    }
}

/// A folder with no profiles and a password, and the gateway that commands call.
pub(crate) struct Home {
    folder: tempfile::TempDir,
    address: SocketAddr,
}

impl Home {
    pub(crate) fn new(address: SocketAddr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_secret(&folder.path().join("password"), "secret\n");
        Self { folder, address }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The program as this user of the gateway, without anything of the environment of the test.
    pub(crate) fn command(&self, user: &str, words: &str) -> Command {
        let mut command = self.bare(words);
        command
            .env("SNAPGATE_URL", format!("http://{}", self.address))
            .env("SNAPGATE_USER", user)
            .env("SNAPGATE_PASSWORD_FILE", self.path().join("password"));
        command
    }

    /// The program with a home folder alone.
    pub(crate) fn bare(&self, words: &str) -> Command {
        let mut command = program();
        command
            .args(words.split_whitespace())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.path())
            .current_dir(self.path());
        command
    }

    /// Runs it to its end.
    pub(crate) fn run(&self, user: &str, words: &str) -> Ended {
        Ended::from_output(self.command(user, words).output().unwrap())
    }

    /// Starts it.
    pub(crate) fn start(&self, user: &str, words: &str) -> Child {
        self.command(user, words)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }
}

/// A file that only its owner may read.
pub(crate) fn write_secret(path: &Path, text: &str) {
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

/// One request to a scripted server.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: String,
}

/// What it answers: `None` closes the connection.
pub(crate) type Reply = Option<(u16, String)>;

/// A server whose answers a test decides.
pub(crate) struct ScriptedServer {
    pub(crate) address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl ScriptedServer {
    /// Answers each request, of which it says how many came before.
    pub(crate) fn start(answer: impl Fn(&Asked, usize) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        std::thread::Builder::new()
            .spawn(move || {
                for stream in listener.incoming() {
                    let mut stream = stream.unwrap();
                    let Some(request) = read_request(&mut stream) else {
                        continue;
                    };
                    let before = {
                        let mut log = log.lock().unwrap();
                        log.push(request.clone());
                        log.len() - 1
                    };
                    if let Some((status, body)) = answer(&request, before) {
                        let text = format!(
                            "HTTP/1.1 {status} x\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                            body.len()
                        );
                        drop(stream.write_all(text.as_bytes()));
                    }
                }
            })
            .unwrap();
        Self { address, asked }
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

fn read_request(stream: &mut TcpStream) -> Option<Asked> {
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let mut received = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&received).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let mut lines = head.split("\r\n");
            let mut first = lines.next()?.split(' ');
            let (method, target) = (first.next()?.to_owned(), first.next()?.to_owned());
            let fields = lines.filter_map(|line| line.split_once(": "));
            let headers: BTreeMap<String, String> = fields
                .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
                .collect();
            let length = headers.get("content-length");
            let length = length.map_or(0, |length| length.parse().unwrap());
            if body.len() >= length {
                let body = body.to_owned();
                return Some(Asked {
                    method,
                    target,
                    headers,
                    body,
                });
            }
        }
        let count = stream.read(&mut chunk).ok().filter(|count| *count > 0)?;
        received.extend_from_slice(&chunk[..count]);
    }
}

/// A refusal as gateways send it.
pub(crate) fn refusal(status: u16, code: &str) -> Reply {
    let body = json!({
        "status": status, "detail": "No.", "instance": "r-1",
        "message": [{"code": code, "severity": "SEVERE", "text": "No."}],
    });
    Some((status, body.to_string()))
}

/// The Status of a restore of the VM 1 from the backup 456.
pub(crate) fn status(progress: u8, more: &Value) -> Value {
    let mut status = json!({
        "op": "restore-Backup", "progress": progress, "target_uri": "/vms/1/backups/456",
        "status_uri": "/statuses?op=restore-Backup&vm=1&b=456&seq=7",
    });
    let members = status.as_object_mut().unwrap();
    members.extend(more.as_object().unwrap().clone());
    status
}

/// A backup of the VM 1, as a member of a list.
pub(crate) fn backup(id: &str, name: &str, created: &str) -> Value {
    json!({
        "name": name, "uri": format!("http://x/vms/1/backups/{id}"), "created": created,
        "state": "AVAILABLE", "tags": [], "protected": false,
    })
}

/// A server of the 2009 page: one VM with one backup, no lists of VMs, no streams, no plans; a restore ends as the Status says.
pub(crate) fn plain_server(ended: Value) -> ScriptedServer {
    ScriptedServer::start(move |asked, _| {
        let path = asked.target.split('?').next().unwrap();
        match (asked.method.as_str(), path) {
            ("GET", "/vms/1") => Some((200, json!({"name": "web"}).to_string())),
            ("GET", "/vms/1/backups/456") => {
                let backup = backup("456", "first", "2026-01-01T00:00:00Z");
                Some((200, backup.to_string()))
            }
            ("POST", "/vms/1/backups/456/restore") => {
                Some((202, status(0, &json!({})).to_string()))
            }
            ("GET", "/statuses") => Some((200, ended.to_string())),
            _ => Some((404, "<html>".to_owned())),
        }
    })
}
