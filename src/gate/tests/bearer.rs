//! JSON Web Tokens in the whole walk: what is taken, and every way of getting around the signature that is not.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

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

use crate::gate::tests::rig::Rig;
use crate::gate::tests::rig::header;
use crate::gate::tests::rig::status;
use crate::gate::*;
use crate::model::Action;
use crate::model::GroupName;
use crate::model::IssuerName;
use crate::model::Pattern;
use crate::model::limits;
use crate::runtime::Clock;
use crate::runtime::Tasks;

/// An RSA key of 2048 bits that nothing but tests knows, as PKCS #8 in base64.
const RSA: &str = include_str!("../../../tests/keys/rsa.pkcs8.base64");

fn url(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The private halves.
pub(super) struct Keys {
    rsa: RsaKeyPair,
    p256: EcdsaKeyPair,
    p384: EcdsaKeyPair,
    ed: Ed25519KeyPair,
    random: SystemRandom,
}

impl Keys {
    pub(super) fn new() -> Self {
        let random = SystemRandom::new();
        let ec = |how: &'static signature::EcdsaSigningAlgorithm| {
            let pkcs8 = EcdsaKeyPair::generate_pkcs8(how, &random).unwrap();
            EcdsaKeyPair::from_pkcs8(how, pkcs8.as_ref(), &random).unwrap()
        };
        let ed = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
        Self {
            rsa: RsaKeyPair::from_pkcs8(&STANDARD.decode(RSA.trim_end()).unwrap()).unwrap(),
            p256: ec(&signature::ECDSA_P256_SHA256_FIXED_SIGNING),
            p384: ec(&signature::ECDSA_P384_SHA384_FIXED_SIGNING),
            ed: Ed25519KeyPair::from_pkcs8(ed.as_ref()).unwrap(),
            random,
        }
    }

    fn set(&self) -> Value {
        let rsa = self.rsa.public_key();
        let rsa = signature::RsaPublicKeyComponents::<Vec<u8>>::from(rsa);
        let point = |key: &EcdsaKeyPair, crv: &str, kid: &str| {
            let bytes = key.public_key().as_ref()[1..].to_vec();
            let (x, y) = bytes.split_at(bytes.len() / 2);
            json!({ "kty": "EC", "crv": crv, "kid": kid, "x": url(x), "y": url(y), "use": "sig" })
        };
        json!({ "keys": [
            { "kty": "RSA", "kid": "rsa", "n": url(&rsa.n), "e": url(&rsa.e) },
            point(&self.p256, "P-256", "p256"),
            point(&self.p384, "P-384", "p384"),
            { "kty": "OKP", "crv": "Ed25519", "kid": "ed", "x": url(self.ed.public_key().as_ref()) },
            { "kty": "oct", "kid": "secret", "k": url(b"shared"), "alg": "HS256" },
            { "kty": "EC", "crv": "secp256k1", "kid": "other" },
        ]})
    }

    /// Signs with the key that the header names, whatever algorithm the header claims.
    pub(super) fn sign(&self, key: &str, header: &Value, claims: &Value) -> String {
        let part = |value: &Value| url(value.to_string().as_bytes());
        let signed = format!("{}.{}", part(header), part(claims));
        let bytes = signed.as_bytes();
        let rsa = |how: &'static dyn signature::RsaEncoding| {
            let mut made = vec![0; self.rsa.public().modulus_len()];
            self.rsa.sign(how, &self.random, bytes, &mut made).unwrap();
            made
        };
        let made = match key {
            "RS256" => rsa(&signature::RSA_PKCS1_SHA256),
            "PS256" => rsa(&signature::RSA_PSS_SHA256),
            "ES256" => self
                .p256
                .sign(&self.random, bytes)
                .unwrap()
                .as_ref()
                .to_vec(),
            "ES384" => self
                .p384
                .sign(&self.random, bytes)
                .unwrap()
                .as_ref()
                .to_vec(),
            "EdDSA" => self.ed.sign(bytes).as_ref().to_vec(),
            // What an attacker can do with the public key of the set alone.
            "HS256" => {
                let public = self.rsa.public_key().as_ref();
                let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, public);
                ring::hmac::sign(&key, bytes).as_ref().to_vec()
            }
            _ => Vec::new(),
        };
        format!("{signed}.{}", url(&made))
    }
}

