//! JSON Web Tokens on the whole program: what is taken and what is not, keys that change, and issuers that fail.

use std::fs;
use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Instant;
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature;
use ring::signature::EcdsaKeyPair;
use ring::signature::Ed25519KeyPair;
use ring::signature::KeyPair;
use ring::signature::RsaKeyPair;
use serde_json::Value;
use serde_json::json;

use crate::client::Client;
use crate::client::Reply;
use crate::harness::Gateway;
use crate::harness::PATIENCE;
use crate::harness::Process;
use crate::harness::SECRET_HASH;
use crate::harness::SIM;
use crate::harness::eventually;
use crate::harness::metric;
use crate::harness::probe;
use crate::harness::program;

/// An RSA key of 2048 bits that nothing but tests knows, as PKCS #8 in base64.
const RSA: &str = include_str!("../keys/rsa.pkcs8.base64");
const ISSUER: &str = "https://sso.example.com";
/// Where the issuer's keys are comes after it.
const CORP: &str = r#"
[[grant]]
to = ["group:ops", "user:corp:direct"]
actions = ["read", "restore"]
vms = ["1"]

[[issuer]]
name = "corp"
issuer = "https://sso.example.com"
audience = ["snapgate", "backups"]
groups = ["vm-operators=ops"]
leeway = "10m"
"#;

fn url(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    i64::try_from(since.unwrap().as_secs()).unwrap()
}

fn claims() -> Value {
    json!({ "iss": ISSUER, "aud": "snapgate", "sub": "4711", "exp": now() + 3600, "groups": ["vm-operators", "x"] })
}

/// Ed25519 keys by their ids, and one of each other kind.
struct Keys {
    ed: Vec<(&'static str, Ed25519KeyPair)>,
    p256: EcdsaKeyPair,
    rsa: RsaKeyPair,
    random: SystemRandom,
}

impl Keys {
    fn new() -> Self {
        let random = SystemRandom::new();
        let ed = ["a", "b"].map(|name| {
            let made = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
            (name, Ed25519KeyPair::from_pkcs8(made.as_ref()).unwrap())
        });
        let how = &signature::ECDSA_P256_SHA256_FIXED_SIGNING;
        let p256 = EcdsaKeyPair::generate_pkcs8(how, &random).unwrap();
        Self {
            ed: ed.into(),
            p256: EcdsaKeyPair::from_pkcs8(how, p256.as_ref(), &random).unwrap(),
            rsa: RsaKeyPair::from_pkcs8(&STANDARD.decode(RSA.trim_end()).unwrap()).unwrap(),
            random,
        }
    }

    /// The set with the keys of these ids.
    fn set(&self, ids: &[&str]) -> String {
        let ed = self.ed.iter().map(|(name, key)| {
            let x = url(key.public_key().as_ref());
            json!({ "kty": "OKP", "crv": "Ed25519", "kid": name, "x": x })
        });
        let point = &self.p256.public_key().as_ref()[1..];
        let (x, y) = point.split_at(32);
        let rsa = signature::RsaPublicKeyComponents::<Vec<u8>>::from(self.rsa.public_key());
        let mut all: Vec<Value> = ed.collect();
        all.push(json!({ "kty": "EC", "crv": "P-256", "kid": "p256", "x": url(x), "y": url(y), "use": "sig" }));
        all.push(json!({ "kty": "RSA", "kid": "rsa", "n": url(&rsa.n), "e": url(&rsa.e), "alg": "RS256" }));
        all.retain(|it| ids.contains(&it["kid"].as_str().unwrap()));
        assert_eq!(all.len(), ids.len(), "every one is known");
        json!({ "keys": all }).to_string()
    }

    /// Signs as `how` says, whatever the header claims.
    fn sign(&self, how: &str, header: &Value, claims: &Value) -> String {
        let part = |it: &Value| url(it.to_string().as_bytes());
        let signed = format!("{}.{}", part(header), part(claims));
        let bytes = signed.as_bytes();
        let made = match how {
            "rsa" => {
                let mut made = vec![0; self.rsa.public().modulus_len()];
                let padding = &signature::RSA_PKCS1_SHA256;
                self.rsa
                    .sign(padding, &self.random, bytes, &mut made)
                    .unwrap();
                made
            }
            "p256" => {
                let made = self.p256.sign(&self.random, bytes).unwrap();
                made.as_ref().to_vec()
            }
            // What whoever knows the public key can do.
            "hmac" => {
                let public = self.rsa.public_key().as_ref();
                let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, public);
                ring::hmac::sign(&key, bytes).as_ref().to_vec()
            }
            "" => Vec::new(),
            name => {
                let key = self.ed.iter().find(|it| it.0 == name).unwrap();
                key.1.sign(bytes).as_ref().to_vec()
            }
        };
        format!("{signed}.{}", url(&made))
    }

