//! Selects the certificate by the host name that the client asks for (SNI, RFC 6066 section 3).

use std::collections::BTreeMap;
use std::sync::Arc;

use rustls::server::ClientHello;
use rustls::server::ResolvesServerCert;
use rustls::sign::CertifiedKey;

use crate::listener::tls::Certificate;
use crate::listener::tls::TlsError;

/// The certificates by host name.
#[derive(Debug)]
pub(super) struct SniResolver {
    /// By full name.
    exact: BTreeMap<String, Arc<CertifiedKey>>,
    /// Wildcards, by the name after the first label.
    wild: BTreeMap<String, Arc<CertifiedKey>>,
    /// For clients that name no host.
    first: Arc<CertifiedKey>,
}

impl SniResolver {
    /// The first certificate is also used for clients that name no host.
    pub(super) fn new(certificates: &[Certificate]) -> Result<Self, TlsError> {
        let first = certificates.first().ok_or(TlsError::NoCertificate)?;
        let mut names = Self {
            exact: BTreeMap::new(),
            wild: BTreeMap::new(),
            first: Arc::clone(&first.served),
        };
        for (index, certificate) in certificates.iter().enumerate() {
            if index > 0 && certificate.names().is_empty() {
                return Err(TlsError::NoName(index));
            }
            for name in certificate.names() {
                let served = Arc::clone(&certificate.served);
                let before = match name.strip_prefix("*.") {
                    Some(rest) => names.wild.insert(rest.to_owned(), served),
                    None => names.exact.insert(name.clone(), served),
                };
                if before.is_some() {
                    return Err(TlsError::NameTwice(index, name.clone()));
                }
            }
        }
        Ok(names)
    }

    /// The certificate for a host; `None` if there is none.
    fn find_certificate(&self, host: Option<&str>) -> Option<&Arc<CertifiedKey>> {
        let Some(host) = host else {
            return Some(&self.first);
        };
        let host = host.to_ascii_lowercase();
        let host = host.strip_suffix('.').unwrap_or(&host);
        self.exact.get(host).or_else(|| {
            let (_, rest) = host.split_once('.')?;
            self.wild.get(rest)
        })
    }
}

impl ResolvesServerCert for SniResolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.find_certificate(hello.server_name()).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listener::tls::tests::certificate;

    #[test]
    fn each_host_gets_its_certificate() {
        let all = [
            certificate(&["a.example", "A.example.org"]),
            certificate(&["*.example", "b.example"]),
            certificate(&["*.deep.example"]),
        ];
        let names = SniResolver::new(&all).unwrap();
        let rows = [
            (None, Some(0)),
            (Some("a.example"), Some(0)),
            (Some("A.EXAMPLE."), Some(0)),
            (Some("a.example.org"), Some(0)),
            (Some("b.example"), Some(1)),
            (Some("c.example"), Some(1)),
            (Some("x.deep.example"), Some(2)),
            (Some("x.y.deep.example"), None),
            (Some("x.y.example"), None),
            (Some("example"), None),
            (Some("other"), None),
        ];
        for (host, expected) in rows {
            let found = names.find_certificate(host);
            let is_found = |certificate: &Certificate| {
                found.is_some_and(|key| Arc::ptr_eq(key, &certificate.served))
            };
            assert_eq!(all.iter().position(is_found), expected, "{host:?}");
        }
    }

    #[test]
    fn duplicate_and_missing_names_are_refused() {
        let twice = [certificate(&["a.example"]), certificate(&["a.example"])];
        let nameless = [certificate(&["a.example"]), certificate(&[])];
        let rows = [
            (SniResolver::new(&[]), "no PEM certificate found"),
            (
                SniResolver::new(&twice),
                "duplicate certificate for a.example",
            ),
            (
                SniResolver::new(&nameless),
                "the certificate has no DNS name; set `names`",
            ),
        ];
        for (made, expected) in rows {
            assert_eq!(made.unwrap_err().to_string(), expected);
        }
        assert!(
            SniResolver::new(&[certificate(&[])]).is_ok(),
            "the first is for clients that name no host"
        );
    }
}
