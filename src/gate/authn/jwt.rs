//! JSON Web Tokens (RFC 7519, RFC 7515) of configured issuers: asymmetric signatures alone, verified with the keys that the
//! configuration names and no others.
//!
//! Nothing in a token chooses how it is verified: the issuer it names must be configured, its algorithm must be one of the
//! issuer's, and a key serves only the algorithms of its own kind. What a header says of keys elsewhere is not looked at.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use ring::digest;
use serde::Deserialize;
use serde_json::Value;

use crate::gate::authn::caller::AuthContext;
use crate::gate::authn::caller::AuthenticatedCaller;
use crate::gate::authn::denial::CredentialsDenied;
use crate::gate::authn::denial::DenialReason;
use crate::gate::authn::issuer::Issuer;
use crate::gate::authn::jwks::Algorithm;
use crate::gate::authn::keyring::KeyRing;
use crate::gate::authz::Rights;
use crate::gate::config::Config;
use crate::gate::grant::Grant;
use crate::model::GroupName;
use crate::model::Principal;
use crate::model::PrincipalName;
use crate::model::Timestamp;
use crate::model::limits;

/// The header of a token. Of members that are not here none can change what is done.
#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default, deserialize_with = "not_null")]
    kid: Option<String>,
    /// Extensions that must be understood: none is.
    #[serde(default, deserialize_with = "not_null")]
    crit: Option<Value>,
    #[serde(default, deserialize_with = "not_null")]
    b64: Option<Value>,
}

/// The claims that every token is judged by.
#[derive(Deserialize)]
struct Claims {
    iss: String,
    aud: OneOrMany,
    exp: f64,
    #[serde(default, deserialize_with = "not_null")]
    nbf: Option<f64>,
    #[serde(default, deserialize_with = "not_null")]
    iat: Option<f64>,
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

/// A member that may be absent but not null: what it would say must not be lost. As a [`Value`] null is a value like others.
fn not_null<'de, D, T>(from: D) -> Result<Option<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    T::deserialize(from).map(Some)
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn as_slice(&self) -> &[String] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(all) => all,
        }
    }
}

/// A caller who was verified: until when that counts, and with which keys of which issuer.
#[derive(Clone, Debug)]
struct VerifiedToken {
    caller: Arc<AuthenticatedCaller>,
    until: Timestamp,
    issuer: usize,
    generation: u64,
}

/// Every issuer. A reload makes a new one, which knows no token yet.
#[derive(Debug)]
pub(super) struct Issuers {
    all: Vec<Issuer>,
    grants: Vec<Grant>,
    /// Verified tokens by their SHA-256.
    verified: Mutex<BTreeMap<[u8; 32], VerifiedToken>>,
}

/// A token taken apart; nothing of it is believed yet.
struct UnverifiedToken<'a> {
    signed: &'a str,
    signature: Vec<u8>,
    header: Header,
    claims: Claims,
}

/// What a token proves.
struct VerifiedClaims {
    principal: Principal,
    until: Timestamp,
    issuer: usize,
    generation: u64,
}

