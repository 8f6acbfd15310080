//! The whole gateway over TLS: configured with files, reloaded, and their problems reported.

use std::fs;
use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rcgen::CertificateParams;
use rcgen::KeyPair;
use rustls::ClientConfig;
use rustls::ClientConnection;
use rustls::RootCertStore;
use rustls::StreamOwned;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject;

use crate::client::basic;
use crate::harness::Gateway;
use crate::harness::SIM;
use crate::harness::eventually;
use crate::http2::Connection;

/// Makes a certificate for these hosts and writes `NAME.pem` and `NAME.key`.
pub(crate) fn certificate(folder: &Path, name: &str, hosts: &[&str]) -> String {
    let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
    let key = KeyPair::generate().unwrap();
    let made = CertificateParams::new(hosts).unwrap();
    let pem = made.self_signed(&key).unwrap().pem();
    fs::write(folder.join(format!("{name}.pem")), &pem).unwrap();
    fs::write(folder.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    pem
}

/// One request to `host`, and the whole answer; what is wrong when there is no connection.
fn ask(address: SocketAddr, trusted: &str, host: &str, request: &str) -> Result<String, String> {
    ask_as(address, trusted, None, host, request)
}

/// The same with a certificate and its key.
fn ask_as(
    address: SocketAddr,
    trusted: &str,
    identity: Option<&(String, String)>,
    host: &str,
    request: &str,
) -> Result<String, String> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(trusted.as_bytes()).unwrap())
        .unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match identity {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let chain = vec![CertificateDer::from_pem_slice(chain.as_bytes()).unwrap()];
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    };
    let name = ServerName::try_from(host.to_owned()).unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = StreamOwned::new(connection, TcpStream::connect(address).unwrap());
    let error = |error: std::io::Error| error.to_string();
    stream.write_all(request.as_bytes()).map_err(error)?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).map_err(error)?;
    Ok(String::from_utf8(bytes).unwrap())
}

fn get(host: &str) -> String {
    let who = basic("alice", "secret");
    format!(
        "GET /vms/1/backups/456 HTTP/1.1\r\nHost: {host}\r\nAuthorization: {who}\r\n\
         X-Cloud-Client-Specification-Version: 0.1\r\nConnection: close\r\n\r\n"
    )
}

const TWO: &str = "[[certificate]]\nchain = \"one.pem\"\nkey = \"one.key\"\n\
    [[certificate]]\nchain = \"two.pem\"\nkey = \"two.key\"\n";

#[apply(test)]
fn each_host_has_its_certificate_and_a_reload_brings_others() {
    let folder = tempfile::tempdir().unwrap();
    let one = certificate(folder.path(), "one", &["one.example"]);
    let two = certificate(folder.path(), "two", &["two.example", "*.two.example"]);
    let here = folder.path().to_owned();
    let settings = format!("{SIM}{TWO}");
    let gateway = Gateway::start_in(folder, &settings);
    let served = |trusted: &str, host: &str| ask(gateway.api, trusted, host, &get(host));
    for (trusted, host) in [
        (&one, "one.example"),
        (&two, "two.example"),
        (&two, "a.two.example"),
    ] {
        let answer = served(trusted, host).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{host}: {answer}");
        let link = format!("\"uri\":\"https://{}/vms/1/backups/456\"", gateway.api);
        assert!(answer.contains(&link), "{host}: links are https: {answer}");
    }
    assert!(served(&one, "three.example").is_err(), "an unknown host");
    assert!(
        gateway.metric("snapgate_certificate_expires_seconds{certificate=\"1\"}") > 1.0e9,
        "when it ends"
    );
    let new = certificate(&here, "one", &["one.example"]);
    assert!(gateway.reload(&settings), "a new certificate");
    assert!(served(&one, "one.example").is_err(), "the old one is gone");
    assert!(served(&new, "one.example").is_ok(), "the new one is served");
    fs::write(here.join("one.key"), "no key").unwrap();
    assert!(!gateway.reload(&settings), "a certificate without its key");
    assert!(served(&new, "one.example").is_ok(), "what was there stays");
    assert!(served(&two, "two.example").is_ok(), "all of it");
    assert!(gateway.reload(SIM), "no certificate any more");
    assert!(
        gateway.metric("snapgate_config_restart_required") > 0.0,
        "whether the port is encrypted changes with a restart only"
    );
    assert!(served(&new, "one.example").is_ok(), "so it still is");
}

