//! What a client sends as `Authorization`.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;

use crate::model::Secret;

/// The value of `Authorization`; it is never printed.
#[derive(Clone)]
pub struct Credential(HeaderValue);

/// A user name, password or token has a character that a header field cannot carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot be sent: a user name has no colon, and neither has control characters")]
pub struct CredentialError;

impl Credential {
    /// User name and password (RFC 7617).
    ///
    /// # Errors
    /// [`CredentialError`] when the name is empty or has a colon, or one of them has a control character.
    pub fn basic(user: &str, password: &Secret) -> Result<Self, CredentialError> {
        let has_control = |text: &str| text.chars().any(char::is_control);
        let is_user = !user.is_empty() && !user.contains(':') && !has_control(user);
        if !is_user || has_control(password.reveal()) {
            return Err(CredentialError);
        }
        let both = Secret::new(format!("{user}:{}", password.reveal()));
        Self::from_text(&Secret::new(format!(
            "Basic {}",
            STANDARD.encode(both.reveal())
        )))
    }

    /// A bearer token (RFC 6750): an API token of the gateway, or a JSON Web Token.
    ///
    /// # Errors
    /// [`CredentialError`] when it is empty or has anything but visible ASCII.
    pub fn bearer(token: &Secret) -> Result<Self, CredentialError> {
        let text = token.reveal();
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(CredentialError);
        }
        Self::from_text(&Secret::new(format!("Bearer {text}")))
    }

    fn from_text(text: &Secret) -> Result<Self, CredentialError> {
        let mut value = HeaderValue::from_str(text.reveal()).map_err(|_invalid| CredentialError)?;
        value.set_sensitive(true);
        Ok(Self(value))
    }

    /// The header field as text.
    #[cfg(test)]
    pub(crate) fn authorization_for_tests(&self) -> String {
        self.0.to_str().unwrap_or_default().to_owned()
    }

    /// The header field.
    pub(super) const fn value(&self) -> &HeaderValue {
        &self.0
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential(***)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> Secret {
        Secret::new(text.to_owned())
    }

    #[test]
    fn credentials_are_sent_as_the_rfcs_say_and_not_printed() {
        let basic = Credential::basic("ann", &secret("p\u{e4}ss:word")).unwrap();
        assert_eq!(basic.value(), "Basic YW5uOnDDpHNzOndvcmQ=", "encoded");
        let bearer = Credential::bearer(&secret("sg_abc")).unwrap();
        assert_eq!(bearer.value(), "Bearer sg_abc", "unchanged");
        assert!(!format!("{bearer:?}").contains("abc"), "hidden");
    }

    #[test]
    fn credentials_that_would_break_the_header_field_are_refused() {
        for user in ["", "a:b", "a\nb"] {
            assert!(Credential::basic(user, &secret("x")).is_err(), "{user:?}");
        }
        assert!(
            Credential::basic("a", &secret("x\r\ny")).is_err(),
            "line break"
        );
        for token in ["", "a b", "a\r\nX: y", "\u{e4}"] {
            assert!(Credential::bearer(&secret(token)).is_err(), "{token:?}");
        }
    }
}
