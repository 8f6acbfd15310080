//! Sets of public keys (RFC 7517, RFC 7518, RFC 8037): RSA of 2048 to 8192 bits, P-256, P-384 and Ed25519.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature;
use ring::signature::RsaPublicKeyComponents;
use ring::signature::UnparsedPublicKey;
use serde::Deserialize;

use crate::model::limits;

/// A way to sign. None of them uses a secret that the gateway would have to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// RSASSA-PSS with SHA-256.
    Ps256,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// ECDSA on P-384 with SHA-384.
    Es384,
    /// Ed25519.
    EdDsa,
}

impl Algorithm {
    /// Every one.
    pub const ALL: [Self; 5] = [
        Self::Rs256,
        Self::Ps256,
        Self::Es256,
        Self::Es384,
        Self::EdDsa,
    ];

    /// The word in tokens and in the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Ps256 => "PS256",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::EdDsa => "EdDSA",
        }
    }

    /// The one of that name, in exactly these letters.
    #[must_use]
    pub fn from_name(text: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|algorithm| algorithm.as_str() == text)
    }
}

/// One key of a set as it is written. Other members belong to other kinds of keys or are not needed.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    #[serde(default)]
    kid: Option<String>,
    #[serde(default)]
    alg: Option<String>,
    #[serde(default, rename = "use")]
    usage: Option<String>,
    #[serde(default)]
    crv: Option<String>,
    #[serde(default)]
    n: Option<String>,
    #[serde(default)]
    e: Option<String>,
    #[serde(default)]
    x: Option<String>,
    #[serde(default)]
    y: Option<String>,
}

#[derive(Deserialize)]
struct JwkSetDocument {
    keys: Vec<serde_json::Value>,
}

#[derive(Clone, PartialEq, Eq)]
enum PublicKeyMaterial {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    P256(Vec<u8>),
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
}

/// One public key.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct VerificationKey {
    id: Option<String>,
    /// The one algorithm it is for, where its set says so.
    only: Option<Algorithm>,
    material: PublicKeyMaterial,
}

/// The public keys of an issuer: at least one.
#[derive(Clone, PartialEq, Eq)]
pub struct KeySet(Vec<VerificationKey>);

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeySet({} keys)", self.0.len())
    }
}

impl KeySet {
    /// Reads a set. Keys that cannot verify one of the known algorithms are left out.
    ///
    /// # Errors
    /// A sentence that says why no key can be used.
    pub fn parse(text: &str) -> Result<Self, String> {
        let document: JwkSetDocument =
            serde_json::from_str(text).map_err(|error| format!("is no set of keys: {error}"))?;
        if document.keys.len() > limits::ISSUER_KEYS_MAX {
            return Err(format!("has more than {} keys", limits::ISSUER_KEYS_MAX));
        }
        let read = |value: serde_json::Value| parse_key(&serde_json::from_value(value).ok()?);
        let keys: Vec<VerificationKey> = document.keys.into_iter().filter_map(read).collect();
        if keys.is_empty() {
            return Err(
                "has no key that can be used: RSA of 2048 bits or more, P-256, P-384 or Ed25519, for signatures".to_owned(),
            );
        }
        Ok(Self(keys))
    }

    /// How many keys it has, at most [`limits::ISSUER_KEYS_MAX`].
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// The key of that id for the algorithm; without an id the only one for it.
    pub(super) fn find_key(
        &self,
        id: Option<&str>,
        algorithm: Algorithm,
    ) -> Option<&VerificationKey> {
        let fits = |key: &&VerificationKey| {
            key.supports(algorithm) && (id.is_none() || key.id.as_deref() == id)
        };
        let mut found = self.0.iter().filter(fits);
        let first = found.next()?;
        found.next().is_none().then_some(first)
    }
}

impl VerificationKey {
    fn supports(&self, algorithm: Algorithm) -> bool {
        let is_kind = match (&self.material, algorithm) {
            (PublicKeyMaterial::Rsa { .. }, Algorithm::Rs256 | Algorithm::Ps256)
            | (PublicKeyMaterial::P256(_), Algorithm::Es256)
            | (PublicKeyMaterial::P384(_), Algorithm::Es384)
            | (PublicKeyMaterial::Ed25519(_), Algorithm::EdDsa) => true,
            (
                PublicKeyMaterial::Rsa { .. }
                | PublicKeyMaterial::P256(_)
                | PublicKeyMaterial::P384(_)
                | PublicKeyMaterial::Ed25519(_),
                Algorithm::Rs256
                | Algorithm::Ps256
                | Algorithm::Es256
                | Algorithm::Es384
                | Algorithm::EdDsa,
            ) => false,
        };
        is_kind && self.only.is_none_or(|only| only == algorithm)
    }

    /// Whether the signature is that of the message. Takes the algorithm only if the key serves it.
    pub(super) fn verifies(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        if !self.supports(algorithm) {
            return false;
        }
        let verified = match &self.material {
            PublicKeyMaterial::Rsa { n, e } => {
                let how = if algorithm == Algorithm::Ps256 {
                    &signature::RSA_PSS_2048_8192_SHA256
                } else {
                    &signature::RSA_PKCS1_2048_8192_SHA256
                };
                RsaPublicKeyComponents { n, e }.verify(how, message, signature)
            }
            PublicKeyMaterial::P256(point) => {
                UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point)
                    .verify(message, signature)
            }
            PublicKeyMaterial::P384(point) => {
                UnparsedPublicKey::new(&signature::ECDSA_P384_SHA384_FIXED, point)
                    .verify(message, signature)
            }
            PublicKeyMaterial::Ed25519(point) => {
                UnparsedPublicKey::new(&signature::ED25519, point).verify(message, signature)
            }
        };
        verified.is_ok()
    }
}

/// A written key that can be used.
fn parse_key(jwk: &Jwk) -> Option<VerificationKey> {
    if jwk.usage.as_deref().is_some_and(|usage| usage != "sig") {
        return None;
    }
    let bytes = |text: &Option<String>| URL_SAFE_NO_PAD.decode(text.as_deref()?).ok();
    let point = |length: usize| {
        let (x, y) = (bytes(&jwk.x)?, bytes(&jwk.y)?);
        let whole = x.len() == length && y.len() == length;
        whole.then(|| [&[4], x.as_slice(), y.as_slice()].concat())
    };
    let material = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
        ("RSA", _) => {
            let (n, e) = (bytes(&jwk.n)?, bytes(&jwk.e)?);
            if !(256..=1024).contains(&n.len()) {
                return None;
            }
            PublicKeyMaterial::Rsa { n, e }
        }
        ("EC", Some("P-256")) => PublicKeyMaterial::P256(point(32)?),
        ("EC", Some("P-384")) => PublicKeyMaterial::P384(point(48)?),
        ("OKP", Some("Ed25519")) => {
            PublicKeyMaterial::Ed25519(bytes(&jwk.x).filter(|byte| byte.len() == 32)?)
        }
        // Symmetric keys above all: a key that verifies such a signature can also make one.
        _ => return None,
    };
    let key = VerificationKey {
        id: jwk.kid.clone(),
        only: match jwk.alg.as_deref() {
            Some(text) => Some(Algorithm::from_name(text)?),
            None => None,
        },
        material,
    };
    // A key whose set says that it is for an algorithm of another kind is for none.
    Algorithm::ALL
        .into_iter()
        .any(|algorithm| key.supports(algorithm))
        .then_some(key)
}