    /// A good token that is signed with that Ed25519 key.
    fn token(&self, name: &str) -> String {
        self.sign(name, &json!({ "alg": "EdDSA", "kid": name }), &claims())
    }
}

fn get(api: SocketAddr, token: &str) -> Reply {
    send(api, token, "GET", "/vms/1/backups/456")
}

fn send(api: SocketAddr, token: &str, method: &str, path: &str) -> Reply {
    Client::bare(api)
        .with("Authorization", &format!("Bearer {token}"))
        .with("X-Cloud-Client-Specification-Version", "0.1")
        .send(method, path, (method == "POST").then_some(b""))
}

fn with(name: &str, value: Value) -> Value {
    let mut it = claims();
    it[name] = value;
    it
}

#[test]
fn tokens_of_an_issuer_have_the_rights_of_their_groups() {
    let keys = Keys::new();
    let folder = tempfile::tempdir().unwrap();
    let set = keys.set(&["a", "p256", "rsa"]);
    fs::write(folder.path().join("sso.jwks.json"), set).unwrap();
    let gateway = Gateway::start_in(folder, &format!("{SIM}{CORP}jwks = \"sso.jwks.json\"\n"));
    for (algorithm, key) in [("RS256", "rsa"), ("ES256", "p256"), ("EdDSA", "a")] {
        let header = json!({ "alg": algorithm, "kid": key, "typ": "JWT" });
        let token = keys.sign(key, &header, &claims());
        let rows = [
            ("GET", "/vms/1/backups/456", 200),
            ("GET", "/vms/2/backups/456", 404),
            ("DELETE", "/vms/1/backups/456", 403),
            ("POST", "/vms/1/backups/456/restore", 202),
        ];
        for (method, path, expected) in rows {
            let reply = send(gateway.api, &token, method, path);
            assert_eq!(
                reply.status, expected,
                "{algorithm}: {method} {path}: {reply:?}"
            );
        }
    }
    let header = json!({ "alg": "EdDSA", "kid": "a" });
    let rows = [
        (
            "a group that means nothing",
            with("groups", json!(["ops"])),
            404,
        ),
        ("no groups", with("groups", json!(null)), 404),
        ("one group", with("groups", json!("vm-operators")), 200),
        (
            "a grant of its own",
            {
                let mut it = with("sub", json!("direct"));
                it["groups"] = json!([]);
                it
            },
            200,
        ),
        (
            "the name of a user",
            {
                let mut it = with("sub", json!("alice"));
                it["groups"] = json!([]);
                it
            },
            404,
        ),
        (
            "another audience that is named",
            with("aud", json!(["x", "backups"])),
            200,
        ),
        ("a clock that is slow", with("exp", json!(now() - 60)), 200),
        ("a clock that is fast", with("nbf", json!(now() + 60)), 200),
    ];
    for (name, claims, expected) in rows {
        let reply = get(gateway.api, &keys.sign("a", &header, &claims));
        assert_eq!(reply.status, expected, "{name}: {reply:?}");
    }
}

