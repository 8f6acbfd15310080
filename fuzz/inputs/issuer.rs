//! The issuer of JSON Web Tokens in the settings: its key, its tokens, and who holds one.
//!
//! What a token proves is judged here a second time, without the gateway's own code: from the RFCs, in one direction. A token that
//! the gateway accepts must be right; one that it refuses may be.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::ED25519;
use ring::signature::Ed25519KeyPair;
use ring::signature::KeyPair;
use ring::signature::UnparsedPublicKey;
use serde_json::Value;

/// What time it is, in milliseconds since 1970.
pub(crate) const NOW: u32 = 5_000;

/// How far the issuer's clock may be from ours, in seconds: the default.
const LEEWAY: f64 = 60.0;

/// The issuer's key.
fn key() -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap()
}

/// The `x` of its public half.
pub(crate) fn public() -> String {
    URL_SAFE_NO_PAD.encode(key().public_key().as_ref())
}

/// The issuer's set of keys: one.
pub(crate) fn key_set() -> String {
    let key = serde_json::json!({ "kty": "OKP", "crv": "Ed25519", "kid": "k", "x": public() });
    serde_json::json!({ "keys": [key] }).to_string()
}

/// A token with these two parts, whatever they are, signed by the issuer.
pub(crate) fn signed(header: &[u8], claims: &[u8]) -> String {
    let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let signed = format!("{}.{}", part(header), part(claims));
    let signature = part(key().sign(signed.as_bytes()).as_ref());
    format!("{signed}.{signature}")
}

/// The principal of a token that may be accepted.
pub(crate) fn holder(text: &str) -> Option<String> {
    let parts: Vec<&str> = text.split('.').collect();
    let [header, claims, signature] = parts.as_slice() else {
        return None;
    };
    let part = |text: &str| URL_SAFE_NO_PAD.decode(text).ok();
    let object = |text: &str| serde_json::from_slice::<Value>(&part(text)?).ok();
    let signed = format!("{header}.{claims}");
    let public = key();
    UnparsedPublicKey::new(&ED25519, public.public_key().as_ref())
        .verify(signed.as_bytes(), &part(signature)?)
        .ok()?;
    let (header, claims) = (object(header)?, object(claims)?);
    let is_absent = |value: &Value| value.is_null();
    let kid = &header["kid"];
    let is_understood = is_absent(&header["crit"]) && is_absent(&header["b64"]);
    if header["alg"] != "EdDSA" || !is_understood || !(is_absent(kid) || *kid == "k") {
        return None;
    }
    let audience = &claims["aud"];
    let is_ours = |value: &Value| *value == "snapgate";
    let is_for_us = is_ours(audience)
        || audience
            .as_array()
            .is_some_and(|audience| audience.iter().any(is_ours));
    let now = f64::from(NOW) / 1000.0;
    let ends = claims["exp"].as_f64()?;
    let has_begun = |value: &Value| {
        value.is_null() || value.as_f64().is_some_and(|value| value <= now + LEEWAY)
    };
    // A thousandth: the gateway counts in milliseconds.
    if claims["iss"] != "https://sso.example.com" || !is_for_us || ends + LEEWAY + 0.001 < now {
        return None;
    }
    if !has_begun(&claims["nbf"]) || !has_begun(&claims["iat"]) {
        return None;
    }
    Some(format!("sso:{}", claims["sub"].as_str()?))
}
