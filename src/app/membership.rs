//! A gateway as a member of its cluster: on standby, and for terms the active one.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use parking_lot::Mutex;
use serde_json::Value;
use serde_json::json;
use tokio::sync::Notify;
use tokio::sync::watch;

use crate::app::StartError;
use crate::app::active::ActiveOperations;
use crate::app::cluster_clock::ClusterClock;
use crate::app::cluster_tokens::ClusterTokens;
use crate::app::handler::GatewayHandler;
use crate::app::term::Term;
use crate::app::term::TermDeps;
use crate::cluster::ClusterView;
use crate::cluster::Election;
use crate::cluster::Leadership;
use crate::config::Settings;
use crate::etcd;
use crate::etcd::Connection;
use crate::listener::Readiness;
use crate::model::GatewayName;
use crate::operations::OpenStore;
use crate::runtime::Clock;
use crate::runtime::Stop;
use crate::runtime::Stopper;
use crate::runtime::Tasks;
use crate::runtime::stop_pair;
use crate::telemetry::Metrics;

/// How long a gateway that gave the leadership up leaves it to others.
const STAND_ASIDE: Duration = Duration::from_secs(2);

/// How long a handover may take before the gateway is no longer ready. Requests are held as long.
const HANDOVER: Duration = Duration::from_secs(3);

/// Why a term ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TermEnd {
    /// The gateway stops, or an operator asked for it.
    SteppedDown,
    LeaseLost,
    StoreFailed,
    /// It never began.
    NotStarted,
}

impl TermEnd {
    const fn as_str(self) -> &'static str {
        match self {
            Self::SteppedDown => "stepped-down",
            Self::LeaseLost => "lease-lost",
            Self::StoreFailed => "store-failed",
            Self::NotStarted => "not-started",
        }
    }
}

/// What a member of a cluster is made from.
#[derive(Debug)]
pub(crate) struct MemberParts {
    pub(crate) etcd: Arc<etcd::Config>,
    pub(crate) connection: Connection,
    pub(crate) election: Election,
    pub(crate) active: Arc<ActiveOperations>,
    pub(crate) handler: Arc<GatewayHandler>,
    pub(crate) settings: Arc<Mutex<Settings>>,
    pub(crate) tokens: ClusterTokens,
    pub(crate) cluster_clock: ClusterClock,
    pub(crate) deps: TermDeps,
}

/// The membership of this gateway. Dropping it ends the present term without waiting.
#[derive(Debug)]
pub(crate) struct Membership {
    view: watch::Receiver<ClusterView>,
    /// Whether requests are handed to the active gateway.
    hands_on: bool,
    /// What was known at the last look, and since when.
    seen: Mutex<(ClusterView, Instant)>,
    clock: Arc<dyn Clock>,
    name: GatewayName,
    active: Arc<ActiveOperations>,
    step_down: Arc<Notify>,
    drained: watch::Sender<bool>,
    stopper: Stopper,
    left: Stop,
    closer: Stopper,
    tasks: Tasks,
}

struct Member {
    parts: MemberParts,
    step_down: Arc<Notify>,
    drained: watch::Receiver<bool>,
    /// When this gateway last gave the leadership up.
    aside_since: Mutex<Option<Instant>>,
    stop: Stop,
    leaver: Stopper,
    closed: Stop,
}

impl Membership {
    /// Takes part in the election from now on.
    pub(crate) fn start(parts: MemberParts) -> Self {
        let (stopper, stop) = stop_pair();
        let step_down = Arc::new(Notify::new());
        let view = parts.election.view();
        let hands_on = parts.election.config().advertise.is_some();
        let clock = Arc::clone(&parts.deps.clock);
        let name = parts.election.config().name.clone();
        parts.deps.metrics.cluster.join(name.as_str());
        let (leaver, left) = stop_pair();
        let (closer, closed) = stop_pair();
        let (drained, is_drained) = watch::channel(false);
        let active = Arc::clone(&parts.active);
        let member = Member {
            parts,
            step_down: Arc::clone(&step_down),
            drained: is_drained,
            aside_since: Mutex::default(),
            stop,
            leaver,
            closed,
        };
        let tasks = Tasks::default();
        drop(tasks.spawn(member.run()));
        Self {
            view,
            hands_on,
            seen: Mutex::new((ClusterView::Unknown, clock.instant())),
            clock,
            name,
            active,
            step_down,
            drained,
            stopper,
            left,
            closer,
            tasks,
        }
    }