/// The clock of the rig stands at 5 s after 1970.
pub(super) fn claims() -> Value {
    json!({ "iss": "https://sso.example.com", "aud": "snapgate", "sub": "4711", "exp": 605, "nbf": 5, "iat": 5,
        "groups": ["restorers", "unheard-of"] })
}

fn set(all: &Value) -> KeySet {
    KeySet::parse(&all.to_string()).unwrap()
}

pub(super) fn rig(keys: &Keys) -> Rig {
    rig_of(KeyRing::fixed(set(&keys.set())))
}

pub(super) fn rig_of(ring: Arc<KeyRing>) -> Rig {
    let mut rig = Rig::new();
    let ops = GroupName::new("ops").unwrap();
    rig.reload(|rig| {
        rig.credentials.issuers = vec![Issuer {
            name: IssuerName::new("corp").unwrap(),
            issuer: "https://sso.example.com".to_owned(),
            audience: vec!["snapgate".to_owned()],
            keys: ring,
            algorithms: Algorithm::ALL.to_vec(),
            subject_claim: "sub".to_owned(),
            groups_claim: "groups".to_owned(),
            groups: BTreeMap::from([("restorers".to_owned(), ops.clone())]),
            leeway: Duration::from_secs(60),
        }];
        rig.grants.push(Grant {
            to: vec![Grantee::Group(ops)],
            actions: [Action::Read].into_iter().collect(),
            vms: vec![Pattern::new("33333").unwrap()],
            backups: vec![Pattern::new("*").unwrap()],
            line: 0,
        });
    });
    rig
}

async fn sent(rig: &Rig, token: &str) -> u16 {
    let request = format!("GET /vms/33333/backups/456\nv\nAuthorization: Bearer {token}");
    status(&rig.send(&request).await)
}

