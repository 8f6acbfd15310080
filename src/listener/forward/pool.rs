//! The upstreams of one route: selection by turn or load, health, and ejection after repeated failures.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Instant;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use parking_lot::MutexGuard;

use crate::gate::PoolId;
use crate::listener::forward::config::Balance;
use crate::listener::forward::config::PoolConfig;
use crate::listener::forward::config::Upstream;
use crate::listener::forward::config::UpstreamAddress;
use crate::listener::forward::idle_connections::IdleConnections;
use crate::listener::forward::peer::ResolvedAddress;
use crate::runtime::Clock;
use crate::telemetry::Metrics;

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

/// One upstream and its health.
#[derive(Debug)]
pub(super) struct PoolMember {
    pub(super) upstream: Upstream,
    addresses: ArcSwap<Vec<ResolvedAddress>>,
    turn: AtomicUsize,
    /// Requests in flight.
    busy: AtomicUsize,
    health: Mutex<UpstreamHealth>,
    pub(super) idle: IdleConnections,
}

#[derive(Debug, Default)]
struct UpstreamHealth {
    /// The result of health checks.
    down: bool,
    /// Consecutive health checks that contradict it.
    dissent: u32,
    /// Consecutive failed requests.
    failures: u32,
    /// Ejected until then.
    ejected_until: Option<Instant>,
    /// The last logged cause of failure, until a request succeeds.
    logged: Option<String>,
}

/// The selection of an upstream for one request; counts as a request in flight until dropped.
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

    /// Reports whether the request succeeded.
    pub(super) fn report(&self, succeeded: bool) {
        self.pool.report(self.index, succeeded);
    }

    /// Logs why the request failed: `cause` is the kind of failure, `details` the error.
    pub(super) fn log_failure(&self, cause: &str, details: &str) {
        self.pool.log_failure(self.index, cause, details);
    }
}

impl PoolMember {
    pub(super) fn addresses(&self) -> Arc<Vec<ResolvedAddress>> {
        self.addresses.load_full()
    }

    pub(super) fn set_addresses(&self, addresses: Vec<ResolvedAddress>) {
        // Nothing is stored for an unchanged answer, because readers on other cores would fetch the value anew.
        if *self.addresses() != addresses {
            self.addresses.store(Arc::new(addresses));
        }
    }