/// Why it proves nothing.
enum TokenRejection<'a> {
    /// It is not valid here, whatever keys there are.
    Invalid(DenialReason),
    /// It names a key that is not in the set.
    UnknownKey(&'a KeyRing),
    /// There are no keys of its issuer.
    NoKeys(&'a KeyRing),
}

impl Issuers {
    pub(super) fn new(config: &Config) -> Self {
        let all = config.credentials.issuers.clone();
        let grants = if all.is_empty() {
            Vec::new()
        } else {
            config.grants.clone()
        };
        Self {
            all,
            grants,
            verified: Mutex::default(),
        }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Who is meant by a token that proves itself. Waits a moment for newer keys when it names one that is not there.
    pub(super) async fn find(
        &self,
        text: &str,
        context: AuthContext<'_>,
    ) -> Result<Arc<AuthenticatedCaller>, CredentialsDenied> {
        if self.is_empty() || text.len() > limits::BEARER_BYTES_MAX {
            return Err(CredentialsDenied::invalid(DenialReason::Malformed));
        }
        let digest = digest::digest(&digest::SHA256, text.as_bytes());
        let Ok(digest) = <[u8; 32]>::try_from(digest.as_ref()) else {
            return Err(CredentialsDenied::invalid(DenialReason::Malformed));
        };
        if let Some(caller) = self.find_verified(&digest, context) {
            context
                .metrics
                .callers
                .record_credential_check("remembered");
            return Ok(caller);
        }
        let token = UnverifiedToken::read(text)
            .ok_or(CredentialsDenied::invalid(DenialReason::Malformed))?;
        let mut found = self.verify(&token, context);
        if let Err(TokenRejection::UnknownKey(keys) | TokenRejection::NoKeys(keys)) = &found
            && keys.wait_for_newer_keys(context.clock.instant()).await
        {
            found = self.verify(&token, context);
        }
        match found {
            Ok(claims) => Ok(self.remember_verified(digest, claims, context)),
            Err(TokenRejection::Invalid(reason)) => {
                Err(self.with_token_subject(&token, CredentialsDenied::invalid(reason)))
            }
            Err(TokenRejection::UnknownKey(_)) => Err(self
                .with_token_subject(&token, CredentialsDenied::invalid(DenialReason::UnknownKey))),
            Err(TokenRejection::NoKeys(_)) => {
                Err(self.with_token_subject(&token, CredentialsDenied::keys_unavailable()))
            }
        }
    }

    /// The same with the name that the token claims, which nothing proves.
    fn with_token_subject(
        &self,
        token: &UnverifiedToken<'_>,
        denied: CredentialsDenied,
    ) -> CredentialsDenied {
        let claims = &token.claims;
        let issuer = self.all.iter().find(|issuer| issuer.issuer == claims.iss);
        let claim = issuer.map_or("sub", |issuer| &issuer.subject_claim);
        let subject = claims.others.get(claim).and_then(Value::as_str);
        let subject = subject.unwrap_or_default();
        match issuer {
            Some(issuer) => denied.with_claimed_name(&format!("{}:{subject}", issuer.name)),
            None => denied.with_claimed_name(subject),
        }
    }

    /// Who was verified before by the same token, if it and the keys it was verified with still count.
    fn find_verified(
        &self,
        digest: &[u8; 32],
        context: AuthContext<'_>,
    ) -> Option<Arc<AuthenticatedCaller>> {
        let verified = self.lock().get(digest).cloned()?;
        let held = self.all.get(verified.issuer)?;
        let held = held.keys.current_keys(context.clock.instant())?;
        let counts = context.clock.now() < verified.until && held.generation == verified.generation;
        counts.then_some(verified.caller)
    }

    fn remember_verified(
        &self,
        digest: [u8; 32],
        claims: VerifiedClaims,
        context: AuthContext<'_>,
    ) -> Arc<AuthenticatedCaller> {
        let rights = Rights::for_principal(&claims.principal, &self.grants);
        let caller = Arc::new(AuthenticatedCaller::new(claims.principal, rights));
        let now = context.clock.now();
        let mut verified = self.lock();
        if verified.len() >= limits::CREDENTIALS_CACHED_MAX {
            verified.retain(|_, token| now < token.until);
        }
        if verified.len() >= limits::CREDENTIALS_CACHED_MAX {
            // The keys are hashes, so the first one is a random one.
            verified.pop_first();
        }
        let entry = VerifiedToken {
            caller: Arc::clone(&caller),
            until: claims.until,
            issuer: claims.issuer,
            generation: claims.generation,
        };
        verified.insert(digest, entry);
        context.metrics.callers.record_credential_check("verified");
        caller
    }

    fn lock(&self) -> parking_lot::MutexGuard<'_, BTreeMap<[u8; 32], VerifiedToken>> {
        self.verified.lock()
    }

    /// Who, and until when. Keys come last: only a token that would be taken with the right one asks for newer ones.
    fn verify(
        &self,
        token: &UnverifiedToken<'_>,
        context: AuthContext<'_>,
    ) -> Result<VerifiedClaims, TokenRejection<'_>> {
        let wrong = |reason| move || TokenRejection::Invalid(reason);
        let UnverifiedToken { header, claims, .. } = token;
        let mut all = self.all.iter().enumerate();
        let (index, issuer) = all
            .find(|entry| entry.1.issuer == claims.iss)
            .ok_or_else(wrong(DenialReason::UnknownIssuer))?;
        let algorithm = Algorithm::from_name(&header.alg)
            .filter(|algorithm| issuer.algorithms.contains(algorithm))
            .ok_or_else(wrong(DenialReason::WrongAlgorithm))?;
        let now = context.clock.now();
        let until = claims
            .valid_until(issuer, now)
            .ok_or_else(|| TokenRejection::Invalid(claims.rejection_reason(issuer, now)))?;
        let principal = claims
            .principal(issuer)
            .ok_or_else(wrong(DenialReason::UnusableSubject))?;
        let ring = &*issuer.keys;
        let held = ring.current_keys(context.clock.instant());
        let held = held.ok_or(TokenRejection::NoKeys(ring))?;
        let Some(key) = held.keys.find_key(header.kid.as_deref(), algorithm) else {
            // Without an id every forged token would be one whose key may have come since.
            return Err(match header.kid {
                Some(_) => TokenRejection::UnknownKey(ring),
                None => TokenRejection::Invalid(DenialReason::UnknownKey),
            });
        };
        if !key.verifies(algorithm, token.signed.as_bytes(), &token.signature) {
            return Err(TokenRejection::Invalid(DenialReason::BadSignature));
        }
        Ok(VerifiedClaims {
            principal,
            until,
            issuer: index,
            generation: held.generation,
        })
    }
}

