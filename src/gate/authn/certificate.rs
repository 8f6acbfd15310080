//! Certificates of clients: the handshake found them to be good, here they are given a caller.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::gate::authn::caller::AuthContext;
use crate::gate::authn::caller::AuthenticatedCaller;
use crate::gate::authn::denial::CredentialsDenied;
use crate::gate::authn::denial::DenialReason;
use crate::gate::authz::Rights;
use crate::gate::config::Config;
use crate::model::CertificateName;
use crate::model::Principal;

/// The callers that are known by a name in their certificate.
#[derive(Debug)]
pub(super) struct CertificateIdentities(BTreeMap<CertificateName, Arc<AuthenticatedCaller>>);

impl CertificateIdentities {
    pub(super) fn new(config: &Config) -> Self {
        let all = config.credentials.certificates.iter();
        let caller = |principal: &Principal| {
            let rights = Rights::for_principal(principal, &config.grants);
            AuthenticatedCaller::new(principal.clone(), rights)
        };
        Self(
            all.map(|(name, principal)| (name.clone(), Arc::new(caller(principal))))
                .collect(),
        )
    }

    /// The caller whom the names of a certificate belong to. None when they belong to several: which one is meant cannot
    /// be known.
    pub(super) fn find(
        &self,
        names: &[CertificateName],
        context: AuthContext<'_>,
    ) -> Result<Arc<AuthenticatedCaller>, CredentialsDenied> {
        let Some(first) = names.first() else {
            return Err(CredentialsDenied::invalid(DenialReason::Missing));
        };
        let denied = |reason| CredentialsDenied::invalid(reason).with_claimed_name(first.as_str());
        let mut known = names.iter().filter_map(|name| self.0.get(name));
        let one = known
            .next()
            .ok_or_else(|| denied(DenialReason::UnknownCertificate))?;
        if known.any(|other| other.principal.name != one.principal.name) {
            return Err(denied(DenialReason::AmbiguousCertificate));
        }
        context
            .metrics
            .callers
            .record_credential_check("certificate");
        Ok(Arc::clone(one))
    }
}
