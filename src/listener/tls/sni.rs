//! Which certificate is served to whom (SNI, RFC 6066 section 3).

use std::collections::BTreeMap;
use std::sync::Arc;

use rustls::server::ClientHello;
use rustls::server::ResolvesServerCert;
use rustls::sign::CertifiedKey;

use crate::listener::tls::Certificate;
use crate::listener::tls::TlsError;

/// The certificates by the host names they serve.
#[derive(Debug)]
pub(super) struct SniResolver {
    /// By the whole name.
    exact: BTreeMap<String, Arc<CertifiedKey>>,
    /// By what follows the first label.
    wild: BTreeMap<String, Arc<CertifiedKey>>,
    /// For clients that name no host.
    first: Arc<CertifiedKey>,
}

impl SniResolver {
    /// The first certificate is for clients that name no host as well.
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

    /// The certificate for a host; nothing for one that no certificate serves.
    fn find(&self, host: Option<&str>) -> Option<&Arc<CertifiedKey>> {
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
        self.find(hello.server_name()).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listener::tls::tests::certificate;

    #[test]
    fn hosts_get_the_certificate_that_serves_them() {
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
            let found = names.find(host);
            let place = |it: &Certificate| found.is_some_and(|key| Arc::ptr_eq(key, &it.served));
            assert_eq!(all.iter().position(place), expected, "{host:?}");
        }
    }

    #[test]
    fn what_cannot_be_told_apart_is_refused() {
        let twice = [certificate(&["a.example"]), certificate(&["a.example"])];
        let nameless = [certificate(&["a.example"]), certificate(&[])];
        let rows = [
            (SniResolver::new(&[]), "there is no certificate in PEM form"),
            (
                SniResolver::new(&twice),
                "another certificate serves a.example, too",
            ),
            (
                SniResolver::new(&nameless),
                "it has no DNS name; write which it serves as names",
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
