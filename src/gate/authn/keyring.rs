//! The keys of an issuer as they are now: read with the configuration, or replaced again and again by a fetcher.
//!
//! The gate fetches nothing. It reads the ring, and where a token names a key that is not in it, it asks for a newer set:
//! one fetch serves all who wait, how often one may be asked for is bounded, and so are the wait and the number of those
//! who wait. Tokens with invented key ids therefore cost the issuer one request in [`limits::ISSUER_ASK_PAUSE`].

use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::Semaphore;
use tokio::sync::watch;

use crate::gate::authn::jwks::KeySet;
use crate::model::limits;

/// The keys of one issuer. Read by the gate, replaced by a fetcher.
#[derive(Debug)]
pub struct KeyRing {
    active: ArcSwapOption<ActiveKeySet>,
    /// How newer keys are asked for; `None` when none are fetched.
    refreshes: Option<RefreshRequests>,
}

/// The keys that tokens are verified with.
#[derive(Debug)]
pub(super) struct ActiveKeySet {
    pub(super) keys: Arc<KeySet>,
    /// Another one for every set with other keys.
    pub(super) generation: u64,
    /// From when on it is too old; never when `None`.
    until: Option<Instant>,
}

#[derive(Debug)]
struct RefreshRequests {
    state: Mutex<RefreshState>,
    requested: Notify,
    /// Changes at the end of every fetch.
    ended: watch::Sender<()>,
    places: Semaphore,
}

#[derive(Debug, Default)]
struct RefreshState {
    /// Whether a fetch is under way, or about to begin.
    is_under_way: bool,
    last: Option<Instant>,
}

impl KeyRing {
    /// Keys that stay as they are.
    #[must_use]
    pub fn fixed(keys: KeySet) -> Arc<Self> {
        let active = ActiveKeySet {
            keys: Arc::new(keys),
            generation: 0,
            until: None,
        };
        Arc::new(Self {
            active: ArcSwapOption::from_pointee(active),
            refreshes: None,
        })
    }

    /// No keys yet: a fetcher puts them in with [`KeyRing::replace`].
    #[must_use]
    pub fn awaiting_fetch() -> Arc<Self> {
        Arc::new(Self {
            active: ArcSwapOption::empty(),
            refreshes: Some(RefreshRequests {
                state: Mutex::default(),
                requested: Notify::new(),
                ended: watch::Sender::new(()),
                places: Semaphore::new(limits::ISSUER_WAITERS_MAX),
            }),
        })
    }

    /// Replaces the keys until the set is too old. Returns whether they differ from the ones before.
    pub fn replace(&self, keys: KeySet, until: Instant) -> bool {
        let before = self.active.load_full();
        let same = before.as_ref().filter(|before| *before.keys == keys);
        let active = ActiveKeySet {
            keys: same.map_or_else(|| Arc::new(keys), |same| Arc::clone(&same.keys)),
            generation: match (same, &before) {
                (Some(same), _) => same.generation,
                (None, Some(before)) => before.generation.wrapping_add(1),
                (None, None) => 0,
            },
            until: Some(until),
        };
        let is_new = same.is_none();
        self.active.store(Some(Arc::new(active)));
        is_new
    }

    /// Takes over what another ring holds.
    pub fn inherit(&self, other: &Self) {
        self.active.store(other.active.load_full());
    }

    /// A fetch begins.
    pub fn fetch_started(&self) {
        if let Some(refreshes) = &self.refreshes {
            refreshes.lock().is_under_way = true;
        }
    }

    /// The fetch that was under way has ended, well or not: requests that wait for it look again.
    pub fn fetch_ended(&self) {
        if let Some(refreshes) = &self.refreshes {
            refreshes.lock().is_under_way = false;
            refreshes.ended.send_replace(());
        }
    }

    /// Returns when a newer set is wanted. Never where keys are not fetched.
    pub async fn refresh_requested(&self) {
        match &self.refreshes {
            Some(refreshes) => refreshes.requested.notified().await,
            None => std::future::pending().await,
        }
    }

    /// Asks for a newer set on behalf of the operator.
    pub fn request_refresh(&self) {
        if let Some(refreshes) = &self.refreshes {
            refreshes.requested.notify_one();
        }
    }

    /// Whether it holds keys that are not too old.
    #[must_use]
    pub fn has_keys(&self, now: Instant) -> bool {
        self.current_keys(now).is_some()
    }

    /// How many keys it holds that are not too old.
    #[must_use]
    pub fn key_count(&self, now: Instant) -> usize {
        self.current_keys(now).map_or(0, |active| active.keys.len())
    }

    /// The current set, unless there is none or it is too old.
    pub(super) fn current_keys(&self, now: Instant) -> Option<Arc<ActiveKeySet>> {
        let active = self.active.load_full()?;
        active
            .until
            .is_none_or(|until| now < until)
            .then_some(active)
    }

    /// Asks for a newer set and waits for it, not for long. Whether it is worth while to look again.
    pub(super) async fn wait_for_newer_keys(&self, now: Instant) -> bool {
        let Some(refreshes) = &self.refreshes else {
            return false;
        };
        let Ok(_place) = refreshes.places.try_acquire() else {
            return false;
        };
        // Before asking: a fetch that ends at once is not missed.
        let mut ended = refreshes.ended.subscribe();
        if !refreshes.request(now) {
            return false;
        }
        let ended = tokio::time::timeout(limits::ISSUER_WAIT, ended.changed()).await;
        matches!(ended, Ok(Ok(())))
    }
}

