//! Validates the client certificate of a connection again for every request.
//!
//! The handshake may be long ago: connections stay open, and a resumed session carries over the certificate of an earlier handshake
//! without verification. Meanwhile the certificate may have expired, or a reload may have removed its authority. Signatures are
//! verified once per set of authorities and per span of time in which no certificate of the chain becomes valid or expires;
//! otherwise a request costs one comparison.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::UnixTime;
use rustls::server::danger::ClientCertVerifier;

use crate::listener::tls::Tls;
use crate::listener::tls::certificate;
use crate::listener::tls::client_certificate;
use crate::model::CertificateName;
use crate::model::Timestamp;

/// The authorities that are trusted now; replaced by a reload.
pub(super) struct ClientTrust(ArcSwap<TrustRules>);

/// The authorities of one configuration.
struct TrustRules {
    verifier: Option<Arc<dyn ClientCertVerifier>>,
    /// Incremented by every reload.
    generation: u64,
}

impl ClientTrust {
    pub(super) fn new(tls: &Tls) -> Arc<Self> {
        let rules = TrustRules {
            verifier: tls.verifier().cloned(),
            generation: 0,
        };
        Arc::new(Self(ArcSwap::from_pointee(rules)))
    }

    /// Validates every certificate by this configuration from now on, whenever it was presented.
    pub(super) fn replace(&self, tls: &Tls) {
        self.0.rcu(|before| TrustRules {
            verifier: tls.verifier().cloned(),
            generation: before.generation.wrapping_add(1),
        });
    }
}

impl fmt::Debug for ClientTrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let generation = self.0.load().generation;
        f.debug_tuple("Trust").field(&generation).finish()
    }
}

/// The certificate that the client of a connection presented, if any.
#[derive(Debug)]
pub(in crate::listener) struct PresentedCertificate {
    trust: Arc<ClientTrust>,
    /// The client's own certificate first; empty if it presented none.
    chain: Vec<CertificateDer<'static>>,
    names: Arc<[CertificateName]>,
    /// The times at which a certificate of the chain becomes valid or expires, in order.
    boundaries: Vec<Timestamp>,
    last: Mutex<Option<CachedVerification>>,
}

/// The result of a verification, and what it holds for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct CachedVerification {
    generation: u64,
    /// How many of the boundaries had passed.
    boundaries_passed: usize,
    is_valid: bool,
}

/// The port requires a client certificate, and that of the connection is no longer valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the port requires a client certificate, and that of this connection is no longer valid")]
pub(in crate::listener) struct NoLongerValid;

impl PresentedCertificate {
    pub(super) fn new(trust: Arc<ClientTrust>, chain: &[CertificateDer<'static>]) -> Self {
        let names = chain
            .first()
            .map(|leaf| client_certificate::certificate_names(leaf));
        let mut boundaries: Vec<Timestamp> = chain
            .iter()
            .filter_map(|der| certificate::parse_certificate(der).ok())
            .flat_map(|parsed| {
                let validity = certificate::validity(&parsed);
                // A certificate is valid throughout its last second.
                [validity.0, validity.1.plus(Duration::from_secs(1))]
            })
            .collect();
        boundaries.sort_unstable();
        Self {
            trust,
            chain: chain.to_vec(),
            names: names.unwrap_or_default().into(),
            boundaries,
            last: Mutex::default(),
        }
    }

    /// The names in the certificate if it is valid at that time; otherwise none.
    ///
    /// # Errors
    /// [`NoLongerValid`].
    pub(in crate::listener) fn names_at(
        &self,
        now: Timestamp,
    ) -> Result<Arc<[CertificateName]>, NoLongerValid> {
        let rules = self.trust.0.load();
        let Some(verifier) = &rules.verifier else {
            return Ok(Arc::default());
        };
        if self.is_valid(verifier.as_ref(), rules.generation, now) {
            Ok(Arc::clone(&self.names))
        } else if verifier.client_auth_mandatory() {
            Err(NoLongerValid)
        } else {
            Ok(Arc::default())
        }
    }

    fn is_valid(&self, verifier: &dyn ClientCertVerifier, generation: u64, now: Timestamp) -> bool {
        let Some((leaf, others)) = self.chain.split_first() else {
            return false;
        };
        let boundaries_passed = self.boundaries.partition_point(|boundary| *boundary <= now);
        let mut last = self.last.lock();
        if let Some(cached) = *last
            && (cached.generation, cached.boundaries_passed) == (generation, boundaries_passed)
        {
            return cached.is_valid;
        }
        let since = Duration::from_millis(now.as_millis());
        let time = UnixTime::since_unix_epoch(since);
        let verified = verifier.verify_client_cert(leaf, others, time);
        if let Err(error) = &verified {
            tracing::info!(%error, "client certificate no longer valid");
        }
        let is_valid = verified.is_ok();
        *last = Some(CachedVerification {
            generation,
            boundaries_passed,
            is_valid,
        });
        is_valid
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use rcgen::BasicConstraints;
    use rcgen::CertificateParams;
    use rcgen::IsCa;
    use rcgen::Issuer;
    use rcgen::KeyPair;

    use super::*;
    use crate::listener::tls::ClientCertificates;
    use crate::listener::tls::tests::certificate;

    struct Authority {
        pem: String,
        issuer: Issuer<'static, KeyPair>,
    }

    fn authority() -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Authority {
            pem: params.self_signed(&key).unwrap().pem(),
            issuer: Issuer::new(params, key),
        }
    }

    impl Authority {
        /// A certificate that is valid from the one to the other second of 2026.
        fn sign_certificate(&self, from: u64, to: u64) -> CertificateDer<'static> {
            let second = |number| UNIX_EPOCH.checked_add(since_1970(number)).unwrap().into();
            let mut params = CertificateParams::new(vec!["ci.example".to_owned()]).unwrap();
            params.not_before = second(from);
            params.not_after = second(to);
            let key = KeyPair::generate().unwrap();
            params.signed_by(&key, &self.issuer).unwrap().der().clone()
        }
    }

