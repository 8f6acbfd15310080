//! Whether what a client proved in its handshake still counts: judged for every request.
//!
//! A handshake may be long ago: connections are kept open, and a resumed session carries the certificate of an earlier
//! handshake without a look at it. Meanwhile the certificate may have expired, or its authority may be gone from the
//! configuration. The signatures are verified once for each set of authorities and each span of time in which no certificate
//! of the chain begins or ceases to be valid; in between a request costs a comparison.

use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::UnixTime;
use rustls::server::danger::ClientCertVerifier;

use crate::listener::tls::Tls;
use crate::listener::tls::certificate;
use crate::listener::tls::client_certificate;
use crate::model::CertificateName;
use crate::model::Timestamp;

/// Who is trusted now; exchanged by a reload.
pub(super) struct ClientTrust(ArcSwap<TrustRules>);

/// Who is trusted by one configuration.
struct TrustRules {
    verifier: Option<Arc<dyn ClientCertVerifier>>,
    /// Another number for every configuration.
    generation: u64,
}

impl ClientTrust {
    pub(super) fn new(tls: &Tls) -> Arc<Self> {
        let rules = TrustRules {
            verifier: tls.verifier.clone(),
            generation: 0,
        };
        Arc::new(Self(ArcSwap::from_pointee(rules)))
    }

    /// Every certificate is judged by this from now on, whenever it was shown.
    pub(super) fn replace(&self, tls: &Tls) {
        self.0.rcu(|before| TrustRules {
            verifier: tls.verifier.clone(),
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

/// The client of a connection, by what it showed.
#[derive(Debug)]
pub(in crate::listener) struct PresentedCertificate {
    trust: Arc<ClientTrust>,
    /// The client's own certificate first; empty when it showed none.
    chain: Vec<CertificateDer<'static>>,
    names: Arc<[CertificateName]>,
    /// The moments at which a certificate of the chain begins or ceases to be valid, in order.
    turns: Vec<Timestamp>,
    last: Mutex<Option<CachedVerification>>,
}

/// A judgement, and what it holds for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct CachedVerification {
    generation: u64,
    /// How many of the turns were over.
    turns_over: usize,
    is_good: bool,
}

/// The client has no certificate that counts, and without one no connection would be made now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the port requires a client certificate, and that of this connection is no longer valid")]
pub(in crate::listener) struct NoLongerValid;

impl PresentedCertificate {
    pub(super) fn new(trust: Arc<ClientTrust>, chain: &[CertificateDer<'static>]) -> Self {
        let names = chain.first().map(|leaf| client_certificate::names(leaf));
        let mut turns: Vec<Timestamp> = chain
            .iter()
            .filter_map(|der| certificate::parsed(der).ok())
            .flat_map(|parsed| {
                let validity = certificate::validity(&parsed);
                // It is valid throughout its last second.
                [validity.0, validity.1.plus(Duration::from_secs(1))]
            })
            .collect();
        turns.sort_unstable();
        Self {
            trust,
            chain: chain.to_vec(),
            names: names.unwrap_or_default().into(),
            turns,
            last: Mutex::default(),
        }
    }

    /// What the certificate says about its holder, if it counts at that moment; else nothing.
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
        if self.is_good(verifier.as_ref(), rules.generation, now) {
            Ok(Arc::clone(&self.names))
        } else if verifier.client_auth_mandatory() {
            Err(NoLongerValid)
        } else {
            Ok(Arc::default())
        }
    }

    fn is_good(&self, verifier: &dyn ClientCertVerifier, generation: u64, now: Timestamp) -> bool {
        let Some((leaf, others)) = self.chain.split_first() else {
            return false;
        };
        let turns_over = self.turns.partition_point(|turn| *turn <= now);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(verdict) = *last
            && (verdict.generation, verdict.turns_over) == (generation, turns_over)
        {
            return verdict.is_good;
        }
        let since = Duration::from_millis(now.as_millis());
        let time = UnixTime::since_unix_epoch(since);
        let verified = verifier.verify_client_cert(leaf, others, time);
        if let Err(error) = &verified {
            tracing::info!(%error, "certificate of a client does not count any more");
        }
        let is_good = verified.is_ok();
        *last = Some(CachedVerification {
            generation,
            turns_over,
            is_good,
        });
        is_good
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
        fn signs(&self, from: u64, to: u64) -> CertificateDer<'static> {
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
    fn a_certificate_counts_while_it_is_valid_and_no_longer() {
        let authority = authority();
        let chain = [authority.signs(100, 200)];
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
    fn a_certificate_counts_while_its_authority_is_trusted() {
        let (one, other) = (authority(), authority());
        let trust = ClientTrust::new(&tls(ClientCertificates::Optional(one.pem.clone())));
        let client = PresentedCertificate::new(Arc::clone(&trust), &[one.signs(0, 1000)]);
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