impl RefreshRequests {
    /// Whether a fetch is under way now. Makes one begin if that is allowed again.
    fn request(&self, now: Instant) -> bool {
        let mut state = self.lock();
        if state.is_under_way {
            return true;
        }
        let next = |last: Instant| last.checked_add(limits::ISSUER_ASK_PAUSE);
        if state.last.and_then(next).is_some_and(|next| now < next) {
            return false;
        }
        state.last = Some(now);
        state.is_under_way = true;
        drop(state);
        self.requested.notify_one();
        true
    }

    fn lock(&self) -> parking_lot::MutexGuard<'_, RefreshState> {
        self.state.lock()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::Timestamp;
    use crate::runtime::Clock;
    use crate::runtime::ManualClock;
    use crate::runtime::Tasks;

    const ONE: &str = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"1","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

    fn set(kid: &str) -> KeySet {
        KeySet::parse(&ONE.replace("\"1\"", &format!("{kid:?}"))).unwrap()
    }

    #[test]
    fn a_set_is_used_until_it_is_too_old_and_the_same_keys_keep_their_generation() {
        let clock = ManualClock::new(Timestamp::default());
        let now = clock.instant();
        let later = now + Duration::from_secs(10);
        let ring = KeyRing::awaiting_fetch();
        assert!(!ring.has_keys(now), "none yet");
        assert!(ring.replace(set("1"), later), "the first ones are new");
        let first = ring.current_keys(now).unwrap().generation;
        assert!(ring.current_keys(later).is_none(), "too old");
        assert!(
            !ring.replace(set("1"), later + Duration::from_secs(1)),
            "the same"
        );
        assert_eq!(
            ring.current_keys(later).unwrap().generation,
            first,
            "not another generation, but valid for longer"
        );
        assert!(ring.replace(set("2"), later), "others");
        assert_ne!(
            ring.current_keys(now).unwrap().generation,
            first,
            "another one"
        );
        let heir = KeyRing::awaiting_fetch();
        heir.inherit(&ring);
        assert!(heir.has_keys(now), "what the other had");
        let fixed = KeyRing::fixed(set("1"));
        let age = Duration::from_secs(1_000_000_000);
        assert!(fixed.has_keys(now + age), "a file has no age");
    }

    #[tokio::test(start_paused = true)]
    async fn one_fetch_serves_all_waiters_and_the_next_one_follows_after_a_pause() {
        let clock = ManualClock::new(Timestamp::default());
        let ring = KeyRing::awaiting_fetch();
        let tasks = Tasks::default();
        let fetches = Arc::new(Mutex::new(0));
        let keeper = {
            let (ring, fetches) = (Arc::clone(&ring), Arc::clone(&fetches));
            tasks.spawn(async move {
                loop {
                    ring.refresh_requested().await;
                    *fetches.lock() += 1;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    ring.fetch_ended();
                }
            })
        };
        let count = || *fetches.lock();
        let ask = |many: usize| {
            let all = (0..many).map(|_| ring.wait_for_newer_keys(clock.instant()));
            futures_util::future::join_all(all)
        };
        let served = ask(limits::ISSUER_WAITERS_MAX).await;
        assert!(served.iter().all(|is_served| *is_served), "all of them");
        assert_eq!(count(), 1, "by one fetch");
        for seconds in 0..limits::ISSUER_ASK_PAUSE.as_secs() {
            assert_eq!(ask(3).await, [false; 3], "not again after {seconds} s");
            clock.advance(Duration::from_secs(1));
        }
        assert_eq!(count(), 1, "nothing was fetched meanwhile");
        assert_eq!(ask(2).await, [true; 2], "after the pause");
        assert_eq!(count(), 2, "once");
        let fixed = KeyRing::fixed(set("1"));
        assert!(
            !fixed.wait_for_newer_keys(clock.instant()).await,
            "a file is not fetched"
        );
        keeper.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn the_wait_is_short_and_the_number_of_waiters_is_bounded() {
        let clock = ManualClock::new(Timestamp::default());
        let ring = KeyRing::awaiting_fetch();
        let begun = tokio::time::Instant::now();
        let many = limits::ISSUER_WAITERS_MAX + 10;
        let all = (0..many).map(|_| ring.wait_for_newer_keys(clock.instant()));
        let served = futures_util::future::join_all(all).await;
        assert!(
            served.iter().all(|is_served| !*is_served),
            "a fetch that does not end serves no request"
        );
        assert_eq!(
            begun.elapsed(),
            limits::ISSUER_WAIT,
            "and no request waits longer"
        );
        ring.fetch_started();
        let waiting = Tasks::default();
        for _ in 0..limits::ISSUER_WAITERS_MAX {
            let (ring, now) = (Arc::clone(&ring), clock.instant());
            drop(waiting.spawn(async move { ring.wait_for_newer_keys(now).await }));
        }
        let places = &ring.refreshes.as_ref().unwrap().places;
        while places.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let begun = tokio::time::Instant::now();
        assert!(
            !ring.wait_for_newer_keys(clock.instant()).await,
            "no place is left"
        );
        assert_eq!(begun.elapsed(), Duration::ZERO, "and that is known at once");
        ring.fetch_ended();
        waiting.ended().await;
    }
}