    /// Why a gateway that does not run the operations does not serve requests of the API; `None` while it hands them on.
    fn standby_reason(&self) -> Option<String> {
        let view = self.view.borrow().clone();
        let now = self.clock.instant();
        let since = {
            let mut seen = self.seen.lock();
            if seen.0 != view {
                *seen = (view.clone(), now);
            }
            seen.1
        };
        let is_brief = now.saturating_duration_since(since) < HANDOVER;
        match &view {
            ClusterView::Standby(leader) if self.hands_on && leader.address.is_some() => None,
            // Requests are held that long.
            ClusterView::Vacant | ClusterView::Unknown | ClusterView::Active
                if self.hands_on && is_brief =>
            {
                None
            }
            ClusterView::Active => Some("becoming active".to_owned()),
            ClusterView::Standby(leader) => Some(format!("on standby: {} is active", leader.name)),
            ClusterView::Vacant => Some("on standby: no gateway is active".to_owned()),
            ClusterView::Unknown => Some("on standby: etcd has not answered".to_owned()),
        }
    }

    /// Gives the leadership up, if this gateway has it, and leaves it to others for a while.
    pub(crate) fn step_down(&self) {
        self.step_down.notify_waiters();
    }

    /// Leaves the leadership to others until it is allowed again or restarted.
    pub(crate) fn drain(&self, is_drained: bool) {
        self.drained.send_replace(is_drained);
    }

    /// What an operator wants to know.
    pub(crate) fn describe(&self) -> Value {
        let view = self.view.borrow().clone();
        let (role, leader) = match &view {
            ClusterView::Active => ("active", Some((self.name.clone(), None))),
            ClusterView::Standby(leader) => (
                "standby",
                Some((leader.name.clone(), leader.address.clone())),
            ),
            ClusterView::Vacant | ClusterView::Unknown => ("standby", None),
        };
        let term = self.active.term();
        let remaining = term.as_ref().and_then(|term| term.lease.remaining());
        json!({
            "gateway": self.name,
            "role": role,
            "active": leader.as_ref().map(|(name, _)| name),
            "address": leader.as_ref().and_then(|(_, address)| address.as_ref()),
            "is_reachable": view != ClusterView::Unknown,
            "is_drained": *self.drained.borrow(),
            "hands_on": self.hands_on,
            "lease_remaining_ms": remaining.map(|remaining| u64::try_from(remaining.as_millis()).unwrap_or(u64::MAX)),
            "unfinished": term.map(|term| term.operations.unfinished_count()),
        })
    }

    /// Ends the present term and gives the leadership up. Requests are handed to the next active gateway until
    /// [`Membership::close`].
    pub(crate) async fn leave(&self) {
        self.stopper.stop();
        self.left.given().await;
    }

    /// Takes part no longer.
    pub(crate) async fn close(&self) {
        self.closer.stop();
        self.tasks.ended().await;
    }
}

impl Readiness for Membership {
    /// Of a gateway that does not run the operations.
    fn readiness(&self) -> Result<(), String> {
        self.standby_reason().map_or(Ok(()), Err)
    }
}

impl Member {
    async fn run(self) {
        let part = async {
            self.take_part().await;
            self.leaver.stop();
            tokio::select! {
                () = self.closed.given() => {}
                // Never won: only the view is kept up to date.
                _leadership = self.parts.election.win(&|| false) => {}
            }
        };
        tokio::select! {
            () = part => {}
            never = self.parts.tokens.follow() => match never {},
            never = self.parts.cluster_clock.follow() => match never {},
        }
    }

    /// Returns once the gateway stops and is not the active one.
    async fn take_part(&self) {
        loop {
            let may_lead = || self.may_lead();
            let leadership = tokio::select! {
                biased;
                () = self.stop.given() => return,
                leadership = self.parts.election.win(&may_lead) => leadership,
            };
            let end = Box::pin(self.lead(&leadership)).await;
            self.metrics().cluster.record_term_end(end.as_str());
            tracing::warn!(reason = end.as_str(), "gateway no longer active");
            leadership.resign().await;
            if end != TermEnd::LeaseLost {
                *self.aside_since.lock() = Some(self.parts.deps.clock.instant());
            }
        }
    }

