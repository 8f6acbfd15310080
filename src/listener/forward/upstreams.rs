//! The upstream pools of all pass-through routes.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;

use crate::gate::PoolId;
use crate::listener::forward::config::PoolConfig;
use crate::listener::forward::health_check;
use crate::listener::forward::health_check::HealthChecker;
use crate::listener::forward::pool::Pool;
use crate::runtime::Clock;
use crate::runtime::Tasks;
use crate::telemetry::Metrics;

/// The upstreams of all routes. Kept across reloads: pools that did not change keep their health and connections.
#[derive(Debug)]
pub struct Upstreams {
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    tasks: Tasks,
    ids: AtomicU64,
    pools: Mutex<PoolGenerations>,
    checker: HealthChecker,
}

/// The active pools and those of the previous configuration, for requests that were decided just before a reload.
#[derive(Debug, Default)]
struct PoolGenerations {
    current: Vec<Arc<Pool>>,
    previous: Vec<Arc<Pool>>,
}

impl Upstreams {
    /// Creates an empty set.
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

    /// Activates the upstreams of these routes on the current runtime. Returns the id of each pool, in the same order.
    pub fn activate(&self, configs: &[PoolConfig]) -> Vec<PoolId> {
        let mut pools = self.pools.lock();
        let mut made = Vec::with_capacity(configs.len());
        let mut fresh = Vec::new();
        for config in configs {
            let known = pools.current.iter().find(|pool| pool.config == *config);
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
        // Retired before the new pools export their metrics: both can have upstreams of the same name.
        for old in &pools.current {
            if !made.iter().any(|pool| Arc::ptr_eq(pool, old)) {
                old.retire();
            }
        }
        for pool in &fresh {
            pool.publish_health();
            health_check::start_maintenance(pool, &self.checker, &self.tasks);
        }
        let ids = made.iter().map(|pool| pool.id).collect();
        let before = std::mem::replace(&mut pools.current, made);
        pools.previous = before;
        ids
    }

    pub(super) fn pool(&self, id: PoolId) -> Option<Arc<Pool>> {
        let pools = self.pools.lock();
        let mut all = pools.current.iter().chain(&pools.previous);
        all.find(|pool| pool.id == id).cloned()
    }
}
