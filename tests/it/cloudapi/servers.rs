//! Servers for the `cloudapi` adapter: the Python example, another gateway, and one with scripted answers.

use std::fs;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use snapgate::adapters::adapter::*;
use snapgate::adapters::cloudapi::CloudApi;
use snapgate::adapters::cloudapi::Config;
use snapgate::adapters::transport::Address;
use snapgate::model::*;
use snapgate::runtime::Clock;
use tempfile::TempDir;

use crate::harness::Process;
use crate::harness::SECRET_HASH;
use crate::requirements::require_programs;

pub(crate) fn config(address: Address, recovery: Recovery) -> Config {
    let secret = Secret::new("secret".to_owned());
    Config {
        address,
        base: Vec::new(),
        credential: Some(Credential::basic("gate", &secret).unwrap()),
        version: "0.1".to_owned(),
        recovery,
        connect_timeout: Duration::from_secs(5),
    }
}

/// The example server, ended with SIGKILL when dropped.
pub(crate) struct Python {
    pub(crate) child: Child,
}

impl Python {
    /// On the socket `s` of the folder; skips the test where Python is not installed.
    pub(crate) fn start(folder: &Path) -> Self {
        require_programs(&["python3"]);
        fs::write(folder.join("credentials"), "gate:secret\n").unwrap();
        let mut child = Command::new("python3")
            .arg("-B")
            .arg("docs/examples/cloudapi_server.py")
            .arg(folder)
            .arg(folder.join("s"))
            .arg(folder.join("credentials"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert!(
            line.starts_with("listening on "),
            "the example server starts: {line:?}"
        );
        Self { child }
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A folder with the VM 33333.
pub(crate) fn folder_with_vm() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("vms/33333")).unwrap();
    fs::create_dir_all(folder.path().join("backups")).unwrap();
    fs::write(folder.path().join("vms/33333/disk.img"), "0").unwrap();
    folder
}

/// A gateway with the backend `files` in the folder, and a user `gate` with every right.
pub(crate) fn inner(folder: &Path) -> Process {
    let config = format!(
        r#"[server]
listen = "127.0.0.1:0"
admin = "127.0.0.1:0"
public_url = "http://inner.example"
[operations]
store = "operations.db"
[[backend]]
name = "images"
kind = "files"
root = "vms"
backups = "backups"
new_folders = true
vms = ["*"]
[[user]]
name = "gate"
password_hash = "{SECRET_HASH}"
[[grant]]
to = ["user:gate"]
actions = ["read", "create", "update", "protect", "delete", "restore"]
vms = ["*"]
"#
    );
    let file = folder.join("snapgate.toml");
    fs::write(&file, config).unwrap();
    Process::start(&["serve", "--config", file.to_str().unwrap()])
}

/// A server on a socket that answers as a test says: one request a connection.
pub(crate) struct Script {
    pub(crate) _folder: TempDir,
    pub(crate) socket: PathBuf,
    pub(crate) seen: Arc<Mutex<Vec<String>>>,
}

impl Script {
    /// The answer to a request is made from its head and body; an empty one closes the connection.
    pub(crate) fn start(answer: impl Fn(&str) -> Vec<u8> + Send + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let seen = Arc::<Mutex<Vec<String>>>::default();
        let heard = Arc::clone(&seen);
        std::thread::Builder::new()
            .spawn(move || {
                for stream in listener.incoming() {
                    let mut stream = stream.unwrap();
                    let request = read_request(&stream);
                    heard.lock().unwrap().push(request.clone());
                    // A caller that hangs up does not want to know.
                    drop(stream.write_all(&answer(&request)));
                }
            })
            .unwrap();
        Self {
            _folder: folder,
            socket,
            seen,
        }
    }

    pub(crate) fn adapter(&self, recovery: Recovery, clock: Arc<dyn Clock>) -> CloudApi {
        let config = config(Address::Unix(self.socket.clone()), recovery);
        CloudApi::new(&config, clock).unwrap()
    }

    pub(crate) fn requests(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

fn read_request(stream: &UnixStream) -> String {
    let mut reader = BufReader::new(stream);
    let (mut text, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 || line == "\r\n" {
            break;
        }
        let lower = line.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        text.push_str(&line);
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    text + &String::from_utf8(body).unwrap()
}

pub(crate) fn http(status: &str, headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n{headers}\r\n{body}"
    )
    .into_bytes()
}
