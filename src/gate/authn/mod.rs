//! Who calls: chooses the method by what the request brings, and knows every caller.

mod basic;
mod certificate;
mod jwks;
mod jwt;
mod keyring;
mod token;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use http::HeaderValue;
use http::header::AUTHORIZATION;
use http::header::WWW_AUTHENTICATE;

use crate::gate::authn::certificate::Holders;
use crate::gate::authn::jwt::Issuers;
use crate::gate::authn::token::Tokens;
use crate::gate::authz::Rights;
use crate::gate::config::Config;
use crate::gate::config::LockOut;
use crate::gate::config::PasswordHash;
use crate::gate::limiter::Network;
use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::gate::shared::Shared;
use crate::gate::shared::UserKey;
use crate::model::CertificateName;
use crate::model::Principal;
use crate::model::TokenName;
use crate::runtime::Clock;
use crate::telemetry::Metrics;

pub use jwks::Algorithm;
pub use jwks::KeySet;
pub use jwt::Issuer;
pub use keyring::KeyRing;
pub use token::TokenDigest;
pub use token::new_token;

#[cfg(test)]
pub(super) use basic::tests::VERIFIED;

const BASIC: &str = r#"Basic realm="snapgate", charset="UTF-8""#;
const BEARER: &str = r#"Bearer realm="snapgate""#;

/// One caller with what the caller may do: the proof of authentication when it comes out of [`Callers::identify`].
#[derive(Debug)]
pub(super) struct Account {
    pub(super) principal: Principal,
    pub(super) rights: Rights,
    /// The API token by which the caller is known, if it is one.
    pub(super) token: Option<TokenName>,
}

/// One user with a password.
#[derive(Debug)]
struct User {
    account: Arc<Account>,
    password: PasswordHash,
    /// What passwords are remembered under.
    key: UserKey,
}

/// Everybody who may call.
#[derive(Debug)]
pub(super) struct Callers {
    users: BTreeMap<String, User>,
    tokens: Tokens,
    holders: Holders,
    issuers: Issuers,
    /// Whether Deviation D22 is in use: bearer tokens beside Basic.
    takes_bearer: bool,
    /// The hashes that stand in for those of unknown names.
    decoys: Vec<PasswordHash>,
    /// How long a verified password is remembered.
    remember: Duration,
    lock_out: LockOut,
}

/// What a method of authentication works with besides the request.
#[derive(Clone, Copy)]
pub(super) struct Around<'a> {
    pub(super) shared: &'a Shared,
    pub(super) clock: &'a dyn Clock,
    pub(super) metrics: &'a Metrics,
    /// The client, if it can be told from others: lock-outs go by it.
    pub(super) network: Option<Network>,
}

impl Callers {
    pub(super) fn new(config: &Config, shared: &Shared) -> Self {
        let users: BTreeMap<_, _> = config
            .credentials
            .users
            .iter()
            .map(|(name, user)| {
                let principal = Principal {
                    name: name.clone(),
                    groups: user.groups.clone(),
                };
                let account = Account {
                    rights: Rights::of(&principal, &config.grants),
                    principal,
                    token: None,
                };
                let user = User {
                    account: Arc::new(account),
                    password: user.password.clone(),
                    key: shared.user_key(name.as_str(), user.password.reveal()),
                };
                (name.as_str().to_owned(), user)
            })
            .collect();
        let issuers = Issuers::new(config);
        Self {
            decoys: users.values().map(|it| it.password.clone()).collect(),
            tokens: Tokens::new(config, |name| Some(&users.get(name.as_str())?.account)),
            holders: Holders::new(config),
            users,
            takes_bearer: config.credentials.tokens.is_some() || !issuers.is_empty(),
            issuers,
            remember: config.credentials.remember,
            lock_out: config.lock_out.clone(),
        }
    }

