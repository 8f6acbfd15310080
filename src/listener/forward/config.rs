//! What the upstreams of a route are configured with.

use std::fmt;
use std::panic::catch_unwind;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pingora::protocols::tls::CaType;
use pingora::utils::tls::CertKey;
use pingora::utils::tls::WrappedX509;
use pingora::utils::tls::parse_x509;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;

use crate::model::PassName;

/// A certificate whose key was thrown away when it was made.
const NOBODY: &str = "-----BEGIN CERTIFICATE-----\n\
MIIB0zCCAXmgAwIBAgIUQlFZIIyUp7MSm/En0e+k3c7qmKwwCgYIKoZIzj0EAwIw\n\
PjE8MDoGA1UEAwwzbm9ib2R5OiB0aGUga2V5IG9mIHRoaXMgY2VydGlmaWNhdGUg\n\
d2FzIHRocm93biBhd2F5MCAXDTI2MTEyNzAxMjU1MFoYDzIxMjYxMTAzMDEyNTUw\n\
WjA+MTwwOgYDVQQDDDNub2JvZHk6IHRoZSBrZXkgb2YgdGhpcyBjZXJ0aWZpY2F0\n\
ZSB3YXMgdGhyb3duIGF3YXkwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAARaAQB8\n\
Gt3LMBI2LxEU/G6uAImR3S11DK8sHY9NlScWzDVKMro4ZzxdBJnR9CPI6A0gYTTf\n\
VkkAr4ICl4myOuuvo1MwUTAdBgNVHQ4EFgQU5vi5KE8JG4MMVyqMixKM8N4mZugw\n\
HwYDVR0jBBgwFoAU5vi5KE8JG4MMVyqMixKM8N4mZugwDwYDVR0TAQH/BAUwAwEB\n\
/zAKBggqhkjOPQQDAgNIADBFAiBVzzDTewXyi5lO+0TGVAjn9bIa5+S4A2oLxZGS\n\
go0gJAIhAKVCXGn6NW6d60JZLp9rHQ0uqVRDoyzZNZ06ZeaeBjLq\n\
-----END CERTIFICATE-----\n";

/// The upstreams of one route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolConfig {
    /// The name of the route.
    pub route: PassName,
    /// At least one.
    pub upstreams: Vec<Upstream>,
    /// Which of them is asked.
    pub balance: Balance,
    /// How long an upstream may take.
    pub timeouts: Timeouts,
    /// How upstreams with TLS prove who they are. Nobody is trusted without.
    pub trust: Option<UpstreamTrust>,
    /// How the gateway proves who it is.
    pub identity: Option<UpstreamIdentity>,
    /// Whether and how health is asked after.
    pub probe: Option<HealthCheck>,
    /// Failed requests in a row after which an upstream is left alone for a while, if there is another.
    pub failures: u32,
    /// For how long.
    pub pause: Duration,
    /// How often names are looked up.
    pub resolve: Duration,
}

/// One upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// Where it is.
    pub place: UpstreamAddress,
    /// Whether it speaks TLS.
    pub tls: bool,
    /// How it is called in metrics and logs, and as `Host`: host and port, as configured.
    pub label: Arc<str>,
}

/// Where an upstream is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpstreamAddress {
    /// A host, by name or address, and a port.
    Host(String, u16),
    /// A unix socket.
    Socket(PathBuf),
}

/// Which upstream is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    /// One after the other.
    RoundRobin,
    /// The one with the fewest requests under way.
    LeastLoaded,
}

/// How long an upstream may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For a connection, and again for its TLS handshake.
    pub connect: Duration,
    /// For both together.
    pub connect_total: Duration,
    /// For the head of the answer, and between two pieces of its body.
    pub read: Duration,
    /// For taking one piece of the request.
    pub write: Duration,
    /// For which an unused connection is kept.
    pub idle: Duration,
    /// For which an upgraded connection may be silent.
    pub upgraded: Duration,
}

/// How health is asked after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The target of the GET: healthy is a 2xx or 3xx.
    pub path: String,
    /// How often.
    pub interval: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
    /// Good answers in a row that make an upstream healthy.
    pub rise: u32,
    /// Bad ones that make it not.
    pub fall: u32,
}