    /// Whether this gateway tries to become active: not while it is drained, nor right after it gave the leadership up.
    fn may_lead(&self) -> bool {
        let now = self.parts.deps.clock.instant();
        let aside = *self.aside_since.lock();
        let is_aside =
            aside.is_some_and(|since| now.saturating_duration_since(since) < STAND_ASIDE);
        !is_aside && !*self.drained.borrow()
    }

    fn metrics(&self) -> &Metrics {
        &self.parts.deps.metrics
    }

    /// One term, from its beginning to its end.
    async fn lead(&self, leadership: &Leadership) -> TermEnd {
        let won = self.parts.deps.clock.instant();
        let mut held = pin!(leadership.hold());
        let begun = tokio::select! {
            biased;
            lost = &mut held => {
                tracing::error!(reason = %lost, "lease lost before the term began");
                return TermEnd::LeaseLost;
            }
            begun = self.begin(leadership) => begun,
        };
        let term = match begun {
            Ok(term) => term,
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::error!(%error, cause, "term not begun");
                return TermEnd::NotStarted;
            }
        };
        self.parts.active.begin(&term);
        let adopted = term.operations.unfinished_count();
        let took = self
            .parts
            .deps
            .clock
            .instant()
            .saturating_duration_since(won);
        let cluster = &self.metrics().cluster;
        cluster.record_adopted(u64::try_from(adopted).unwrap_or(u64::MAX));
        cluster.record_takeover(took);
        let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        tracing::warn!(adopted, took_ms, "gateway active");
        let end = tokio::select! {
            biased;
            lost = &mut held => {
                tracing::error!(reason = %lost, "lease lost");
                TermEnd::LeaseLost
            }
            () = self.stop.given() => TermEnd::SteppedDown,
            () = self.step_down.notified() => TermEnd::SteppedDown,
            () = self.drain_requested() => TermEnd::SteppedDown,
            () = term.store_failed() => TermEnd::StoreFailed,
            never = self.parts.tokens.report_use(leadership.term()) => match never {},
            never = self.parts.cluster_clock.announce(leadership.term()) => match never {},
        };
        self.parts.election.leave();
        let upkeep = async {
            // The calls under way may end within the lease, so it is held as long as that takes.
            let hold = async {
                if end != TermEnd::LeaseLost {
                    held.await;
                }
            };
            // Requests are handed to the next active gateway as soon as there is one.
            tokio::join!(hold, self.parts.election.win(&|| false));
        };
        tokio::select! {
            () = self.end(&term, end) => {}
            () = upkeep => {}
        }
        end
    }

    async fn drain_requested(&self) {
        let mut drained = self.drained.clone();
        // The sender lives as long as the membership, which ends by its own signal.
        if drained.wait_for(|drained| *drained).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    async fn begin(&self, leadership: &Leadership) -> Result<Arc<Term>, StartError> {
        // Before anything is answered: a token that was revoked meanwhile is refused from the first request on.
        self.parts.tokens.load().await?;
        let settings = self.parts.settings.lock().clone();
        let own = (&*self.parts.etcd, &self.parts.election.config().name);
        let store = OpenStore::open_led(
            self.parts.connection.clone(),
            own,
            (leadership.term().clone(), leadership.lease().clone()),
            Arc::clone(&self.parts.deps.clock),
            Metrics::clone(self.metrics()),
        )
        .await?;
        Term::begin(store, &settings, &self.parts.deps).await
    }

    async fn end(&self, term: &Term, end: TermEnd) {
        // First, so that who waits is answered with the state of this term, and new requests go to the next active gateway.
        term.announce_end();
        tracing::info!(reason = end.as_str(), "term ending");
        if end == TermEnd::SteppedDown && !term.requests_ended().await {
            tracing::warn!("term ends before its requests");
        }
        self.parts.active.end();
        {
            // Streams of all Statuses end with the configuration that they began with.
            let settings = self.parts.settings.lock();
            self.parts.handler.reload(settings.gate.clone());
        }
        tracing::info!("requests of the term answered");
        term.end().await;
        tracing::info!("term ended");
    }
}
