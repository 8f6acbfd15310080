//! Certificates of the API port, and of its clients.

use toml::de::DeTable;

use crate::config::tables;
use crate::listener::Certificate;
use crate::listener::ClientCertificates;
use crate::listener::SharedTicketKeys;
use crate::listener::Tls;
use crate::listener::TlsError;
use crate::model::Secret;
use crate::schema::LocatedText;
use crate::schema::Reader;
use crate::schema::SecretSource;
use crate::schema::Section;

/// What `[[certificate]]` and `[tls]` come to.
pub(super) enum Encryption {
    /// No certificate is named.
    None,
    /// Something is wrong, and was noted.
    Wrong,
    /// All of it can be used.
    Ready(Tls),
}

impl Encryption {
    /// Whether the port is meant to be encrypted.
    pub(super) const fn is_wanted(&self) -> bool {
        match self {
            Self::None => false,
            Self::Wrong | Self::Ready(_) => true,
        }
    }

    pub(super) fn ready(self) -> Option<Tls> {
        match self {
            Self::None | Self::Wrong => None,
            Self::Ready(tls) => Some(tls),
        }
    }
}

/// Reads `[[certificate]]` and `[tls]`.
pub(super) fn read(
    reader: &Reader<'_>,
    root: &DeTable<'_>,
    source: &SecretSource<'_>,
) -> Encryption {
    let sections = Section::read_all(reader, root, &tables::certificate::TABLE);
    let read: Vec<_> = sections
        .iter()
        .map(|section| certificate(reader, section, source))
        .collect();
    let tls = Section::read_all(reader, root, &tables::tls::TABLE);
    let tls = tls.first();
    let clients = tls.and_then(|tls| clients(reader, tls, source, !sections.is_empty()));
    let ticket_keys = tls.map(|tls| ticket_keys(reader, tls, source, !sections.is_empty()));
    if sections.is_empty() {
        return Encryption::None;
    }
    let certificates: Option<Vec<Certificate>> = read.into_iter().collect();
    let (Some(certificates), Some(clients), Some(Ok(ticket_keys))) =
        (certificates, clients, ticket_keys)
    else {
        return Encryption::Wrong;
    };
    match Tls::new(certificates, clients) {
        Ok(tls) => Encryption::Ready(tls.with_ticket_keys(ticket_keys)),
        Err(error) => {
            unusable(&sections, tls, &error);
            Encryption::Wrong
        }
    }
}

fn unusable(sections: &[Section<'_>], tls: Option<&Section<'_>>, error: &TlsError) {
    let hint = "each host name belongs to one certificate";
    match error {
        TlsError::NoName(index) | TlsError::NameTwice(index, _) => {
            if let Some(section) = sections.get(*index) {
                section.report(error.to_string(), hint);
            }
        }
        TlsError::BadAuthority(_) => {
            if let Some(section) = tls {
                let hint = "name a file with certificates of authorities in PEM form";
                section.report_key(tables::tls::CLIENT_CA.name, error.to_string(), hint);
            }
        }
        TlsError::NoCertificate
        | TlsError::BadCertificate(_)
        | TlsError::NoKey
        | TlsError::KeyOfAnotherCertificate
        | TlsError::BadName(_) => {
            if let Some(section) = sections.first() {
                section.report(error.to_string(), "");
            }
        }
    }
}

fn certificate(
    reader: &Reader<'_>,
    section: &Section<'_>,
    source: &SecretSource<'_>,
) -> Option<Certificate> {
    use tables::certificate as name;
    let names: Vec<String> = section
        .read_texts(&name::NAMES)
        .into_iter()
        .map(|text| text.text)
        .collect();
    let chain = section.read_text(&name::CHAIN);
    let key = section.read_text(&name::KEY);
    let chain_text = chain.as_ref().and_then(|chain| text(reader, chain, source));
    let key_text = key.as_ref().and_then(|key| text(reader, key, source));
    let (chain, key) = (chain?, key?);
    source.mark_secret_file(&reader.folder().join(&key.text), "a private key");
    let made = Certificate::new(&chain_text?, &Secret::new(key_text?), &names);
    match made {
        Ok(made) => Some(made),
        Err(error) => {
            let what = error.to_string();
            match error {
                TlsError::NoKey | TlsError::KeyOfAnotherCertificate => {
                    reader.report_text(
                        &key,
                        what,
                        "name the key that the certificate was made for",
                    );
                }
                TlsError::BadName(_) => {
                    let hint = "write names such as \"example.com\" or \"*.example.com\"";
                    section.report_key(name::NAMES.name, what, hint);
                }
                TlsError::NoCertificate
                | TlsError::BadCertificate(_)
                | TlsError::NoName(_)
                | TlsError::NameTwice(..)
                | TlsError::BadAuthority(_) => {
                    reader.report_text(&chain, what, "name a file with certificates in PEM form");
                }
            }
            None
        }
    }
}

fn clients(
    reader: &Reader<'_>,
    section: &Section<'_>,
    source: &SecretSource<'_>,
    has_certificates: bool,
) -> Option<ClientCertificates> {
    let found = section.read_text(&tables::tls::CLIENT_CA);
    let wanted = section.read_choice(&tables::tls::CLIENT_CERTIFICATES)?;
    if wanted == "off" {
        if let Some(found) = found {
            let hint = "write client_certificates = \"optional\" or \"required\", or remove it";
            reader.report_text(
                &found,
                "has no effect with client_certificates = \"off\"",
                hint,
            );
            return None;
        }
        return Some(ClientCertificates::Off);
    }
    if !has_certificates {
        let what = "has no effect without TLS";
        let hint = "add a [[certificate]] for the API port";
        section.report_key(tables::tls::CLIENT_CERTIFICATES.name, what, hint);
        return None;
    }
    let Some(found) = found else {
        let hint = "name a file with certificates of authorities in PEM form";
        section.report_missing(tables::tls::CLIENT_CA.name, hint);
        return None;
    };
    let pem = text(reader, &found, source)?;
    Some(if wanted == "required" {
        ClientCertificates::Required(pem)
    } else {
        ClientCertificates::Optional(pem)
    })
}

/// The keys of session tickets that are shared, if any are.
fn ticket_keys(
    reader: &Reader<'_>,
    section: &Section<'_>,
    source: &SecretSource<'_>,
    has_certificates: bool,
) -> Result<Option<SharedTicketKeys>, Reported> {
    let Some(found) = section.read_text(&tables::tls::TICKET_KEYS) else {
        return Ok(None);
    };
    if !has_certificates {
        let hint = "add a [[certificate]] for the API port";
        reader.report_text(&found, "has no effect without TLS", hint);
        return Err(Reported);
    }
    let text = text(reader, &found, source).ok_or(Reported)?;
    source.mark_secret_file(
        &reader.folder().join(&found.text),
        "keys of session tickets",
    );
    match SharedTicketKeys::parse(&Secret::new(text)) {
        Ok(keys) => Ok(Some(keys)),
        Err(error) => {
            let hint = "make a key with: openssl rand -hex 32";
            reader.report_text(&found, error.to_string(), hint);
            Err(Reported)
        }
    }
}

/// Something is wrong, and was reported.
struct Reported;

/// The text of a file that a key names.
fn text(reader: &Reader<'_>, found: &LocatedText, source: &SecretSource<'_>) -> Option<String> {
    let path = reader.folder().join(&found.text);
    source
        .read(&path)
        .map_err(|what| reader.report_text(found, what, ""))
        .ok()
}
