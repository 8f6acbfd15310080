//! Client certificates: the policy of the port, and the names in a certificate.

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

/// The policy for client certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientCertificates {
    /// None are requested.
    Off,
    /// Accepted if signed by one of these authorities (PEM).
    Optional(String),
    /// Required, signed by one of these authorities (PEM): other handshakes fail.
    Required(String),
}

/// The verifier of client certificates; `None` if none are requested.
pub(super) fn build_verifier(
    clients: &ClientCertificates,
) -> Result<Option<Arc<dyn ClientCertVerifier>>, TlsError> {
    let (pem, optional) = match clients {
        ClientCertificates::Off => return Ok(None),
        ClientCertificates::Optional(pem) => (pem, true),
        ClientCertificates::Required(pem) => (pem, false),
    };
    let unusable = |error: &dyn ToString| TlsError::BadAuthority(error.to_string());
    let mut roots = RootCertStore::empty();
    for authority in
        certificate::parse_pem_chain(pem.as_bytes()).map_err(|error| unusable(&error))?
    {
        roots.add(authority).map_err(|error| unusable(&error))?;
    }
    let provider = Arc::new(default_provider());
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let builder = if optional {
        builder.allow_unauthenticated()
    } else {
        builder
    };
    builder.build().map(Some).map_err(|error| unusable(&error))
}

/// All names in a certificate. The handshake has decided whether it is trusted.
pub(super) fn certificate_names(der: &[u8]) -> Vec<CertificateName> {
    let Ok(parsed) = certificate::parse_certificate(der) else {
        return Vec::new();
    };
    let alternative = parsed.subject_alternative_name().ok().flatten();
    let alternative = alternative
        .iter()
        .flat_map(|extension| &extension.value.general_names);
    let alternative = alternative.filter_map(|name| match name {
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
    let subject =
        format_subject(parsed.subject()).and_then(|subject| CertificateName::subject(&subject));
    subject
        .into_iter()
        .chain(alternative)
        .take(limits::CERTIFICATE_NAMES_MAX)
        .collect()
}

/// The subject in RFC 4514 form; `None` if an attribute has an unknown type or is not text.
fn format_subject(name: &X509Name<'_>) -> Option<String> {
    let mut parts: Vec<String> = Vec::new();
    for part in name.iter_rdn() {
        let all: Option<Vec<String>> = part.iter().map(format_attribute).collect();
        parts.push(all?.join("+"));
    }
    parts.reverse();
    Some(parts.join(","))
}

fn format_attribute(attribute: &AttributeTypeAndValue<'_>) -> Option<String> {
    let name = match attribute.attr_type().to_id_string().as_str() {
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
    let value = attribute.as_str().ok()?;
    Some(format!("{name}={}", escape_value(value)))
}

/// Escapes an attribute value (RFC 4514 section 2.4).
fn escape_value(value: &str) -> String {
    let mut text = String::new();
    let last = value.chars().count().saturating_sub(1);
    for (position, character) in value.chars().enumerate() {
        let special = "\"+,;<>\\".contains(character)
            || (position == 0 && (character == '#' || character == ' '))
            || (position == last && character == ' ');
        if special {
            text.push('\\');
        }
        text.push(character);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listener::tls::tests::client;

    #[test]
    fn all_names_of_a_certificate_are_read() {
        let found = certificate_names(&client());
        let found: Vec<&str> = found.iter().map(CertificateName::as_str).collect();
        let expected = [
            "subject:CN=ci\\, \\\"the\\\" builder,O=Lab,C=DE",
            "dns:ci.example.com",
            "email:ci@example.com",
            "uri:spiffe://lab/ci",
        ];
        assert_eq!(found, expected);
        assert_eq!(certificate_names(b"no certificate"), [], "no names");
    }
}
