//! Under a service manager: sockets that it keeps open over restarts, and its notifications.

use std::fs;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::net::TcpListener;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;

use crate::client::Client;
use crate::client::read_reply;
use crate::harness::PATIENCE;
use crate::harness::SECRET_HASH;
use crate::harness::SIM;
use crate::harness::eventually;
use crate::harness::metric;
use crate::harness::program;

/// A service manager: it holds both ports and hears what the service says.
struct Manager {
    folder: tempfile::TempDir,
    api: TcpListener,
    admin: TcpListener,
    notices: UnixDatagram,
}

impl Manager {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let notices = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        notices.set_read_timeout(Some(PATIENCE)).unwrap();
        let manager = Self {
            folder,
            api: TcpListener::bind("127.0.0.1:0").unwrap(),
            admin: TcpListener::bind("127.0.0.1:0").unwrap(),
            notices,
        };
        // These cannot be bound: it must take the sockets that it is given.
        manager.configure("[server]\nlisten = \"192.0.2.1:1\"\nadmin = \"192.0.2.1:2\"\n");
        manager
    }

    fn configure(&self, settings: &str) -> PathBuf {
        let sim = SIM.replace("SECRET_HASH", SECRET_HASH);
        let file = self.folder.path().join("c.toml");
        fs::write(&file, format!("{settings}{sim}")).unwrap();
        file
    }

    /// Starts the service as a socket unit would: descriptors 3 and 4 by name.
    fn start(&self, config: &Path) -> Child {
        self.start_with(config, "admin:api")
    }

    /// Starts the service with descriptors 3, the admin port, and 4, the API port, under these names.
    fn start_with(&self, config: &Path, names: &str) -> Child {
        let socket =
            |listener: &TcpListener| Stdio::from(OwnedFd::from(listener.try_clone().unwrap()));
        // The shell makes its input and output descriptors 3 and 4 and becomes the program, whose process id it knows.
        let script =
            "exec 3<&0 4<&1 1>&2 0</dev/null; LISTEN_PID=$$ LISTEN_FDS=2 exec \"$0\" \"$@\"";
        Command::new("sh")
            .args(["-c", script])
            .arg(program().get_program())
            .args(["serve", "--config"])
            .arg(config)
            .env("NOTIFY_SOCKET", self.folder.path().join("notify"))
            .env("LISTEN_FDNAMES", names)
            .stdin(socket(&self.admin))
            .stdout(socket(&self.api))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// The next thing that the service says.
    fn hears(&self) -> String {
        let mut buffer = [0; 256];
        // A signal to this process, such as the end of a child of another test, is no notice.
        let length = loop {
            match self.notices.recv(&mut buffer) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                done => break done.unwrap(),
            }
        };
        let text = String::from_utf8_lossy(&buffer[..length]);
        text.lines().next().unwrap_or_default().to_owned()
    }
}

fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill")
        .args(["-s", name, &child.id().to_string()])
        .status();
    assert!(sent.unwrap().success(), "{name} sent");
}

