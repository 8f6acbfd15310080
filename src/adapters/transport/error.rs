//! What goes wrong before an answer is there, and whether the VM manager may have seen the request.

use std::error::Error as StdError;

use rustls::CertificateError;

use crate::model::error_causes;
use crate::model::error_chain;

/// Why a client cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A certificate cannot be read.
    #[error("the certificate cannot be used: {0}")]
    Certificate(String),
    /// The client's key cannot be read, or does not belong to its certificate.
    #[error("the client certificate and key cannot be used: {0}")]
    Identity(String),
    /// A fingerprint is not 64 hexadecimal digits.
    #[error("the fingerprint is not the SHA-256 of a certificate: 64 hexadecimal digits")]
    Fingerprint,
    /// The address is malformed.
    #[error("the address cannot be used: {0}")]
    Address(String),
    /// The client itself failed.
    #[error("the HTTP client cannot be made: {0}")]
    Client(String),
}

/// Why there is no answer. The texts are for logs only.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The request cannot be written down.
    #[error("request cannot be made: {0}")]
    Unsendable(String),
    /// The deadline was over before anything was sent.
    #[error("deadline over before the request was sent")]
    TooLate,
    /// No connection could be made.
    #[error("cannot connect: {0}")]
    Unreachable(String),
    /// The server is not the one that is trusted.
    #[error("server certificate refused: {0}")]
    Untrusted(String),
    /// The connection ended before the whole answer was there.
    #[error("connection lost: {0}")]
    Lost(String),
    /// The deadline passed before the whole answer was there.
    #[error("no answer before the deadline")]
    TimedOut,
    /// The answer is larger than allowed.
    #[error("answer larger than {0} bytes")]
    TooLarge(usize),
}

impl TransportError {
    /// Whether the VM manager may have seen the request.
    #[must_use]
    pub const fn was_sent(&self) -> bool {
        match self {
            Self::Unsendable(_) | Self::TooLate | Self::Unreachable(_) | Self::Untrusted(_) => {
                false
            }
            Self::Lost(_) | Self::TimedOut | Self::TooLarge(_) => true,
        }
    }

    /// From a request that brought no answer.
    pub(super) fn from_request(error: reqwest::Error) -> Self {
        let error = error.without_url();
        if error.is_builder() {
            return Self::Unsendable(error_chain(&error));
        }
        if !error.is_connect() {
            return Self::Lost(error_chain(&error));
        }
        match refused_certificate(&error) {
            Some(why) => Self::Untrusted(certificate_problem(why)),
            None => Self::Unreachable(error_chain(&error)),
        }
    }

    /// From an answer that broke off.
    pub(super) fn from_body(error: reqwest::Error) -> Self {
        Self::Lost(error_chain(&error.without_url()))
    }
}

/// Why the server's certificate was refused, if the handshake ended because of it.
fn refused_certificate<'e>(error: &'e (dyn StdError + 'static)) -> Option<&'e CertificateError> {
    error_causes(error).find_map(|cause| match cause.downcast_ref() {
        Some(rustls::Error::InvalidCertificate(why)) => Some(why),
        Some(_) | None => None,
    })
}

/// What is wrong with the server's certificate, and the key that helps.
fn certificate_problem(why: &CertificateError) -> String {
    // Reasons that rustls has no variant for have no type that could be named here, only a text.
    let text = why.to_string();
    let remedy = if text.contains("CaUsedAsEndEntity") {
        "the server's certificate is self-signed and marked as an authority, so that it cannot be checked by `ca`; \
         name it as `server_cert` instead, or sign a certificate for the server with that authority"
    } else if text.contains("UnsupportedCertVersion") {
        "the server's certificate is older than X.509 version 3, so that it cannot be checked by `ca`; \
         name it as `server_cert` instead"
    } else if matches!(
        why,
        CertificateError::UnknownIssuer | CertificateError::BadSignature
    ) {
        "no authority in `ca` signed the server's certificate"
    } else if matches!(
        why,
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }
    ) {
        "the server's certificate is not for the host in the URL"
    } else if matches!(
        why,
        CertificateError::Expired | CertificateError::ExpiredContext { .. }
    ) {
        "the server's certificate has expired"
    } else if matches!(why, CertificateError::ApplicationVerificationFailure) {
        "the server has another certificate than the one in `server_cert` or `server_fingerprint`"
    } else {
        return text;
    };
    format!("{remedy} ({text})")
}
