//! Upstreams with TLS: pins, authorities, and a gateway that proves itself.

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::ServerConnection;
use rustls::StreamOwned;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::WebPkiClientVerifier;

use crate::client::Client;
use crate::client::Reply;
use crate::harness::Gateway;
use crate::harness::PATIENCE;
use crate::harness::Process;
use crate::harness::SECRET_HASH;
use crate::harness::SIM;
use crate::harness::eventually;
use crate::passthrough::route;
use crate::passthrough::upstream::Record;
use crate::passthrough::upstream::serve_on;
use crate::requirements::require_programs;

/// Runs openssl in the folder.
fn openssl(folder: &Path, arguments: &str) {
    let ended = Command::new("openssl")
        .args(arguments.split(' '))
        .current_dir(folder)
        .output();
    let output = ended.unwrap();
    assert!(output.status.success(), "openssl {arguments}: {output:?}");
}

/// An authority, a server's certificate for 127.0.0.1, a client's, and a stranger's authority.
fn certificates(folder: &Path) {
    require_programs(&["openssl"]);
    let new = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    for name in ["ca", "other"] {
        let made =
            format!("req -x509 {new} -days 2 -subj /CN={name} -keyout {name}.key -out {name}.crt");
        openssl(folder, &made);
    }
    fs::write(folder.join("server.ext"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    fs::write(folder.join("client.ext"), "extendedKeyUsage=clientAuth\n").unwrap();
    for name in ["server", "client"] {
        openssl(
            folder,
            &format!("req {new} -subj /CN={name} -keyout {name}.key -out {name}.csr"),
        );
        openssl(
            folder,
            &format!(
                "x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile {name}.ext -out {name}.crt"
            ),
        );
    }
}

fn der(path: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(path).unwrap()
}

fn fingerprint(path: &Path) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, &der(path));
    digest
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// A TLS server that records what it is sent; asks for a client's certificate when asked to.
fn serve(folder: &Path, asks: bool) -> (u16, Arc<Record>) {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = if asks {
        let mut roots = RootCertStore::empty();
        roots.add(der(&folder.join("ca.crt"))).unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        builder.with_client_cert_verifier(verifier.build().unwrap())
    } else {
        builder.with_no_client_auth()
    };
    let key = PrivateKeyDer::from_pem_file(folder.join("server.key")).unwrap();
    let config = builder
        .with_single_cert(vec![der(&folder.join("server.crt"))], key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let record = Arc::new(Record::default());
    let shared = Arc::clone(&record);
    std::thread::Builder::new()
        .spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let stream = stream.unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
                let mut stream = StreamOwned::new(connection, stream);
                let shared = Arc::clone(&shared);
                std::thread::Builder::new()
                    .spawn(move || {
                        let mut buffer = vec![0; 1];
                        // What is read before the handshake is over would be a request on an unproved connection.
                        if let Ok(1) = stream.read(&mut buffer) {
                            serve_on(&mut stream, &shared, number + 1, &mut buffer);
                        }
                    })
                    .unwrap();
            }
        })
        .unwrap();
    (port, record)
}

fn ask(folder: &Path, port: u16, keys: &str) -> Reply {
    let keys = format!("authentication = \"none\"\n{keys}");
    let places = [format!("https://127.0.0.1:{port}")];
    let config = route("tls", "/", &places, &keys);
    let config = config.replace("$", &format!("{}/", folder.display()));
    let gateway = Gateway::start(&format!("{SIM}{config}"));
    gateway.bare().send("POST", "/echo", Some(b"secret"))
}

