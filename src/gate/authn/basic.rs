//! Basic credentials (RFC 7617), verified off the request threads and remembered for a while.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::gate::authn::Account;
use crate::gate::authn::Around;
use crate::gate::authn::Callers;
use crate::gate::authn::token;
use crate::gate::config::PasswordHash;
use crate::gate::password;
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
        let colon = text.find(':')?;
        (text.len() <= limits::CREDENTIALS_BYTES_MAX).then_some(Self { pair, colon })
    }

    pub(super) fn parts(&self) -> Option<(&str, &[u8])> {
        let (name, rest) = self.pair.split_at_checked(self.colon)?;
        Some((str::from_utf8(name).ok()?, rest.get(1..)?))
    }
}

impl Callers {
    /// Whose name and password these are.
    pub(super) async fn basic(
        &self,
        credentials: &Credentials,
        around: Around<'_>,
    ) -> Option<Arc<Account>> {
        let Around {
            shared,
            clock,
            metrics,
        } = around;
        let (name, password) = credentials.parts()?;
        if token::is_token(password) {
            return self.tokens.find_as_password(name, password, around);
        }
        let Some(user) = self.users.get(name) else {
            // An unknown name costs what a wrong password costs. Which hash stands in depends on the name alone.
            let at = shared.draw(name.as_bytes()).checked_rem(self.decoys.len());
            if let Some(decoy) = at.and_then(|it| self.decoys.get(it)) {
                let ticket = shared.checks.acquire().await;
                verify(decoy.clone(), Zeroizing::new(password.to_vec())).await;
                drop(ticket);
            }
            return None;
        };
        let key = shared.credential_key(name, password, user.password.reveal());
        if shared.remembers(&key, clock.instant()) {
            metrics.credential_check("remembered");
            return Some(Arc::clone(&user.account));
        }
        let ticket = shared.checks.acquire().await;
        // Somebody else may have verified the same password while this request stood in line.
        if shared.remembers(&key, clock.instant()) {
            metrics.credential_check("remembered");
            return Some(Arc::clone(&user.account));
        }
        let fits = verify(user.password.clone(), Zeroizing::new(password.to_vec())).await;
        drop(ticket);
        if !fits {
            return None;
        }
        metrics.credential_check("verified");
        if !self.remember.is_zero() {
            let now = clock.instant();
            shared.remember(key, now, clock.deadline(self.remember).instant());
        }
        Some(Arc::clone(&user.account))
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
