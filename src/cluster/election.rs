//! How a gateway becomes the active one of its cluster, stays it, and learns who is.
//!
//! The active gateway holds a key in etcd under a lease. The deadline of its right to act ([`Lease`]) is the moment at which the last
//! successful renewal was sent, and the time of the lease less a margin: it is over here before it is over in etcd, whatever happened
//! to the answer.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;
use tokio::time::timeout;

use crate::cluster::config::Config;
use crate::cluster::leader::Leader;
use crate::etcd::Attempt;
use crate::etcd::Connection;
use crate::etcd::EtcdError;
use crate::etcd::LeaderLock;
use crate::etcd::LeaderTerm;
use crate::runtime::Clock;
use crate::runtime::Lease;
use crate::telemetry::Metrics;

/// Pause after a request to etcd that failed.
const PAUSE: Duration = Duration::from_millis(250);
/// How long the key is followed before it is read again, in case a watch has silently stopped.
const FOLLOW_FOR: Duration = Duration::from_secs(5);

/// The same while this gateway leaves the leadership to others.
const ASIDE_FOR: Duration = Duration::from_millis(250);

/// What a gateway knows of its cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ClusterView {
    /// Nothing: etcd has not answered yet, or answers no more.
    #[default]
    Unknown,
    /// No gateway is active. This lasts for a moment, or as long as no gateway is able to take over.
    Vacant,
    /// This gateway is active.
    Active,
    /// Another gateway is.
    Standby(Leader),
}

/// Takes part in the election of the active gateway.
#[derive(Debug)]
pub struct Election {
    connection: Connection,
    key: String,
    config: Config,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    view: watch::Sender<ClusterView>,
}

/// Why a gateway is no longer the active one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// The deadline passed without a renewal.
    #[error("not renewed in time")]
    Late,
    /// etcd does not know the lease any more.
    #[error("expired or revoked")]
    Expired,
}

/// The right and the duty of the active gateway. Must be held by [`Leadership::hold`].
#[derive(Debug)]
pub struct Leadership {
    lock: LeaderLock,
    lease: Lease,
    config: Config,
    clock: Arc<dyn Clock>,
}

