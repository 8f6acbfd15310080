//! Passwords of Basic credentials (RFC 7617), verified off the request threads and remembered for a while.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use zeroize::Zeroizing;

use crate::gate::authn::caller::AuthContext;
use crate::gate::authn::caller::AuthenticatedCaller;
use crate::gate::authn::denial::CredentialsDenied;
use crate::gate::authn::denial::DenialReason;
use crate::gate::authn::password_queue::CheckPlace;
use crate::gate::authn::password_queue::ClientStanding;
use crate::gate::authn::password_queue::PasswordQueueFull;
use crate::gate::authz::Rights;
use crate::gate::config::Config;
use crate::gate::config::LockoutRule;
use crate::gate::config::PasswordHash;
use crate::gate::limiter::LockoutStatus;
use crate::gate::password;
use crate::gate::process_state::CredentialKey;
use crate::gate::process_state::ProcessState;
use crate::gate::process_state::UserKey;
use crate::model::Principal;
use crate::model::PrincipalName;

/// One user with a password.
#[derive(Debug)]
struct PasswordUser {
    caller: Arc<AuthenticatedCaller>,
    password: PasswordHash,
    /// Keys the memory of verified passwords.
    key: UserKey,
}

/// Every user with a password, and the rules by which passwords are verified.
#[derive(Debug)]
pub(super) struct PasswordUsers {
    users: BTreeMap<String, PasswordUser>,
    /// The hashes that stand in for those of unknown names.
    decoys: Vec<PasswordHash>,
    /// How long a verified password is remembered.
    remember: Duration,
    lockout: LockoutRule,
}

impl PasswordUsers {
    pub(super) fn new(config: &Config, shared: &ProcessState) -> Self {
        let mut users = BTreeMap::new();
        for (name, user) in &config.credentials.users {
            let principal = Principal {
                name: name.clone(),
                groups: user.groups.clone(),
            };
            let rights = Rights::for_principal(&principal, &config.grants);
            let user = PasswordUser {
                caller: Arc::new(AuthenticatedCaller::new(principal, rights)),
                password: user.password.clone(),
                key: shared.user_key(name.as_str(), user.password.reveal()),
            };
            users.insert(name.as_str().to_owned(), user);
        }
        Self {
            decoys: users.values().map(|user| user.password.clone()).collect(),
            users,
            remember: config.credentials.remember,
            lockout: config.lockout.clone(),
        }
    }

    /// The caller that a user of this name becomes once authenticated.
    pub(super) fn find_caller(&self, name: &PrincipalName) -> Option<&Arc<AuthenticatedCaller>> {
        Some(&self.users.get(name.as_str())?.caller)
    }

    /// Verifies a name and password. A client that is locked out costs no hash, whether the name exists or not.
    pub(super) async fn authenticate(
        &self,
        name: &str,
        password: &[u8],
        context: AuthContext<'_>,
    ) -> Result<Arc<AuthenticatedCaller>, CredentialsDenied> {
        let status = lockout_status(name, context);
        let user = self.users.get(name);
        let known = user.map(|user| (user, user.key.credential(password)));
        if let Some((user, key)) = known
            && !matches!(status, LockoutStatus::Barred(_))
            && is_remembered(&key, context)
        {
            return Ok(Arc::clone(&user.caller));
        }
        refuse_locked_out(status, name)?;
        let shared = context.shared;
        let key = shared.check_key(context.network, name, password, user.map(|user| &user.key));
        let check = async || self.check_password(name, password, context).await;
        let verdict = shared.shared_checks.join(key, check).await;
        match (verdict, user) {
            (Ok(()), Some(user)) => Ok(Arc::clone(&user.caller)),
            (Err(denied), _) => Err(denied),
            // No check succeeds for a name without a user.
            (Ok(()), None) => {
                Err(CredentialsDenied::invalid(DenialReason::UnknownUser).with_claimed_name(name))
            }
        }
    }