#[tokio::test]
async fn every_algorithm_is_taken_with_its_own_key() {
    let keys = Keys::new();
    let mut rig = rig(&keys);
    for (algorithm, kid) in [
        ("RS256", "rsa"),
        ("PS256", "rsa"),
        ("ES256", "p256"),
        ("ES384", "p384"),
        ("EdDSA", "ed"),
    ] {
        let header = json!({ "alg": algorithm, "kid": kid, "typ": "JWT" });
        let token = keys.sign(algorithm, &header, &claims());
        assert_eq!(sent(&rig, &token).await, 200, "{algorithm}");
        let mut broken = token.clone().into_bytes();
        let at = broken.len() - 20;
        broken[at] = if broken[at] == b'A' { b'B' } else { b'A' };
        let broken = String::from_utf8(broken).unwrap();
        assert_eq!(
            sent(&rig, &broken).await,
            401,
            "{algorithm}: another signature"
        );
    }
    let header = json!({ "alg": "EdDSA" });
    let token = keys.sign("EdDSA", &header, &claims());
    assert_eq!(
        sent(&rig, &token).await,
        200,
        "the only key of its kind needs no id"
    );
    let delete = format!("DELETE /vms/33333/backups/456\nv\nAuthorization: Bearer {token}");
    let found = rig.send(&delete).await;
    assert_eq!(status(&found), 403, "no more than the group may");
    let audit = found.audit.unwrap();
    assert_eq!(
        audit.principal.unwrap().as_str(),
        "corp:4711",
        "never a user's name"
    );
    rig.clock.advance(Duration::from_secs(659));
    assert_eq!(sent(&rig, &token).await, 200, "the last second, remembered");
    rig.clock.advance(Duration::from_secs(1));
    assert_eq!(sent(&rig, &token).await, 401, "over");
    rig.reload(|rig| rig.credentials.issuers[0].algorithms = vec![Algorithm::Rs256]);
    let fresh = json!({ "exp": 2000, "iss": "https://sso.example.com", "aud": ["x", "snapgate"], "sub": "a", "groups": "restorers" });
    let token = keys.sign("ES256", &json!({ "alg": "ES256", "kid": "p256" }), &fresh);
    assert_eq!(sent(&rig, &token).await, 401, "pinned to another algorithm");
    let token = keys.sign("RS256", &json!({ "alg": "RS256", "kid": "rsa" }), &fresh);
    assert_eq!(
        sent(&rig, &token).await,
        200,
        "the pinned one; lists and single groups"
    );
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "it is a table")]
async fn invalid_tokens_are_refused_with_401() {
    let keys = Keys::new();
    let rig = rig(&keys);
    let with = |name: &str, value: Value| {
        let mut changed = claims();
        changed[name] = value;
        changed
    };
    let without = |name: &str| {
        let mut changed = claims();
        changed.as_object_mut().unwrap().remove(name);
        changed
    };
    let good = json!({ "alg": "RS256", "kid": "rsa" });
    let header = |alg: &str, kid: &str| json!({ "alg": alg, "kid": kid });
    let rows = [
        ("expired", "RS256", good.clone(), with("exp", json!(-100))),
        (
            "expired a while ago",
            "RS256",
            good.clone(),
            with("exp", json!(-55)),
        ),
        ("no end", "RS256", good.clone(), without("exp")),
        (
            "an end in words",
            "RS256",
            good.clone(),
            with("exp", json!("9999")),
        ),
        ("not yet", "RS256", good.clone(), with("nbf", json!(66))),
        ("nbf null", "RS256", good.clone(), with("nbf", json!(null))),
        ("iat null", "RS256", good.clone(), with("iat", json!(null))),
        ("exp null", "RS256", good.clone(), with("exp", json!(null))),
        ("aud null", "RS256", good.clone(), with("aud", json!(null))),
        ("made later", "RS256", good.clone(), with("iat", json!(66))),
        (
            "another issuer",
            "RS256",
            good.clone(),
            with("iss", json!("https://sso.example.com/")),
        ),
        ("no issuer", "RS256", good.clone(), without("iss")),
        (
            "another audience",
            "RS256",
            good.clone(),
            with("aud", json!(["snapgate2"])),
        ),
        ("no audience", "RS256", good.clone(), without("aud")),
        ("no subject", "RS256", good.clone(), without("sub")),
        (
            "an empty subject",
            "RS256",
            good.clone(),
            with("sub", json!("")),
        ),
        (
            "a subject with a space",
            "RS256",
            good.clone(),
            with("sub", json!("a b")),
        ),
        (
            "a subject that is a number",
            "RS256",
            good.clone(),
            with("sub", json!(7)),
        ),
        (
            "a long subject",
            "RS256",
            good.clone(),
            with("sub", json!("x".repeat(129))),
        ),
        ("no algorithm", "", header("none", "rsa"), claims()),
        ("NONE", "", header("NONE", "rsa"), claims()),
        (
            "the public key as a secret",
            "HS256",
            header("HS256", "rsa"),
            claims(),
        ),
        (
            "the secret key of the set",
            "HS256",
            header("HS256", "secret"),
            claims(),
        ),
        (
            "one algorithm, another's signature",
            "PS256",
            good.clone(),
            claims(),
        ),
        (
            "one key, another's algorithm",
            "RS256",
            header("RS256", "p256"),
            claims(),
        ),
        (
            "a curve for another",
            "ES256",
            header("ES384", "p384"),
            claims(),
        ),
        ("lower case", "RS256", header("rs256", "rsa"), claims()),
        (
            "an unknown key",
            "RS256",
            header("RS256", "rotated"),
            claims(),
        ),
        (
            "an extension",
            "RS256",
            json!({ "alg": "RS256", "kid": "rsa", "crit": ["exp"] }),
            claims(),
        ),
        (
            "crit null",
            "RS256",
            json!({ "alg": "RS256", "kid": "rsa", "crit": null }),
            claims(),
        ),
        (
            "crit empty",
            "RS256",
            json!({ "alg": "RS256", "kid": "rsa", "crit": [] }),
            claims(),
        ),
        (
            "b64 null",
            "RS256",
            json!({ "alg": "RS256", "kid": "rsa", "b64": null }),
            claims(),
        ),
        (
            "kid null",
            "RS256",
            json!({ "alg": "RS256", "kid": null }),
            claims(),
        ),
        (
            "a detached body",
            "RS256",
            json!({ "alg": "RS256", "kid": "rsa", "b64": false }),
            claims(),
        ),
        (
            "a key of its own",
            "RS256",
            json!({ "alg": "RS256", "kid": "mine", "jku": "http://127.0.0.1/" }),
            claims(),
        ),
        (
            "huge",
            "RS256",
            good.clone(),
            with("more", json!("x".repeat(9000))),
        ),
    ];
    for (name, key, header, claims) in &rows {
        let token = keys.sign(key, header, claims);
        assert_eq!(sent(&rig, &token).await, 401, "{name}");
    }
    let token = keys.sign("RS256", &good, &claims());
    let parts: Vec<&str> = token.split('.').collect();
    let other = keys.sign("RS256", &good, &with("sub", json!("1")));
    let other: Vec<&str> = other.split('.').collect();
    for (name, wrong) in [
        (
            "another's claims",
            format!("{}.{}.{}", parts[0], other[1], parts[2]),
        ),
        ("no signature", format!("{}.{}.", parts[0], parts[1])),
        ("two parts", format!("{}.{}", parts[0], parts[1])),
        ("four parts", format!("{token}.{}", parts[2])),
        ("padded", format!("{token}=")),
        ("an empty one", "..".to_owned()),
    ] {
        assert_eq!(sent(&rig, &wrong).await, 401, "{name}");
    }
    assert_eq!(sent(&rig, &token).await, 200, "and the good one is taken");
}

