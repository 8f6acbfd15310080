//! Gateways on standby hand requests to the active one: answers, streams and waits come through, and no client can say what only
//! gateways may say to each other.

use std::fs;
use std::io::Read;
use std::io::Write;
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use crate::client::Client;
use crate::client::Reply;
use crate::cluster::etcd_bed::EtcdBed;
use crate::cluster::gateways::Gateways;
use crate::cluster::gateways::Setup;
use crate::cluster::require_etcd;
use crate::harness::eventually;
use crate::kill::simulated_vmm::Behaviour;
use crate::kill::simulated_vmm::FakeVmm;
use crate::requirements::require_programs;

/// Two gateways that hand requests on, and all that they need.
struct Pair {
    gateways: Gateways,
    active: usize,
    _etcd: EtcdBed,
    _vmm: FakeVmm,
    _folder: tempfile::TempDir,
}

impl Pair {
    fn start() -> Self {
        require_etcd();
        require_programs(&["curl"]);
        let etcd = EtcdBed::start(1);
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("vmm");
        let vmm = FakeVmm::start(&Behaviour {
            socket: socket.clone(),
            once: true,
            tasks: true,
            delay: Duration::from_millis(30),
        });
        let setup = Setup {
            recovery: "replay-safe",
            settle: "0s",
            lease: 10,
            simulator: &socket,
            peers: true,
            clocks: false,
        };
        let gateways = Gateways::start(2, &etcd, setup);
        let active = gateways.active();
        let pair = Self {
            gateways,
            active,
            _etcd: etcd,
            _vmm: vmm,
            _folder: folder,
        };
        eventually("the other one is ready", || {
            let admin = pair.gateways.get(1 - active).admin;
            Client::bare(admin).get("/readyz").status == 200
        });
        pair
    }

    fn standby(&self) -> Client {
        Client::new(self.gateways.get(1 - self.active).api, "alice", "secret")
    }

    fn active(&self) -> Client {
        Client::new(self.gateways.get(self.active).api, "alice", "secret")
    }

    /// The addresses of clients in the audit trail of the active gateway.
    fn clients_in_audit(&self) -> Vec<String> {
        let name = ["a", "b"][self.active];
        let trail = fs::read_to_string(self.gateways.file(&format!("{name}.audit"))).unwrap();
        let lines = trail
            .lines()
            .map(|line| serde_json::from_str(line).unwrap());
        lines
            .filter_map(|line: serde_json::Value| Some(line["client"].as_str()?.to_owned()))
            .collect()
    }
}

/// What an answer says, without what differs between any two answers.
fn essence(reply: &Reply) -> (u16, String, Vec<(&String, &String)>) {
    let differ = ["date", "x-request-id", "connection"];
    let headers = reply.headers.iter();
    let headers = headers.filter(|(name, _)| !differ.contains(&name.as_str()));
    let body = String::from_utf8(reply.body.clone()).unwrap();
    let body = body.replace(reply.header("x-request-id"), "ID");
    // Ids of requests have as many digits as there were requests.
    let headers = headers.filter(|(name, _)| reply.status < 400 || *name != "content-length");
    (reply.status, body, headers.collect())
}

#[apply(test)]
fn a_gateway_on_standby_answers_as_the_active_one_does() {
    let pair = Pair::start();
    let (standby, active) = (pair.standby(), pair.active());
    for (method, path) in [
        ("GET", "/vms/1/backups/456"),
        ("HEAD", "/vms/1/backups/456"),
        ("GET", "/vms/1/backups"),
        ("GET", "/vms/1/backups?limit=0"),
        ("GET", "/vms/1/backups/none"),
        ("GET", "/statuses?op=restore-Backup&seq=7"),
        ("GET", "/nothing/here"),
        ("OPTIONS", "/vms/1/backups/456"),
        ("DELETE", "/vms/1/backups/456"),
    ] {
        let (one, two) = (
            standby.send(method, path, None),
            active.send(method, path, None),
        );
        assert_eq!(
            essence(&one),
            essence(&two),
            "{method} {path}: standby, active"
        );
    }
    let wrong = Client::new(pair.gateways.get(1 - pair.active).api, "alice", "wrong");
    assert_eq!(
        wrong.get("/vms/1/backups/456").status,
        401,
        "credentials are judged"
    );
    let large = format!("{{\"description\": \"{}\"}}", "x".repeat(1 << 20));
    let refused = standby.put("/vms/1/backups/456", &large);
    assert_eq!(refused.status, 413, "the first gateway limits bodies");
    // A change at one gateway is seen at the other at once.
    let accepted = standby.post("/vms/1/backups/456/restore", "{}");
    let uri = accepted.status_uri();
    assert_eq!(active.get(&uri).status, 200, "there: {uri}");
    assert_eq!(standby.get(&uri).status, 200, "and here: {uri}");
    let end = standby.finished(&uri);
    assert_eq!(end, active.finished(&uri), "the same end");
    let keyed = standby.with("Idempotency-Key", "\"one\"");
    let first = keyed.post("/vms/2/backups/456/restore", "{}").status_uri();
    let again = active.with("Idempotency-Key", "\"one\"");
    let again = again.post("/vms/2/backups/456/restore", "{}").status_uri();
    assert_eq!(first, again, "one key, one operation, at any gateway");
}