    /// Waits for a place, checks the password, and records the result.
    async fn check_password(
        &self,
        name: &str,
        password: &[u8],
        context: AuthContext<'_>,
    ) -> Result<(), CredentialsDenied> {
        let user = self.users.get(name);
        let known = user.map(|user| user.key.credential(password));
        let place = wait_for_turn(name, context).await?;
        // Another request may have verified the same password from elsewhere while this one was queued, or failed once too often.
        if known.is_some_and(|key| is_remembered(&key, context)) {
            return Ok(());
        }
        refuse_locked_out(lockout_status(name, context), name)?;
        let hash = user.map_or_else(|| self.decoy(name, context), |user| Some(&user.password));
        let fits = match hash {
            Some(hash) => {
                let begun = context.clock.instant();
                let password = Zeroizing::new(password.to_vec());
                let fits = verify(hash.clone(), password, place).await;
                let took = context.clock.instant().saturating_duration_since(begun);
                context.shared.password_queue.record_check(took);
                fits
            }
            None => false,
        };
        let Some(key) = known.filter(|_| fits) else {
            self.record_failure(name, context);
            let reason = match user {
                Some(_) => DenialReason::WrongPassword,
                None => DenialReason::UnknownUser,
            };
            return Err(CredentialsDenied::invalid(reason).with_claimed_name(name));
        };
        self.record_success(name, key, context);
        Ok(())
    }

    /// The hash that an unknown name is verified against, so that it costs what a wrong password costs. The choice depends
    /// on the name alone: one that changed from request to request would show that the name is unknown.
    fn decoy(&self, name: &str, context: AuthContext<'_>) -> Option<&PasswordHash> {
        let index = context.shared.stable_index(name.as_bytes());
        self.decoys.get(index.checked_rem(self.decoys.len())?)
    }

    fn record_success(&self, name: &str, key: CredentialKey, context: AuthContext<'_>) {
        context.metrics.callers.record_credential_check("verified");
        let now = context.clock.instant();
        if !self.remember.is_zero() {
            let until = context.clock.deadline(self.remember).instant();
            context.shared.cache_credential(key, now, until);
        }
        if let Some(network) = context.network {
            let lockouts = &context.shared.limiter.lockouts;
            lockouts.record_success(name, network, now);
        }
    }

    fn record_failure(&self, name: &str, context: AuthContext<'_>) {
        let Some(network) = context.network else {
            return;
        };
        let lockouts = &context.shared.limiter.lockouts;
        let now = context.clock.instant();
        let started = lockouts.record_failure(name, network, now, &self.lockout);
        for (by, is_started) in [("user", started.user), ("address", started.address)] {
            if is_started {
                context.metrics.callers.record_lockout(by);
            }
        }
    }
}

fn is_remembered(key: &CredentialKey, context: AuthContext<'_>) -> bool {
    let now = context.clock.instant();
    let is_cached = context.shared.is_credential_cached(key, now);
    if is_cached {
        context
            .metrics
            .callers
            .record_credential_check("remembered");
    }
    is_cached
}

fn refuse_locked_out(status: LockoutStatus, name: &str) -> Result<(), CredentialsDenied> {
    match status {
        LockoutStatus::Free => Ok(()),
        LockoutStatus::Locked(after) | LockoutStatus::Barred(after) => {
            Err(CredentialsDenied::locked_out(after).with_claimed_name(name))
        }
    }
}

/// Whether a password of this name may be checked for the client.
fn lockout_status(name: &str, context: AuthContext<'_>) -> LockoutStatus {
    context.network.map_or(LockoutStatus::Free, |network| {
        let lockouts = &context.shared.limiter.lockouts;
        lockouts.check_attempt(name, network, context.clock.instant())
    })
}

/// Waits until it is this client's turn to have a password checked.
async fn wait_for_turn(
    name: &str,
    context: AuthContext<'_>,
) -> Result<CheckPlace, CredentialsDenied> {
    let lockouts = &context.shared.limiter.lockouts;
    let now = context.clock.instant();
    let has_failed = |network| lockouts.has_failed(network, now);
    let standing = match context.network.is_some_and(has_failed) {
        true => ClientStanding::HasFailed,
        false => ClientStanding::Clean,
    };
    let turn = context.shared.turn_of(context.network, name);
    let place = context.shared.password_queue.acquire(turn, standing).await;
    place.map_err(|PasswordQueueFull| CredentialsDenied::queue_full().with_claimed_name(name))
}

/// Verifies on a thread that may block. A check that has begun ends even when its request is gone, and holds its place until then.
async fn verify(hash: PasswordHash, password: Zeroizing<Vec<u8>>, place: CheckPlace) -> bool {
    #[cfg(test)]
    tests::VERIFIED.with(|count| count.set(count.get().saturating_add(1)));
    tokio::task::spawn_blocking(move || {
        let _held = place;
        password::verify(hash.reveal(), &password)
    })
    .await
    .unwrap_or(false)
}

#[cfg(test)]
pub(super) mod tests {
    use std::cell::Cell;

    thread_local! {
        /// Password checks begun by this thread.
        pub(in crate::gate) static VERIFIED: Cell<usize> = const { Cell::new(0) };
    }
}
