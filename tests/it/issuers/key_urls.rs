//! Signing keys that are fetched from an issuer: rotation, bad answers, outages and TLS.

use std::fs;
use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Instant;

use serde_json::json;

use crate::harness::Gateway;
use crate::harness::PATIENCE;
use crate::harness::SECRET_HASH;
use crate::harness::SIM;
use crate::harness::eventually;
use crate::harness::probe;
use crate::issuers::CORP;
use crate::issuers::Keys;
use crate::issuers::claims;
use crate::issuers::get;
use crate::issuers::now;

/// What a server with keys answers.
#[derive(Clone)]
enum Answers {
    Set(String),
    Raw(Vec<u8>),
    /// The connection is closed at once.
    Nothing,
    /// The connection stays open.
    Silence,
}

/// A server of key sets on this machine.
struct Provider {
    address: SocketAddr,
    answers: Arc<Mutex<Answers>>,
    /// The paths that were asked for.
    asked: Arc<Mutex<Vec<String>>>,
}

impl Provider {
    fn start(answers: Answers) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let made = Self {
            address: listener.local_addr().unwrap(),
            answers: Arc::new(Mutex::new(answers)),
            asked: Arc::default(),
        };
        let (answers, asked) = (Arc::clone(&made.answers), Arc::clone(&made.asked));
        std::thread::Builder::new()
            .spawn(move || {
                let mut open = Vec::new();
                for stream in listener.incoming() {
                    let stream = stream.unwrap();
                    stream.set_read_timeout(Some(PATIENCE)).unwrap();
                    let answers = answers.lock().unwrap().clone();
                    open.extend(serve(stream, &answers, &asked));
                }
            })
            .unwrap();
        made
    }

    fn say(&self, answers: Answers) {
        *self.answers.lock().unwrap() = answers;
    }

    fn count(&self) -> usize {
        self.asked.lock().unwrap().len()
    }

    /// The configuration that has the keys fetched from here.
    fn settings(&self, more: &str) -> String {
        let address = self.address;
        format!("{SIM}{CORP}jwks_url = \"http://{address}/jwks?of=corp\"\n{more}")
    }
}

/// Answers one request; gives the connection back when it is to stay open.
fn serve(
    mut stream: TcpStream,
    answers: &Answers,
    asked: &Mutex<Vec<String>>,
) -> Option<TcpStream> {
    if matches!(answers, Answers::Nothing) {
        asked.lock().unwrap().push(String::new());
        return None;
    }
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
        head.extend_from_slice(&byte);
    }
    let head = String::from_utf8(head).unwrap();
    let path = head.split(' ').nth(1).unwrap_or_default();
    asked.lock().unwrap().push(path.to_owned());
    // Who asks may have gone, for instance when the answer is too large.
    match answers {
        Answers::Set(text) => drop(stream.write_all(&ok(text.as_bytes()))),
        Answers::Raw(bytes) => drop(stream.write_all(bytes)),
        Answers::Nothing => {}
        Answers::Silence => return Some(stream),
    }
    None
}

