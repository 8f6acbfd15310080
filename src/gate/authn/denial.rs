//! Why credentials were refused: for the log, the audit trail and a metric, never for the client.

use std::fmt;
use std::time::Duration;

use crate::model::TokenName;

/// Characters of a name that was tried which are kept.
const CLAIMED_CHARS_MAX: usize = 128;

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident $word:literal;)*) => {
        /// Why credentials were refused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum DenialReason {
            $($(#[$doc])* $name,)*
        }

        impl DenialReason {
            /// Every reason.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The word in the log, the audit trail and the metric.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }
        }
    };
}

reasons! {
    /// Nothing came: no `Authorization` and no client certificate.
    Missing "missing";
    /// What came cannot be read.
    Malformed "malformed";
    /// The scheme of `Authorization` is not one that is taken.
    UnsupportedScheme "unsupported_scheme";
    /// There is no user of that name.
    UnknownUser "unknown_user";
    /// The password is not that of the user.
    WrongPassword "wrong_password";
    /// Too many failed attempts: the credentials were not looked at.
    LockedOut "locked_out";
    /// Too many passwords wait to be checked: the credentials were not looked at.
    QueueFull "queue_full";
    /// There is no such API token.
    UnknownToken "unknown_token";
    /// The API token was revoked while this process ran.
    Revoked "revoked";
    /// The API token came as the password of a user who does not own it.
    WrongOwner "wrong_owner";
    /// The token is over.
    Expired "expired";
    /// The token is not valid yet.
    NotYetValid "not_yet_valid";
    /// The issuer of the token is not configured.
    UnknownIssuer "unknown_issuer";
    /// The token is signed with an algorithm that its issuer may not use.
    WrongAlgorithm "wrong_algorithm";
    /// The token is for another audience.
    WrongAudience "wrong_audience";
    /// The claim that names the caller is missing or unusable.
    UnusableSubject "unusable_subject";
    /// The key with which the token is signed is not in the set of its issuer.
    UnknownKey "unknown_key";
    /// The signature of the token is not valid.
    BadSignature "bad_signature";
    /// There are no keys of the token's issuer.
    NoKeys "no_keys";
    /// The client certificate belongs to no caller.
    UnknownCertificate "unknown_certificate";
    /// The client certificate has names of several callers.
    AmbiguousCertificate "ambiguous_certificate";
}

/// The name that was tried, bounded; nothing shows that it belongs to the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimedName(String);

impl ClaimedName {
    /// Keeps the beginning of the name.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self(name.chars().take(CLAIMED_CHARS_MAX).collect())
    }

    /// The name. May hold any character: escape it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ClaimedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The response to the client, which does not reveal the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DenialResponse {
    /// 401.
    Unauthenticated,
    /// 429: the client is locked out for so long.
    RetryLater(Duration),
    /// 503: it cannot be judged now.
    KeysUnavailable,
    /// 503: too many passwords wait to be checked.
    QueueFull,
}

/// Why the caller was not identified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::gate) struct CredentialsDenied {
    pub(super) answer: DenialResponse,
    pub(in crate::gate) reason: DenialReason,
    pub(in crate::gate) claimed: Option<ClaimedName>,
    /// The API token that was known once, or is over.
    pub(in crate::gate) token: Option<TokenName>,
}

impl CredentialsDenied {
    pub(super) const fn invalid(reason: DenialReason) -> Self {
        Self {
            answer: DenialResponse::Unauthenticated,
            reason,
            claimed: None,
            token: None,
        }
    }

    pub(super) fn locked_out(after: Duration) -> Self {
        Self {
            answer: DenialResponse::RetryLater(after),
            ..Self::invalid(DenialReason::LockedOut)
        }
    }

    pub(super) fn keys_unavailable() -> Self {
        Self {
            answer: DenialResponse::KeysUnavailable,
            ..Self::invalid(DenialReason::NoKeys)
        }
    }

    pub(super) fn queue_full() -> Self {
        Self {
            answer: DenialResponse::QueueFull,
            ..Self::invalid(DenialReason::QueueFull)
        }
    }

    /// The same, by a caller who claims this name.
    pub(super) fn with_claimed_name(mut self, name: &str) -> Self {
        self.claimed = Some(ClaimedName::new(name));
        self
    }

    pub(super) fn with_token(mut self, token: &TokenName) -> Self {
        self.token = Some(token.clone());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claimed_name_is_bounded_and_cut_between_characters() {
        let long = "\u{1f600}".repeat(CLAIMED_CHARS_MAX + 1);
        let kept = ClaimedName::new(&long);
        assert_eq!(kept.as_str().chars().count(), CLAIMED_CHARS_MAX);
        assert!(long.starts_with(kept.as_str()), "its beginning");
    }
}
