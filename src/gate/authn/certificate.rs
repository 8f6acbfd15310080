//! Certificates of clients: the handshake found them to be good, here they are given a caller.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::gate::authn::Account;
use crate::gate::authn::Around;
use crate::gate::authz::Rights;
use crate::gate::config::Config;
use crate::model::CertificateName;

/// The callers that are known by a name in their certificate.
#[derive(Debug)]
pub(super) struct Holders(BTreeMap<CertificateName, Arc<Account>>);

impl Holders {
    pub(super) fn new(config: &Config) -> Self {
        let all = config.credentials.certificates.iter();
        let account = |principal: &crate::model::Principal| Account {
            rights: Rights::of(principal, &config.grants),
            principal: principal.clone(),
            token: None,
        };
        Self(
            all.map(|(name, principal)| (name.clone(), Arc::new(account(principal))))
                .collect(),
        )
    }

    /// The caller whom the names of a certificate belong to. Nobody when they belong to several: which one is meant cannot
    /// be known.
    pub(super) fn find(
        &self,
        names: &[CertificateName],
        around: Around<'_>,
    ) -> Option<Arc<Account>> {
        let mut known = names.iter().filter_map(|it| self.0.get(it));
        let one = known.next()?;
        if known.any(|it| it.principal.name != one.principal.name) {
            return None;
        }
        around.metrics.credential_check("certificate");
        Some(Arc::clone(one))
    }
}