fn ok(body: &[u8]) -> Vec<u8> {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close";
    let mut all = format!("{head}\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
    all.extend_from_slice(body);
    all
}

#[apply(test)]
fn keys_at_a_url_are_rotated_and_the_last_good_ones_stay_whatever_the_issuer_answers() {
    let keys = Keys::new();
    let provider = Provider::start(Answers::Set(keys.set(&["a"])));
    let settings = provider.settings("jwks_refresh = \"1h\"\n");
    let gateway = Gateway::start(&settings);
    let (old, new) = (keys.token("a"), keys.token("b"));
    let status = |token: &str| get(gateway.api, token).status;
    eventually("the first keys come", || status(&old) == 200);
    assert_eq!(provider.count(), 1, "they are fetched once");

    provider.say(Answers::Set(keys.set(&["a", "b"])));
    let begun = Instant::now();
    eventually("a key that is not known is fetched", || status(&new) == 200);
    assert_eq!(status(&old), 200, "with those before");
    for number in 0..20 {
        let header = json!({ "alg": "EdDSA", "kid": format!("forged-{number}") });
        assert_eq!(status(&keys.sign("b", &header, &claims())), 401, "forged");
    }
    let pauses = begun.elapsed().as_secs() / 30;
    let (count, allowed) = (provider.count(), 2 + usize::try_from(pauses).unwrap());
    assert!(
        (2..=allowed).contains(&count),
        "forged ids fetch nothing: {count} of {allowed}"
    );

    provider.say(Answers::Set(keys.set(&["b"])));
    assert!(gateway.reload(&settings), "the operator asks for it");
    eventually("the old key is gone", || status(&old) == 401);
    assert_eq!(status(&new), 200, "the new one is there");
    let fetched = gateway.metric("snapgate_issuer_keys_fetched_seconds{issuer=\"corp\"}");
    let now = f64::from(u32::try_from(now()).unwrap());
    assert!(
        (now - fetched).abs() < 600.0,
        "the time of the fetch is exported: {fetched}"
    );

    let refreshes = |result: &str| {
        let name = "snapgate_issuer_refreshes_total{issuer=\"corp\",result=";
        gateway.metric(&format!("{name}\"{result}\"}}"))
    };
    let moved = format!(
        "HTTP/1.1 302 Found\r\nLocation: http://{}/moved\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        provider.address
    );
    let many = json!({ "keys": vec![json!({ "kty": "oct" }); 101] });
    let rows = [
        (
            "an error",
            Answers::Raw(
                b"HTTP/1.1 500 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec(),
            ),
            "status",
        ),
        ("a redirect", Answers::Raw(moved.into_bytes()), "status"),
        ("no JSON", Answers::Set("<html>".to_owned()), "unusable"),
        ("no text", Answers::Raw(ok(&[0xff, 0xfe])), "unusable"),
        (
            "no keys",
            Answers::Set("{\"keys\":[]}".to_owned()),
            "unusable",
        ),
        ("too many keys", Answers::Set(many.to_string()), "unusable"),
        (
            "a flood",
            Answers::Raw(ok(&vec![b' '; 3 * 1024 * 1024])),
            "unusable",
        ),
        (
            "half of it",
            Answers::Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{".to_vec()),
            "no_answer",
        ),
        (
            "no HTTP",
            Answers::Raw(b"SSH-2.0-x\r\n\r\n".to_vec()),
            "no_answer",
        ),
        ("nothing", Answers::Nothing, "no_answer"),
    ];
    for (name, answers, result) in rows {
        let before = refreshes(result);
        provider.say(answers);
        assert!(gateway.reload(&settings), "{name}: asked again");
        eventually(name, || refreshes(result) > before);
        assert_eq!(
            (status(&new), status(&old)),
            (200, 401),
            "{name}: the last good ones stay"
        );
        let good = gateway.metric("snapgate_issuer_last_refresh_successful{issuer=\"corp\"}");
        assert!(good < 0.5, "{name}: exported");
    }
    let asked = provider.asked.lock().unwrap().clone();
    let is_own = |target: &String| target.is_empty() || target == "/jwks?of=corp";
    assert!(
        asked.iter().all(is_own),
        "nothing else is asked for: {asked:?}"
    );

    let before = provider.count();
    provider.say(Answers::Silence);
    assert!(gateway.reload(&settings), "asked again");
    eventually("it is asked", || provider.count() > before);
    assert_eq!(
        status(&new),
        200,
        "an issuer that hangs delays no caller of others"
    );
    assert_eq!(status(&old), 401, "who waits for it does not wait for long");
    assert_eq!(
        gateway.client("alice").get("/vms/1").status,
        200,
        "nor anybody else"
    );
}

#[apply(test)]
fn a_gateway_whose_issuer_is_down_serves_everybody_else() {
    let keys = Keys::new();
    let provider = Provider::start(Answers::Nothing);
    let gateway = Gateway::start(&provider.settings(""));
    let token = keys.token("a");
    eventually("it was asked", || provider.count() > 0);
    let reply = get(gateway.api, &token);
    assert_eq!(
        (reply.status, reply.code().as_str()),
        (503, "KeysUnavailable"),
        "{reply:?}"
    );
    assert_eq!(reply.header("retry-after"), "5", "it may pass");
    assert_eq!(
        gateway.client("alice").get("/vms/1").status,
        200,
        "a password"
    );
    let checks = "snapgate_credential_checks_total{result=\"no_keys\"}";
    assert!(gateway.metric(checks) > 0.0, "counted");
    let refreshes = "snapgate_issuer_refreshes_total{issuer=\"corp\",result=\"no_answer\"}";
    assert!(gateway.metric(refreshes) > 0.0, "and why");

    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("snapgate.toml");
    let settings = provider.settings("").replace("SECRET_HASH", SECRET_HASH);
    fs::write(&config, settings).unwrap();
    let config = config.to_str().unwrap();
    let place = format!("http://{}/jwks", provider.address);
    let (status, printed) = probe(config);
    assert_eq!(status, Some(1), "{printed}");
    assert!(
        printed.contains(&format!("issuer corp: no keys from {place}: ")),
        "{printed}"
    );

    provider.say(Answers::Set(keys.set(&["a"])));
    eventually("the keys come by themselves", || {
        get(gateway.api, &token).status == 200
    });
    let (status, printed) = probe(config);
    assert_eq!(status, Some(0), "{printed}");
    assert!(
        printed.contains(&format!("issuer corp: 1 key from {place}\n")),
        "{printed}"
    );
    assert!(
        !printed.contains("of=corp"),
        "a query may hold a secret: {printed}"
    );
}

/// A server of that set with a certificate for `localhost`, signed by the authority of which the PEM text is given.
fn encrypted(set: String) -> (u16, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = params.self_signed(&key).unwrap().pem();
    let issuer = rcgen::Issuer::new(params, key);
    let key = rcgen::KeyPair::generate().unwrap();
    let names = vec!["localhost".to_owned()];
    let made = rcgen::CertificateParams::new(names).unwrap();
    let made = made.signed_by(&key, &issuer).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.der().clone()], key.into())
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::Builder::new()
        .spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                let connection = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
                let mut stream = rustls::StreamOwned::new(connection, stream);
                let mut head = vec![0; 4096];
                // A client that trusts another authority sends nothing.
                if stream.read(&mut head).is_ok_and(|count| count > 0) {
                    drop(stream.write_all(&ok(set.as_bytes())));
                    stream.conn.send_close_notify();
                    drop(stream.flush());
                }
            }
        })
        .unwrap();
    (port, authority)
}

