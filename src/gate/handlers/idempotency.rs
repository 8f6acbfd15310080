//! `Idempotency-Key`: whether the request was accepted before.

use std::sync::Arc;

use http::HeaderName;

use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::gate::request_context::AuthenticatedRequest;
use crate::gate::services::Services;
use crate::model::Fingerprint;
use crate::model::Idempotency;
use crate::model::IdempotencyKey;
use crate::model::KeyScope;
use crate::model::Operation;
use crate::operations::Replay;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// What the key of a request leads to.
pub(super) enum KeyLookup {
    /// The request is new; its key, if any, is to be kept with the operation.
    New(Option<Idempotency>),
    /// The request was accepted before.
    Replayed(Arc<Operation>),
}

/// Looks the key up, once per request. `scope` is only made when there is a key.
pub(super) async fn look_up_key(
    services: &Services,
    request: &AuthenticatedRequest<'_>,
    scope: impl FnOnce() -> KeyScope,
    body: &[u8],
) -> Result<KeyLookup, Refusal> {
    let Some(key) = read_key(request)? else {
        return Ok(KeyLookup::New(None));
    };
    let fingerprint = fingerprint_of(request, body);
    let name = &request.caller.principal.name;
    let replay = services
        .operations
        .replay(name, &scope(), &key, fingerprint)
        .await?;
    match replay {
        Replay::Unused => Ok(KeyLookup::New(Some(Idempotency { key, fingerprint }))),
        Replay::Same(operation) => Ok(KeyLookup::Replayed(operation)),
        Replay::Other(_) => Err(Refusal::from(Code::IdempotencyKeyReused)),
    }
}

/// The key, bare or as the quoted string of draft-ietf-httpapi-idempotency-key-header.
fn read_key(request: &AuthenticatedRequest<'_>) -> Result<Option<IdempotencyKey>, Refusal> {
    let malformed = || Refusal::from(Code::MalformedIdempotencyKey).on("Idempotency-Key");
    let mut values = request.headers().get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(malformed());
    }
    let text = value.to_str().map_err(|_not_ascii| malformed())?.trim();
    let quoted = text.strip_prefix('"').map(|rest| rest.strip_suffix('"'));
    let bare = quoted.unwrap_or(Some(text)).ok_or_else(malformed)?;
    let key = IdempotencyKey::new(bare).map_err(|_not_a_key| malformed())?;
    Ok(Some(key))
}

/// What makes two requests the same: method, target and body, to the byte. The separators keep `ab` + `c` apart from
/// `a` + `bc`.
fn fingerprint_of(request: &AuthenticatedRequest<'_>, body: &[u8]) -> Fingerprint {
    let head = &request.received.head;
    let mut hash = blake3::Hasher::new();
    hash.update(head.method.as_str().as_bytes()).update(b"\0");
    hash.update(head.target).update(b"\0").update(body);
    Fingerprint(*hash.finalize().as_bytes())
}
