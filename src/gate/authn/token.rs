//! API tokens: found by their digest, with the rights of their owner narrowed to their scope.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::gate::authn::caller::AuthContext;
use crate::gate::authn::caller::AuthenticatedCaller;
use crate::gate::authn::denial::CredentialsDenied;
use crate::gate::authn::denial::DenialReason;
use crate::gate::authn::token_digest::TokenDigest;
use crate::gate::config::ApiToken;
use crate::gate::config::Config;
use crate::model::PrincipalName;
use crate::model::Timestamp;
use crate::model::TokenName;

/// The user name that Basic credentials may carry besides that of the owner, when the password is a token.
const ANY_USER: &str = "token";

/// Every token whose owner exists.
#[derive(Debug)]
pub(super) struct ApiTokens(BTreeMap<TokenDigest, ActiveToken>);

#[derive(Debug)]
struct ActiveToken {
    caller: Arc<AuthenticatedCaller>,
    expires: Option<Timestamp>,
}

impl ApiTokens {
    /// The tokens of these callers. A token does what its owner may do and its scope allows; without owner it is dead.
    pub(super) fn new<'a>(
        config: &Config,
        owner: impl Fn(&PrincipalName) -> Option<&'a Arc<AuthenticatedCaller>>,
    ) -> Self {
        let active = |token: &ApiToken| {
            let owner = owner(&token.owner)?;
            let caller = AuthenticatedCaller {
                principal: owner.principal.clone(),
                rights: owner.rights.narrowed_to(&token.scope),
                token: Some(token.name.clone()),
            };
            let active = ActiveToken {
                caller: Arc::new(caller),
                expires: token.expires,
            };
            Some((token.digest, active))
        };
        let all = config.credentials.tokens.iter().flatten();
        Self(all.filter_map(active).collect())
    }

    /// Whose token this is.
    pub(super) fn find(
        &self,
        text: &str,
        context: AuthContext<'_>,
    ) -> Result<Arc<AuthenticatedCaller>, CredentialsDenied> {
        let Some(digest) = TokenDigest::of(text) else {
            return Err(CredentialsDenied::invalid(DenialReason::UnknownToken));
        };
        let Some(active) = self.0.get(&digest) else {
            return Err(match context.shared.find_former_token(&digest) {
                Some((name, owner)) => CredentialsDenied::invalid(DenialReason::Revoked)
                    .with_claimed_name(owner.as_str())
                    .with_token(&name),
                None => CredentialsDenied::invalid(DenialReason::UnknownToken),
            });
        };
        let now = context.clock.now();
        if active.expires.is_some_and(|end| end <= now) {
            let denied = CredentialsDenied::invalid(DenialReason::Expired);
            let denied = denied.with_claimed_name(active.caller.principal.name.as_str());
            return Err(match &active.caller.token {
                Some(name) => denied.with_token(name),
                None => denied,
            });
        }
        context.metrics.callers.record_credential_check("token");
        Ok(Arc::clone(&active.caller))
    }

    /// The same when it was sent as the password of Basic credentials, for clients that know nothing else.
    pub(super) fn find_as_password(
        &self,
        name: &str,
        password: &[u8],
        context: AuthContext<'_>,
    ) -> Result<Arc<AuthenticatedCaller>, CredentialsDenied> {
        let unreadable = |_not_utf_8| {
            CredentialsDenied::invalid(DenialReason::Malformed).with_claimed_name(name)
        };
        let text = str::from_utf8(password).map_err(unreadable)?;
        // The name that came with it is the one that was tried.
        let found = self
            .find(text, context)
            .map_err(|denied| denied.with_claimed_name(name))?;
        let is_owner = found.principal.name.as_str() == name;
        if is_owner || name == ANY_USER {
            return Ok(found);
        }
        let denied = CredentialsDenied::invalid(DenialReason::WrongOwner).with_claimed_name(name);
        Err(match &found.token {
            Some(token) => denied.with_token(token),
            None => denied,
        })
    }

    /// The tokens, each with its name and owner.
    pub(super) fn all(&self) -> impl Iterator<Item = (TokenDigest, &TokenName, &PrincipalName)> {
        self.0.iter().filter_map(|(digest, active)| {
            let name = active.caller.token.as_ref()?;
            Some((*digest, name, &active.caller.principal.name))
        })
    }
}