#[apply(test)]
fn keys_come_from_the_server_that_is_trusted_alone() {
    let keys = Keys::new();
    let (port, authority) = encrypted(keys.set(&["a"]));
    let (_, stranger) = encrypted(String::new());
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    fs::write(place("own.pem"), authority).unwrap();
    fs::write(place("other.pem"), stranger).unwrap();
    let settings = |ca: &str, host: &str| {
        format!("{SIM}{CORP}jwks_url = \"https://{host}:{port}/jwks\"\njwks_ca = \"{ca}\"\n")
    };
    for (ca, host, expected) in [
        (
            "own.pem",
            "localhost",
            Ok("issuer corp: 1 key from https://localhost"),
        ),
        ("other.pem", "localhost", Err("jwks_ca")),
        ("own.pem", "127.0.0.1", Err("jwks_ca")),
    ] {
        let text = settings(ca, host).replace("SECRET_HASH", SECRET_HASH);
        fs::write(place("c.toml"), text).unwrap();
        let (status, printed) = probe(place("c.toml").to_str().unwrap());
        assert_eq!(
            status == Some(0),
            expected.is_ok(),
            "{ca} {host}: {printed}"
        );
        let (Ok(words) | Err(words)) = expected;
        assert!(printed.contains(words), "{ca} {host}: {printed}");
    }
    let gateway = Gateway::start_in(folder, &settings("own.pem", "localhost"));
    let token = keys.token("a");
    eventually("fetched by TLS", || get(gateway.api, &token).status == 200);
}
