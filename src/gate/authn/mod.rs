//! Who calls: chooses the method by what the request brings, and knows every caller.

mod basic;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use http::HeaderValue;
use http::header::AUTHORIZATION;
use http::header::WWW_AUTHENTICATE;

use crate::gate::authz::Rights;
use crate::gate::config::Config;
use crate::gate::config::PasswordHash;
use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::gate::shared::Shared;
use crate::model::Principal;
use crate::runtime::Clock;
use crate::telemetry::Metrics;

#[cfg(test)]
pub(super) use basic::tests::VERIFIED;

const CHALLENGE: &str = r#"Basic realm="snapgate", charset="UTF-8""#;

/// One caller with what the caller may do: the proof of authentication when it comes out of [`Callers::identify`].
#[derive(Debug)]
pub(super) struct Account {
    pub(super) principal: Principal,
    pub(super) rights: Rights,
    password: PasswordHash,
}

/// Everybody who may call.
#[derive(Debug)]
pub(super) struct Callers {
    accounts: BTreeMap<String, Arc<Account>>,
    /// The hashes that stand in for those of unknown names.
    decoys: Vec<PasswordHash>,
    /// How long a verified password is remembered.
    remember: Duration,
}

/// What a method of authentication works with besides the request.
#[derive(Clone, Copy)]
pub(super) struct Around<'a> {
    pub(super) shared: &'a Shared,
    pub(super) clock: &'a dyn Clock,
    pub(super) metrics: &'a Metrics,
}

impl Callers {
    pub(super) fn new(config: &Config) -> Self {
        let accounts: BTreeMap<_, _> = config
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
                    password: user.password.clone(),
                };
                (name.as_str().to_owned(), Arc::new(account))
            })
            .collect();
        Self {
            decoys: accounts.values().map(|it| it.password.clone()).collect(),
            accounts,
            remember: config.credentials.remember,
        }
    }

    /// Tells who calls. Whatever is wrong with the credentials, the refusal is the same.
    pub(super) async fn identify(
        &self,
        headers: &HeaderMap,
        around: Around<'_>,
    ) -> Result<Arc<Account>, Refusal> {
        let found = match Offered::of(headers) {
            Some(Offered::Basic(credentials)) => self.basic(&credentials, around).await,
            None => None,
        };
        found.ok_or_else(|| {
            around.metrics.credential_check("refused");
            Refusal::from(Code::Unauthenticated).with(WWW_AUTHENTICATE, CHALLENGE)
        })
    }
}

/// What a request brings to prove who sends it.
enum Offered {
    /// RFC 7617.
    Basic(basic::Credentials),
}

impl Offered {
    /// Reads the header; `None` for whatever is not exactly one well-formed set of credentials of a known scheme.
    fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let (Some(value), None) = (values.next(), values.next()) else {
            return None;
        };
        let (scheme, rest) = scheme(value)?;
        if scheme.eq_ignore_ascii_case("basic") {
            return basic::Credentials::parse(rest).map(Self::Basic);
        }
        None
    }
}

/// The scheme, and what follows it.
fn scheme(value: &HeaderValue) -> Option<(&str, &str)> {
    let (scheme, rest) = value.to_str().ok()?.split_once(' ')?;
    Some((scheme, rest.trim_matches(' ')))
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
        }
    }

    #[test]
    fn exactly_one_well_formed_header_is_read() {
        let basic = "Basic YW5uOnNlY3JldA==";
        let found = Some(("ann".to_owned(), b"secret".to_vec()));
        let rows: [(&str, &[&str], _); 8] = [
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