#[test]
fn sets_without_a_usable_key_are_refused() {
    let keys = Keys::new().set();
    for (name, text) in [
        ("no JSON", "{".to_owned()),
        ("no keys", "{}".to_owned()),
        ("none", json!({ "keys": [] }).to_string()),
        ("secrets alone", json!({ "keys": [keys["keys"][4]] }).to_string()),
        ("another curve", json!({ "keys": [keys["keys"][5]] }).to_string()),
        ("short RSA", json!({ "keys": [{ "kty": "RSA", "n": url(&[0xff; 128]), "e": "AQAB" }] }).to_string()),
        ("for encryption", json!({ "keys": [{ "kty": "OKP", "crv": "Ed25519", "x": url(&[1; 32]), "use": "enc" }] }).to_string()),
        ("contradiction", json!({ "keys": [{ "kty": "OKP", "crv": "Ed25519", "x": url(&[1; 32]), "alg": "RS256" }] }).to_string()),
        ("too many", json!({ "keys": vec![keys["keys"][0].clone(); 101] }).to_string()),
    ] {
        assert!(KeySet::parse(&text).is_err(), "{name}");
    }
}

/// The set without the keys of these ids.
fn set_without(keys: &Keys, ids: &[&str]) -> Value {
    let mut all = keys.set();
    let list = all["keys"].as_array_mut().unwrap();
    list.retain(|key| !ids.contains(&key["kid"].as_str().unwrap_or_default()));
    all
}

