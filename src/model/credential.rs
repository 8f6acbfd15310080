//! What is sent to another server as `Authorization`.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::model::secret::Secret;

/// The value of `Authorization`. Neither its `Debug` form nor an error shows it.
#[derive(Clone)]
pub struct Credential(Secret);

/// A user name, password or token has a character that a header field cannot carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot be sent: a user name has no colon, and neither has control characters")]
pub struct CredentialError;

impl Credential {
    /// User name and password (RFC 7617).
    ///
    /// # Errors
    /// [`CredentialError`] when the name is empty or holds a colon, or one of them holds a control character.
    pub fn basic(user: &str, password: &Secret) -> Result<Self, CredentialError> {
        let has_control = |text: &str| text.chars().any(char::is_control);
        let is_user = !user.is_empty() && !user.contains(':') && !has_control(user);
        if !is_user || has_control(password.reveal()) {
            return Err(CredentialError);
        }
        let both = Secret::new(format!("{user}:{}", password.reveal()));
        let text = format!("Basic {}", STANDARD.encode(both.reveal()));
        Ok(Self(Secret::new(text)))
    }

    /// A bearer token (RFC 6750).
    ///
    /// # Errors
    /// [`CredentialError`] when it is empty or holds anything but visible ASCII.
    pub fn bearer(token: &Secret) -> Result<Self, CredentialError> {
        Self::with_scheme("Bearer ", token)
    }

    /// A token behind `scheme`, which ends with the character that separates the two: a space where the server keeps to
    /// RFC 9110.
    ///
    /// # Errors
    /// [`CredentialError`] when the token is empty or holds anything but visible ASCII.
    pub fn with_scheme(scheme: &'static str, token: &Secret) -> Result<Self, CredentialError> {
        let token = token.reveal();
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(CredentialError);
        }
        Ok(Self(Secret::new(format!("{scheme}{token}"))))
    }

    /// The value of the header field.
    #[must_use]
    pub const fn value(&self) -> &Secret {
        &self.0
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential(***)")
    }
}

impl PartialEq for Credential {
    fn eq(&self, other: &Self) -> bool {
        self.0.reveal() == other.0.reveal()
    }
}

impl Eq for Credential {}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> Secret {
        Secret::new(text.to_owned())
    }

    #[test]
    fn credentials_fit_into_a_header_field_and_are_not_printed() {
        let basic = Credential::basic("gate", &secret("p\u{e4}ss:word")).unwrap();
        assert_eq!(
            basic.value().reveal(),
            "Basic Z2F0ZTpww6Rzczp3b3Jk",
            "encoded"
        );
        assert!(!format!("{basic:?}").contains("Z2F0"), "hidden");
        let bearer = Credential::bearer(&secret("abc.def")).unwrap();
        assert_eq!(bearer.value().reveal(), "Bearer abc.def", "unchanged");
        let token = Credential::with_scheme("PVEAPIToken=", &secret("gate@pve!t1=abc")).unwrap();
        assert_eq!(
            token.value().reveal(),
            "PVEAPIToken=gate@pve!t1=abc",
            "unchanged"
        );
    }

    #[test]
    fn credentials_that_would_break_the_header_field_are_refused() {
        for user in ["", "a:b", "a\nb"] {
            assert!(Credential::basic(user, &secret("x")).is_err(), "{user:?}");
        }
        let password = Credential::basic("a", &secret("x\r\ny"));
        assert!(password.is_err(), "line break in a password");
        for token in ["", "a b", "a\r\nX: y", "\u{e4}"] {
            assert!(Credential::bearer(&secret(token)).is_err(), "{token:?}");
        }
    }
}