#[apply(test)]
fn only_the_upstream_that_is_trusted_reads_the_request() {
    let made = tempfile::tempdir().unwrap();
    let folder = made.path();
    certificates(folder);
    let (port, record) = serve(folder, false);
    let pin = |name: &str| {
        format!(
            "server_fingerprint = \"{}\"",
            fingerprint(&folder.join(name))
        )
    };
    let rows = [
        ("its authority", "ca = \"$ca.crt\"".to_owned(), true),
        ("another authority", "ca = \"$other.crt\"".to_owned(), false),
        ("its pin", pin("server.crt"), true),
        ("another pin", pin("client.crt"), false),
        ("the pin of its authority", pin("ca.crt"), false),
        (
            "a certificate it does not ask for",
            "ca = \"$ca.crt\"\nclient_cert = \"$client.crt\"\nclient_key = \"$client.key\""
                .to_owned(),
            true,
        ),
    ];
    for (name, keys, trusted) in rows {
        let before = record.seen.lock().unwrap().len();
        let reply = ask(folder, port, &keys);
        let expected = if trusted { 200 } else { 502 };
        assert_eq!(reply.status, expected, "{name}: {reply:?}");
        if !trusted {
            assert_eq!(reply.code(), "BadGateway", "{name}");
        }
        let after = record.seen.lock().unwrap().len();
        assert_eq!(after - before, usize::from(trusted), "{name}: what it read");
    }
    let garbage = record.garbage.lock().unwrap().clone();
    assert!(
        garbage.is_empty(),
        "not a byte of a request before trust: {garbage:?}"
    );
    if Path::new("/etc/ssl/certs/ca-certificates.crt").exists() {
        let reply = ask(folder, port, "");
        assert_eq!(reply.status, 502, "the system does not know it: {reply:?}");
    }
}

#[apply(test)]
fn an_upstream_may_ask_for_the_gateways_certificate() {
    let made = tempfile::tempdir().unwrap();
    let folder = made.path();
    certificates(folder);
    let (port, record) = serve(folder, true);
    let own = "client_cert = \"$client.crt\"\nclient_key = \"$client.key\"";
    let reply = ask(folder, port, &format!("ca = \"$ca.crt\"\n{own}"));
    assert_eq!(
        (reply.status, &*reply.body),
        (200, &b"secret"[..]),
        "{reply:?}"
    );
    let pin = fingerprint(&folder.join("server.crt"));
    let reply = ask(
        folder,
        port,
        &format!("server_fingerprint = \"{pin}\"\n{own}"),
    );
    assert_eq!(reply.status, 200, "with a pin too: {reply:?}");
    let reply = ask(folder, port, "ca = \"$ca.crt\"");
    assert_eq!(reply.status, 502, "without one: {reply:?}");
    assert_eq!(record.seen.lock().unwrap().len(), 2, "what it read");
}

#[apply(test)]
fn a_self_signed_upstream_that_ca_cannot_check_is_logged_once_with_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    certificates(folder.path());
    // A self-signed certificate as OpenSSL makes it by default: marked as an authority, and for this host.
    let made = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=self \
                -addext subjectAltName=IP:127.0.0.1 -keyout server.key -out server.crt";
    let words = made.split_whitespace().collect::<Vec<_>>().join(" ");
    openssl(folder.path(), &words);
    let (port, _record) = serve(folder.path(), false);
    let ca = folder.path().join("server.crt").display().to_string();
    let keys = format!("authentication = \"none\"\nca = \"{ca}\"\n");
    let upstreams = [format!("https://127.0.0.1:{port}")];
    let passed = route("tls", "/manager", &upstreams, &keys);
    let sim = SIM.replace("SECRET_HASH", SECRET_HASH);
    let ports = "[server]\nlisten = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n";
    let config = folder.path().join("c.toml");
    fs::write(&config, format!("{ports}{sim}{passed}")).unwrap();
    let log = fs::File::create(folder.path().join("log")).unwrap();
    let arguments = ["serve", "--config", config.to_str().unwrap()];
    let gateway = Process::start_logging(&arguments, log);
    for _ in 0..3 {
        let reply = Client::bare(gateway.api).get("/manager/x");
        assert_eq!(reply.status, 502, "not trusted: {reply:?}");
    }
    let read_log = || fs::read_to_string(folder.path().join("log")).unwrap();
    eventually("it is logged", || {
        read_log().contains("request to upstream failed")
    });
    let log = read_log();
    let is_failure =
        |line: &&str| line.contains("WARN") && line.contains("request to upstream failed");
    let lines: Vec<&str> = log.lines().filter(is_failure).collect();
    assert_eq!(lines.len(), 1, "once for each cause: {log}");
    let remedy = "set `server_fingerprint`";
    assert!(lines[0].contains(remedy), "{}", lines[0]);
}
