//! Basic credentials (RFC 7617), verified off the request threads and remembered for a while.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::gate::authn::Account;
use crate::gate::authn::Around;
use crate::gate::authn::Authenticator;
use crate::gate::authn::DenialReason;
use crate::gate::authn::Denied;
use crate::gate::authn::token;
use crate::gate::config::PasswordHash;
use crate::gate::limiter::Standing;
use crate::gate::password;
use crate::gate::process_state::CredentialKey;
use crate::model::limits;

/// A name and a password as sent.
pub(super) struct Credentials {
    pair: Zeroizing<Vec<u8>>,
    colon: usize,
}

impl Credentials {
    /// Reads what follows the scheme; `None` for whatever is not one well-formed pair.
    pub(super) fn parse(token: &str) -> Option<Self> {
        if token.len() > limits::CREDENTIALS_BYTES_MAX.saturating_mul(2) {
            return None;
        }
        let pair = Zeroizing::new(STANDARD.decode(token).ok()?);
        let text = str::from_utf8(&pair).ok()?;
        // RFC 7617 section 2. What a terminal or a log would act on is in no password that was meant.
        if has_control(text) {
            return None;
        }
        let colon = text.find(':')?;
        (text.len() <= limits::CREDENTIALS_BYTES_MAX).then_some(Self { pair, colon })
    }

    pub(super) fn parts(&self) -> Option<(&str, &[u8])> {
        let (name, rest) = self.pair.split_at_checked(self.colon)?;
        Some((str::from_utf8(name).ok()?, rest.get(1..)?))
    }
}

/// Whether there is a control character of ASCII or Latin 1.
fn has_control(text: &str) -> bool {
    // Nearly every password is ASCII, and every request with one passes here.
    if text.is_ascii() {
        text.bytes().any(|byte| byte.is_ascii_control())
    } else {
        text.chars().any(char::is_control)
    }
}

impl Authenticator {
    /// Whose name and password these are. A client that is locked out costs no hash, whether the name exists or not.
    pub(super) async fn basic(
        &self,
        credentials: &Credentials,
        around: Around<'_>,
    ) -> Result<Arc<Account>, Denied> {
        let malformed = || Denied::wrong(DenialReason::Malformed);
        let (name, password) = credentials.parts().ok_or_else(malformed)?;
        let denied = |reason| Denied::wrong(reason).of(name);
        if token::is_token(password) {
            return self.tokens.find_as_password(name, password, around);
        }
        let standing = standing(name, around);
        let user = self.users.get(name);
        let key = user.map(|user| (user, user.key.credential(password)));
        if let Some((user, key)) = key
            && !matches!(standing, Standing::Barred(_))
            && self.is_remembered(&key, around)
        {
            return Ok(Arc::clone(&user.account));
        }
        if let Standing::Locked(after) | Standing::Barred(after) = standing {
            return Err(Denied::later(after).of(name));
        }
        let _ticket = around.shared.checks.acquire().await;
        // Somebody else may have verified the same password while this request stood in line, or failed once too often.
        if let Some((user, key)) = key
            && self.is_remembered(&key, around)
        {
            return Ok(Arc::clone(&user.account));
        }
        if let Standing::Locked(after) | Standing::Barred(after) = self::standing(name, around) {
            return Err(Denied::later(after).of(name));
        }
        // An unknown name costs what a wrong password costs. Which hash stands in depends on the name alone.
        let decoy = || {
            let at = around.shared.draw(name.as_bytes());
            self.decoys.get(at.checked_rem(self.decoys.len())?)
        };
        let fits = match user.map(|user| &user.password).or_else(decoy) {
            Some(hash) => verify(hash.clone(), Zeroizing::new(password.to_vec())).await,
            None => false,
        };
        let Some((user, key)) = key.filter(|_| fits) else {
            self.note_failure(name, around);
            return Err(denied(match user {
                Some(_) => DenialReason::WrongPassword,
                None => DenialReason::UnknownUser,
            }));
        };
        around.metrics.callers.record_credential_check("verified");
        let now = around.clock.instant();
        if !self.remember.is_zero() {
            let until = around.clock.deadline(self.remember).instant();
            around.shared.remember(key, now, until);
        }
        if let Some(network) = around.network {
            around
                .shared
                .limiter
                .lock_outs
                .succeeded(name, network, now);
        }
        Ok(Arc::clone(&user.account))
    }

    fn is_remembered(&self, key: &CredentialKey, around: Around<'_>) -> bool {
        let found = around.shared.remembers(key, around.clock.instant());
        if found {
            around.metrics.callers.record_credential_check("remembered");
        }
        found
    }

    fn note_failure(&self, name: &str, around: Around<'_>) {
        let Some(network) = around.network else {
            return;
        };
        let lock_outs = &around.shared.limiter.lock_outs;
        let begun = lock_outs.failed(name, network, around.clock.instant(), &self.lock_out);
        for (by, begun) in [("user", begun.user), ("address", begun.address)] {
            if begun {
                around.metrics.callers.record_lockout(by);
            }
        }
    }
}

/// Whether a password of that name may be checked for the client.
fn standing(name: &str, around: Around<'_>) -> Standing {
    around.network.map_or(Standing::Free, |it| {
        let lock_outs = &around.shared.limiter.lock_outs;
        lock_outs.knock(name, it, around.clock.instant())
    })
}

/// Verifies on a thread that may block; a check that was begun ends even when the request is gone.
async fn verify(hash: PasswordHash, password: Zeroizing<Vec<u8>>) -> bool {
    #[cfg(test)]
    tests::VERIFIED.with(|it| it.set(it.get().saturating_add(1)));
    tokio::task::spawn_blocking(move || password::verify(hash.reveal(), &password))
        .await
        .unwrap_or(false)
}

#[cfg(test)]
pub(super) mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        /// Password checks begun by this thread.
        pub(in crate::gate) static VERIFIED: Cell<usize> = const { Cell::new(0) };
    }

    #[test]
    fn only_well_formed_credentials_are_read() {
        let rows = [
            (
                "plain",
                STANDARD.encode("ann:secret"),
                Some(("ann", "secret")),
            ),
            (
                "colons in the password",
                STANDARD.encode("a:b:c"),
                Some(("a", "b:c")),
            ),
            (
                "utf-8",
                STANDARD.encode("\u{e9}:\u{e8}"),
                Some(("\u{e9}", "\u{e8}")),
            ),
            ("empty password", STANDARD.encode("a:"), Some(("a", ""))),
            ("a line end", STANDARD.encode("ann:secret\n"), None),
            ("a tab", STANDARD.encode("ann:sec\tret"), None),
            ("NUL", STANDARD.encode("ann:\0"), None),
            ("NUL in the name", STANDARD.encode("a\0nn:secret"), None),
            ("DEL", STANDARD.encode("ann:\u{7f}secret"), None),
            ("a C1 control", STANDARD.encode("ann:secret\u{9b}"), None),
            ("no colon", STANDARD.encode("ann"), None),
            ("not base64", "!!!".to_owned(), None),
            ("not utf-8", "/zp4".to_owned(), None),
            ("nothing", String::new(), None),
            (
                "too long",
                STANDARD.encode(format!("a:{}", "x".repeat(1023))),
                None,
            ),
        ];
        for (name, token, expected) in rows {
            let found = Credentials::parse(&token);
            let parts = found.as_ref().and_then(Credentials::parts);
            let expected = expected.map(|(name, word)| (name, word.as_bytes()));
            assert_eq!(parts, expected, "{name}");
        }
    }
}