/// How an upstream proves who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpstreamTrust {
    /// By a certificate with this SHA-256; its names and dates do not matter.
    Pin([u8; 32]),
    /// By a certificate for its host, signed by one of these.
    Authorities(Authorities),
}

/// A certificate or key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamTlsError {
    /// One of the certificates.
    #[error("certificate {0} of the file cannot be read")]
    Certificate(usize),
    /// There is none.
    #[error("there is no certificate in PEM form")]
    None,
    /// The key, or that it does not belong to the certificate.
    #[error("the key cannot be read, or does not belong to the certificate")]
    Key,
}

/// Certificates of authorities.
#[derive(Clone)]
pub struct Authorities(pub(super) Arc<CaType>);

impl Authorities {
    /// Takes certificates in DER form.
    ///
    /// # Errors
    /// [`UpstreamTlsError`] when one of them is none, or there is none.
    pub fn new(certificates: &[CertificateDer<'static>]) -> Result<Self, UpstreamTlsError> {
        let mut made = Vec::with_capacity(certificates.len());
        let mut store = RootCertStore::empty();
        for (index, der) in certificates.iter().enumerate() {
            let unusable = || UpstreamTlsError::Certificate(index.saturating_add(1));
            store.add(der.clone()).map_err(|_error| unusable())?;
            let raw = der.to_vec();
            // Pingora's parser panics on what it cannot read.
            let parsed = catch_unwind(|| WrappedX509::new(raw, parse_x509));
            made.push(parsed.map_err(|_panic| unusable())?);
        }
        if made.is_empty() {
            return Err(UpstreamTlsError::None);
        }
        Ok(Self(made.into()))
    }

    /// One that signed nothing and never will. Pingora wants an authority even where none is asked, as with a pin.
    pub(super) fn nobody() -> Result<Self, UpstreamTlsError> {
        let der = CertificateDer::from_pem_slice(NOBODY.as_bytes());
        Self::new(&[der.map_err(|_error| UpstreamTlsError::None)?])
    }
}

impl fmt::Debug for Authorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authorities({})", self.0.len())
    }
}

impl PartialEq for Authorities {
    fn eq(&self, other: &Self) -> bool {
        let raw = |it: &Self| -> Vec<Vec<u8>> {
            let all = it.0.iter();
            all.map(|it| it.borrow_raw_cert().clone()).collect()
        };
        raw(self) == raw(other)
    }
}

impl Eq for Authorities {}

/// How the gateway proves who it is.
#[derive(Clone)]
pub struct UpstreamIdentity {
    pub(super) pair: Arc<CertKey>,
    leaf: Vec<u8>,
}

impl UpstreamIdentity {
    /// Takes a chain in DER form, the gateway's own certificate first, and its key.
    ///
    /// # Errors
    /// [`UpstreamTlsError`] when they cannot be used together.
    pub fn new(
        chain: &[CertificateDer<'static>],
        key: &PrivateKeyDer<'static>,
    ) -> Result<Self, UpstreamTlsError> {
        let leaf = chain.first().ok_or(UpstreamTlsError::None)?.to_vec();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|_error| UpstreamTlsError::Key)?
            .with_root_certificates(RootCertStore::empty())
            .with_client_auth_cert(chain.to_vec(), key.clone_key())
            .map_err(|_error| UpstreamTlsError::Key)?;
        // Pingora guesses the form of the key again, without being told.
        let secret = key.secret_der().to_vec();
        PrivateKeyDer::try_from(secret.clone()).map_err(|_text| UpstreamTlsError::Key)?;
        let raw: Vec<Vec<u8>> = chain.iter().map(|it| it.to_vec()).collect();
        let pair = catch_unwind(|| CertKey::new(raw, secret));
        let pair = Arc::new(pair.map_err(|_panic| UpstreamTlsError::Certificate(1))?);
        Ok(Self { pair, leaf })
    }
}

impl fmt::Debug for UpstreamIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity(***)")
    }
}

impl PartialEq for UpstreamIdentity {
    fn eq(&self, other: &Self) -> bool {
        self.leaf == other.leaf && self.pair.key() == other.pair.key()
    }
}

impl Eq for UpstreamIdentity {}