#[test]
fn whatever_is_wrong_with_a_token_the_answer_is_the_same_401() {
    let keys = Keys::new();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("sso.jwks.json"), keys.set(&["a", "rsa"])).unwrap();
    let gateway = Gateway::start_in(folder, &format!("{SIM}{CORP}jwks = \"sso.jwks.json\"\n"));
    let good = json!({ "alg": "EdDSA", "kid": "a" });
    let header = |algorithm: &str, kid: &str| json!({ "alg": algorithm, "kid": kid });
    let token = keys.token("a");
    let signed = token.rsplit_once('.').unwrap().0;
    let rows = [
        (
            "expired",
            keys.sign("a", &good, &with("exp", json!(now() - 3600))),
        ),
        (
            "not yet",
            keys.sign("a", &good, &with("nbf", json!(now() + 3600))),
        ),
        (
            "made later",
            keys.sign("a", &good, &with("iat", json!(now() + 3600))),
        ),
        ("no end", keys.sign("a", &good, &with("exp", json!(null)))),
        (
            "another issuer",
            keys.sign("a", &good, &with("iss", json!("https://sso.example.org"))),
        ),
        (
            "another audience",
            keys.sign("a", &good, &with("aud", json!("other"))),
        ),
        (
            "no algorithm",
            keys.sign("", &header("none", "a"), &claims()),
        ),
        (
            "no algorithm, with a signature",
            keys.sign("a", &header("none", "a"), &claims()),
        ),
        (
            "the public key as a secret",
            keys.sign("hmac", &header("HS256", "rsa"), &claims()),
        ),
        (
            "a secret under a good name",
            keys.sign("hmac", &header("RS256", "rsa"), &claims()),
        ),
        ("another key's signature", keys.sign("b", &good, &claims())),
        ("a key that is not there", keys.token("b")),
        (
            "one key, another's algorithm",
            keys.sign("a", &header("RS256", "rsa"), &claims()),
        ),
        (
            "an extension",
            keys.sign(
                "a",
                &json!({ "alg": "EdDSA", "kid": "a", "crit": ["x"] }),
                &claims(),
            ),
        ),
        ("no signature", format!("{signed}.")),
        ("two parts", signed.to_owned()),
        ("not of base64", format!("{signed}.%%%")),
        ("no token", "x".to_owned()),
    ];
    for (name, token) in &rows {
        let reply = get(gateway.api, token);
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (401, "Unauthenticated"),
            "{name}"
        );
        assert_eq!(
            reply.header("www-authenticate"),
            "Basic realm=\"snapgate\", charset=\"UTF-8\", Bearer realm=\"snapgate\"",
            "{name}: what would be taken"
        );
        let mut body = reply.json();
        body.as_object_mut().unwrap().remove("instance");
        let text = body["message"][0]["text"].as_str().unwrap_or_default();
        assert_eq!(
            text, "The credentials are missing or not valid.",
            "{name}: {body}"
        );
    }
    assert_eq!(
        get(gateway.api, &token).status,
        200,
        "and the good one is taken"
    );
}

#[test]
fn keys_in_a_file_are_rotated_with_a_reload() {
    let keys = Keys::new();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("snapgate.toml");
    let sim = SIM.replace("SECRET_HASH", SECRET_HASH);
    let ports = "[server]\nlisten = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n";
    fs::write(
        &file,
        format!("{ports}{sim}{CORP}jwks = \"sso.jwks.json\"\n"),
    )
    .unwrap();
    let put = |text: &str| {
        let new = folder.path().join("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, folder.path().join("sso.jwks.json")).unwrap();
    };
    put(&keys.set(&["a"]));
    let process = Process::start(&["serve", "--config", file.to_str().unwrap()]);
    let (old, new) = (keys.token("a"), keys.token("b"));
    let status = |token: &str| get(process.api, token).status;
    assert_eq!((status(&old), status(&new)), (200, 401), "the first key");
    put(&keys.set(&["a", "b"]));
    process.signal("HUP");
    eventually("the next key is known", || status(&new) == 200);
    assert_eq!(status(&old), 200, "and the first one still");
    put(&keys.set(&["b"]));
    process.signal("HUP");
    eventually("the first key counts no more", || status(&old) == 401);
    assert_eq!(status(&new), 200, "the next one does");
    put("{");
    process.signal("HUP");
    let successful = "snapgate_config_last_reload_successful";
    eventually("the mistake is told", || {
        metric(process.admin, successful) < 0.5
    });
    assert_eq!(
        (status(&old), status(&new)),
        (401, 200),
        "and changes nothing"
    );
}

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

#[test]
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
        "when they were fetched is told: {fetched}"
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
        assert!(good < 0.5, "{name}: told");
    }
    let asked = provider.asked.lock().unwrap().clone();
    let is_own = |it: &String| it.is_empty() || it == "/jwks?of=corp";
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
        "an issuer that hangs delays nobody it knows"
    );
    assert_eq!(status(&old), 401, "who waits for it does not wait for long");
    assert_eq!(
        gateway.client("alice").get("/vms/1").status,
        200,
        "nor anybody else"
    );
}