impl Election {
    /// Takes part with these settings, by a key below `prefix`; asks nothing yet.
    #[must_use]
    pub fn new(
        connection: Connection,
        prefix: &str,
        config: Config,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            connection,
            key: format!("{prefix}/leader"),
            config,
            clock,
            metrics,
            view: watch::Sender::default(),
        }
    }

    /// What is known of the cluster, and each change of it.
    #[must_use]
    pub fn view(&self) -> watch::Receiver<ClusterView> {
        self.view.subscribe()
    }

    /// The name of this gateway.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// Waits until this gateway is the active one, and keeps the view up to date until then. It tries while `may_lead` says so.
    /// Cancel-safe: a key that was made meanwhile vanishes with its lease.
    pub async fn win(&self, may_lead: &(dyn Fn() -> bool + Send + Sync)) -> Leadership {
        let mut has_failed = false;
        loop {
            match self.attempt(may_lead).await {
                Ok(Some(leadership)) => {
                    self.publish(ClusterView::Active);
                    return leadership;
                }
                Ok(None) => has_failed = false,
                Err(error) => {
                    // Once for each outage: the state is in the metrics and in `/readyz`.
                    if !std::mem::replace(&mut has_failed, true) {
                        let error = self.connection.explain(&error);
                        tracing::warn!(error, "cluster election failed, retrying");
                    }
                    self.publish(ClusterView::Unknown);
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// This gateway is no longer active. Who is will be known by the next [`Election::win`].
    pub fn leave(&self) {
        self.publish(ClusterView::Unknown);
    }

    fn publish(&self, view: ClusterView) {
        let name = self.config.name.as_str();
        let is_led = matches!(view, ClusterView::Active | ClusterView::Standby(_));
        let is_active = view == ClusterView::Active;
        self.metrics.cluster.set_role(name, is_active, is_led);
        self.view.send_if_modified(|known| {
            let is_new = *known != view;
            if is_new {
                if let ClusterView::Standby(leader) = &view {
                    tracing::info!(active = %leader.name, "gateway on standby");
                }
                *known = view;
            }
            is_new
        });
    }

    /// Becomes active if no gateway is; else waits until that may have changed.
    async fn attempt(
        &self,
        may_lead: &(dyn Fn() -> bool + Send + Sync),
    ) -> Result<Option<Leadership>, EtcdError> {
        let found = self.connection.read(self.key.as_str(), None).await?;
        let revision = found.header().map_or(0, |header| header.revision());
        if let Some(held) = found.kvs().first() {
            self.publish(self.view_of(held.value()));
            self.follow(revision.saturating_add(1), FOLLOW_FOR).await?;
            return Ok(None);
        }
        self.publish(ClusterView::Vacant);
        if !may_lead() {
            self.follow(revision.saturating_add(1), ASIDE_FOR).await?;
            return Ok(None);
        }
        let leader = Leader::attempt(&self.config.name, self.config.advertise.as_deref())
            .map_err(|error| EtcdError::Unavailable(error.to_string()))?;
        // Before the request leaves: etcd counts the lease from its arrival.
        let sent = self.clock.since_boot();
        let text = leader.to_text();
        let attempt =
            LeaderLock::attempt(&self.connection, &self.key, &text, self.config.lease).await?;
        match attempt {
            Attempt::Leads(lock) => {
                let deadline = sent.saturating_add(self.config.usable());
                Ok(Some(Leadership {
                    lock,
                    lease: Lease::until(deadline, Arc::clone(&self.clock)),
                    config: self.config.clone(),
                    clock: Arc::clone(&self.clock),
                }))
            }
            Attempt::Held { holder } => {
                self.publish(self.view_of(holder.as_bytes()));
                Ok(None)
            }
        }
    }

    fn view_of(&self, value: &[u8]) -> ClusterView {
        match Leader::from_text(value) {
            // A term of this gateway that ended without a release, or a second gateway of the same name.
            Some(leader) if leader.name == self.config.name => ClusterView::Vacant,
            Some(leader) => ClusterView::Standby(leader),
            None => ClusterView::Unknown,
        }
    }

    /// Returns once the key was removed or changed, or after a while.
    async fn follow(&self, from: i64, longest: Duration) -> Result<(), EtcdError> {
        let mut stream = self.connection.watch(self.key.as_str(), from).await?;
        let changed = async {
            loop {
                let message = stream.message().await.map_err(EtcdError::from)?;
                let Some(message) = message.filter(|message| !message.canceled()) else {
                    return Ok(());
                };
                // A watch follows all keys that begin with this one.
                let mut keys = message.events().iter().filter_map(|event| event.kv());
                if keys.any(|found| found.key() == self.key.as_bytes()) {
                    return Ok(());
                }
            }
        };
        timeout(longest, changed).await.unwrap_or(Ok(()))
    }
}

impl Leadership {
    /// The right to act, which ends by itself.
    #[must_use]
    pub const fn lease(&self) -> &Lease {
        &self.lease
    }

    /// The fence for every write.
    #[must_use]
    pub const fn term(&self) -> &LeaderTerm {
        self.lock.term()
    }

    /// Renews the lease again and again; returns once it is lost. Cancel-safe, but the lease goes on only while this runs.
    pub async fn hold(&self) -> Lost {
        loop {
            let left = self.lease.remaining().unwrap_or_default();
            if !self.lease.is_held() {
                return Lost::Late;
            }
            // Never later than the deadline: a lease that is over must be noticed at once.
            let used = self.config.usable().saturating_sub(left);
            let pause = self.config.renew_every().saturating_sub(used);
            sleep(pause.min(left)).await;
            match self.renew().await {
                Ok(()) => {}
                Err(lost) => {
                    self.lease.end();
                    return lost;
                }
            }
        }
    }

    async fn renew(&self) -> Result<(), Lost> {
        loop {
            let sent = self.clock.since_boot();
            let left = self.lease.remaining().unwrap_or_default();
            let renewed = timeout(left, self.lock.renew()).await;
            let deadline = sent.saturating_add(self.config.usable());
            match renewed {
                Ok(Ok(())) => return self.lease.extend(deadline).map_err(|_ended| Lost::Late),
                Ok(Err(EtcdError::LeaseExpired)) => return Err(Lost::Expired),
                Ok(Err(error)) => tracing::warn!(%error, "lease not renewed, retrying"),
                Err(_elapsed) => return Err(Lost::Late),
            }
            sleep(PAUSE.min(left)).await;
            if !self.lease.is_held() {
                return Err(Lost::Late);
            }
        }
    }

    /// Gives the leadership up, so that another gateway need not wait for the end of the lease.
    pub async fn resign(self) {
        self.lease.end();
        if let Err(error) = self.lock.release().await {
            tracing::warn!(%error, "leadership not released, it ends with its lease");
        }
    }
}
