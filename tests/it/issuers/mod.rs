//! JSON Web Tokens on the whole program: what is taken and what is not, keys that change, and issuers that fail.

pub(crate) mod check;
pub(crate) mod key_urls;

use std::fs;
use std::net::SocketAddr;
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
use crate::harness::Process;
use crate::harness::SECRET_HASH;
use crate::harness::SIM;
use crate::harness::eventually;
use crate::harness::metric;

/// An RSA key of 2048 bits that nothing but tests knows, as PKCS #8 in base64.
const RSA: &str = include_str!("../../keys/rsa.pkcs8.base64");

const ISSUER: &str = "https://sso.example.com";

/// Where the issuer's keys are comes after it.
pub(crate) const CORP: &str = r#"
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

pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    i64::try_from(since.unwrap().as_secs()).unwrap()
}

pub(crate) fn claims() -> Value {
    json!({ "iss": ISSUER, "aud": "snapgate", "sub": "4711", "exp": now() + 3600, "groups": ["vm-operators", "x"] })
}

/// Ed25519 keys by their ids, and one of each other kind.
pub(crate) struct Keys {
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
        all.retain(|key| ids.contains(&key["kid"].as_str().unwrap()));
        assert_eq!(all.len(), ids.len(), "every one is known");
        json!({ "keys": all }).to_string()
    }

    /// Signs as `how` says, whatever the header claims.
    fn sign(&self, how: &str, header: &Value, claims: &Value) -> String {
        let part = |part: &Value| url(part.to_string().as_bytes());
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
            // Possible for anyone with the public key.
            "hmac" => {
                let public = self.rsa.public_key().as_ref();
                let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, public);
                ring::hmac::sign(&key, bytes).as_ref().to_vec()
            }
            "" => Vec::new(),
            name => {
                let key = self.ed.iter().find(|key| key.0 == name).unwrap();
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

pub(crate) fn get(api: SocketAddr, token: &str) -> Reply {
    send(api, token, "GET", "/vms/1/backups/456")
}

fn send(api: SocketAddr, token: &str, method: &str, path: &str) -> Reply {
    Client::bare(api)
        .with("Authorization", &format!("Bearer {token}"))
        .with("X-Cloud-Client-Specification-Version", "0.1")
        .send(method, path, (method == "POST").then_some(b""))
}

pub(crate) fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[name] = value;
    claims
}

#[apply(test)]
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
                let mut claims = with("sub", json!("direct"));
                claims["groups"] = json!([]);
                claims
            },
            200,
        ),
        (
            "the name of a user",
            {
                let mut claims = with("sub", json!("alice"));
                claims["groups"] = json!([]);
                claims
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

#[apply(test)]
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

#[apply(test)]
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
    eventually("the problem is logged", || {
        metric(process.admin, successful) < 0.5
    });
    assert_eq!(
        (status(&old), status(&new)),
        (401, 200),
        "and changes nothing"
    );
}
