//! Who calls: chooses the method by what the request brings, and knows every caller.

mod basic;
mod certificate;
mod denial;
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

use crate::gate::authn::certificate::CertificateIdentities;
pub(super) use crate::gate::authn::denial::CredentialsDenied;
use crate::gate::authn::denial::DenialResponse;
use crate::gate::authn::jwt::Issuers;
use crate::gate::authn::token::ApiTokens;
use crate::gate::authz::Rights;
use crate::gate::config::Config;
use crate::gate::config::LockoutRule;
use crate::gate::config::PasswordHash;
use crate::gate::limiter::ClientNetwork;
use crate::gate::process_state::ProcessState;
use crate::gate::process_state::UserKey;
use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::model::CertificateName;
use crate::model::Principal;
use crate::model::TokenName;
use crate::runtime::Clock;
use crate::telemetry::Metrics;

pub use denial::ClaimedName;
pub use denial::DenialReason;
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

/// One caller with what the caller may do: the proof of authentication when it comes out of [`Authenticator::identify`].
#[derive(Debug)]
pub(super) struct AuthenticatedCaller {
    pub(super) principal: Principal,
    pub(super) rights: Rights,
    /// The API token by which the caller is known, if it is one.
    pub(super) token: Option<TokenName>,
}

/// One user with a password.
#[derive(Debug)]
struct PasswordUser {
    caller: Arc<AuthenticatedCaller>,
    password: PasswordHash,
    /// What passwords are remembered under.
    key: UserKey,
}

/// Everybody who may call.
#[derive(Debug)]
pub(super) struct Authenticator {
    users: BTreeMap<String, PasswordUser>,
    tokens: ApiTokens,
    certificates: CertificateIdentities,
    issuers: Issuers,
    /// Whether Deviation D22 is in use: bearer tokens beside Basic.
    takes_bearer: bool,
    /// The hashes that stand in for those of unknown names.
    decoys: Vec<PasswordHash>,
    /// How long a verified password is remembered.
    remember: Duration,
    lockout: LockoutRule,
}

/// What a method of authentication works with besides the request.
#[derive(Clone, Copy)]
pub(super) struct AuthContext<'a> {
    pub(super) shared: &'a ProcessState,
    pub(super) clock: &'a dyn Clock,
    pub(super) metrics: &'a Metrics,
    /// The client, if it can be told from others: lock-outs go by it.
    pub(super) network: Option<ClientNetwork>,
}

impl Authenticator {
    pub(super) fn new(config: &Config, shared: &ProcessState) -> Self {
        let users: BTreeMap<_, _> = config
            .credentials
            .users
            .iter()
            .map(|(name, user)| {
                let principal = Principal {
                    name: name.clone(),
                    groups: user.groups.clone(),
                };
                let caller = AuthenticatedCaller {
                    rights: Rights::for_principal(&principal, &config.grants),
                    principal,
                    token: None,
                };
                let user = PasswordUser {
                    caller: Arc::new(caller),
                    password: user.password.clone(),
                    key: shared.user_key(name.as_str(), user.password.reveal()),
                };
                (name.as_str().to_owned(), user)
            })
            .collect();
        let issuers = Issuers::new(config);
        let tokens = ApiTokens::new(config, |name| Some(&users.get(name.as_str())?.caller));
        shared.record_tokens(tokens.all());
        Self {
            decoys: users.values().map(|user| user.password.clone()).collect(),
            tokens,
            certificates: CertificateIdentities::new(config),
            users,
            takes_bearer: config.credentials.tokens.is_some() || !issuers.is_empty(),
            issuers,
            remember: config.credentials.remember,
            lockout: config.lockout.clone(),
        }
    }

    /// Tells who calls. Whatever is wrong with the credentials, the answer is the same; why is for the operator alone.
    pub(super) async fn identify(
        &self,
        headers: &HeaderMap,
        certificate: &[CertificateName],
        context: AuthContext<'_>,
    ) -> Result<Arc<AuthenticatedCaller>, CredentialsDenied> {
        match PresentedCredentials::from_headers(headers) {
            Some(Ok(PresentedCredentials::Basic(credentials))) => {
                self.basic(&credentials, context).await
            }
            Some(Ok(PresentedCredentials::Bearer(text))) => match self.tokens.find(text, context) {
                Ok(found) => Ok(found),
                Err(denied) if self.issuers.is_empty() || token::is_api_token(text) => Err(denied),
                Err(_) => self.issuers.find(text, context).await,
            },
            // Who sends credentials is judged by them alone, whatever certificate comes with them.
            Some(Err(reason)) => Err(CredentialsDenied::invalid(reason)),
            None => self.certificates.find(certificate, context),
        }
    }

    /// What the client is answered.
    pub(super) fn refusal(&self, denied: &CredentialsDenied, metrics: &Metrics) -> Refusal {
        metrics.credentials_refused(denied.reason.as_str());
        match denied.answer {
            DenialResponse::RetryLater(after) => {
                metrics.credential_check("locked_out");
                Refusal::from(Code::TooManyAttempts).retry_after(after)
            }
            DenialResponse::KeysUnavailable => {
                metrics.credential_check("no_keys");
                Refusal::from(Code::KeysUnavailable)
            }
            DenialResponse::Unauthenticated => {
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

/// What a request brings to prove who sends it.
enum PresentedCredentials<'a> {
    /// RFC 7617.
    Basic(basic::BasicCredentials),
    /// RFC 6750: an API token, or a JSON Web Token.
    Bearer(&'a str),
}

impl<'a> PresentedCredentials<'a> {
    /// Reads the header; `None` when there is none. Anything but exactly one well-formed set of credentials of a known scheme
    /// is an error.
    fn from_headers(headers: &'a HeaderMap) -> Option<Result<Self, DenialReason>> {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let value = values.next()?;
        if values.next().is_some() {
            return Some(Err(DenialReason::Malformed));
        }
        Some(Self::read(value))
    }

    fn read(value: &'a HeaderValue) -> Result<Self, DenialReason> {
        let (scheme, rest) = scheme(value).ok_or(DenialReason::Malformed)?;
        if scheme.eq_ignore_ascii_case("basic") {
            let read = basic::BasicCredentials::parse(rest).map(Self::Basic);
            return read.ok_or(DenialReason::Malformed);
        }
        if scheme.eq_ignore_ascii_case("bearer") {
            return Ok(Self::Bearer(rest));
        }
        Err(DenialReason::UnsupportedScheme)
    }
}

/// The scheme, and what follows it.
fn scheme(value: &HeaderValue) -> Option<(&str, &str)> {
    let text = value.to_str().ok()?;
    let space = text.bytes().position(|byte| byte == b' ')?;
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
        match PresentedCredentials::from_headers(&headers)?.ok()? {
            PresentedCredentials::Basic(it) => {
                let (name, password) = it.name_and_password()?;
                Some((name.to_owned(), password.to_vec()))
            }
            PresentedCredentials::Bearer(it) => Some(("bearer".to_owned(), it.as_bytes().to_vec())),
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
