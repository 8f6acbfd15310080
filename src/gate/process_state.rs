//! What outlives a reload: remembered credentials, password checks and waiters, request ids.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::gate::authn::PasswordQueue;
use crate::gate::authn::SharedChecks;
use crate::gate::authn::TokenDigest;
use crate::gate::limiter::ClientNetwork;
use crate::gate::limiter::InFlightSlot;
use crate::gate::limiter::Limiter;
use crate::gate::relay::Relay;
use crate::model::PrincipalName;
use crate::model::RequestId;
use crate::model::SpanId;
use crate::model::TokenName;
use crate::model::TraceContext;
use crate::model::TraceId;
use crate::model::limits;
use crate::model::scramble;
use crate::runtime::Stop;
use crate::runtime::Stopper;
use crate::runtime::stop_pair;
use crate::telemetry::Metrics;
use crate::telemetry::WaiterGuard;

/// A keyed hash over a user and the stored password hash: useless without the key of this process.
#[derive(Clone)]
pub(super) struct UserKey([u8; 32]);

/// A hash over a password, keyed by the user key: no longer matches once the stored password hash changes.
pub(super) type CredentialKey = [u8; 32];

impl fmt::Debug for UserKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UserKey")
    }
}

impl UserKey {
    pub(super) fn credential(&self, password: &[u8]) -> CredentialKey {
        *blake3::keyed_hash(&self.0, password).as_bytes()
    }
}

/// What outlives a reload. Made once per process.
pub struct ProcessState {
    key: [u8; 32],
    prefix: String,
    requests: AtomicU64,
    /// Where the ids of traces and spans start. They need not be secret, only different from all others.
    trace_seeds: [u64; 3],
    traces: AtomicU64,
    waiters: AtomicUsize,
    pub(super) limiter: Limiter,
    /// How many configurations there were: what was permitted by one may not be by the next.
    generation: watch::Sender<u64>,
    /// As many clones of it as there are streams of all Statuses.
    stream_places: Arc<()>,
    waiter_releaser: Stopper,
    pub(super) waiters_released: Stop,
    pub(super) password_queue: Arc<PasswordQueue>,
    pub(super) shared_checks: SharedChecks,
    remembered: Mutex<BTreeMap<CredentialKey, Instant>>,
    /// How requests get to the active gateway of the cluster; unset for a gateway that has no others.
    relay: OnceLock<Arc<dyn Relay>>,
    /// Every API token that this process has known, so that a revoked one can be named.
    tokens: Mutex<BTreeMap<TokenDigest, (TokenName, PrincipalName)>>,
}

impl fmt::Debug for ProcessState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessState").finish_non_exhaustive()
    }
}

impl ProcessState {
    /// A fresh one; `seed` must be random: it keys the memory of credentials and starts the request ids.
    #[must_use]
    pub fn new(seed: [u8; 32]) -> Arc<Self> {
        let prefix = blake3::keyed_hash(&seed, b"request ids").to_hex();
        let (waiter_releaser, waiters_released) = stop_pair();
        let trace_seeds = [b"traces 1", b"traces 2", b"traces 3"].map(|purpose| {
            let [a, b, c, d, e, f, g, h, ..] = *blake3::keyed_hash(&seed, purpose).as_bytes();
            u64::from_le_bytes([a, b, c, d, e, f, g, h])
        });
        Arc::new(Self {
            key: *blake3::keyed_hash(&seed, b"credentials").as_bytes(),
            prefix: prefix.chars().take(12).collect(),
            requests: AtomicU64::new(1),
            trace_seeds,
            traces: AtomicU64::new(0),
            waiters: AtomicUsize::new(0),
            limiter: Limiter::new(*blake3::keyed_hash(&seed, b"limits").as_bytes()),
            generation: watch::Sender::new(0),
            stream_places: Arc::default(),
            waiter_releaser,
            waiters_released,
            password_queue: PasswordQueue::new(password_checks_at_once()),
            shared_checks: SharedChecks::default(),
            remembered: Mutex::default(),
            relay: OnceLock::new(),
            tokens: Mutex::default(),
        })
    }

