//! One certificate of the API port: read, checked against its key, with the names that it serves.

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

/// A certificate with its key, fit to be served.
#[derive(Clone, Debug)]
pub struct Certificate {
    pub(super) served: Arc<CertifiedKey>,
    /// In lower case; one that begins with `*.` stands for one label.
    names: Vec<String>,
    /// Whether it has names of hosts where clients look for them, beside the common name.
    has_alternative_names: bool,
    /// Those among its names that it does not hold itself.
    unsupported_names: Vec<String>,
    not_before: Timestamp,
    not_after: Timestamp,
}

impl Certificate {
    /// Takes a certificate, those between it and its authority, and its key, all as PEM. It serves `names`, or when there
    /// are none the DNS names in it.
    ///
    /// # Errors
    /// [`TlsError`]: what is missing or does not fit together. Nothing of the key is ever told.
    pub fn new(chain: &str, key: &Secret, names: &[String]) -> Result<Self, TlsError> {
        let chain = certificates(chain.as_bytes())?;
        let leaf = chain.first().ok_or(TlsError::NoCertificate)?.clone();
        let parsed = parsed(&leaf)?;
        // What is wrong with a key is not told: the text could hold a part of it.
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
        let names: Vec<String> = names.iter().map(|it| name(it)).collect::<Result<_, _>>()?;
        let unsupported = names.iter().filter(|name| !is_held(name, &held));
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

    /// The host names it serves, in lower case; one that begins with `*.` stands for one label.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Whether it names hosts in its subject alternative names. Clients look at no other (RFC 9110 section 4.3.4).
    #[must_use]
    pub const fn has_alternative_names(&self) -> bool {
        self.has_alternative_names
    }

    /// The names it was configured to serve that are not among its subject alternative names.
    #[must_use]
    pub fn unsupported_names(&self) -> &[String] {
        &self.unsupported_names
    }

    /// The first and the last moment at which it is valid.
    #[must_use]
    pub const fn validity(&self) -> (Timestamp, Timestamp) {
        (self.not_before, self.not_after)
    }
}

/// Every certificate of a PEM text.
pub(super) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|error| TlsError::BadCertificate(error.to_string()))?;
    if found.is_empty() {
        return Err(TlsError::NoCertificate);
    }
    Ok(found)
}

/// The certificate taken apart.
pub(super) fn parsed(der: &[u8]) -> Result<X509Certificate<'_>, TlsError> {
    match X509Certificate::from_der(der) {
        Ok((_, certificate)) => Ok(certificate),
        Err(error) => Err(TlsError::BadCertificate(error.to_string())),
    }
}

/// The first and the last second at which it is valid.
pub(super) fn validity(certificate: &X509Certificate<'_>) -> (Timestamp, Timestamp) {
    let validity = certificate.validity();
    (
        time(validity.not_before.timestamp()),
        time(validity.not_after.timestamp()),
    )
}

/// Whether there is an alternative name that can be that of a host.
fn has_alternative_names(certificate: &X509Certificate<'_>) -> bool {
    let names = certificate.subject_alternative_name().ok().flatten();
    let mut names = names.iter().flat_map(|name| &name.value.general_names);
    names.any(|name| matches!(name, GeneralName::DNSName(_) | GeneralName::IPAddress(_)))
}

/// Whether a certificate that holds these DNS names is one for the host name, or for the same wildcard.
fn is_held(name: &str, held: &[String]) -> bool {
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
        .filter_map(|it| match it {
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

/// A host name in lower case, perhaps with a wildcard for its first label.
fn name(text: &str) -> Result<String, TlsError> {
    let lower = text.to_ascii_lowercase();
    let lower = lower.strip_suffix('.').unwrap_or(&lower);
    let rest = lower.strip_prefix("*.").unwrap_or(lower);
    let is_good = |it: u8| it.is_ascii_alphanumeric() || b"-_.".contains(&it);
    if rest.is_empty() || !rest.bytes().all(is_good) || rest.split('.').any(str::is_empty) {
        return Err(TlsError::BadName(text.to_owned()));
    }
    Ok(lower.to_owned())
}

fn time(seconds: i64) -> Timestamp {
    let seconds = u64::try_from(seconds).unwrap_or(0);
    Timestamp::from_millis(seconds.saturating_mul(1000))
}
