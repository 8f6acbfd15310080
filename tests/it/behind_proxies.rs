//! Hostile requests through nginx and HAProxy in front of the gateway: both sides see the same requests, always.

use std::fs;
use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;

use tempfile::TempDir;

use crate::client::Client;
use crate::harness::Gateway;
use crate::harness::SIM;
use crate::harness::eventually;
use crate::hostile;
use crate::ports::free_port;
use crate::requirements::require_programs;

/// A running proxy, with the log of what it passed on; stopped when dropped.
struct Peer {
    child: Child,
    address: SocketAddr,
    folder: TempDir,
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Peer {
    /// The methods of the requests that it passed on, in order.
    fn passed(&self) -> Vec<String> {
        let text = fs::read(self.folder.path().join("passed.log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        text.lines()
            .filter_map(|line| line.strip_prefix("passed "))
            .map(str::to_owned)
            .collect()
    }
}

fn free_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}

fn run(program: &str, arguments: &[&str], folder: TempDir, address: SocketAddr) -> Peer {
    let output = fs::File::create(folder.path().join("passed.log")).unwrap();
    let child = Command::new(program)
        .args(arguments)
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(fs::File::create(folder.path().join("errors.log")).unwrap())
        .spawn()
        .unwrap();
    let peer = Peer {
        child,
        address,
        folder,
    };
    eventually("the proxy listens", || TcpStream::connect(address).is_ok());
    peer
}

fn nginx(gateway: SocketAddr) -> Peer {
    let folder = tempfile::tempdir().unwrap();
    let address = free_address();
    let here = folder.path().display();
    let config = format!(
        "daemon off;\nmaster_process off;\nworker_processes 1;\npid {here}/pid;\nerror_log stderr;\n\
         events {{ worker_connections 64; }}\nhttp {{\n\
         log_format passed '$passed$request_method $upstream_status';\n\
         map $upstream_addr $passed {{ '' 'answered '; default 'passed '; }}\n\
         access_log /dev/stdout passed;\n\
         client_body_temp_path {here}/b; proxy_temp_path {here}/p; fastcgi_temp_path {here}/f;\n\
         uwsgi_temp_path {here}/u; scgi_temp_path {here}/s;\n\
         upstream gateway {{ server {gateway}; keepalive 4; }}\n\
         server {{ listen {address}; underscores_in_headers on; ignore_invalid_headers off;\n\
         location / {{ proxy_pass http://gateway; proxy_http_version 1.1; proxy_set_header Connection '';\n\
         proxy_set_header Host $http_host; proxy_request_buffering off; proxy_next_upstream off; }} }} }}\n"
    );
    write(folder.path(), &config);
    run("nginx", &["-p", ".", "-c", "proxy.conf"], folder, address)
}

fn haproxy(gateway: SocketAddr) -> Peer {
    let folder = tempfile::tempdir().unwrap();
    let address = free_address();
    let config = format!(
        "global\n  log stdout format raw local0\n  maxconn 64\ndefaults\n  mode http\n  log global\n  retries 0\n\
         \n  timeout connect 5s\n  timeout client 20s\n  timeout server 20s\n  option http-no-delay\n  http-reuse always\n\
         frontend in\n  bind {address}\n  acl passed srv_is_up(gateway/it)\n  log-format \"%[var(txn.word)] %HM %ST\"\n\
         \n  default_backend gateway\nbackend gateway\n  http-request set-var(txn.word) str(passed)\n  server it {gateway}\n"
    );
    let config = config.replace("  acl passed srv_is_up(gateway/it)\n", "");
    write(folder.path(), &config);
    run("haproxy", &["-db", "-f", "proxy.conf"], folder, address)
}

fn write(folder: &Path, config: &str) {
    fs::write(folder.join("proxy.conf"), config).unwrap();
}

/// Sends the bytes, ends our side, and waits until the other side has ended too.
fn throw(address: SocketAddr, bytes: &[u8]) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    stream
        .set_write_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    drop(stream.write_all(bytes));
    let mut part = [0; 65_536];
    // Some answer only while our side is open; then it is ended.
    let answered = stream.read(&mut part).is_ok_and(|count| count > 0);
    drop(stream.shutdown(Shutdown::Write));
    while answered && stream.read(&mut part).is_ok_and(|count| count > 0) {}
}

const METHODS: &[&str] = &[
    "GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS", "TRACE", "CONNECT", "OTHER",
];

/// How many requests of each method the gateway has answered, those that were refused as broken aside, and how many these were.
fn seen(gateway: &Gateway) -> (Vec<usize>, usize) {
    let text = Client::bare(gateway.admin).get("/metrics").body;
    let text = String::from_utf8(text).unwrap();
    let sum = |fits: &dyn Fn(&str) -> bool| -> usize {
        text.lines()
            .filter(|line| line.starts_with("snapgate_requests_total{") && fits(line))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<usize>().ok())
            .sum()
    };
    let is_broken = |line: &str| line.contains("code=\"400\"");
    let of = |method: &&str| {
        let label = format!("method=\"{method}\"");
        sum(&|line| line.contains(&label) && !is_broken(line))
    };
    (METHODS.iter().map(of).collect(), sum(&is_broken))
}

