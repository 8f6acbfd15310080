//! TLS of the API port: certificates by host name, certificates of clients, and what a connection knows of its client.

mod certificate;
mod client_certificate;
mod client_trust;
mod sni;
#[cfg(test)]
pub(super) mod tests;

pub use certificate::Certificate;
pub use client_certificate::ClientCertificates;

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use pingora::listeners::TlsAccept;
use pingora::listeners::tls::Acceptor;
use pingora::listeners::tls::TlsSettings;
use pingora::protocols::ALPN;
use pingora::protocols::l4::stream::Stream as Socket;
use pingora::protocols::tls::TlsRef;
use pingora::protocols::tls::TlsStream;
use rustls::server::danger::ClientCertVerifier;

use crate::listener::connection_lifecycle::PhaseTracker;
use client_trust::ClientTrust;
pub(super) use client_trust::NoLongerValid;
pub(super) use client_trust::PresentedCertificate;
use sni::SniResolver;

/// Why certificates cannot be used: a lower-case sentence for the operator.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// Nothing that looks like one.
    #[error("there is no certificate in PEM form")]
    NoCertificate,
    /// One that cannot be read.
    #[error("a certificate cannot be read: {0}")]
    BadCertificate(String),
    /// No key that can be used.
    #[error(
        "there is no private key in PEM form that can be used: RSA, ECDSA P-256 or P-384, or Ed25519, not encrypted"
    )]
    NoKey,
    /// The key belongs to another certificate.
    #[error("the key does not belong to the certificate")]
    KeyOfAnotherCertificate,
    /// A name that is none.
    #[error("{0:?} is not a host name")]
    BadName(String),
    /// The certificate of that place, counted from 0, serves no host.
    #[error("it has no DNS name; write which it serves as names")]
    NoName(usize),
    /// The certificate of that place serves a host that an earlier one serves.
    #[error("another certificate serves {1}, too")]
    NameTwice(usize, String),
    /// The authorities of clients cannot be used.
    #[error("{0}")]
    BadAuthority(String),
}

/// All that TLS needs, checked.
#[derive(Clone)]
pub struct Tls {
    certificates: Vec<Certificate>,
    names: Arc<SniResolver>,
    clients: ClientCertificates,
    verifier: Option<Arc<dyn ClientCertVerifier>>,
}

impl Tls {
    /// The first certificate is for clients that name no host, too.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn new(
        certificates: Vec<Certificate>,
        clients: ClientCertificates,
    ) -> Result<Self, TlsError> {
        Ok(Self {
            names: Arc::new(SniResolver::new(&certificates)?),
            verifier: client_certificate::verifier(&clients)?,
            certificates,
            clients,
        })
    }

    /// The certificates, in order.
    #[must_use]
    pub fn certificates(&self) -> &[Certificate] {
        &self.certificates
    }

    /// Whether clients show certificates.
    #[must_use]
    pub const fn clients(&self) -> &ClientCertificates {
        &self.clients
    }

    fn acceptor(&self, trust: &Arc<ClientTrust>) -> pingora::Result<Acceptor> {
        let introduction = HandshakeCallback(Arc::clone(trust));
        let mut settings = TlsSettings::with_callbacks(Box::new(introduction))?;
        settings.set_cert_resolver(Arc::<SniResolver>::clone(&self.names));
        if let Some(verifier) = &self.verifier {
            settings.set_client_cert_verifier(Arc::clone(verifier));
        }
        settings.set_alpn(ALPN::H2H1);
        Ok(settings.build())
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

/// What makes handshakes; can be exchanged while connections come in.
pub(super) struct Handshakes {
    acceptor: ArcSwap<Acceptor>,
    trust: Arc<ClientTrust>,
}

impl Handshakes {
    pub(super) fn new(tls: &Tls) -> pingora::Result<Self> {
        let trust = ClientTrust::new(tls);
        Ok(Self {
            acceptor: ArcSwap::from_pointee(tls.acceptor(&trust)?),
            trust,
        })
    }

    /// Handshakes that begin from now on are made with this, and certificates that clients showed before are judged by it.
    /// Sessions of before are not resumed: their tickets are known to what made them alone.
    pub(super) fn replace(&self, tls: &Tls) -> pingora::Result<()> {
        let acceptor = tls.acceptor(&self.trust)?;
        self.trust.replace(tls);
        self.acceptor.store(Arc::new(acceptor));
        Ok(())
    }

    pub(super) async fn make(&self, socket: Socket) -> pingora::Result<TlsStream<Socket>> {
        let acceptor = self.acceptor.load_full();
        acceptor.tls_handshake(socket).await
    }
}

impl fmt::Debug for Handshakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Handshakes")
    }
}

/// What is kept with an encrypted connection.
#[derive(Debug)]
pub(super) struct TlsPeer {
    /// What the client proved, and whether it still counts.
    pub(super) client: PresentedCertificate,
    /// What the connection is doing: its requests tell, wherever they run.
    pub(super) phases: PhaseTracker,
}

/// Makes [`TlsPeer`] of what the handshake brought.
struct HandshakeCallback(Arc<ClientTrust>);

#[async_trait]
impl TlsAccept for HandshakeCallback {
    async fn handshake_complete_callback(
        &self,
        tls: &TlsRef,
    ) -> Option<Arc<dyn Any + Send + Sync>> {
        let chain = tls.peer_cert_chain_der().unwrap_or_default();
        Some(Arc::new(TlsPeer {
            client: PresentedCertificate::new(Arc::clone(&self.0), chain),
            phases: PhaseTracker::new(),
        }))
    }
}