#[apply(test)]
fn problems_of_certificates_are_reported_with_their_key() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    certificate(here, "one", &["one.example"]);
    certificate(here, "two", &["two.example"]);
    certificate(here, "bare", &[]);
    fs::write(here.join("empty.pem"), "").unwrap();
    let one = "[[certificate]]\nchain = \"one.pem\"\nkey = \"one.key\"\n";
    let rows = [
        (
            "no key",
            "[[certificate]]\nchain = \"one.pem\"\n",
            "certificate[0].key: is required",
        ),
        (
            "absent",
            "[[certificate]]\nchain = \"gone.pem\"\nkey = \"one.key\"\n",
            "certificate[0].chain: ",
        ),
        (
            "empty",
            "[[certificate]]\nchain = \"empty.pem\"\nkey = \"one.key\"\n",
            "certificate[0].chain: no PEM certificate found",
        ),
        (
            "of another",
            "[[certificate]]\nchain = \"one.pem\"\nkey = \"two.key\"\n",
            "certificate[0].key: the private key does not match the certificate",
        ),
        (
            "swapped",
            "[[certificate]]\nchain = \"one.key\"\nkey = \"one.pem\"\n",
            "certificate[0].chain: no PEM certificate found",
        ),
        (
            "bad name",
            &format!("{one}names = [\"a b\"]\n"),
            "certificate[0].names: \"a b\" is not a host name",
        ),
        (
            "same name",
            &format!("{one}{one}"),
            "certificate[1]: duplicate certificate for one.example",
        ),
        (
            "no name",
            &format!("{one}[[certificate]]\nchain = \"bare.pem\"\nkey = \"bare.key\"\n"),
            "certificate[1]: the certificate has no DNS name",
        ),
        (
            "clients without TLS",
            "[tls]\nclient_certificates = \"optional\"\nclient_ca = \"one.pem\"\n",
            "tls.client_certificates: has no effect without TLS",
        ),
        (
            "clients without authority",
            &format!("{one}[tls]\nclient_certificates = \"required\"\n"),
            "tls.client_ca: is required",
        ),
        (
            "authority without clients",
            &format!("{one}[tls]\nclient_ca = \"one.pem\"\n"),
            "tls.client_ca: has no effect with client_certificates = \"off\"",
        ),
        (
            "empty authority",
            &format!("{one}[tls]\nclient_certificates = \"required\"\nclient_ca = \"empty.pem\"\n"),
            "tls.client_ca: no PEM certificate found",
        ),
    ];
    for (name, text, expected) in rows {
        let file = here.join("snapgate.toml");
        fs::write(&file, format!("[operations]\nstore = \"o.db\"\n{text}")).unwrap();
        let problems = snapgate::config::load(&file, &|_| None).unwrap_err();
        let problems = problems.to_string();
        assert!(problems.contains(expected), "{name}: {problems}");
        assert!(
            !problems.contains("PRIVATE KEY"),
            "{name}: no key is printed"
        );
        assert!(
            problems.trim_end().ends_with("\n1 error"),
            "{name}: reported once: {problems}"
        );
    }
    let open = "[server]\nlisten = \"0.0.0.0:8443\"\npublic_url = \"https://one.example\"\n";
    let file = here.join("open.toml");
    fs::write(
        &file,
        format!("{open}[operations]\nstore = \"o.db\"\n{one}"),
    )
    .unwrap();
    assert!(
        snapgate::config::load(&file, &|_| None).is_ok(),
        "an encrypted port may be reached from elsewhere"
    );
}

#[apply(test)]
fn a_certificate_that_clients_refuse_is_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    certificate(here, "one", &["one.example", "*.wild.example"]);
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, "one.example");
    let bare = params.self_signed(&key).unwrap().pem();
    fs::write(here.join("bare.pem"), bare).unwrap();
    fs::write(here.join("bare.key"), key.serialize_pem()).unwrap();
    let no_name =
        "certificate[0].chain: the certificate has a common name but no subject alternative name";
    let other = "certificate[0].names: \"two.example\" is not a subject alternative name";
    // The files, the names to serve, and how the warning begins.
    let rows: [(&str, &str, Option<&str>); 5] = [
        ("one", "", None),
        (
            "one",
            "names = [\"one.example\", \"a.wild.example\"]\n",
            None,
        ),
        ("one", "names = [\"ONE.example.\"]\n", None),
        (
            "one",
            "names = [\"one.example\", \"two.example\"]\n",
            Some(other),
        ),
        ("bare", "names = [\"one.example\"]\n", Some(no_name)),
    ];
    for (files, names, expected) in rows {
        let settings = format!(
            "[operations]\nstore = \"o.db\"\n[[certificate]]\nchain = \"{files}.pem\"\nkey = \"{files}.key\"\n{names}"
        );
        let file = here.join("checked.toml");
        fs::write(&file, settings).unwrap();
        let settings = snapgate::config::load(&file, &|_| None).unwrap();
        let warnings = snapgate::config::warnings(&settings, snapgate::model::Timestamp::default());
        let found: Vec<&String> = warnings
            .iter()
            .filter(|warning| warning.contains("subject alternative name"))
            .collect();
        assert_eq!(
            found.len(),
            usize::from(expected.is_some()),
            "{files} {names}: {found:?}"
        );
        if let Some(expected) = expected {
            assert!(found[0].starts_with(expected), "{files} {names}: {found:?}");
        }
    }
}