/// What the proxy passed on.
struct Passed {
    /// Per method, requests that were answered and not refused as broken.
    answered: Vec<usize>,
    /// Per method, requests that the proxy gave up before an answer came, for instance over a broken body. The gateway may have
    /// answered them, refused them as broken, or not have seen enough of them to do either.
    given_up: Vec<usize>,
    /// Requests refused as broken. What Pingora refuses before it is a request counts here only.
    broken: usize,
}

fn passed(peer: &Peer) -> Passed {
    let all = peer.passed();
    let known = |word: &str| METHODS.contains(&word);
    let count = |fits: &dyn Fn(&str) -> bool| -> Vec<usize> {
        let of = |method: &&str| {
            let is_of = |line: &&String| {
                let (word, status) = line.split_once(' ').unwrap_or((line, ""));
                let is_method = word == *method || (*method == "OTHER" && !known(word));
                is_method && fits(status)
            };
            all.iter().filter(is_of).count()
        };
        METHODS.iter().map(of).collect()
    };
    let is_given_up = |status: &str| status.starts_with('-');
    Passed {
        answered: count(&|status| status != "400" && !is_given_up(status)),
        given_up: count(&is_given_up),
        broken: all.iter().filter(|line| line.ends_with(" 400")).count(),
    }
}

/// Whether both have seen the same, and nothing broken was seen that was not passed on.
fn agree(gateway: &Gateway, peer: &Peer) -> bool {
    let ((seen, refused), passed) = (seen(gateway), passed(peer));
    let counts = seen.iter().zip(&passed.answered).zip(&passed.given_up);
    let given_up: usize = passed.given_up.iter().sum();
    counts
        .into_iter()
        .all(|((seen, answered), given_up)| (*answered..=answered + given_up).contains(seen))
        && refused <= passed.broken + given_up
}

fn both_sides_agree(name: &str, start: impl FnOnce(SocketAddr) -> Peer) {
    require_programs(&[name]);
    let gateway = Gateway::start(SIM);
    let peer = start(gateway.api);
    let mut taken = 0;
    for row in hostile::all() {
        throw(peer.address, &row.bytes);
        let what = format!("{name}, {}: both have seen the same", row.name);
        eventually(&what, || agree(&gateway, &peer));
        // Whatever was left on a connection between the two would be the beginning of these.
        for vm in ["1", "2"] {
            let probe = Client::new(peer.address, "alice", "secret");
            let reply = probe.get(&format!("/vms/{vm}/backups/456"));
            assert_eq!(reply.status, 200, "{name}, {}: {reply:?}", row.name);
            let uri = reply.json()["uri"].to_string();
            let expected = format!("/vms/{vm}/backups/456\"");
            assert!(uri.ends_with(&expected), "{name}, {}: {uri}", row.name);
        }
        eventually(&what, || agree(&gateway, &peer));
        taken = passed(&peer).answered.iter().sum();
    }
    let probes = hostile::all().len() * 2;
    assert!(
        taken > probes + 20,
        "{name} passes a good part on: {taken} in all"
    );
}

#[apply(test)]
fn nginx_and_the_gateway_see_the_same_requests() {
    both_sides_agree("nginx", nginx);
}

#[apply(test)]
fn haproxy_and_the_gateway_see_the_same_requests() {
    both_sides_agree("haproxy", haproxy);
}
