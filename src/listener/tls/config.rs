//! The checked TLS configuration of a port.

use std::fmt;
use std::sync::Arc;

use rustls::server::danger::ClientCertVerifier;

use crate::listener::tls::Certificate;
use crate::listener::tls::ClientCertificates;
use crate::listener::tls::SharedTicketKeys;
use crate::listener::tls::TlsError;
use crate::listener::tls::client_certificate;
use crate::listener::tls::sni::SniResolver;

/// The checked TLS configuration of a port.
#[derive(Clone)]
pub struct Tls {
    certificates: Vec<Certificate>,
    names: Arc<SniResolver>,
    clients: ClientCertificates,
    verifier: Option<Arc<dyn ClientCertVerifier>>,
    ticket_keys: Option<Arc<SharedTicketKeys>>,
}

impl Tls {
    /// The first certificate is also used for clients that name no host.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn new(
        certificates: Vec<Certificate>,
        clients: ClientCertificates,
    ) -> Result<Self, TlsError> {
        Ok(Self {
            names: Arc::new(SniResolver::new(&certificates)?),
            verifier: client_certificate::build_verifier(&clients)?,
            certificates,
            clients,
            ticket_keys: None,
        })
    }

    /// Uses these keys for session tickets, instead of keys of this process.
    #[must_use]
    pub fn with_ticket_keys(mut self, keys: Option<SharedTicketKeys>) -> Self {
        self.ticket_keys = keys.map(Arc::new);
        self
    }

    /// The certificates, in order.
    #[must_use]
    pub fn certificates(&self) -> &[Certificate] {
        &self.certificates
    }

    /// The policy for client certificates.
    #[must_use]
    pub const fn clients(&self) -> &ClientCertificates {
        &self.clients
    }

    pub(super) fn resolver(&self) -> &Arc<SniResolver> {
        &self.names
    }

    pub(super) const fn ticket_keys(&self) -> Option<&Arc<SharedTicketKeys>> {
        self.ticket_keys.as_ref()
    }

    pub(super) const fn verifier(&self) -> Option<&Arc<dyn ClientCertVerifier>> {
        self.verifier.as_ref()
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.certificates.iter().map(Certificate::names).collect();
        f.debug_struct("Tls")
            .field("names", &names)
            .field("clients", &self.clients)
            .finish_non_exhaustive()
    }
}
