//! JSON Web Tokens and the key sets they are verified with.

use std::sync::Once;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::Method;
use http::header;
use serde_json::Value;
use snapgate::gate::KeySet;

use super::invariants::checked;
use super::issuer::holder;
use super::issuer::key_set;
use super::issuer::public;
use super::issuer::signed;
use super::request::Request;
use super::world;

const BACKUP: &str = "/vms/33333/backups/456";
/// With `{` at the beginning the first line as the header and the rest as the claims of a token that the issuer signed;
/// anything else as the token itself.
pub(crate) fn jwt(data: &[u8]) {
    right_tokens_are_taken();
    let token = if data.starts_with(b"{") {
        let at = data.iter().position(|byte| *byte == b'\n');
        let (header, claims) = data.split_at(at.unwrap_or(data.len()));
        signed(header, claims.strip_prefix(b"\n").unwrap_or_default())
    } else {
        let Ok(text) = str::from_utf8(data) else {
            return;
        };
        text.to_owned()
    };
    let mut request = Request::of_ann(Method::GET, BACKUP);
    request.headers.remove(header::AUTHORIZATION);
    let Some(request) = request.with("authorization", format!("Bearer {token}").as_bytes()) else {
        return;
    };
    let outcome = checked(&request);
    let headers = outcome.exchange.response.headers();
    if outcome.exchange.refusal == Some("Unauthenticated") {
        let challenges = headers.get_all(header::WWW_AUTHENTICATE).iter().count();
        assert_eq!(challenges, 2, "refused with both challenges");
        return;
    }
    let principal = outcome.exchange.principal.as_ref();
    let name = principal
        .expect("a caller who is not refused is known")
        .as_str();
    if name == "ann" {
        return;
    }
    assert_eq!(
        holder(&token).as_deref(),
        Some(name),
        "only right tokens are taken"
    );
    // As if anything in it were another byte.
    for at in [0, token.len() / 2, token.len() - 1] {
        let mut other = token.clone().into_bytes();
        other[at] = if other[at] == b'A' { b'B' } else { b'A' };
        if URL_SAFE_NO_PAD
            .decode(other.rsplit(|other| *other == b'.').next().unwrap())
            .is_err()
        {
            continue;
        }
        let mut request = Request::of_ann(Method::GET, BACKUP);
        request.headers.remove(header::AUTHORIZATION);
        let value = [b"Bearer ".as_slice(), &other].concat();
        let outcome = checked(&request.with("authorization", &value).unwrap());
        assert_eq!(
            outcome.exchange.refusal,
            Some("Unauthenticated"),
            "changed at {at}"
        );
    }
}

/// A token that must be taken with the issuer's keys.
const GOOD: &str =
    r#"{"iss":"https://sso.example.com","aud":"snapgate","sub":"1","exp":60,"groups":["readers"]}"#;

/// A request of its holder, whose token has this header.
fn good(header: &str) -> Request {
    let token = signed(header.as_bytes(), GOOD.as_bytes());
    let mut request = Request::of_ann(Method::GET, BACKUP);
    request.headers.remove(header::AUTHORIZATION);
    let value = format!("Bearer {token}");
    request.with("authorization", value.as_bytes()).unwrap()
}

/// That anything is taken at all, so that refusing everything is no way to pass.
fn right_tokens_are_taken() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for header in [r#"{"alg":"EdDSA","kid":"k"}"#, r#"{"alg":"EdDSA"}"#] {
            let set = KeySet::parse(&key_set()).unwrap();
            let outcome = world::answer_by_keys(&good(header), set);
            assert_eq!(outcome.exchange.refusal, None, "a good token: {header}");
        }
    });
}

/// The bytes as the set of keys of the issuer, and a good token.
pub(crate) fn jwks(data: &[u8]) {
    right_tokens_are_taken();
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    let (once, twice) = (KeySet::parse(text), KeySet::parse(text));
    assert_eq!(once, twice, "the same text, the same set");
    let Ok(set) = once else {
        return;
    };
    assert!((1..=100).contains(&set.len()), "some keys: {set:?}");
    let document: Value = serde_json::from_str(text).unwrap();
    let holds = document["keys"]
        .as_array()
        .unwrap()
        .iter()
        .any(|key| key["x"] == public().as_str());
    for header in [r#"{"alg":"EdDSA","kid":"k"}"#, r#"{"alg":"EdDSA"}"#] {
        let outcome = world::answer_by_keys(&good(header), set.clone());
        let is_taken = outcome.exchange.refusal.is_none();
        assert!(holds || !is_taken, "only with the key that signed it");
    }
}