pub(crate) const HOLDERS: &str = r#"
[[certificate]]
chain = "one.pem"
key = "one.key"

[tls]
client_certificates = "optional"
client_ca = "authority.pem"

[[client_certificate]]
names = ["dns:CI.example", "uri:spiffe://lab/ci"]
user = "ci"
groups = ["builders"]

[[client_certificate]]
names = ["dns:carol.example"]
user = "carol"

[[grant]]
to = ["group:builders"]
actions = ["read"]
vms = ["1"]
backups = ["*"]
"#;

#[apply(test)]
fn a_certificate_stands_for_a_caller_unless_other_credentials_are_sent() {
    let folder = tempfile::tempdir().unwrap();
    let one = certificate(folder.path(), "one", &["one.example"]);
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = params.self_signed(&key).unwrap().pem();
    fs::write(folder.path().join("authority.pem"), authority).unwrap();
    let issuer = rcgen::Issuer::new(params, key);
    let signed = |hosts: &[&str]| {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let key = KeyPair::generate().unwrap();
        let made = CertificateParams::new(hosts)
            .unwrap()
            .signed_by(&key, &issuer);
        (made.unwrap().pem(), key.serialize_pem())
    };
    let (ci, both, stranger) = (
        signed(&["ci.example"]),
        signed(&["ci.example", "carol.example"]),
        signed(&["stranger.example"]),
    );
    let gateway = Gateway::start_in(folder, &format!("{SIM}{HOLDERS}"));
    let bad = format!("Authorization: {}\r\n", basic("alice", "wrong"));
    let alice = format!("Authorization: {}\r\n", basic("alice", "secret"));
    // name, certificate, Authorization, method and path, status
    let get = "GET /vms/1/backups/456";
    let rows = [
        ("known", Some(&ci), "", get, "200"),
        (
            "known, not permitted",
            Some(&ci),
            "",
            "DELETE /vms/1/backups/456",
            "403",
        ),
        (
            "known, not to be seen",
            Some(&ci),
            "",
            "GET /vms/2/backups/456",
            "404",
        ),
        ("unknown", Some(&stranger), "", get, "401"),
        ("of two callers", Some(&both), "", get, "401"),
        ("none", None, "", get, "401"),
        (
            "with another's password",
            Some(&ci),
            &alice,
            "GET /vms/2/backups/456",
            "200",
        ),
        ("with a wrong password", Some(&ci), &bad, get, "401"),
    ];
    for (name, identity, credentials, line, status) in rows {
        let request = format!(
            "{line} HTTP/1.1\r\nHost: one.example\r\n{credentials}\
             X-Cloud-Client-Specification-Version: 0.1\r\nConnection: close\r\n\r\n"
        );
        let answer = ask_as(gateway.api, &one, identity, "one.example", &request).unwrap();
        assert_eq!(answer.split(' ').nth(1), Some(status), "{name}: {answer}");
    }
    assert!(
        gateway.metric("snapgate_credential_checks_total{result=\"certificate\"}") > 0.0,
        "counted"
    );
}

/// An authority that signs certificates of clients.
pub(crate) struct Authority {
    pub(crate) pem: String,
    issuer: rcgen::Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        Self {
            pem: params.self_signed(&key).unwrap().pem(),
            issuer: rcgen::Issuer::new(params, key),
        }
    }

    /// A certificate of a client for this name, and its key.
    pub(crate) fn identity(&self, host: &str) -> (String, String) {
        let params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        let key = KeyPair::generate().unwrap();
        let signed = params.signed_by(&key, &self.issuer).unwrap();
        (signed.pem(), key.serialize_pem())
    }

    /// What a client needs to show a certificate that is valid for so many seconds, and to resume its sessions.
    fn client(&self, trusted: &str, host: &str, seconds: u64) -> Arc<ClientConfig> {
        let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        let now = std::time::SystemTime::now();
        params.not_before = (now - Duration::from_secs(60)).into();
        params.not_after = (now + Duration::from_secs(seconds)).into();
        let key = KeyPair::generate().unwrap();
        let signed = params.signed_by(&key, &self.issuer).unwrap();
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(trusted.as_bytes()).unwrap())
            .unwrap();
        let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![signed.der().clone()], key);
        Arc::new(config.unwrap())
    }
}