#[tokio::test]
async fn without_keys_a_token_is_not_judged_and_everybody_else_is() {
    let keys = Keys::new();
    let ring = KeyRing::awaiting_fetch();
    let rig = rig_of(Arc::clone(&ring));
    let token = keys.sign("EdDSA", &json!({ "alg": "EdDSA", "kid": "ed" }), &claims());
    // The issuer was asked just now and returned nothing new.
    ring.fetch_started();
    ring.fetch_ended();
    tokio::time::pause();
    let request = format!("GET /vms/33333/backups/456\nv\nAuthorization: Bearer {token}");
    let refused = rig.send(&request).await;
    assert_eq!(refused.refusal, Some("KeysUnavailable"), "no keys");
    assert_eq!(status(&refused), 503, "not the caller's fault");
    assert_eq!(header(&refused, "retry-after"), "5", "it may pass");
    assert_eq!(
        header(&refused, "www-authenticate"),
        "",
        "other credentials are not asked for"
    );
    let ann = rig.send("GET /vms/33333/backups/456\nv\nas: ann").await;
    assert_eq!(status(&ann), 200, "who has a password is served");
    let mut other = claims();
    other["iss"] = json!("https://elsewhere.example.com");
    let strange = keys.sign("EdDSA", &json!({ "alg": "EdDSA", "kid": "ed" }), &other);
    assert_eq!(sent(&rig, &strange).await, 401, "whose issuer is not known");
    other = claims();
    other["exp"] = json!(-100);
    let old = keys.sign("EdDSA", &json!({ "alg": "EdDSA", "kid": "ed" }), &other);
    assert_eq!(sent(&rig, &old).await, 401, "no keys would make it valid");

    let hour = Duration::from_secs(300);
    ring.replace(set(&keys.set()), rig.clock.instant() + hour);
    assert_eq!(sent(&rig, &token).await, 200, "with keys");
    assert_eq!(sent(&rig, &token).await, 200, "remembered");
    rig.clock.advance(hour);
    assert_eq!(
        sent(&rig, &token).await,
        503,
        "the keys are too old, also for who is remembered"
    );
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_new_is_fetched_once_and_one_that_is_gone_counts_no_more() {
    let keys = Keys::new();
    let ring = KeyRing::awaiting_fetch();
    let rig = rig_of(Arc::clone(&ring));
    let until = rig.clock.instant() + Duration::from_secs(3600);
    ring.replace(set(&set_without(&keys, &["ed"])), until);
    let old = keys.sign(
        "ES256",
        &json!({ "alg": "ES256", "kid": "p256" }),
        &claims(),
    );
    let new = keys.sign("EdDSA", &json!({ "alg": "EdDSA", "kid": "ed" }), &claims());
    assert_eq!(sent(&rig, &old).await, 200, "a key that is there");
    // The fetcher: the issuer has rotated its key.
    let (asked, tasks) = (
        Arc::new(std::sync::atomic::AtomicUsize::new(0)),
        Tasks::default(),
    );
    let keeper = {
        let (ring, asked) = (Arc::clone(&ring), Arc::clone(&asked));
        let next = set(&set_without(&keys, &["p256"]));
        tasks.spawn(async move {
            loop {
                ring.refresh_requested().await;
                asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(50)).await;
                ring.replace(next.clone(), until);
                ring.fetch_ended();
            }
        })
    };
    let count = || asked.load(std::sync::atomic::Ordering::Relaxed);
    let mut expired = claims();
    expired["exp"] = json!(-100);
    let useless = [
        keys.sign("EdDSA", &json!({ "alg": "EdDSA", "kid": "ed" }), &expired),
        keys.sign("HS256", &json!({ "alg": "HS256", "kid": "ed" }), &claims()),
        keys.sign("EdDSA", &json!({ "alg": "EdDSA" }), &claims()),
    ];
    for token in &useless {
        assert_eq!(sent(&rig, token).await, 401, "useless with any key");
    }
    assert_eq!(count(), 0, "nothing is fetched for those");
    let (one, two) = tokio::join!(sent(&rig, &new), sent(&rig, &new));
    assert_eq!((one, two), (200, 200), "both waited for the new key");
    assert_eq!(count(), 1, "which was fetched once");
    assert_eq!(
        sent(&rig, &old).await,
        401,
        "the old one is gone, also for who was remembered"
    );
    let begun = tokio::time::Instant::now();
    for number in 0..100 {
        let kid = format!("forged-{number}");
        let forged = keys.sign("EdDSA", &json!({ "alg": "EdDSA", "kid": kid }), &claims());
        assert_eq!(sent(&rig, &forged).await, 401, "a key that is nowhere");
    }
    assert_eq!(count(), 1, "invented ids fetch nothing more for a while");
    assert_eq!(begun.elapsed(), Duration::ZERO, "and wait for nothing");
    assert_eq!(sent(&rig, &new).await, 200, "meanwhile others are served");
    rig.clock.advance(limits::ISSUER_ASK_PAUSE);
    assert_eq!(sent(&rig, &old).await, 401, "still gone");
    assert_eq!(count(), 2, "asked once more after the pause");
    keeper.abort();
}