#[apply(test)]
fn sockets_are_taken_over_and_the_manager_is_notified() {
    let manager = Manager::new();
    let config = manager.folder.path().join("c.toml");
    let api = manager.api.local_addr().unwrap();
    let admin = manager.admin.local_addr().unwrap();
    let mut child = manager.start(&config);
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut printed = Vec::new();
    while printed.len() < 2 {
        let line = lines.next().expect("it starts").unwrap();
        printed.extend(Some(line).filter(|line| line.contains(" on http")));
    }
    let reader = std::thread::Builder::new().spawn(move || lines.for_each(drop));
    assert_eq!(manager.hears(), "READY=1", "once it serves");
    assert!(
        printed[0].ends_with(&format!("listening on http://{api}")),
        "{printed:?}"
    );
    assert!(
        printed[1].ends_with(&format!("admin on http://{admin}")),
        "{printed:?}"
    );
    let alice = Client::new(api, "alice", "secret");
    assert_eq!(alice.get("/vms/1/backups/456").status, 200, "it serves");
    assert_eq!(Client::bare(admin).get("/readyz").status, 200, "both ports");

    signal(&child, "HUP");
    assert_eq!(manager.hears(), "RELOADING=1", "it reads its file again");
    assert_eq!(manager.hears(), "READY=1", "and is done");
    fs::write(&config, "colour = 1\n").unwrap();
    signal(&child, "HUP");
    // The changed file may be noticed by itself as well.
    assert_eq!(manager.hears(), "RELOADING=1", "a bad file");
    assert_eq!(
        manager.hears(),
        "READY=1",
        "the old configuration stays active"
    );
    assert_eq!(alice.get("/vms/1/backups/456").status, 200, "it serves on");
    fs::write(
        &config,
        "[server]\nlisten = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n".to_owned()
            + &SIM.replace("SECRET_HASH", SECRET_HASH),
    )
    .unwrap();

    signal(&child, "TERM");
    let mut notice = manager.hears();
    while notice != "STOPPING=1" {
        assert!(
            ["RELOADING=1", "READY=1"].contains(&notice.as_str()),
            "{notice}"
        );
        notice = manager.hears();
    }
    assert_eq!(child.wait().unwrap().code(), Some(0), "ends as asked");
    reader.unwrap().join().unwrap();

    // While no gateway serves, clients wait in the manager's socket instead of being refused.
    let mut early = TcpStream::connect(api).unwrap();
    early.set_read_timeout(Some(PATIENCE)).unwrap();
    early
        .write_all(b"GET /versions HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    let mut child = manager.start(&config);
    let mut said = child.stderr.take().unwrap();
    let reader = std::thread::Builder::new().spawn(move || {
        std::io::copy(&mut said, &mut std::io::sink()).unwrap();
    });
    assert_eq!(
        read_reply(&mut early, false).status,
        200,
        "the next process answers"
    );
    eventually("ready", || Client::bare(admin).get("/readyz").status == 200);
    signal(&child, "TERM");
    assert_eq!(child.wait().unwrap().code(), Some(0), "ends as asked");
    reader.unwrap().join().unwrap();
}

/// The sockets that a process before this one bound and the manager kept.
const KEPT: &str = "snapgate-admin:snapgate-api";

#[apply(test)]
fn kept_sockets_serve_the_addresses_that_are_still_configured() {
    let manager = Manager::new();
    let api = manager.api.local_addr().unwrap();
    let admin = manager.admin.local_addr().unwrap();
    let config = manager.configure(&format!(
        "[server]\nlisten = \"{api}\"\nadmin = \"{admin}\"\n"
    ));
    // A client that comes before the new process waits in the kept socket.
    let mut early = TcpStream::connect(api).unwrap();
    early.set_read_timeout(Some(PATIENCE)).unwrap();
    early
        .write_all(b"GET /versions HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    let mut child = manager.start_with(&config, KEPT);
    assert_eq!(
        manager.hears(),
        "READY=1",
        "nothing is bound, kept or forgotten"
    );
    assert_eq!(
        read_reply(&mut early, false).status,
        200,
        "the waiting client"
    );
    signal(&child, "TERM");
    assert_eq!(child.wait().unwrap().code(), Some(0), "ends as asked");
}

#[apply(test)]
fn a_kept_socket_of_another_address_is_forgotten_and_the_new_one_kept() {
    let manager = Manager::new();
    let admin = manager.admin.local_addr().unwrap();
    let config = manager.configure(&format!(
        "[server]\nlisten = \"127.0.0.1:0\"\nadmin = \"{admin}\"\n"
    ));
    let mut child = manager.start_with(&config, KEPT);
    for expected in ["FDSTOREREMOVE=1", "FDSTORE=1", "READY=1"] {
        assert_eq!(manager.hears(), expected, "the API port alone changed");
    }
    signal(&child, "TERM");
    assert_eq!(child.wait().unwrap().code(), Some(0), "ends as asked");
}

/// Status and standard error of a service that ends by itself.
fn ended(manager: &Manager, config: &Path) -> (Option<i32>, String) {
    let output = manager.start(config).wait_with_output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    (output.status.code(), text)
}

#[apply(test)]
fn a_socket_that_other_machines_reach_is_judged_as_such_whatever_listen_says() {
    let mut manager = Manager::new();
    manager.api = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = manager.api.local_addr().unwrap().port();
    let loopback = "[server]\nlisten = \"127.0.0.1:8080\"\n";
    let rows = [
        (
            loopback.to_owned(),
            format!(
                "server.listen: the inherited API socket, 0.0.0.0:{port} would send passwords in cleartext"
            ),
        ),
        (
            String::new(),
            format!(
                "server.listen: the inherited API socket, 0.0.0.0:{port} would send passwords in cleartext"
            ),
        ),
        (
            format!("{loopback}[insecure]\nplaintext = true\n"),
            format!(
                "server.public_url: is required, because clients cannot use 0.0.0.0:{port} in links"
            ),
        ),
    ];
    for (settings, expected) in rows {
        let (status, text) = ended(&manager, &manager.configure(&settings));
        assert_eq!(status, Some(78), "{settings}: {text}");
        assert!(text.contains(&expected), "{settings}: {text}");
    }
}

#[apply(test)]
fn links_name_the_port_of_the_inherited_socket() {
    let manager = Manager::new();
    let config = manager.configure("[server]\nlisten = \"127.0.0.1:1\"\n");
    let api = manager.api.local_addr().unwrap();
    let mut child = manager.start(&config);
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut printed = Vec::new();
    while printed
        .last()
        .is_none_or(|line: &String| !line.contains("admin on"))
    {
        printed.push(lines.next().expect("it starts").unwrap());
    }
    let reader = std::thread::Builder::new().spawn(move || lines.for_each(drop));
    let note =
        format!("server.listen: \"127.0.0.1:1\" is not used; the inherited API socket is {api}");
    assert!(
        printed.iter().any(|line| line.contains(&note)),
        "{printed:?}"
    );
    let alice = Client::new(api, "alice", "secret");
    let uri = alice.get("/vms/1/backups/456").json()["uri"].clone();
    let expected = format!("http://{api}/vms/1/backups/456");
    assert_eq!(uri, expected.as_str(), "the real port");
    signal(&child, "TERM");
    assert_eq!(child.wait().unwrap().code(), Some(0), "ends as asked");
    reader.unwrap().join().unwrap();
}

#[apply(test)]
fn a_reload_is_judged_by_the_inherited_socket() {
    let mut manager = Manager::new();
    manager.api = TcpListener::bind("0.0.0.0:0").unwrap();
    let public = "[server]\npublic_url = \"http://localhost/\"\n";
    let config = manager.configure(&format!("{public}[insecure]\nplaintext = true\n"));
    let admin = manager.admin.local_addr().unwrap();
    let mut child = manager.start(&config);
    let mut said = child.stderr.take().unwrap();
    let reader = std::thread::Builder::new().spawn(move || {
        let mut text = String::new();
        said.read_to_string(&mut text).unwrap();
        text
    });
    assert_eq!(manager.hears(), "READY=1", "it is allowed to");
    manager.configure(public);
    eventually("the reload is refused", || {
        metric(admin, "snapgate_config_reloads_total{result=\"refused\"}") > 0.5
    });
    signal(&child, "TERM");
    assert_eq!(child.wait().unwrap().code(), Some(0), "ends as asked");
    let text = reader.unwrap().join().unwrap();
    assert!(text.contains("would send passwords in cleartext"), "{text}");
}