/// A connection that stays open, and how it was made.
struct Kept(StreamOwned<ClientConnection, TcpStream>);

impl Kept {
    fn open(address: SocketAddr, config: &Arc<ClientConfig>) -> Self {
        let name = ServerName::try_from("one.example").unwrap();
        let connection = ClientConnection::new(Arc::clone(config), name).unwrap();
        let socket = TcpStream::connect(address).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        Self(StreamOwned::new(connection, socket))
    }

    /// The status of one request without other credentials.
    fn status(&mut self) -> String {
        let request = "GET /vms/1/backups/456 HTTP/1.1\r\nHost: one.example\r\n\
             X-Cloud-Client-Specification-Version: 0.1\r\n\r\n";
        self.0.write_all(request.as_bytes()).unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            self.0.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap().to_lowercase();
        let length = head.split("content-length: ").nth(1);
        let length = length.and_then(|rest| rest.split("\r\n").next());
        let mut body = vec![0; length.map_or(0, |text| text.parse().unwrap())];
        self.0.read_exact(&mut body).unwrap();
        head.split(' ').nth(1).unwrap().to_owned()
    }

    fn is_resumed(&self) -> bool {
        self.0.conn.handshake_kind() == Some(rustls::HandshakeKind::Resumed)
    }
}

#[apply(test)]
fn a_certificate_that_expires_counts_no_longer_on_kept_and_resumed_connections() {
    let folder = tempfile::tempdir().unwrap();
    let one = certificate(folder.path(), "one", &["one.example"]);
    let authority = Authority::new();
    fs::write(folder.path().join("authority.pem"), &authority.pem).unwrap();
    let gateway = Gateway::start_in(folder, &format!("{SIM}{HOLDERS}"));
    for version in ["first", "again"] {
        let client = authority.client(&one, "ci.example", 4);
        let mut kept = Kept::open(gateway.api, &client);
        assert_eq!(kept.status(), "200", "{version}: while it is valid");
        let mut resumed = Kept::open(gateway.api, &client);
        assert_eq!(resumed.status(), "200", "{version}: while it is valid");
        assert!(resumed.is_resumed(), "{version}: without a new handshake");
        eventually("the kept connection is no proof", || kept.status() == "401");
        let mut late = Kept::open(gateway.api, &client);
        assert_eq!(late.status(), "401", "{version}: resumed after the expiry");
        assert!(late.is_resumed(), "{version}: it was resumed");
    }
}

/// How the next connection of a client begins.
fn is_resumed(address: SocketAddr, client: &Arc<ClientConfig>) -> bool {
    let mut connection = Kept::open(address, client);
    // The tickets come with the first answer.
    assert_eq!(connection.status(), "200", "an answer");
    connection.is_resumed()
}

#[apply(test)]
fn any_number_of_clients_resume_their_sessions_and_a_reload_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let one = certificate(folder.path(), "one", &["one.example"]);
    let authority = Authority::new();
    fs::write(folder.path().join("authority.pem"), &authority.pem).unwrap();
    let settings = format!("{SIM}{HOLDERS}");
    let gateway = Gateway::start_in(folder, &settings);
    let client = || authority.client(&one, "ci.example", 3600);
    let clients: Vec<_> = std::iter::repeat_with(client).take(300).collect();
    for client in &clients {
        assert!(
            !is_resumed(gateway.api, client),
            "the first is a whole handshake"
        );
    }
    // More of them than fit into the table of sessions of the library.
    let resumed = clients
        .iter()
        .filter(|client| is_resumed(gateway.api, client));
    assert_eq!(resumed.count(), clients.len(), "all of them");
    assert!(gateway.reload(&settings), "reloaded");
    assert!(is_resumed(gateway.api, &clients[0]), "after a reload, too");
}

