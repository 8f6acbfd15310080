//! Keeps the key sets of issuers that name a URL: fetched at the start, again and again, and when a token names a key that
//! is not there. What the gate reads is a [`KeyRing`]; the gate never waits for a fetch.

mod fetch;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use crate::app::issuers::fetch::Fetch;
use crate::app::issuers::fetch::FetchError;
use crate::app::issuers::fetch::Fetched;
use crate::app::issuers::fetch::Remote;
use crate::config::KeySource;
use crate::config::Settings;
use crate::gate::KeyRing;
use crate::model::limits;
use crate::runtime::Clock;
use crate::runtime::Stop;
use crate::runtime::Stopper;
use crate::runtime::Tasks;
use crate::runtime::stop_pair;
use crate::telemetry::Metrics;

pub(crate) use fetch::look;

/// The key sets of all issuers that name a URL. Outlives reloads: what did not change keeps its keys.
#[derive(Debug)]
pub(crate) struct Issuers {
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    tasks: Tasks,
    kept: Mutex<Vec<FetchedKeys>>,
}

/// One that is looked after until it is dropped.
#[derive(Debug)]
struct FetchedKeys {
    source: KeySource,
    ring: Arc<KeyRing>,
    stopper: Stopper,
}

impl Issuers {
    /// None yet.
    pub(crate) fn new(clock: Arc<dyn Clock>, metrics: Arc<Metrics>, tasks: Tasks) -> Self {
        Self {
            clock,
            metrics,
            tasks,
            kept: Mutex::default(),
        }
    }

    /// Begins to fetch what the settings name, on the current runtime, and gives the gate's issuers the keys there are.
    pub(crate) fn prepare(&self, settings: &mut Settings) {
        let mut kept = self.lock();
        let before = std::mem::take(&mut *kept);
        let (stay, go): (Vec<_>, Vec<_>) = before
            .into_iter()
            .partition(|fetched| settings.key_sources.contains(&fetched.source));
        for fetched in &go {
            fetched.stopper.stop();
            self.metrics
                .callers
                .remove_issuer(fetched.source.issuer.as_str());
        }
        *kept = stay;
        for source in &settings.key_sources {
            let known = kept.iter().find(|fetched| fetched.source == *source);
            let ring = known.map(|fetched| Arc::clone(&fetched.ring));
            let ring = ring.unwrap_or_else(|| {
                let heir = go
                    .iter()
                    .find(|fetched| is_same_place(&fetched.source, source));
                let made = self.begin(source, heir.map(|heir| &*heir.ring));
                let ring = Arc::clone(&made.ring);
                kept.push(made);
                ring
            });
            let mut all = settings.gate.credentials.issuers.iter_mut();
            if let Some(issuer) = all.find(|issuer_config| issuer_config.name == source.issuer) {
                issuer.keys = ring;
            }
        }
    }

    /// Fetches every set again at once.
    pub(crate) fn hurry(&self) {
        for fetched in self.lock().iter() {
            fetched.ring.request_refresh();
        }
    }

    /// Begins to look after one, with the keys that were there before.
    fn begin(&self, source: &KeySource, before: Option<&KeyRing>) -> FetchedKeys {
        let ring = KeyRing::awaiting_fetch();
        if let Some(before) = before {
            ring.inherit(before);
        }
        // Before anybody can ask: who comes during the first fetch waits for it.
        ring.fetch_started();
        self.metrics.callers.add_issuer(source.issuer.as_str());
        let (stopper, stop) = stop_pair();
        let keeper = Keeper {
            source: source.clone(),
            remote: Arc::new(Remote::new(source, Arc::clone(&self.clock))),
            ring: Arc::clone(&ring),
            clock: Arc::clone(&self.clock),
            metrics: Arc::clone(&self.metrics),
            failures: 0,
            is_reported: false,
        };
        drop(self.tasks.spawn(keeper.run(stop)));
        FetchedKeys {
            source: source.clone(),
            ring,
            stopper,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<FetchedKeys>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the keys of one are the keys of the other.
fn is_same_place(one: &KeySource, other: &KeySource) -> bool {
    let place = |value: &KeySource| {
        (
            value.issuer.clone(),
            value.endpoint.clone(),
            value.target.clone(),
        )
    };
    place(one) == place(other)
}

/// Looks after one key set.
struct Keeper {
    source: KeySource,
    remote: Arc<dyn Fetch>,
    ring: Arc<KeyRing>,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    /// Fetches in a row that failed.
    failures: u32,
    /// Whether the log has the missing keys already.
    is_reported: bool,
}

impl Keeper {
    async fn run(mut self, stop: Stop) {
        tokio::select! {
            () = stop.given() => {}
            () = self.keep(&stop) => {}
        }
        // Requests that still wait look again.
        self.ring.fetch_ended();
    }

    async fn keep(&mut self, stop: &Stop) {
        loop {
            self.ring.fetch_started();
            let begun = self.clock.instant();
            let outcome = self.remote.fetch().await;
            if stop.is_given() {
                return;
            }
            let pause = match outcome {
                Ok(fetched) => self.succeeded(fetched, begun),
                Err(error) => self.failed(&error),
            };
            self.ring.fetch_ended();
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.ring.refresh_requested() => {}
            }
        }
    }

    /// Takes the new set; how long it counts as new.
    fn succeeded(&mut self, fetched: Fetched, begun: std::time::Instant) -> Duration {
        let issuer = self.source.issuer.as_str();
        let keys = fetched.keys.len();
        let until = begun.checked_add(self.source.oldest).unwrap_or(begun);
        let is_new = self.ring.replace(fetched.keys, until);
        self.metrics.callers.record_issuer_refresh(issuer, "ok");
        let seconds = self.clock.now().as_millis().wrapping_div(1000);
        self.metrics
            .callers
            .set_issuer_keys_fetched(issuer, seconds);
        if is_new || self.failures > 0 {
            tracing::info!(issuer, keys, is_new, "issuer keys fetched");
        }
        self.failures = 0;
        self.is_reported = false;
        let asked = fetched.max_age.unwrap_or(self.source.refresh);
        let asked = asked.max(limits::ISSUER_REFRESH_MIN);
        asked.min(self.source.refresh)
    }

    /// Goes on with the last good set; how long to wait before the next attempt.
    fn failed(&mut self, error: &FetchError) -> Duration {
        let issuer = self.source.issuer.as_str();
        self.metrics
            .callers
            .record_issuer_refresh(issuer, error.kind());
        let has_keys = self.ring.has_keys(self.clock.instant());
        let why = error.message();
        // The first one, and then now and then: an outage must be seen, not fill the log.
        let is_due = self.failures.is_multiple_of(LOGGED_EVERY);
        if has_keys && is_due {
            tracing::warn!(
                issuer,
                why,
                "issuer keys not fetched, the last keys stay active"
            );
        } else if !has_keys && (is_due || !self.is_reported) {
            tracing::error!(issuer, why, "issuer keys unavailable, tokens are refused");
            self.is_reported = true;
        }
        let (first, longest) = limits::ISSUER_RETRY;
        let pause = first.saturating_mul(2_u32.saturating_pow(self.failures.min(16)));
        self.failures = self.failures.saturating_add(1);
        pause.min(longest).min(self.source.refresh)
    }
}

/// Failed fetches of which one is logged.
const LOGGED_EVERY: u32 = 10;