impl<'a> UnverifiedToken<'a> {
    /// `None` for whatever has not the form of a token that can be judged.
    fn read(text: &'a str) -> Option<Self> {
        let (signed, signature) = text.rsplit_once('.')?;
        let (header, payload) = signed.split_once('.')?;
        let header: Header = serde_json::from_str(&decode_json_text(header)?).ok()?;
        if header.crit.is_some() || header.b64.is_some() {
            return None;
        }
        Some(Self {
            signed,
            signature: decode_base64url(signature)?,
            header,
            claims: serde_json::from_str(&decode_json_text(payload)?).ok()?,
        })
    }
}

/// One part of a token: base64url without padding.
fn decode_base64url(part: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(part).ok()
}

/// A part that is JSON. The parser would accept bytes that are not UTF-8 in members that are not read, which other readers
/// of the token do not (RFC 7515 section 5.2).
fn decode_json_text(part: &str) -> Option<String> {
    String::from_utf8(decode_base64url(part)?).ok()
}

impl Claims {
    /// Until when the token counts, if it does now and here.
    fn valid_until(&self, issuer: &Issuer, now: Timestamp) -> Option<Timestamp> {
        let audience = self.aud.as_slice();
        if !audience.iter().any(|name| issuer.audience.contains(name)) {
            return None;
        }
        let until = parse_numeric_date(self.exp)?.plus(issuer.leeway);
        let latest = now.plus(issuer.leeway);
        let has_begun = |claim: Option<f64>| match claim.map(parse_numeric_date) {
            Some(Some(begin)) => begin <= latest,
            Some(None) => false,
            None => true,
        };
        (now < until && has_begun(self.nbf) && has_begun(self.iat)).then_some(until)
    }

    /// Why [`Claims::valid_until`] found none: a word for the operator, which decides nothing.
    fn rejection_reason(&self, issuer: &Issuer, now: Timestamp) -> DenialReason {
        let audience = self.aud.as_slice();
        if !audience.iter().any(|name| issuer.audience.contains(name)) {
            return DenialReason::WrongAudience;
        }
        match parse_numeric_date(self.exp).map(|end| end.plus(issuer.leeway)) {
            Some(until) if until <= now => DenialReason::Expired,
            Some(_) => DenialReason::NotYetValid,
            None => DenialReason::Malformed,
        }
    }

    fn principal(&self, issuer: &Issuer) -> Option<Principal> {
        let subject = self.others.get(&issuer.subject_claim)?.as_str()?;
        let name = PrincipalName::new(&format!("{}:{subject}", issuer.name)).ok()?;
        let claimed: Vec<&str> = match self.others.get(&issuer.groups_claim) {
            Some(Value::String(one)) => vec![one],
            Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).collect(),
            Some(Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_)) | None => {
                Vec::new()
            }
        };
        let groups = claimed.iter().filter_map(|name| issuer.groups.get(*name));
        let groups: std::collections::BTreeSet<GroupName> = groups.cloned().collect();
        let groups = groups.into_iter().collect();
        Some(Principal { name, groups })
    }
}

/// A NumericDate: seconds since 1970, perhaps with a fraction. `None` when it is none that can be.
fn parse_numeric_date(seconds: f64) -> Option<Timestamp> {
    let since = Duration::try_from_secs_f64(seconds).ok()?;
    Some(Timestamp::default().plus(since))
}