    /// A fresh one, seeded by the system.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn random() -> Result<Arc<Self>, getrandom::Error> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed)?;
        Ok(Self::new(seed))
    }

    /// From now on requests are handed on while another gateway is active.
    pub fn hand_on_by(&self, relay: Arc<dyn Relay>) {
        // Called once, at the start.
        drop(self.relay.set(relay));
    }

    pub(super) fn relay(&self) -> Option<&Arc<dyn Relay>> {
        self.relay.get()
    }

    /// The next request id.
    #[expect(
        clippy::expect_used,
        reason = "12 and at most 16 hexadecimal digits around a dash are short visible ASCII"
    )]
    pub(crate) fn request_id(&self) -> RequestId {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let text = format!("{}-{number:x}", self.prefix);
        RequestId::new(&text).expect("short visible ASCII")
    }

    /// The place of a new request in a trace: that of a trusted proxy, by `continued`, or a trace of its own.
    pub(super) fn trace(
        &self,
        is_recorded: bool,
        continued: impl FnOnce(SpanId) -> Option<TraceContext>,
    ) -> TraceContext {
        let number = self.traces.fetch_add(1, Ordering::Relaxed);
        let [high, low, span] = self
            .trace_seeds
            .map(|seed| scramble(seed.wrapping_add(number)));
        let span = SpanId::from_bits(span);
        continued(span).unwrap_or_else(|| {
            let trace = (u128::from(high) << 64) | u128::from(low);
            TraceContext::root(TraceId::from_bits(trace), span, is_recorded)
        })
    }

    /// The key under which verified passwords of a user are remembered; changes with the stored hash.
    pub(super) fn user_key(&self, user: &str, hash: &str) -> UserKey {
        let length = u64::try_from(user.len()).unwrap_or(u64::MAX);
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(&length.to_le_bytes());
        hasher.update(user.as_bytes());
        hasher.update(hash.as_bytes());
        UserKey(*hasher.finalize().as_bytes())
    }

    /// A number derived from a name, the same for the same name within one process.
    pub(super) fn stable_index(&self, name: &[u8]) -> usize {
        let hash = blake3::keyed_hash(&self.key, name);
        let [a, b, c, d, ..] = *hash.as_bytes();
        usize::try_from(u32::from_le_bytes([a, b, c, d])).unwrap_or(0)
    }

    /// By what a client takes turns with others: its network, or the user that it names where all clients share one address.
    pub(super) fn turn_of(&self, network: Option<ClientNetwork>, user: &str) -> u64 {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        match &network {
            Some(network) => hasher.update(b"network").update(network.bytes()),
            None => hasher.update(b"user").update(user.as_bytes()),
        };
        let hash = *hasher.finalize().as_bytes();
        u64::from_le_bytes(hash.first_chunk().copied().unwrap_or_default())
    }

    /// Under which requests share one check: the same password of the same user from the same network, before the same reload of
    /// its hash.
    pub(super) fn check_key(
        &self,
        network: Option<ClientNetwork>,
        name: &str,
        password: &[u8],
        user: Option<&UserKey>,
    ) -> CredentialKey {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        let network = network.as_ref().map_or(&[][..], ClientNetwork::bytes);
        let user = user.map_or(&[][..], |user| &user.0[..]);
        for part in [network, name.as_bytes(), password, user] {
            let length = u64::try_from(part.len()).unwrap_or(u64::MAX);
            hasher.update(&length.to_le_bytes()).update(part);
        }
        *hasher.finalize().as_bytes()
    }

    pub(super) fn is_credential_cached(&self, key: &CredentialKey, now: Instant) -> bool {
        self.lock().get(key).is_some_and(|until| now < *until)
    }

    pub(super) fn cache_credential(&self, key: CredentialKey, now: Instant, until: Instant) {
        let mut remembered = self.lock();
        if remembered.len() >= limits::CREDENTIALS_CACHED_MAX {
            remembered.retain(|_, until| now < *until);
        }
        if remembered.len() >= limits::CREDENTIALS_CACHED_MAX {
            // Keys are keyed hashes, so the first one is a random one.
            remembered.pop_first();
        }
        remembered.insert(key, until);
    }

    /// Records which tokens exist, so that they can be named after they are revoked.
    pub(super) fn record_tokens<'a>(
        &self,
        tokens: impl Iterator<Item = (TokenDigest, &'a TokenName, &'a PrincipalName)>,
    ) {
        let mut known = self.tokens.lock();
        for (digest, name, owner) in tokens {
            if known.len() >= limits::PRINCIPALS_MAX.saturating_mul(2) {
                // The keys are hashes, so the first one is a random one.
                known.pop_first();
            }
            known.insert(digest, (name.clone(), owner.clone()));
        }
    }

    /// A token that existed earlier in the life of this process.
    pub(super) fn find_former_token(
        &self,
        digest: &TokenDigest,
    ) -> Option<(TokenName, PrincipalName)> {
        let known = self.tokens.lock();
        known.get(digest).cloned()
    }

    fn lock(&self) -> parking_lot::MutexGuard<'_, BTreeMap<CredentialKey, Instant>> {
        self.remembered.lock()
    }

    /// A slot among the waiting requests, if one is free.
    pub(super) fn acquire_waiter(
        self: &Arc<Self>,
        max: usize,
        metrics: &Metrics,
    ) -> Option<WaiterSlot> {
        let next = |count: usize| (count < max).then(|| count.saturating_add(1));
        self.waiters
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, next)
            .ok()?;
        Some(WaiterSlot {
            shared: Arc::clone(self),
            own: None,
            _counted: metrics.requests.count_waiter(),
        })
    }

    /// Counts one more stream of all Statuses for as long as the value lives.
    pub(super) fn stream_place(&self) -> Arc<()> {
        Arc::clone(&self.stream_places)
    }

    /// Begins to use another configuration, which ends the streams of those before. Returns its number.
    pub(super) fn begin_generation(&self) -> u64 {
        self.generation
            .send_modify(|generation| *generation = generation.saturating_add(1));
        self.generation()
    }

    /// The number of the configuration that is used.
    pub(super) fn generation(&self) -> u64 {
        *self.generation.borrow()
    }

    /// Returns once a later configuration is used. Cancel-safe.
    pub(super) async fn generation_after(&self, generation: u64) {
        let mut current = self.generation.subscribe();
        // The sender lives as long as this does, so there is no error.
        drop(current.wait_for(|current| *current > generation).await);
    }

    /// Releases all waiters and refuses new ones; called at shutdown.
    pub fn release_waiters(&self) {
        self.waiter_releaser.stop();
    }
}

