//! Basic credentials (RFC 7617), verified off the request threads and remembered for a while.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::gate::authn::AuthContext;
use crate::gate::authn::AuthenticatedCaller;
use crate::gate::authn::Authenticator;
use crate::gate::authn::CredentialsDenied;
use crate::gate::authn::DenialReason;
use crate::gate::authn::token;
use crate::gate::config::PasswordHash;
use crate::gate::limiter::LockoutStatus;
use crate::gate::password;
use crate::gate::process_state::CredentialKey;
use crate::model::limits;

/// A name and a password as sent.
pub(super) struct BasicCredentials {
    pair: Zeroizing<Vec<u8>>,
    colon: usize,
}

impl BasicCredentials {
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

    pub(super) fn name_and_password(&self) -> Option<(&str, &[u8])> {
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
        credentials: &BasicCredentials,
        context: AuthContext<'_>,
    ) -> Result<Arc<AuthenticatedCaller>, CredentialsDenied> {
        let malformed = || CredentialsDenied::invalid(DenialReason::Malformed);
        let (name, password) = credentials.name_and_password().ok_or_else(malformed)?;
        let denied = |reason| CredentialsDenied::invalid(reason).with_claimed_name(name);
        if token::is_api_token_password(password) {
            return self.tokens.find_as_password(name, password, context);
        }
        let lockout_status = lockout_status(name, context);
        let user = self.users.get(name);
        let key = user.map(|user| (user, user.key.credential(password)));
        if let Some((user, key)) = key
            && !matches!(lockout_status, LockoutStatus::Barred(_))
            && self.is_remembered(&key, context)
        {
            return Ok(Arc::clone(&user.caller));
        }
        if let LockoutStatus::Locked(after) | LockoutStatus::Barred(after) = lockout_status {
            return Err(CredentialsDenied::locked_out(after).with_claimed_name(name));
        }
        let _ticket = context.shared.password_checks.acquire().await;
        // Somebody else may have verified the same password while this request stood in line, or failed once too often.
        if let Some((user, key)) = key
            && self.is_remembered(&key, context)
        {
            return Ok(Arc::clone(&user.caller));
        }
        if let LockoutStatus::Locked(after) | LockoutStatus::Barred(after) =
            self::lockout_status(name, context)
        {
            return Err(CredentialsDenied::locked_out(after).with_claimed_name(name));
        }
        // An unknown name costs what a wrong password costs. Which hash stands in depends on the name alone.
        let decoy = || {
            let at = context.shared.stable_index(name.as_bytes());
            self.decoys.get(at.checked_rem(self.decoys.len())?)
        };
        let fits = match user.map(|user| &user.password).or_else(decoy) {
            Some(hash) => verify(hash.clone(), Zeroizing::new(password.to_vec())).await,
            None => false,
        };
        let Some((user, key)) = key.filter(|_| fits) else {
            self.note_failure(name, context);
            return Err(denied(match user {
                Some(_) => DenialReason::WrongPassword,
                None => DenialReason::UnknownUser,
            }));
        };
        context.metrics.credential_check("verified");
        let now = context.clock.instant();
        if !self.remember.is_zero() {
            let until = context.clock.deadline(self.remember).instant();
            context.shared.cache_credential(key, now, until);
        }
        if let Some(network) = context.network {
            context
                .shared
                .limiter
                .lockouts
                .succeeded(name, network, now);
        }
        Ok(Arc::clone(&user.caller))
    }

    fn is_remembered(&self, key: &CredentialKey, context: AuthContext<'_>) -> bool {
        let found = context
            .shared
            .is_credential_cached(key, context.clock.instant());
        if found {
            context.metrics.credential_check("remembered");
        }
        found
    }

    fn note_failure(&self, name: &str, context: AuthContext<'_>) {
        let Some(network) = context.network else {
            return;
        };
        let lockouts = &context.shared.limiter.lockouts;
        let begun = lockouts.failed(name, network, context.clock.instant(), &self.lockout);
        for (by, begun) in [("user", begun.user), ("address", begun.address)] {
            if begun {
                context.metrics.locked_out(by);
            }
        }
    }
}

/// Whether a password of that name may be checked for the client.
fn lockout_status(name: &str, context: AuthContext<'_>) -> LockoutStatus {
    context.network.map_or(LockoutStatus::Free, |it| {
        let lockouts = &context.shared.limiter.lockouts;
        lockouts.check_attempt(name, it, context.clock.instant())
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
            let found = BasicCredentials::parse(&token);
            let parts = found.as_ref().and_then(BasicCredentials::name_and_password);
            let expected = expected.map(|(name, word)| (name, word.as_bytes()));
            assert_eq!(parts, expected, "{name}");
        }
    }
}