#[apply(test)]
fn waits_and_streams_come_through() {
    let pair = Pair::start();
    let standby = pair.standby();
    let uri = standby
        .post("/vms/1/backups/456/restore", "{}")
        .status_uri();
    let waited = standby.with("Prefer", "wait=20").get(&uri);
    assert_eq!(waited.header("preference-applied"), "wait=20", "{waited:?}");
    assert_eq!(
        waited.json()["progress"],
        100,
        "waited for the end: {waited:?}"
    );
    let uri = pair
        .active()
        .post("/vms/3/backups/456/restore", "{}")
        .status_uri();
    let events = Command::new("curl")
        .args(["-sSN", "--max-time", "30", "-u", "alice:secret"])
        .args(["-H", "X-Cloud-Client-Specification-Version: 0.1"])
        .args(["-H", "Accept: text/event-stream"])
        .arg(format!(
            "http://{}{uri}",
            pair.gateways.get(1 - pair.active).api
        ))
        .output()
        .unwrap();
    let text = String::from_utf8(events.stdout).unwrap();
    assert!(text.contains("data: "), "events: {text}");
    assert!(text.contains("\"progress\":100"), "to the end: {text}");
}

#[apply(test)]
fn only_gateways_say_where_a_request_comes_from() {
    let pair = Pair::start();
    // The envelope of a forger: a request from 203.0.113.66 whose client has a certificate of alice.
    let envelope = r#"{"target":[47],"version":11,"peer":"203.0.113.66","certificate":["dns:alice"],"request":"forged","trace":""}"#;
    let envelope =
        base64::Engine::encode(&base64::engine::general_purpose::STANDARD_NO_PAD, envelope);
    for (client, at) in [(pair.standby(), "standby"), (pair.active(), "active")] {
        let forged = client
            .with("Snapgate-Relayed", &envelope)
            .with("X-Forwarded-For", "198.51.100.7")
            .post("/vms/1/backups/456/restore", "{}");
        assert_eq!(
            forged.status, 202,
            "{at}: its own target counts: {forged:?}"
        );
        assert_ne!(forged.header("x-request-id"), "forged", "{at}");
        let clients = pair.clients_in_audit();
        assert!(
            clients.contains(&"198.51.100.7".to_owned()),
            "{at}: the trusted proxy is believed: {clients:?}"
        );
        assert!(
            !clients.contains(&"203.0.113.66".to_owned()),
            "{at}: the forger is not: {clients:?}"
        );
    }
    // The peer port takes no client without a certificate of the cluster.
    let name = ["a", "b"][pair.active];
    let config = fs::read_to_string(pair.gateways.file(&format!("{name}.toml"))).unwrap();
    let peers = config.split("[cluster]").nth(1).unwrap();
    let address = peers.split("listen = \"").nth(1).unwrap();
    let address = address.split('"').next().unwrap();
    let mut plain = TcpStream::connect(address).unwrap();
    let request = format!("GET /relay HTTP/1.1\r\nHost: x\r\nSnapgate-Relayed: {envelope}\r\n\r\n");
    plain.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    // It may be reset.
    drop(plain.read_to_end(&mut answer));
    assert!(!answer.starts_with(b"HTTP/"), "no HTTP without TLS");
    let curl = |certificate: &[&str]| {
        let output = Command::new("curl")
            .args(["-sSk", "-o", "/dev/null", "-w", "%{http_code}"])
            .args(certificate)
            .arg(format!("https://{address}/relay"))
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(curl(&[]), "000", "no connection without a certificate");
    let other = crate::tls::Authority::new().identity("127.0.0.1");
    let (pem, key) = (
        pair.gateways.file("other.pem"),
        pair.gateways.file("other.key"),
    );
    fs::write(&pem, other.0).unwrap();
    fs::write(&key, other.1).unwrap();
    let (pem, key) = (pem.to_str().unwrap(), key.to_str().unwrap());
    assert_eq!(
        curl(&["--cert", pem, "--key", key]),
        "000",
        "nor with one of another authority"
    );
    let own = pair.gateways.file("b.pem");
    let own_key = pair.gateways.file("b.key");
    let own = [
        "--cert",
        own.to_str().unwrap(),
        "--key",
        own_key.to_str().unwrap(),
    ];
    assert_eq!(
        curl(&own),
        "400",
        "a gateway says where a request comes from"
    );
}
