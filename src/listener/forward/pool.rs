//! Which upstream is asked: by turns or by load, leaving out those that do not answer.

use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Instant;

use arc_swap::ArcSwap;

use crate::gate::PoolId;
use crate::listener::forward::config::Balance;
use crate::listener::forward::config::PoolConfig;
use crate::listener::forward::config::Upstream;
use crate::listener::forward::config::UpstreamAddress;
use crate::listener::forward::health_check;
use crate::listener::forward::health_check::HealthChecker;
use crate::listener::forward::idle_connections::IdleConnections;
use crate::listener::forward::peer::ResolvedAddress;
use crate::runtime::Clock;
use crate::runtime::Tasks;
use crate::telemetry::Metrics;

/// The upstreams of all routes. Outlives reloads: what did not change keeps its health and its connections.
#[derive(Debug)]
pub struct Upstreams {
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    tasks: Tasks,
    ids: AtomicU64,
    pools: Mutex<PoolGenerations>,
    checker: HealthChecker,
}

/// Those in force, and those before: a request that was decided just before a reload still finds its upstreams.
#[derive(Debug, Default)]
struct PoolGenerations {
    current: Vec<Arc<Pool>>,
    previous: Vec<Arc<Pool>>,
}

impl Upstreams {
    /// None yet.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>, metrics: Arc<Metrics>, tasks: Tasks) -> Arc<Self> {
        Arc::new(Self {
            clock,
            metrics,
            tasks,
            ids: AtomicU64::new(1),
            pools: Mutex::default(),
            checker: HealthChecker::default(),
        })
    }

    /// Makes the upstreams of these routes ready, on the current runtime. Gives an id for each, in the same order.
    pub fn prepare(&self, configs: &[PoolConfig]) -> Vec<PoolId> {
        let mut pools = self.lock();
        let mut made = Vec::with_capacity(configs.len());
        let mut fresh = Vec::new();
        for config in configs {
            let known = pools.current.iter().find(|it| it.config == *config);
            made.push(known.map_or_else(
                || {
                    let id = PoolId(self.ids.fetch_add(1, Ordering::Relaxed));
                    let (clock, metrics) = (Arc::clone(&self.clock), Arc::clone(&self.metrics));
                    let pool = Arc::new(Pool::new(id, config.clone(), clock, metrics));
                    fresh.push(Arc::clone(&pool));
                    pool
                },
                Arc::clone,
            ));
        }
        for old in &pools.current {
            if !made.iter().any(|it| Arc::ptr_eq(it, old)) {
                old.retire();
            }
        }
        for pool in &fresh {
            pool.tell();
            health_check::begin(pool, &self.checker, &self.tasks);
        }
        let ids = made.iter().map(|it| it.id).collect();
        let before = std::mem::replace(&mut pools.current, made);
        pools.previous = before;
        ids
    }

    pub(super) fn pool(&self, id: PoolId) -> Option<Arc<Pool>> {
        let pools = self.lock();
        let mut all = pools.current.iter().chain(&pools.previous);
        all.find(|it| it.id == id).cloned()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, PoolGenerations> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The upstreams of one route.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) id: PoolId,
    pub(super) config: PoolConfig,
    pub(super) members: Vec<PoolMember>,
    turn: AtomicUsize,
    retired: AtomicBool,
    pub(super) clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
}

/// One upstream, and how it did so far.
#[derive(Debug)]
pub(super) struct PoolMember {
    pub(super) upstream: Upstream,
    addresses: ArcSwap<Vec<ResolvedAddress>>,
    turn: AtomicUsize,
    busy: AtomicUsize,
    health: Mutex<UpstreamHealth>,
    pub(super) idle: IdleConnections,
}

#[derive(Debug, Default)]
struct UpstreamHealth {
    /// What the probes say.
    down: bool,
    /// Probes in a row that say otherwise.
    dissent: u32,
    /// Requests in a row that failed.
    failures: u32,
    /// Left alone until then.
    until: Option<Instant>,
    /// The cause of failure that was logged last, until a request succeeds.
    logged: Option<String>,
}

/// A request's place at an upstream, given back when dropped.
#[derive(Debug)]
pub(super) struct UpstreamLease {
    pub(super) pool: Arc<Pool>,
    pub(super) index: usize,
    pub(super) address: ResolvedAddress,
}

