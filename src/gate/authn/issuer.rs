//! A configured issuer of JSON Web Tokens.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::gate::authn::jwks::Algorithm;
use crate::gate::authn::keyring::KeyRing;
use crate::model::GroupName;
use crate::model::IssuerName;

/// Whose tokens are taken, and what they must say.
#[derive(Clone, Debug)]
pub struct Issuer {
    /// What the names of its callers begin with, before a colon: no user has such a name.
    pub name: IssuerName,
    /// The `iss` of its tokens, exactly.
    pub issuer: String,
    /// One of these must be in `aud`.
    pub audience: Vec<String>,
    /// Its keys, as they are now.
    pub keys: Arc<KeyRing>,
    /// The algorithms that are taken.
    pub algorithms: Vec<Algorithm>,
    /// The claim that names the caller.
    pub subject_claim: String,
    /// The claim with the caller's groups.
    pub groups_claim: String,
    /// What its groups are called here; others mean nothing.
    pub groups: BTreeMap<String, GroupName>,
    /// How far its clock may be from ours.
    pub leeway: Duration,
}
