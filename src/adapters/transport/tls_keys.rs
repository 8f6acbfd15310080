//! The configuration keys of TLS that REST adapters have in common: how the server and the gateway prove who they are.

use crate::adapters::kind::ReadContext;
use crate::adapters::transport::Address;
use crate::adapters::transport::ClientFiles;
use crate::adapters::transport::ServerTrust;
use crate::schema::Key;
use crate::schema::LocatedText;
use crate::schema::Section;
use crate::schema::Text;

/// The declarations of the keys in the table of one adapter.
pub(crate) struct TlsKeyNames<'k> {
    /// The file with the gateway's certificate.
    pub(crate) client_cert: &'k Key<Text>,
    /// The file with the key of that certificate.
    pub(crate) client_key: &'k Key<Text>,
    /// The file with the only certificate that the server may have.
    pub(crate) server_cert: &'k Key<Text>,
    /// The SHA-256 of that certificate.
    pub(crate) server_fingerprint: &'k Key<Text>,
    /// The file with the authority that signed the server's certificate.
    pub(crate) ca: &'k Key<Text>,
}

/// What these keys contain. All are read before the first error ends the reading, so that every error is reported.
pub(crate) struct TlsKeys {
    certificate: Option<LocatedText>,
    key: Option<LocatedText>,
    /// One for each key that says how the server proves who it is.
    trusts: Vec<ServerTrust>,
}

impl TlsKeys {
    /// Reads the keys.
    pub(crate) fn read(section: &Section<'_>, names: &TlsKeyNames<'_>) -> Self {
        let trusts = [
            section
                .read_text(names.server_cert)
                .map(|path| ServerTrust::Certificate(section.resolve_path(&path))),
            section
                .read_text(names.server_fingerprint)
                .map(|found| ServerTrust::Fingerprint(found.text)),
            section
                .read_text(names.ca)
                .map(|path| ServerTrust::Authority(section.resolve_path(&path))),
        ];
        Self {
            certificate: section.read_text(names.client_cert),
            key: section.read_text(names.client_key),
            trusts: trusts.into_iter().flatten().collect(),
        }
    }

    /// Whether the gateway has a certificate, or a part of one.
    pub(crate) const fn has_client_certificate(&self) -> bool {
        self.certificate.is_some() || self.key.is_some()
    }

    /// The address of a server with TLS; `None` after an error was reported at `url`. `trust_hint` names the usual choice.
    pub(crate) fn address(
        self,
        section: &Section<'_>,
        context: &ReadContext<'_>,
        url: &LocatedText,
        authority: String,
        trust_hint: &str,
    ) -> Option<Address> {
        let mut trusts = self.trusts.into_iter();
        let (Some(trust), None) = (trusts.next(), trusts.next()) else {
            let what = "needs exactly one of ca, server_cert and server_fingerprint";
            section.report_text(url, what, trust_hint);
            return None;
        };
        let identity = match (self.certificate, self.key) {
            (Some(certificate), Some(key)) => {
                let key = section.resolve_path(&key);
                context.secrets.mark_secret_file(&key, "a private key");
                let certificate = section.resolve_path(&certificate);
                Some(ClientFiles { certificate, key })
            }
            (None, None) => None,
            (Some(_), None) | (None, Some(_)) => {
                section.report_text(url, "needs both client_cert and client_key, or neither", "");
                return None;
            }
        };
        Some(Address::Https {
            authority,
            trust,
            identity,
        })
    }
}