/// As many password checks as leave a core to requests, but one at least.
fn password_checks_at_once() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    cores
        .saturating_sub(1)
        .clamp(1, limits::PASSWORD_CHECKS_MAX)
}

/// A slot among the waiting requests; released when dropped.
#[derive(Debug)]
pub(super) struct WaiterSlot {
    shared: Arc<ProcessState>,
    /// The slot among the waiting requests of the same caller.
    own: Option<InFlightSlot>,
    _counted: WaiterGuard,
}

impl WaiterSlot {
    pub(super) fn with_caller_slot(mut self, own: Option<InFlightSlot>) -> Self {
        self.own = own;
        self
    }
}

impl Drop for WaiterSlot {
    fn drop(&mut self) {
        self.shared.waiters.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::Timestamp;
    use crate::runtime::Clock;
    use crate::runtime::ManualClock;

    #[test]
    fn memory_is_bounded_and_ends() {
        let shared = ProcessState::new([7; 32]);
        let now = ManualClock::new(Timestamp::default()).instant();
        let until = now + Duration::from_secs(10);
        for number in 0..=limits::CREDENTIALS_CACHED_MAX {
            let key = shared.user_key(&number.to_string(), "h").credential(b"p");
            shared.cache_credential(key, now, until);
        }
        assert_eq!(
            shared.lock().len(),
            limits::CREDENTIALS_CACHED_MAX,
            "bounded"
        );
        let key = shared.user_key("last", "h").credential(b"p");
        shared.cache_credential(key, now, until);
        assert!(shared.is_credential_cached(&key, now), "remembered");
        assert!(!shared.is_credential_cached(&key, until), "not for ever");
        let other = shared.user_key("last", "other hash").credential(b"p");
        assert!(
            !shared.is_credential_cached(&other, now),
            "another hash, another key"
        );
    }

    #[test]
    fn waiters_are_bounded_and_request_ids_differ() {
        let shared = ProcessState::new([7; 32]);
        let metrics = Metrics::new().unwrap();
        let first = shared.acquire_waiter(1, &metrics);
        assert!(first.is_some(), "one place");
        assert!(shared.acquire_waiter(1, &metrics).is_none(), "and no other");
        drop(first);
        assert!(shared.acquire_waiter(1, &metrics).is_some(), "given back");
        assert_ne!(shared.request_id(), shared.request_id(), "two requests");
    }
}