#[apply(test)]
fn gateways_that_share_keys_resume_the_sessions_of_each_other() {
    let authority = Authority::new();
    let (key, next) = ("5a".repeat(32), "0f".repeat(32));
    let start = |certificates: Option<&Path>, keys: &str| {
        let folder = tempfile::tempdir().unwrap();
        let trusted = match certificates {
            None => certificate(folder.path(), "one", &["one.example"]),
            Some(other) => {
                for file in ["one.pem", "one.key"] {
                    fs::copy(other.join(file), folder.path().join(file)).unwrap();
                }
                fs::read_to_string(folder.path().join("one.pem")).unwrap()
            }
        };
        fs::write(folder.path().join("authority.pem"), &authority.pem).unwrap();
        fs::write(folder.path().join("tickets.txt"), keys).unwrap();
        let settings =
            format!("{SIM}{HOLDERS}").replace("[tls]\n", "[tls]\nticket_keys = \"tickets.txt\"\n");
        let path = folder.path().to_owned();
        (
            Gateway::start_in(folder, &settings),
            path,
            trusted,
            settings,
        )
    };
    let (first, folder, trusted, settings) = start(None, &key);
    let (second, ..) = start(Some(&folder), &format!("# next\n{next}\n{key}\n"));
    let (stranger, ..) = start(Some(&folder), &"77".repeat(32));
    let client = authority.client(&trusted, "ci.example", 3600);
    assert!(!is_resumed(first.api, &client), "nothing to resume");
    assert!(is_resumed(second.api, &client), "a ticket of the first");
    assert!(!is_resumed(stranger.api, &client), "other keys");
    let client = authority.client(&trusted, "ci.example", 3600);
    assert!(!is_resumed(first.api, &client), "a ticket with the old key");
    fs::write(folder.join("tickets.txt"), &next).unwrap();
    assert!(first.reload(&settings), "the old key is removed");
    assert!(!is_resumed(first.api, &client), "and its tickets end");
    fs::write(folder.join("tickets.txt"), "no key").unwrap();
    assert!(!first.reload(&settings), "what is no key changes nothing");
}

#[apply(test)]
fn a_reload_judges_the_certificates_of_kept_connections_anew() {
    let folder = tempfile::tempdir().unwrap();
    let one = certificate(folder.path(), "one", &["one.example"]);
    let here = folder.path().to_owned();
    let (authority, other) = (Authority::new(), Authority::new());
    let trust = |pem: &str| fs::write(here.join("authority.pem"), pem).unwrap();
    trust(&authority.pem);
    let settings = format!("{SIM}{HOLDERS}");
    let gateway = Gateway::start_in(folder, &settings);
    let client = authority.client(&one, "ci.example", 3600);
    let mut kept = Kept::open(gateway.api, &client);
    assert_eq!(kept.status(), "200", "trusted");
    trust(&other.pem);
    assert!(gateway.reload(&settings), "another authority");
    assert_eq!(kept.status(), "401", "its authority is gone");
    trust(&format!("{}{}", authority.pem, other.pem));
    assert!(gateway.reload(&settings), "both");
    assert_eq!(kept.status(), "200", "trusted again");
    let renamed = settings.replace("dns:CI.example", "dns:other.example");
    assert!(gateway.reload(&renamed), "another mapping");
    assert_eq!(kept.status(), "401", "its name is unknown");
    let mut resumed = Kept::open(gateway.api, &client);
    assert_eq!(resumed.status(), "401", "on new connections, too");
    let required = settings.replace("\"optional\"", "\"required\"");
    trust(&other.pem);
    assert!(gateway.reload(&required), "required, of another authority");
    assert_eq!(kept.status(), "401", "no connection would be made now");
}

#[apply(test)]
fn certificates_of_open_http_2_connections_are_judged_with_every_request() {
    let folder = tempfile::tempdir().unwrap();
    let one = certificate(folder.path(), "one", &["one.example"]);
    let authority = Authority::new();
    fs::write(folder.path().join("authority.pem"), &authority.pem).unwrap();
    let settings = format!("{SIM}{HOLDERS}");
    let gateway = Gateway::start_in(folder, &settings);
    let connect = |seconds: u64| {
        let mut config = (*authority.client(&one, "ci.example", seconds)).clone();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Connection::over(
            gateway.api,
            config,
            "one.example",
            &h2::client::Builder::new(),
        )
    };
    let status = |client: &Connection| {
        let head = http::Request::get("https://one.example/vms/1/backups/456");
        let head = head.header("x-cloud-client-specification-version", "0.1");
        client.send(head, None).status
    };
    let lasting = connect(3600);
    assert_eq!(status(&lasting), 200, "known");
    let renamed = settings.replace("dns:CI.example", "dns:other.example");
    assert!(gateway.reload(&renamed), "another mapping");
    assert_eq!(status(&lasting), 401, "its name is unknown");
    assert!(gateway.reload(&settings), "the mapping of before");
    assert_eq!(status(&lasting), 200, "known again");
    let short = connect(4);
    assert_eq!(status(&short), 200, "while it is valid");
    eventually("the expired certificate is no proof", || {
        status(&short) == 401
    });
    assert_eq!(status(&lasting), 200, "the other one still is");
}