    fn health(&self) -> MutexGuard<'_, UpstreamHealth> {
        self.health.lock()
    }

    fn next_address(&self) -> Option<ResolvedAddress> {
        let all = self.addresses();
        // Relaxed: two requests that get the same turn do no harm.
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
            addresses: ArcSwap::from_pointee(literal_addresses(&upstream.address)),
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

    /// Selects an upstream for a request; not the one that has just failed, if there is another. `None` if none is available.
    pub(super) fn select(self: &Arc<Self>, failed: Option<usize>) -> Option<UpstreamLease> {
        // One reading of the clock for all members, so that none is judged by another moment than the rest.
        let now = self.clock.instant();
        let available: Vec<(usize, &PoolMember)> = self
            .members
            .iter()
            .enumerate()
            .filter(|(_, member)| !member.health().down && !member.addresses().is_empty())
            .collect();
        let is_not_ejected = |member: &PoolMember| {
            member
                .health()
                .ejected_until
                .is_none_or(|until| until <= now)
        };
        let mut candidates: Vec<_> = available
            .iter()
            .filter(|(index, member)| is_not_ejected(member) && Some(*index) != failed)
            .copied()
            .collect();
        if candidates.is_empty() {
            // All are ejected: trying one is better than refusing the request.
            candidates = available
                .iter()
                .filter(|(index, _)| Some(*index) != failed)
                .copied()
                .collect();
        }
        if candidates.is_empty() {
            // Only the one that has just failed is left. It may answer the retry.
            candidates = available;
        }
        // A retry takes no turn. Otherwise the next request would start with the same upstream as this one.
        let step = usize::from(failed.is_none());
        let turn = self.turn.fetch_add(step, Ordering::Relaxed);
        let (before, after) = candidates.split_at(turn.checked_rem(candidates.len())?);
        let mut in_turn = after.iter().chain(before);
        let (index, member) = match self.config.balance {
            Balance::RoundRobin => in_turn.next()?,
            Balance::LeastLoaded => {
                in_turn.min_by_key(|(_, member)| member.busy.load(Ordering::Acquire))?
            }
        };
        // Before the count is raised: without an address no lease is made that would lower it again.
        let address = member.next_address()?;
        member.busy.fetch_add(1, Ordering::AcqRel);
        Some(UpstreamLease {
            pool: Arc::clone(self),
            index: *index,
            address,
        })
    }

    /// Logs the cause of a failure once, until a request succeeds or the cause changes. A lasting failure would fill the log.
    fn log_failure(&self, index: usize, cause: &str, details: &str) {
        let Some(member) = self.members.get(index) else {
            return;
        };
        let (route, upstream) = (&self.config.route, &*member.upstream.label);
        // Compared by kind: the details differ with every failure, for instance in a port.
        let is_logged = member.health().logged.replace(cause.to_owned());
        if is_logged.as_deref() == Some(cause) {
            tracing::debug!(%route, upstream, cause, details, "request to upstream failed");
            return;
        }
        match certificate_remedy(details) {
            Some(remedy) => {
                tracing::warn!(%route, upstream, cause, details, remedy, "request to upstream failed");
            }
            None => tracing::warn!(%route, upstream, cause, details, "request to upstream failed"),
        }
    }

    pub(super) fn report(&self, index: usize, succeeded: bool) {
        let Some(member) = self.members.get(index) else {
            return;
        };
        let now = self.clock.instant();
        let mut health = member.health();
        // Changed under the lock, logged after it: a log that blocks must not hold up other requests.
        let was_ejected = health.ejected_until.is_some();
        if succeeded {
            health.failures = 0;
            health.ejected_until = None;
            health.logged = None;
        } else {
            health.failures = health.failures.saturating_add(1);
            // Extended by every further failure, also of those who tried it because all others were ejected.
            if health.failures >= self.config.failures {
                health.ejected_until = now.checked_add(self.config.pause);
            }
        }
        // An ejection that ran out counts until a request succeeds, so that the log and the metric show one recovery
        // and not two.
        let is_ejected = health.ejected_until.is_some();
        drop(health);
        if was_ejected != is_ejected {
            self.publish_health();
            let (route, upstream) = (&self.config.route, &*member.upstream.label);
            if is_ejected {
                tracing::warn!(%route, upstream, "upstream ejected after repeated failures");
            } else {
                tracing::info!(%route, upstream, "upstream restored after successful request");
            }
        }
    }

    /// Records the result of a health check.
    pub(super) fn record_health_check(&self, index: usize, outcome: &Result<(), String>) {
        let (Some(member), Some(check)) = (self.members.get(index), &self.config.health_check)
        else {
            return;
        };
        let mut health = member.health();
        // The check agrees with what is known: earlier dissent was a hiccup.
        if outcome.is_ok() != health.down {
            health.dissent = 0;
            return;
        }
        health.dissent = health.dissent.saturating_add(1);
        // Several in a row, so that one lost packet neither removes an upstream nor brings a sick one back.
        let needed = if health.down { check.rise } else { check.fall };
        if health.dissent < needed {
            return;
        }
        // A change of state forgets failures and ejections of the time before.
        *health = UpstreamHealth {
            down: !health.down,
            ..UpstreamHealth::default()
        };
        drop(health);
        self.publish_health();
        let (route, upstream) = (&self.config.route, &*member.upstream.label);
        match outcome {
            Ok(()) => tracing::info!(%route, upstream, "upstream healthy"),
            Err(cause) => tracing::warn!(%route, upstream, cause, "upstream unhealthy"),
        }
    }

    pub(super) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }

    /// Exports the health of the upstreams.
    pub(super) fn publish_health(&self) {
        for member in &self.members {
            // Held while the metric is set, so that an older state never overwrites a newer one, nor the removal by `retire`.
            let health = member.health();
            if self.is_retired() {
                return;
            }
            let healthy = !health.down && health.ejected_until.is_none();
            let (route, upstream) = (self.config.route.as_str(), &*member.upstream.label);
            self.metrics
                .passthrough
                .set_upstream_healthy(route, upstream, healthy);
        }
    }

    /// Ends the pool after a reload that no longer configures it.
    pub(super) fn retire(&self) {
        // Before the metrics are removed: a request that still runs would publish them again otherwise.
        self.retired.store(true, Ordering::Release);
        for member in &self.members {
            let (route, upstream) = (self.config.route.as_str(), &*member.upstream.label);
            let _not_published_meanwhile = member.health();
            self.metrics.passthrough.remove_upstream(route, upstream);
        }
    }
}

/// The address of an upstream whose host is an IP address or a socket; empty if a name has to be resolved.
fn literal_addresses(place: &UpstreamAddress) -> Vec<ResolvedAddress> {
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

/// What to do about a rejected upstream certificate, derived from the TLS error.
fn certificate_remedy(details: &str) -> Option<&'static str> {
    const REMEDIES: [(&str, &str); 4] = [
        (
            "CaUsedAsEndEntity",
            "the certificate is self-signed and marked as an authority, which `ca` does not accept: set \
             `server_fingerprint` instead",
        ),
        (
            "UnknownIssuer",
            "no authority in `ca` signed the certificate: correct `ca`, or set `server_fingerprint`",
        ),
        (
            "NotValidForName",
            "the certificate is not valid for the host in `upstreams`: use a host name of the certificate, or set `server_fingerprint`",
        ),
        ("Expired", "the certificate has expired: renew it"),
    ];
    let found = REMEDIES.iter().find(|(part, _)| details.contains(part));
    found.map(|(_, remedy)| *remedy)
}