impl Drop for UpstreamLease {
    fn drop(&mut self) {
        if let Some(member) = self.member() {
            member.busy.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl UpstreamLease {
    pub(super) fn member(&self) -> Option<&PoolMember> {
        self.pool.members.get(self.index)
    }

    /// Tells how the request fared.
    pub(super) fn report(&self, good: bool) {
        self.pool.report(self.index, good);
    }

    /// Logs why the request failed: `cause` is the kind of failure, `details` what the system says.
    pub(super) fn log_failure(&self, cause: &str, details: &str) {
        self.pool.log_failure(self.index, cause, details);
    }
}

impl PoolMember {
    pub(super) fn addresses(&self) -> Arc<Vec<ResolvedAddress>> {
        self.addresses.load_full()
    }

    pub(super) fn found_at(&self, addresses: Vec<ResolvedAddress>) {
        if *self.addresses() != addresses {
            self.addresses.store(Arc::new(addresses));
        }
    }

    fn health(&self) -> std::sync::MutexGuard<'_, UpstreamHealth> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_address(&self) -> Option<ResolvedAddress> {
        let all = self.addresses();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        all.get(turn.checked_rem(all.len())?).cloned()
    }
}

impl Pool {
    pub(super) fn new(
        id: PoolId,
        config: PoolConfig,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let member = |upstream: &Upstream| PoolMember {
            addresses: ArcSwap::from_pointee(literal(&upstream.place)),
            upstream: upstream.clone(),
            turn: AtomicUsize::new(0),
            busy: AtomicUsize::new(0),
            health: Mutex::default(),
            idle: IdleConnections::default(),
        };
        Self {
            id,
            members: config.upstreams.iter().map(member).collect(),
            config,
            turn: AtomicUsize::new(0),
            retired: AtomicBool::new(false),
            clock,
            metrics,
        }
    }

    /// An upstream for a request; not the one that has just failed, if there is another. `None` when none is able.
    pub(super) fn pick(self: &Arc<Self>, failed: Option<usize>) -> Option<UpstreamLease> {
        let now = self.clock.instant();
        let able: Vec<(usize, &PoolMember)> = self
            .members
            .iter()
            .enumerate()
            .filter(|(_, it)| !it.health().down && !it.addresses().is_empty())
            .collect();
        let rested = |it: &PoolMember| it.health().until.is_none_or(|until| until <= now);
        let mut left: Vec<_> = able
            .iter()
            .filter(|(index, it)| rested(it) && Some(*index) != failed)
            .copied()
            .collect();
        if left.is_empty() {
            // Asking one that has failed is better than asking none.
            left = able
                .iter()
                .filter(|it| Some(it.0) != failed)
                .copied()
                .collect();
        }
        if left.is_empty() {
            left = able;
        }
        // A second attempt takes no turn, or the next request would begin with the same upstream as this one.
        let step = usize::from(failed.is_none());
        let turn = self.turn.fetch_add(step, Ordering::Relaxed);
        let (before, after) = left.split_at(turn.checked_rem(left.len())?);
        let mut in_turn = after.iter().chain(before);
        let (index, member) = match self.config.balance {
            Balance::RoundRobin => in_turn.next()?,
            Balance::LeastLoaded => in_turn.min_by_key(|it| it.1.busy.load(Ordering::Acquire))?,
        };
        let address = member.next_address()?;
        member.busy.fetch_add(1, Ordering::AcqRel);
        Some(UpstreamLease {
            pool: Arc::clone(self),
            index: *index,
            address,
        })
    }

    /// Logs the cause of a failure once, until a request succeeds or the cause changes: one that lasts would fill the log.
    fn log_failure(&self, index: usize, cause: &str, details: &str) {
        let Some(member) = self.members.get(index) else {
            return;
        };
        let (route, upstream) = (&self.config.route, &*member.upstream.label);
        let is_logged = member.health().logged.replace(cause.to_owned());
        if is_logged.as_deref() == Some(cause) {
            tracing::debug!(%route, upstream, cause, details, "upstream failed");
            return;
        }
        match remedy(details) {
            Some(remedy) => {
                tracing::warn!(%route, upstream, cause, details, remedy, "upstream failed");
            }
            None => tracing::warn!(%route, upstream, cause, details, "upstream failed"),
        }
    }

    pub(super) fn report(&self, index: usize, good: bool) {
        let Some(member) = self.members.get(index) else {
            return;
        };
        let now = self.clock.instant();
        let mut health = member.health();
        let was_left_alone = health.until.is_some();
        if good {
            health.failures = 0;
            health.until = None;
            health.logged = None;
        } else {
            health.failures = health.failures.saturating_add(1);
            if health.failures >= self.config.failures {
                health.until = now.checked_add(self.config.pause);
            }
        }
        let is_left_alone = health.until.is_some();
        drop(health);
        if was_left_alone != is_left_alone {
            self.tell();
            let (route, upstream) = (&self.config.route, &*member.upstream.label);
            if is_left_alone {
                tracing::warn!(%route, upstream, "upstream fails and is left alone for a while");
            } else {
                tracing::info!(%route, upstream, "upstream answers again");
            }
        }
    }

    /// Takes the outcome of a probe.
    pub(super) fn probed(&self, index: usize, outcome: &Result<(), String>) {
        let (Some(member), Some(probe)) = (self.members.get(index), &self.config.probe) else {
            return;
        };
        let mut health = member.health();
        if outcome.is_ok() != health.down {
            health.dissent = 0;
            return;
        }
        health.dissent = health.dissent.saturating_add(1);
        let needed = if health.down { probe.rise } else { probe.fall };
        if health.dissent < needed {
            return;
        }
        *health = UpstreamHealth {
            down: !health.down,
            ..UpstreamHealth::default()
        };
        drop(health);
        self.tell();
        let (route, upstream) = (&self.config.route, &*member.upstream.label);
        match outcome {
            Ok(()) => tracing::info!(%route, upstream, "upstream is healthy again"),
            Err(why) => tracing::warn!(%route, upstream, why, "upstream is not healthy"),
        }
    }

    pub(super) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }

    /// Tells the metrics who is healthy.
    fn tell(&self) {
        if self.is_retired() {
            return;
        }
        for member in &self.members {
            let health = member.health();
            let healthy = !health.down && health.until.is_none();
            drop(health);
            let (route, upstream) = (self.config.route.as_str(), &*member.upstream.label);
            self.metrics
                .passthrough
                .set_upstream_healthy(route, upstream, healthy);
        }
    }

    /// Is no longer configured.
    fn retire(&self) {
        self.retired.store(true, Ordering::Release);
        for member in &self.members {
            let (route, upstream) = (self.config.route.as_str(), &*member.upstream.label);
            self.metrics.passthrough.remove_upstream(route, upstream);
        }
    }
}

/// What need not be looked up.
fn literal(place: &UpstreamAddress) -> Vec<ResolvedAddress> {
    match place {
        UpstreamAddress::Socket(path) => {
            vec![ResolvedAddress::Socket(Arc::<Path>::from(path.as_path()))]
        }
        UpstreamAddress::Host(host, port) => {
            let address = host.parse().ok();
            let address = address
                .map(|address| ResolvedAddress::Inet(std::net::SocketAddr::new(address, *port)));
            address.into_iter().collect()
        }
    }
}
/// What to do about the certificate of an upstream, by what TLS says of it.
fn remedy(details: &str) -> Option<&'static str> {
    const REMEDIES: [(&str, &str); 4] = [
        (
            "CaUsedAsEndEntity",
            "the certificate of the upstream is self-signed and marked as an authority, so `ca` cannot check it: set \
             `server_fingerprint` instead",
        ),
        (
            "UnknownIssuer",
            "no authority in `ca` signed the certificate of the upstream: correct `ca`, or set `server_fingerprint`",
        ),
        (
            "NotValidForName",
            "the certificate of the upstream is not for the host in `upstreams`: name that host, or set `server_fingerprint`",
        ),
        (
            "Expired",
            "the certificate of the upstream has expired: renew it",
        ),
    ];
    let found = REMEDIES.iter().find(|(part, _)| details.contains(part));
    found.map(|(_, remedy)| *remedy)
}
