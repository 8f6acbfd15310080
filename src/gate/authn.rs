//! Who calls: Basic credentials (RFC 7617), verified off the request threads and remembered for a while.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use http::header::WWW_AUTHENTICATE;
use zeroize::Zeroizing;

use crate::gate::authz::Rights;
use crate::gate::config::Config;
use crate::gate::config::PasswordHash;
use crate::gate::password;
use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::gate::shared::Shared;
use crate::model::Principal;
use crate::model::limits;
use crate::runtime::Clock;
use crate::telemetry::Metrics;

const CHALLENGE: &str = r#"Basic realm="snapgate", charset="UTF-8""#;

/// One caller as configured: the proof of authentication when it comes out of [`Callers::identify`].
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
    remember: std::time::Duration,
}

/// A name and a password as sent.
struct Credentials {
    pair: Zeroizing<Vec<u8>>,
    colon: usize,
}

impl Credentials {
    fn parts(&self) -> Option<(&str, &[u8])> {
        let (name, rest) = self.pair.split_at_checked(self.colon)?;
        Some((str::from_utf8(name).ok()?, rest.get(1..)?))
    }
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

    /// Tells who calls.
    pub(super) async fn identify(
        &self,
        headers: &HeaderMap,
        shared: &Shared,
        clock: &dyn Clock,
        metrics: &Metrics,
    ) -> Result<Arc<Account>, Refusal> {
        let refused = || {
            metrics.credential_check("refused");
            Refusal::from(Code::Unauthenticated).with(WWW_AUTHENTICATE, CHALLENGE)
        };
        let credentials = parse(headers).ok_or_else(refused)?;
        let (name, password) = credentials.parts().ok_or_else(refused)?;
        let Some(account) = self.accounts.get(name) else {
            // An unknown name costs what a wrong password costs. Which hash stands in depends on the name alone.
            let at = shared.draw(name.as_bytes()).checked_rem(self.decoys.len());
            if let Some(decoy) = at.and_then(|it| self.decoys.get(it)) {
                let ticket = shared.checks.acquire().await;
                verify(decoy.clone(), Zeroizing::new(password.to_vec())).await;
                drop(ticket);
            }
            return Err(refused());
        };
        let key = shared.credential_key(name, password, account.password.reveal());
        if shared.remembers(&key, clock.instant()) {
            metrics.credential_check("remembered");
            return Ok(Arc::clone(account));
        }
        let ticket = shared.checks.acquire().await;
        // Somebody else may have verified the same password while this request stood in line.
        if shared.remembers(&key, clock.instant()) {
            metrics.credential_check("remembered");
            return Ok(Arc::clone(account));
        }
        let fits = verify(account.password.clone(), Zeroizing::new(password.to_vec())).await;
        drop(ticket);
        if !fits {
            return Err(refused());
        }
        metrics.credential_check("verified");
        if !self.remember.is_zero() {
            let now = clock.instant();
            shared.remember(key, now, clock.deadline(self.remember).instant());
        }
        Ok(Arc::clone(account))
    }
}

/// Verifies on a thread that may block; a check that was begun ends even when the request is gone.
async fn verify(hash: PasswordHash, password: Zeroizing<Vec<u8>>) -> bool {
    #[cfg(test)]
    tests::VERIFIED.with(|it| it.set(it.get().saturating_add(1)));
    tokio::task::spawn_blocking(move || password::verify(hash.reveal(), &password))
        .await
        .unwrap_or(false)
}

/// Reads the header; `None` for whatever is not exactly one well-formed pair of Basic credentials.
fn parse(headers: &HeaderMap) -> Option<Credentials> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return None;
    };
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let token = token.trim_matches(' ');
    if token.len() > limits::CREDENTIALS_BYTES_MAX.saturating_mul(2) {
        return None;
    }
    let pair = Zeroizing::new(STANDARD.decode(token).ok()?);
    let text = str::from_utf8(&pair).ok()?;
    let colon = text.find(':')?;
    (text.len() <= limits::CREDENTIALS_BYTES_MAX).then_some(Credentials { pair, colon })
}

#[cfg(test)]
pub(super) mod tests {
    use std::cell::Cell;

    use http::HeaderValue;

    use super::*;

    thread_local! {
        /// Password checks begun by this thread.
        pub(in crate::gate) static VERIFIED: Cell<usize> = const { Cell::new(0) };
    }

    #[test]
    fn only_well_formed_basic_credentials_are_read() {
        let basic = |it: &str| format!("Basic {}", STANDARD.encode(it));
        let rows = [
            ("plain", basic("ann:secret"), Some(("ann", "secret"))),
            (
                "scheme in capitals",
                basic("a:b").replace("Basic", "BASIC"),
                Some(("a", "b")),
            ),
            ("colons in the password", basic("a:b:c"), Some(("a", "b:c"))),
            ("utf-8", basic("\u{e9}:\u{e8}"), Some(("\u{e9}", "\u{e8}"))),
            ("empty password", basic("a:"), Some(("a", ""))),
            (
                "the source's placeholder",
                "Basic xxxxxxxxxxxxxxxxxxx".to_owned(),
                None,
            ),
            ("no colon", basic("ann"), None),
            ("not base64", "Basic !!!".to_owned(), None),
            ("not utf-8", "Basic /zp4".to_owned(), None),
            ("bearer", "Bearer abc".to_owned(), None),
            ("no token", "Basic".to_owned(), None),
            ("too long", basic(&format!("a:{}", "x".repeat(1023))), None),
        ];
        for (name, value, expected) in rows {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, HeaderValue::from_str(&value).unwrap());
            let found = parse(&headers);
            let parts = found.as_ref().and_then(Credentials::parts);
            let expected = expected.map(|(name, word)| (name, word.as_bytes()));
            assert_eq!(parts, expected, "{name}");
            headers.append(AUTHORIZATION, HeaderValue::from_str(&value).unwrap());
            assert!(parse(&headers).is_none(), "{name}: twice");
        }
    }
}