#[test]
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
    let (status, told) = probe(config);
    assert_eq!(status, Some(1), "{told}");
    assert!(
        told.contains(&format!("issuer corp: no keys from {place}: ")),
        "{told}"
    );

    provider.say(Answers::Set(keys.set(&["a"])));
    eventually("the keys come by themselves", || {
        get(gateway.api, &token).status == 200
    });
    let (status, told) = probe(config);
    assert_eq!(status, Some(0), "{told}");
    assert!(
        told.contains(&format!("issuer corp: 1 key from {place}\n")),
        "{told}"
    );
    assert!(
        !told.contains("of=corp"),
        "a query may hold a secret: {told}"
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
                if stream.read(&mut head).is_ok_and(|it| it > 0) {
                    drop(stream.write_all(&ok(set.as_bytes())));
                    stream.conn.send_close_notify();
                    drop(stream.flush());
                }
            }
        })
        .unwrap();
    (port, authority)
}

#[test]
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
        let (status, told) = probe(place("c.toml").to_str().unwrap());
        assert_eq!(status == Some(0), expected.is_ok(), "{ca} {host}: {told}");
        let (Ok(words) | Err(words)) = expected;
        assert!(told.contains(words), "{ca} {host}: {told}");
    }
    let gateway = Gateway::start_in(folder, &settings("own.pem", "localhost"));
    let token = keys.token("a");
    eventually("fetched by TLS", || get(gateway.api, &token).status == 200);
}

/// What `check` says, and how it ends.
fn check(config: &Path) -> (i32, String) {
    let ended = program()
        .args(["check", "--config", config.to_str().unwrap()])
        .output()
        .unwrap();
    let text = String::from_utf8([ended.stdout, ended.stderr].concat()).unwrap();
    (ended.status.code().unwrap(), text)
}

#[test]
fn what_is_wrong_with_an_issuer_is_told_with_its_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("c.toml");
    let sim = SIM.replace("SECRET_HASH", SECRET_HASH);
    fs::write(folder.path().join("empty.pem"), "").unwrap();
    let set = Keys::new().set(&["a"]);
    fs::write(folder.path().join("keys.json"), set).unwrap();
    let url = "jwks_url = \"https://sso.example.com/jwks\"\n";
    let rows = [
        (
            "neither",
            String::new(),
            "issuer[0].jwks: is required",
            "jwks_url = \"https://...\"",
        ),
        (
            "both",
            format!("jwks = \"keys.json\"\n{url}"),
            "issuer[0].jwks_url: cannot be combined with jwks",
            "remove one",
        ),
        (
            "a URL as a file",
            "jwks = \"https://sso.example.com/jwks\"\n".to_owned(),
            "issuer[0].jwks: expected a path, got a URL",
            "write it as jwks_url",
        ),
        (
            "plain HTTP",
            "jwks_url = \"http://sso.example.com/jwks\"\n".to_owned(),
            "issuer[0].jwks_url: would fetch keys in cleartext from another machine",
            "write https://",
        ),
        (
            "no URL",
            "jwks_url = \"sso.example.com\"\n".to_owned(),
            "issuer[0].jwks_url: is not the URL",
            "write https://host/path",
        ),
        (
            "an authority that is not there",
            format!("{url}jwks_ca = \"no.pem\"\n"),
            "issuer[0].jwks_ca: ",
            "in PEM form",
        ),
        (
            "no authority in it",
            format!("{url}jwks_ca = \"empty.pem\"\n"),
            "there is no certificate in PEM form",
            "in PEM form",
        ),
        (
            "an authority for plain HTTP",
            "jwks_url = \"http://127.0.0.1:1/\"\njwks_ca = \"empty.pem\"\n".to_owned(),
            "issuer[0].jwks_ca: has no effect with http://",
            "remove it",
        ),
        (
            "a rhythm for a file",
            "jwks = \"keys.json\"\njwks_refresh = \"1h\"\n".to_owned(),
            "issuer[0].jwks_refresh: has no effect without jwks_url",
            "remove it",
        ),
        (
            "too often",
            format!("{url}jwks_refresh = \"1ms\"\n"),
            "issuer[0].jwks_refresh",
            "1s to 1d",
        ),
    ];
    for (name, text, what, remedy) in rows {
        fs::write(&file, format!("{sim}{CORP}{text}")).unwrap();
        let (status, told) = check(&file);
        assert_eq!(status, 78, "{name}: {told}");
        assert!(
            told.contains(what) && told.contains(remedy),
            "{name}: {told}"
        );
        assert!(told.ends_with("1 error\n"), "{name}: nothing else: {told}");
    }
}

