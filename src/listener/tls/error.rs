//! Why TLS cannot be configured.

/// Why certificates cannot be used: a lower-case sentence for the operator.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// No certificate.
    #[error("no PEM certificate found")]
    NoCertificate,
    /// A malformed certificate.
    #[error("cannot parse certificate: {0}")]
    BadCertificate(String),
    /// No usable key.
    #[error(
        "no usable PEM private key found (supported: unencrypted RSA, ECDSA P-256 or P-384, Ed25519)"
    )]
    NoKey,
    /// The key belongs to another certificate.
    #[error("the private key does not match the certificate")]
    KeyOfAnotherCertificate,
    /// A malformed host name.
    #[error("{0:?} is not a host name")]
    BadName(String),
    /// The certificate at this position, counted from 0, has no name.
    #[error("the certificate has no DNS name; set `names`")]
    NoName(usize),
    /// The certificate at this position has a name of an earlier one.
    #[error("duplicate certificate for {1}")]
    NameTwice(usize, String),
    /// The authorities for client certificates cannot be used.
    #[error("{0}")]
    BadAuthority(String),
}
