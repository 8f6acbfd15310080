//! TLS of the API port: certificates by host name, client certificates, and the identity kept with a connection.

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
use pingora::protocols::tls::SslDigest;
use pingora::protocols::tls::TlsRef;
use pingora::protocols::tls::TlsStream;
use rustls::server::danger::ClientCertVerifier;

use crate::listener::connection_phase::PhaseTracker;
use client_trust::ClientTrust;
pub(super) use client_trust::NoLongerValid;
pub(super) use client_trust::PresentedCertificate;
use sni::SniResolver;

/// Why certificates cannot be used: a lower-case sentence for the operator.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// No certificate.
    #[error("no PEM certificate found")]
    NoCertificate,
    /// A malformed certificate.
    #[error("cannot parse certificate: {0}")]
    BadCertificate(String),
    /// No usable key.
    #[error(
        "no usable PEM private key found (supported: unencrypted RSA, ECDSA P-256 or P-384, Ed25519)"
    )]
    NoKey,
    /// The key belongs to another certificate.
    #[error("the private key does not match the certificate")]
    KeyOfAnotherCertificate,
    /// A malformed host name.
    #[error("{0:?} is not a host name")]
    BadName(String),
    /// The certificate at this position, counted from 0, has no name.
    #[error("the certificate has no DNS name; set `names`")]
    NoName(usize),
    /// The certificate at this position has a name of an earlier one.
    #[error("duplicate certificate for {1}")]
    NameTwice(usize, String),
    /// The authorities for client certificates cannot be used.
    #[error("{0}")]
    BadAuthority(String),
}

/// The checked TLS configuration of a port.
#[derive(Clone)]
pub struct Tls {
    certificates: Vec<Certificate>,
    names: Arc<SniResolver>,
    clients: ClientCertificates,
    verifier: Option<Arc<dyn ClientCertVerifier>>,
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
        })
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

    fn acceptor(&self, trust: &Arc<ClientTrust>) -> pingora::Result<Acceptor> {
        let callback = HandshakeCallback(Arc::clone(trust));
        let mut settings = TlsSettings::with_callbacks(Box::new(callback))?;
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

/// Accepts TLS handshakes. The certificates can be replaced while connections are accepted.
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

    /// Uses this configuration for new handshakes, and to validate client certificates that were presented before. Earlier
    /// sessions are not resumed: only the acceptor that issued a ticket can decrypt it.
    pub(super) fn replace(&self, tls: &Tls) -> pingora::Result<()> {
        let acceptor = tls.acceptor(&self.trust)?;
        self.trust.replace(tls);
        self.acceptor.store(Arc::new(acceptor));
        Ok(())
    }

    pub(super) async fn accept(&self, socket: Socket) -> pingora::Result<TlsStream<Socket>> {
        let acceptor = self.acceptor.load_full();
        acceptor.tls_handshake(socket).await
    }
}

impl fmt::Debug for Handshakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Handshakes")
    }
}

/// The data kept with an encrypted connection.
#[derive(Debug)]
pub(super) struct TlsPeer {
    /// The certificate that the client presented.
    pub(super) certificate: PresentedCertificate,
    /// The phase of the connection, which its requests update in whatever task they run.
    pub(super) phases: PhaseTracker,
}

/// The data kept with an encrypted connection, from its digest.
pub(super) fn tls_peer(digest: &SslDigest) -> Option<&TlsPeer> {
    digest.extension.get::<TlsPeer>()
}

/// Creates the [`TlsPeer`] at the end of a handshake.
struct HandshakeCallback(Arc<ClientTrust>);

#[async_trait]
impl TlsAccept for HandshakeCallback {
    async fn handshake_complete_callback(
        &self,
        tls: &TlsRef,
    ) -> Option<Arc<dyn Any + Send + Sync>> {
        let chain = tls.peer_cert_chain_der().unwrap_or_default();
        Some(Arc::new(TlsPeer {
            certificate: PresentedCertificate::new(Arc::clone(&self.0), chain),
            phases: PhaseTracker::new(),
        }))
    }
}