#[test]
fn the_example_with_tokens_limits_and_issuers_is_good_and_can_be_explained() {
    let folder = tempfile::tempdir().unwrap();
    let text = fs::read_to_string("config/examples/sso.toml").unwrap();
    for key in ["[[issuer]]", "jwks_url", "tokens = ", "[rate]", "[lockout]"] {
        assert!(text.contains(key), "it shows {key}");
    }
    let place = folder.path().to_str().unwrap();
    fs::create_dir_all(folder.path().join("srv/vms")).unwrap();
    fs::create_dir_all(folder.path().join("srv/backups")).unwrap();
    let text = text.replace("/srv/", &format!("{place}/srv/"));
    let text = text.replace("/var/lib/snapgate/", &format!("{place}/"));
    // The password of the example is published, and other users must not read a file with hashes.
    let lines = text.lines().map(|line| {
        if line.starts_with("password_hash = ") {
            format!("password_hash = \"{SECRET_HASH}\"\n")
        } else {
            format!("{line}\n")
        }
    });
    let file = folder.path().join("snapgate.toml");
    fs::write(&file, lines.collect::<String>()).unwrap();
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(&file, private).unwrap();
    let set = Keys::new().set(&["a"]);
    fs::write(folder.path().join("ci.jwks.json"), set).unwrap();
    let (status, told) = check(&file);
    assert_eq!(status, 0, "{told}");
    assert!(!told.contains("warning"), "nothing is odd: {told}");
    let corp = "issuer    corp: keys from https://sso.example.com/realms/corp/protocol/";
    for line in [corp, "issuer    ci: keys from a file, 1\n"] {
        assert!(told.contains(line), "{line}: {told}");
    }
    let rows: [(&[&str], i32, &str); 4] = [
        (
            &["--as", "corp:4711", "--groups", "ops", "GET", "/vms/web01"],
            0,
            "read: grant[0]",
        ),
        (
            &["--as", "corp:4711", "--groups", "x", "GET", "/vms/web01"],
            1,
            "no grant gives it to corp:4711",
        ),
        (
            &[
                "--as",
                "ci:repo:org/app",
                "--groups",
                "x",
                "POST",
                "/vms/ci-1/backups",
            ],
            0,
            "create: grant[1]",
        ),
        (
            &[
                "--as",
                "ci:repo:org/app",
                "--groups",
                "x",
                "DELETE",
                "/vms/ci-1/backups/4",
            ],
            1,
            "denied: 403",
        ),
    ];
    for (arguments, expected, words) in rows {
        let ended = program()
            .args(["explain", "--config", file.to_str().unwrap()])
            .args(arguments)
            .output()
            .unwrap();
        let told = String::from_utf8([ended.stdout, ended.stderr].concat()).unwrap();
        assert_eq!(ended.status.code(), Some(expected), "{arguments:?}: {told}");
        assert!(told.contains(words), "{arguments:?}: {told}");
    }
}

#[test]
fn routes_without_authentication_are_warned_of_where_others_can_reach_them() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("c.toml");
    let sim = SIM.replace("SECRET_HASH", SECRET_HASH);
    let route = "[[passthrough]]\nname = \"manager\"\npath = \"/m\"\nupstreams = [\"http://127.0.0.1:1\"]\n";
    let warning = "warning: passthrough[0].authentication: route ";
    for (listen, keys, expected) in [
        ("0.0.0.0", "authentication = \"none\"\n", true),
        ("127.0.0.1", "authentication = \"none\"\n", false),
        ("0.0.0.0", "allow = [\"user:alice\"]\n", false),
    ] {
        let server = format!(
            "[server]\nlisten = \"{listen}:8080\"\npublic_url = \"https://a.example\"\n[insecure]\nplaintext = true\n"
        );
        fs::write(&file, format!("{server}{sim}{route}{keys}")).unwrap();
        let (status, told) = check(&file);
        assert_eq!(status, 0, "{listen} {keys}: {told}");
        assert_eq!(told.contains(warning), expected, "{listen} {keys}: {told}");
    }
}
