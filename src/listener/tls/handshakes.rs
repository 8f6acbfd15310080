//! TLS handshakes, and the identity kept with each connection.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use pingora::ErrorType;
use pingora::OrErr as _;
use pingora::listeners::TlsAccept;
use pingora::listeners::tls::Acceptor;
use pingora::listeners::tls::TlsSettings;
use pingora::protocols::ALPN;
use pingora::protocols::l4::stream::Stream as Socket;
use pingora::protocols::tls::SslDigest;
use pingora::protocols::tls::TlsRef;
use pingora::protocols::tls::TlsStream;
use rustls::ServerConfig;

use crate::listener::connection_phase::PhaseTracker;
use crate::listener::tls::PresentedCertificate;
use crate::listener::tls::SharedTicketKeys;
use crate::listener::tls::Tls;
use crate::listener::tls::client_trust::ClientTrust;
use crate::listener::tls::session_tickets;
use crate::listener::tls::session_tickets::SessionTickets;
use crate::listener::tls::sni::SniResolver;

/// Accepts TLS handshakes. The certificates can be replaced while connections are accepted.
pub(in crate::listener) struct Handshakes {
    acceptor: ArcSwap<Acceptor>,
    trust: Arc<ClientTrust>,
    /// Used unless the configuration names shared keys. They outlive a reload, after which clients go on resuming.
    private_tickets: SessionTickets,
}

impl Handshakes {
    pub(in crate::listener) fn new(tls: &Tls) -> pingora::Result<Self> {
        let trust = ClientTrust::new(tls);
        let private_tickets = session_tickets::private_tickets()
            .or_err(ErrorType::InternalError, "making keys of session tickets")?;
        Ok(Self {
            acceptor: ArcSwap::from_pointee(build_acceptor(tls, &trust, &private_tickets)?),
            trust,
            private_tickets,
        })
    }

    /// Uses this configuration for new handshakes, and to validate client certificates that were presented before. Earlier
    /// sessions are still resumed, because what they prove is validated for every request.
    pub(in crate::listener) fn replace(&self, tls: &Tls) -> pingora::Result<()> {
        let acceptor = build_acceptor(tls, &self.trust, &self.private_tickets)?;
        self.trust.replace(tls);
        self.acceptor.store(Arc::new(acceptor));
        Ok(())
    }

    pub(in crate::listener) async fn accept(
        &self,
        socket: Socket,
    ) -> pingora::Result<TlsStream<Socket>> {
        let acceptor = self.acceptor.load_full();
        acceptor.tls_handshake(socket).await
    }
}

impl fmt::Debug for Handshakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Handshakes")
    }
}

fn build_acceptor(
    tls: &Tls,
    trust: &Arc<ClientTrust>,
    private_tickets: &SessionTickets,
) -> pingora::Result<Acceptor> {
    let callback = HandshakeCallback(Arc::clone(trust));
    let mut settings = TlsSettings::with_callbacks(Box::new(callback))?;
    settings.set_cert_resolver(Arc::<SniResolver>::clone(tls.resolver()));
    if let Some(verifier) = tls.verifier() {
        settings.set_client_cert_verifier(Arc::clone(verifier));
    }
    settings.set_alpn(ALPN::H2H1);
    let mut acceptor = settings.build();
    // Pingora's settings know no tickets. Without them sessions are kept in a table of 256, which few clients fill.
    let mut config = ServerConfig::clone(acceptor.acceptor.config());
    config.ticketer = match tls.ticket_keys() {
        Some(shared) => Arc::<SharedTicketKeys>::clone(shared),
        None => Arc::clone(private_tickets),
    };
    acceptor.acceptor = Arc::new(config).into();
    Ok(acceptor)
}

/// The data kept with an encrypted connection.
#[derive(Debug)]
pub(in crate::listener) struct TlsPeer {
    /// The certificate that the client presented.
    pub(in crate::listener) certificate: PresentedCertificate,
    /// The phase of the connection, which its requests update in whatever task they run.
    pub(in crate::listener) phases: PhaseTracker,
}

/// The data kept with an encrypted connection, from its digest.
pub(in crate::listener) fn tls_peer(digest: &SslDigest) -> Option<&TlsPeer> {
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
