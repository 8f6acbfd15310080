//! The configuration of the upstreams of a route.

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

/// A certificate whose key was discarded when it was created.
const KEYLESS_AUTHORITY: &str = "-----BEGIN CERTIFICATE-----\n\
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
    /// How an upstream is selected.
    pub balance: Balance,
    /// Time limits.
    pub timeouts: Timeouts,
    /// How upstreams with TLS are authenticated. None is trusted without.
    pub trust: Option<UpstreamTrust>,
    /// The client certificate of the gateway.
    pub identity: Option<UpstreamIdentity>,
    /// Active health checks, if configured.
    pub health_check: Option<HealthCheck>,
    /// Consecutive failed requests after which an upstream is ejected for `pause`, if there is another.
    pub failures: u32,
    /// How long an ejected upstream gets no requests.
    pub pause: Duration,
    /// Interval of name resolution.
    pub resolve: Duration,
}

/// One upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// Its address.
    pub address: UpstreamAddress,
    /// Whether it uses TLS.
    pub tls: bool,
    /// Its name in metrics and logs, and as `Host`: host and port as configured.
    pub label: Arc<str>,
}

/// The configured address of an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpstreamAddress {
    /// A host name or IP address, and a port.
    Host(String, u16),
    /// The path of a Unix socket.
    Socket(PathBuf),
}

/// How an upstream is selected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    /// In turn.
    RoundRobin,
    /// The one with the fewest requests in flight.
    LeastLoaded,
}

/// Time limits for upstreams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For connecting, and again for the TLS handshake.
    pub connect: Duration,
    /// For both together.
    pub connect_total: Duration,
    /// For the response head, and between two pieces of the body.
    pub read: Duration,
    /// For writing one piece of the request.
    pub write: Duration,
    /// How long an idle connection is kept.
    pub idle: Duration,
    /// How long an upgraded connection may be silent.
    pub upgraded: Duration,
}

/// An active health check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The target of the GET. A 2xx or 3xx status is healthy.
    pub path: String,
    /// Interval.
    pub interval: Duration,
    /// Time limit.
    pub timeout: Duration,
    /// Consecutive successes that make an upstream healthy.
    pub rise: u32,
    /// Consecutive failures that make it unhealthy.
    pub fall: u32,
}

/// How an upstream is authenticated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpstreamTrust {
    /// By a certificate with this SHA-256; its names and validity are not checked.
    Pin([u8; 32]),
    /// By a certificate for its host, signed by one of these authorities.
    Authorities(Authorities),
}

/// A certificate or key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamTlsError {
    /// The certificate at this position, counted from 1.
    #[error("cannot parse certificate {0} of the file")]
    Certificate(usize),
    /// No certificate.
    #[error("no PEM certificate found")]
    None,
    /// The key is unusable or belongs to another certificate.
    #[error("the key cannot be parsed or does not match the certificate")]
    Key,
}

/// Certificates of trusted authorities.
#[derive(Clone)]
pub struct Authorities(pub(super) Arc<CaType>);

impl Authorities {
    /// From certificates in DER form.
    ///
    /// # Errors
    /// [`UpstreamTlsError`] if one cannot be parsed, or there is none.
    pub fn new(certificates: &[CertificateDer<'static>]) -> Result<Self, UpstreamTlsError> {
        let mut made = Vec::with_capacity(certificates.len());
        let mut store = RootCertStore::empty();
        for (index, der) in certificates.iter().enumerate() {
            let unusable = || UpstreamTlsError::Certificate(index.saturating_add(1));
            store.add(der.clone()).map_err(|_error| unusable())?;
            let raw = der.to_vec();
            // Pingora's parser panics on malformed certificates.
            let parsed = catch_unwind(|| WrappedX509::new(raw, parse_x509));
            made.push(parsed.map_err(|_panic| unusable())?);
        }
        if made.is_empty() {
            return Err(UpstreamTlsError::None);
        }
        Ok(Self(made.into()))
    }

    /// One that never signs anything. Pingora requires an authority even if none is used, as with a pin.
    pub(super) fn trusting_none() -> Result<Self, UpstreamTlsError> {
        let der = CertificateDer::from_pem_slice(KEYLESS_AUTHORITY.as_bytes());
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
        let raw = |authorities: &Self| -> Vec<Vec<u8>> {
            let all = authorities.0.iter();
            all.map(|certificate| certificate.borrow_raw_cert().clone())
                .collect()
        };
        raw(self) == raw(other)
    }
}

impl Eq for Authorities {}

/// The client certificate of the gateway.
#[derive(Clone)]
pub struct UpstreamIdentity {
    pub(super) pair: Arc<CertKey>,
    leaf: Vec<u8>,
}

impl UpstreamIdentity {
    /// From a certificate chain in DER form, the gateway's own certificate first, and its key.
    ///
    /// # Errors
    /// [`UpstreamTlsError`] if they cannot be used together.
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
        // Pingora guesses the format of the key again from its bytes: check that the guess works.
        let secret = key.secret_der().to_vec();
        PrivateKeyDer::try_from(secret.clone()).map_err(|_text| UpstreamTlsError::Key)?;
        let raw: Vec<Vec<u8>> = chain
            .iter()
            .map(|certificate| certificate.to_vec())
            .collect();
        let pair = catch_unwind(|| CertKey::new(raw, secret));
        let pair = Arc::new(pair.map_err(|_panic| UpstreamTlsError::Certificate(1))?);
        Ok(Self { pair, leaf })
    }
}

impl fmt::Debug for UpstreamIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UpstreamIdentity(***)")
    }
}

impl PartialEq for UpstreamIdentity {
    fn eq(&self, other: &Self) -> bool {
        self.leaf == other.leaf && self.pair.key() == other.pair.key()
    }
}

impl Eq for UpstreamIdentity {}