    /// A second of 2026.
    fn since_1970(second: u64) -> Duration {
        Duration::from_secs(1_767_225_600_u64.saturating_add(second))
    }

    fn at(second: u64) -> Timestamp {
        Timestamp::default().plus(since_1970(second))
    }

    fn tls(clients: ClientCertificates) -> Tls {
        Tls::new(vec![certificate(&["localhost"])], clients).unwrap()
    }

    fn outcome(client: &PresentedCertificate, now: Timestamp) -> &'static str {
        match client.names_at(now) {
            Ok(names) if names.is_empty() => "no name",
            Ok(_) => "named",
            Err(NoLongerValid) => "refused",
        }
    }

    #[test]
    fn a_certificate_is_accepted_only_while_it_is_valid() {
        let authority = authority();
        let chain = [authority.sign_certificate(100, 200)];
        for (clients, otherwise) in [
            (
                ClientCertificates::Optional(authority.pem.clone()),
                "no name",
            ),
            (
                ClientCertificates::Required(authority.pem.clone()),
                "refused",
            ),
        ] {
            let client = PresentedCertificate::new(ClientTrust::new(&tls(clients)), &chain);
            let rows = [
                (99, otherwise),
                (100, "named"),
                (150, "named"),
                (200, "named"),
                (201, otherwise),
                // The clock was put back.
                (150, "named"),
            ];
            for (second, expected) in rows {
                assert_eq!(outcome(&client, at(second)), expected, "second {second}");
            }
        }
    }

    #[test]
    fn a_certificate_is_accepted_only_while_its_authority_is_trusted() {
        let (one, other) = (authority(), authority());
        let trust = ClientTrust::new(&tls(ClientCertificates::Optional(one.pem.clone())));
        let client =
            PresentedCertificate::new(Arc::clone(&trust), &[one.sign_certificate(0, 1000)]);
        let bare = PresentedCertificate::new(Arc::clone(&trust), &[]);
        assert_eq!(outcome(&client, at(5)), "named", "trusted");
        let both = format!("{}{}", one.pem, other.pem);
        // What the port wants from now on, what that makes of the client, and of one without a certificate.
        let rows = [
            (
                ClientCertificates::Optional(other.pem.clone()),
                "no name",
                "no name",
            ),
            (ClientCertificates::Optional(both), "named", "no name"),
            (
                ClientCertificates::Required(other.pem),
                "refused",
                "refused",
            ),
            (ClientCertificates::Required(one.pem), "named", "refused"),
            (ClientCertificates::Off, "no name", "no name"),
        ];
        for (clients, expected, without) in rows {
            let name = format!("{clients:?}");
            trust.replace(&tls(clients));
            assert_eq!(outcome(&client, at(5)), expected, "{name}");
            assert_eq!(outcome(&bare, at(5)), without, "{name}, none shown");
        }
    }
}