    /// Tells who calls. Whatever is wrong with the credentials, the refusal is the same.
    pub(super) async fn identify(
        &self,
        headers: &HeaderMap,
        certificate: &[CertificateName],
        around: Around<'_>,
    ) -> Result<Arc<Account>, Refusal> {
        let found = match Offered::of(headers) {
            Some(Offered::Basic(credentials)) => self.basic(&credentials, around).await,
            Some(Offered::Bearer(text)) => match self.tokens.find(text, around) {
                Some(found) => Ok(found),
                None => self.issuers.find(text, around).await,
            },
            // Who sends credentials is judged by them alone, whatever certificate comes with them.
            None if headers.contains_key(AUTHORIZATION) => Err(Denied::Wrong),
            None => self.holders.find(certificate, around).ok_or(Denied::Wrong),
        };
        found.map_err(|denied| self.refusal(denied, around.metrics))
    }

    fn refusal(&self, denied: Denied, metrics: &Metrics) -> Refusal {
        match denied {
            Denied::Later(after) => {
                metrics.credential_check("locked_out");
                Refusal::from(Code::TooManyAttempts).retry_after(after)
            }
            Denied::NoKeys => {
                metrics.credential_check("no_keys");
                Refusal::from(Code::KeysUnavailable)
            }
            Denied::Wrong => {
                metrics.credential_check("refused");
                let refusal = Refusal::from(Code::Unauthenticated).with(WWW_AUTHENTICATE, BASIC);
                if self.takes_bearer {
                    refusal.with(WWW_AUTHENTICATE, BEARER)
                } else {
                    refusal
                }
            }
        }
    }
}

/// Why nobody was identified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Denied {
    /// What came is not valid, or nothing came.
    Wrong,
    /// It was not looked at: the client is locked out for so long.
    Later(Duration),
    /// It cannot be judged: there are no keys of the token's issuer.
    NoKeys,
}

/// What a request brings to prove who sends it.
enum Offered<'a> {
    /// RFC 7617.
    Basic(basic::Credentials),
    /// RFC 6750: an API token, or a JSON Web Token.
    Bearer(&'a str),
}

impl<'a> Offered<'a> {
    /// Reads the header; `None` for whatever is not exactly one well-formed set of credentials of a known scheme.
    fn of(headers: &'a HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let (Some(value), None) = (values.next(), values.next()) else {
            return None;
        };
        let (scheme, rest) = scheme(value)?;
        if scheme.eq_ignore_ascii_case("basic") {
            return basic::Credentials::parse(rest).map(Self::Basic);
        }
        if scheme.eq_ignore_ascii_case("bearer") {
            return Some(Self::Bearer(rest));
        }
        None
    }
}

/// The scheme, and what follows it.
fn scheme(value: &HeaderValue) -> Option<(&str, &str)> {
    let text = value.to_str().ok()?;
    let space = text.bytes().position(|it| it == b' ')?;
    let (scheme, mut rest) = text.split_at_checked(space)?;
    while let Some(shorter) = rest.strip_prefix(' ').or_else(|| rest.strip_suffix(' ')) {
        rest = shorter;
    }
    Some((scheme, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered(values: &[&str]) -> Option<(String, Vec<u8>)> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        }
        match Offered::of(&headers)? {
            Offered::Basic(it) => {
                let (name, password) = it.parts()?;
                Some((name.to_owned(), password.to_vec()))
            }
            Offered::Bearer(it) => Some(("bearer".to_owned(), it.as_bytes().to_vec())),
        }
    }

    #[test]
    fn exactly_one_well_formed_header_is_read() {
        let basic = "Basic YW5uOnNlY3JldA==";
        let found = Some(("ann".to_owned(), b"secret".to_vec()));
        let bearer = Some(("bearer".to_owned(), b"abc".to_vec()));
        let rows: [(&str, &[&str], _); 9] = [
            ("bearer", &["bearer abc"], bearer),
            ("plain", &[basic], found.clone()),
            ("in capitals", &["BASIC YW5uOnNlY3JldA=="], found.clone()),
            ("spaces", &["basic   YW5uOnNlY3JldA== "], found),
            ("twice", &[basic, basic], None),
            ("none", &[], None),
            ("no token", &["Basic"], None),
            ("unknown scheme", &["Digest YW5uOnNlY3JldA=="], None),
            (
                "the source's placeholder",
                &["Basic xxxxxxxxxxxxxxxxxxx"],
                None,
            ),
        ];
        for (name, values, expected) in rows {
            assert_eq!(offered(values), expected, "{name}");
        }
    }
}
