//! The names in a client certificate by which a caller may be identified.

use std::fmt;

use crate::model::limits;

/// One name in a certificate: `dns:`, `email:` or `uri:` for its alternative names, `subject:` for its subject as RFC 4514
/// writes it.
///
/// Two names are equal when they mean the same: hosts are compared in lower case, everything else to the letter.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CertificateName(String);

impl CertificateName {
    /// Takes a name with its kind, for instance `dns:ci.example.com`.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn new(text: &str) -> Result<Self, &'static str> {
        let kind = text.split_once(':').ok_or(UNKNOWN_KIND)?;
        match kind {
            ("dns", name) => Self::dns(name).ok_or("holds no host name; wildcards cannot be used"),
            ("email", address) => Self::email(address).ok_or("holds no e-mail address"),
            ("uri", uri) => Self::uri(uri).ok_or("holds no URI"),
            ("subject", subject) => Self::subject(subject).ok_or("holds no subject"),
            _ => Err(UNKNOWN_KIND),
        }
    }

    /// A host name.
    #[must_use]
    pub fn dns(name: &str) -> Option<Self> {
        let name = name.strip_suffix('.').unwrap_or(name);
        let is_host_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        (is_bounded(name) && name.bytes().all(is_host_byte))
            .then(|| Self(format!("dns:{}", name.to_ascii_lowercase())))
    }

    /// An e-mail address; only its host is compared without regard to capitals.
    #[must_use]
    pub fn email(address: &str) -> Option<Self> {
        let (local, host) = address.rsplit_once('@')?;
        let is_good = is_bounded(address) && address.bytes().all(|byte| byte.is_ascii_graphic());
        (is_good && !local.is_empty() && !host.is_empty())
            .then(|| Self(format!("email:{local}@{}", host.to_ascii_lowercase())))
    }

    /// A URI, to the letter.
    #[must_use]
    pub fn uri(uri: &str) -> Option<Self> {
        let is_good = is_bounded(uri) && uri.bytes().all(|byte| byte.is_ascii_graphic());
        (is_good && uri.contains(':')).then(|| Self(format!("uri:{uri}")))
    }

    /// A subject, to the letter.
    #[must_use]
    pub fn subject(subject: &str) -> Option<Self> {
        let is_good = is_bounded(subject) && !subject.chars().any(char::is_control);
        (is_good && subject.contains('=')).then(|| Self(format!("subject:{subject}")))
    }

    /// The name with its kind.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

const UNKNOWN_KIND: &str = "begins with none of dns:, email:, uri:, subject:";

fn is_bounded(text: &str) -> bool {
    !text.is_empty() && text.len() <= limits::CERTIFICATE_NAME_BYTES_MAX
}

impl fmt::Display for CertificateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed_by_their_kind() {
        let long = format!("uri:x:{}", "y".repeat(2000));
        let rows = [
            ("dns:CI.Example.com.", Some("dns:ci.example.com")),
            ("dns:*.example.com", None),
            ("dns:", None),
            ("dns:a b", None),
            ("email:Ann@Example.COM", Some("email:Ann@example.com")),
            ("email:ann", None),
            ("email:@example.com", None),
            ("uri:spiffe://lab/CI", Some("uri:spiffe://lab/CI")),
            ("uri:ci", None),
            ("subject:CN=ci,O=Lab", Some("subject:CN=ci,O=Lab")),
            ("subject:ci", None),
            ("subject:CN=a\nb", None),
            ("cn:ci", None),
            ("ci", None),
            (long.as_str(), None),
        ];
        for (text, expected) in rows {
            let found = CertificateName::new(text);
            let found = found.as_ref().map(CertificateName::as_str).ok();
            assert_eq!(found, expected, "{text}");
        }
    }
}
