//! One certificate of the API port, checked against its key, with the host names that it is used for.

use std::sync::Arc;

use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::sign::CertifiedKey;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use crate::listener::tls::TlsError;
use crate::model::Secret;
use crate::model::Timestamp;

/// A certificate chain with its matching key.
#[derive(Clone, Debug)]
pub struct Certificate {
    pub(super) served: Arc<CertifiedKey>,
    /// In lower case; `*.` at the start stands for one label.
    names: Vec<String>,
    /// Whether its subject alternative names include a host.
    has_alternative_names: bool,
    /// Those of `names` that are not in the certificate.
    unsupported_names: Vec<String>,
    not_before: Timestamp,
    not_after: Timestamp,
}

impl Certificate {
    /// From a certificate chain and its key as PEM. It is used for `names`, or without any for the DNS names in the certificate.
    ///
    /// # Errors
    /// [`TlsError`]: what is missing or does not match. It never contains a part of the key.
    pub fn new(chain: &str, key: &Secret, names: &[String]) -> Result<Self, TlsError> {
        let chain = parse_pem_chain(chain.as_bytes())?;
        let leaf = chain.first().ok_or(TlsError::NoCertificate)?.clone();
        let parsed = parse_certificate(&leaf)?;
        // The parser's error is dropped: it could contain a part of the key.
        let key = PrivateKeyDer::from_pem_slice(key.reveal().as_bytes())
            .ok()
            .ok_or(TlsError::NoKey)?;
        let key = any_supported_type(&key).ok().ok_or(TlsError::NoKey)?;
        let served = CertifiedKey::new(chain, key);
        served
            .keys_match()
            .ok()
            .ok_or(TlsError::KeyOfAnotherCertificate)?;
        let held = dns_names(&parsed);
        let has_alternative_names = has_alternative_names(&parsed);
        let names = if names.is_empty() {
            held.clone()
        } else {
            names.to_vec()
        };
        let names: Vec<String> = names
            .iter()
            .map(|name| normalize_name(name))
            .collect::<Result<_, _>>()?;
        let unsupported = names.iter().filter(|name| !is_covered(name, &held));
        let unsupported_names = unsupported.cloned().collect();
        let (not_before, not_after) = validity(&parsed);
        Ok(Self {
            served: Arc::new(served),
            names,
            has_alternative_names,
            unsupported_names,
            not_before,
            not_after,
        })
    }

    /// The host names it is used for, in lower case; `*.` at the start stands for one label.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Whether its subject alternative names include a host. Clients ignore all other names (RFC 9110 section 4.3.4).
    #[must_use]
    pub const fn has_alternative_names(&self) -> bool {
        self.has_alternative_names
    }

    /// The configured names that are not among its subject alternative names.
    #[must_use]
    pub fn unsupported_names(&self) -> &[String] {
        &self.unsupported_names
    }

    /// The start and the end of its validity.
    #[must_use]
    pub const fn validity(&self) -> (Timestamp, Timestamp) {
        (self.not_before, self.not_after)
    }
}

/// Parses all certificates of a PEM text.
pub(super) fn parse_pem_chain(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|error| TlsError::BadCertificate(error.to_string()))?;
    if found.is_empty() {
        return Err(TlsError::NoCertificate);
    }
    Ok(found)
}

/// Parses a certificate in DER form.
pub(super) fn parse_certificate(der: &[u8]) -> Result<X509Certificate<'_>, TlsError> {
    match X509Certificate::from_der(der) {
        Ok((_, certificate)) => Ok(certificate),
        Err(error) => Err(TlsError::BadCertificate(error.to_string())),
    }
}

/// The first and the last second of its validity.
pub(super) fn validity(certificate: &X509Certificate<'_>) -> (Timestamp, Timestamp) {
    let validity = certificate.validity();
    (
        timestamp_from_seconds(validity.not_before.timestamp()),
        timestamp_from_seconds(validity.not_after.timestamp()),
    )
}

/// Whether a subject alternative name is a DNS name or an IP address.
fn has_alternative_names(certificate: &X509Certificate<'_>) -> bool {
    let names = certificate.subject_alternative_name().ok().flatten();
    let mut names = names.iter().flat_map(|name| &name.value.general_names);
    names.any(|name| matches!(name, GeneralName::DNSName(_) | GeneralName::IPAddress(_)))
}

/// Whether a certificate with these DNS names covers the host name or wildcard.
fn is_covered(name: &str, held: &[String]) -> bool {
    let parent = name.split_once('.').map(|(_label, parent)| parent);
    held.iter().any(|held| {
        let held = held.trim_end_matches('.');
        let wildcard = held.strip_prefix("*.");
        held.eq_ignore_ascii_case(name)
            || wildcard
                .zip(parent)
                .is_some_and(|(held, parent)| held.eq_ignore_ascii_case(parent))
    })
}

fn dns_names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.iter().flat_map(|name| &name.value.general_names);
    names
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::OtherName(..)
            | GeneralName::RFC822Name(_)
            | GeneralName::X400Address(_)
            | GeneralName::DirectoryName(_)
            | GeneralName::EDIPartyName(_)
            | GeneralName::URI(_)
            | GeneralName::IPAddress(_)
            | GeneralName::RegisteredID(_) => None,
        })
        .collect()
}

/// Checks a host name, which may start with a wildcard label, and converts it to lower case.
fn normalize_name(text: &str) -> Result<String, TlsError> {
    let lower = text.to_ascii_lowercase();
    let lower = lower.strip_suffix('.').unwrap_or(&lower);
    let rest = lower.strip_prefix("*.").unwrap_or(lower);
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if rest.is_empty() || !rest.bytes().all(is_allowed) || rest.split('.').any(str::is_empty) {
        return Err(TlsError::BadName(text.to_owned()));
    }
    Ok(lower.to_owned())
}

fn timestamp_from_seconds(seconds: i64) -> Timestamp {
    let seconds = u64::try_from(seconds).unwrap_or(0);
    Timestamp::from_millis(seconds.saturating_mul(1000))
}
