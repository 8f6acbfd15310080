//! What goes wrong before an answer is there, and whether the VM manager may have seen the request.

use std::error::Error as StdError;
use std::io;

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
    /// Nobody listens there.
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
    pub(super) fn of(error: reqwest::Error) -> Self {
        let error = error.without_url();
        if error.is_builder() {
            return Self::Unsendable(chain(&error));
        }
        if !error.is_connect() {
            return Self::Lost(chain(&error));
        }
        let text = chain(&error);
        if is_untrusted(&error) {
            Self::Untrusted(text)
        } else {
            Self::Unreachable(text)
        }
    }

    /// From an answer that broke off.
    pub(super) fn broken(error: reqwest::Error) -> Self {
        Self::Lost(chain(&error.without_url()))
    }
}

/// The error and everything behind it, in one line.
pub(super) fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let told = cause.to_string();
        if !text.ends_with(&told) {
            text.push_str(": ");
            text.push_str(&told);
        }
        next = cause.source();
    }
    text
}

/// Whether the handshake ended because of the server's certificate.
fn is_untrusted(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(it) = next {
        if it.downcast_ref::<rustls::Error>().is_some_and(is_of_trust) {
            return true;
        }
        // An I/O error does not name what it wraps as its source, but the source of that.
        next = match it.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => it.source(),
        };
    }
    false
}

const fn is_of_trust(error: &rustls::Error) -> bool {
    matches!(error, rustls::Error::InvalidCertificate(_))
}
