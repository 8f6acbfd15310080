//! Certificates of clients: which are believed, and what they say.

use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::ring::default_provider;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use x509_parser::extensions::GeneralName;
use x509_parser::x509::AttributeTypeAndValue;
use x509_parser::x509::X509Name;

use crate::listener::tls::TlsError;
use crate::listener::tls::certificate;
use crate::model::CertificateName;
use crate::model::limits;

/// Whether clients show certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientCertificates {
    /// They are not asked to.
    Off,
    /// They may, signed by one of these authorities (PEM).
    Optional(String),
    /// They must; whoever has none gets no connection.
    Required(String),
}

/// What decides about certificates of clients; `None` when there are none.
pub(super) fn verifier(
    clients: &ClientCertificates,
) -> Result<Option<Arc<dyn ClientCertVerifier>>, TlsError> {
    let (pem, optional) = match clients {
        ClientCertificates::Off => return Ok(None),
        ClientCertificates::Optional(pem) => (pem, true),
        ClientCertificates::Required(pem) => (pem, false),
    };
    let bad = |it: &dyn ToString| TlsError::BadAuthority(it.to_string());
    let mut roots = RootCertStore::empty();
    for it in certificate::certificates(pem.as_bytes()).map_err(|error| bad(&error))? {
        roots.add(it).map_err(|error| bad(&error))?;
    }
    let provider = Arc::new(default_provider());
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let builder = if optional {
        builder.allow_unauthenticated()
    } else {
        builder
    };
    builder.build().map(Some).map_err(|error| bad(&error))
}

/// Everything a certificate says about who holds it. Whether it is to be believed was decided in the handshake.
pub(super) fn names(der: &[u8]) -> Vec<CertificateName> {
    let Ok(parsed) = certificate::parsed(der) else {
        return Vec::new();
    };
    let alternative = parsed.subject_alternative_name().ok().flatten();
    let alternative = alternative.iter().flat_map(|it| &it.value.general_names);
    let alternative = alternative.filter_map(|it| match it {
        GeneralName::DNSName(name) => CertificateName::dns(name),
        GeneralName::RFC822Name(address) => CertificateName::email(address),
        GeneralName::URI(uri) => CertificateName::uri(uri),
        GeneralName::OtherName(..)
        | GeneralName::X400Address(_)
        | GeneralName::DirectoryName(_)
        | GeneralName::EDIPartyName(_)
        | GeneralName::IPAddress(_)
        | GeneralName::RegisteredID(_) => None,
    });
    let subject = subject(parsed.subject()).and_then(|it| CertificateName::subject(&it));
    subject
        .into_iter()
        .chain(alternative)
        .take(limits::CERTIFICATE_NAMES_MAX)
        .collect()
}

/// The subject as RFC 4514 writes it; `None` when it holds something that has no name or is no text.
fn subject(name: &X509Name<'_>) -> Option<String> {
    let mut parts: Vec<String> = Vec::new();
    for part in name.iter_rdn() {
        let all: Option<Vec<String>> = part.iter().map(attribute).collect();
        parts.push(all?.join("+"));
    }
    parts.reverse();
    Some(parts.join(","))
}

fn attribute(it: &AttributeTypeAndValue<'_>) -> Option<String> {
    let name = match it.attr_type().to_id_string().as_str() {
        "2.5.4.3" => "CN",
        "2.5.4.5" => "serialNumber",
        "2.5.4.6" => "C",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.9" => "street",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        "0.9.2342.19200300.100.1.1" => "UID",
        "0.9.2342.19200300.100.1.25" => "DC",
        "1.2.840.113549.1.9.1" => "emailAddress",
        _ => return None,
    };
    let value = it.as_str().ok()?;
    Some(format!("{name}={}", escaped(value)))
}

/// RFC 4514 section 2.4.
fn escaped(value: &str) -> String {
    let mut text = String::new();
    let last = value.chars().count().saturating_sub(1);
    for (place, it) in value.chars().enumerate() {
        let special = "\"+,;<>\\".contains(it)
            || (place == 0 && (it == '#' || it == ' '))
            || (place == last && it == ' ');
        if special {
            text.push('\\');
        }
        text.push(it);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listener::tls::tests::client;

    #[test]
    fn every_name_of_a_certificate_is_read() {
        let found = names(&client());
        let found: Vec<&str> = found.iter().map(CertificateName::as_str).collect();
        let expected = [
            "subject:CN=ci\\, \\\"the\\\" builder,O=Lab,C=DE",
            "dns:ci.example.com",
            "email:ci@example.com",
            "uri:spiffe://lab/ci",
        ];
        assert_eq!(found, expected);
        assert_eq!(names(b"no certificate"), [], "nothing is made up");
    }
}
