//! What stands between the listener and the gate: the swap of the gate at a reload, the access log, the audit trail.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use parking_lot::Mutex;

use crate::gate;
use crate::gate::ApiToken;
use crate::gate::Body;
use crate::gate::Code;
use crate::gate::Gate;
use crate::gate::GateDecision;
use crate::gate::HandledRequest;
use crate::gate::PassThrough;
use crate::gate::ProcessState;
use crate::gate::Relay;
use crate::gate::RelayedRequest;
use crate::gate::RequestHead;
use crate::listener::Handler;
use crate::listener::Readiness;
use crate::listener::SentResponse;
use crate::listener::UpstreamResult;
use crate::operations::OperationsApi;
use crate::runtime::Clock;
use crate::telemetry;
use crate::telemetry::AccessRecord;
use crate::telemetry::Metrics;

/// What a gate is made of.
#[derive(Debug)]
struct GateParts {
    config: gate::Config,
    /// The API tokens of the cluster, which count instead of those of the configuration.
    shared_tokens: Option<Vec<ApiToken>>,
}

impl GateParts {
    /// `None` of the tokens in the configuration means that no tokens are accepted, shared ones neither.
    fn effective(&self) -> gate::Config {
        let mut config = self.config.clone();
        if let (Some(tokens), Some(shared)) = (&mut config.credentials.tokens, &self.shared_tokens)
        {
            tokens.clone_from(shared);
        }
        config
    }
}

/// The active gate, and the state that outlives it.
#[derive(Debug)]
pub(crate) struct GatewayHandler {
    gate: ArcSwap<Gate>,
    /// What the gate was made of.
    parts: Mutex<GateParts>,
    shared: Arc<ProcessState>,
    service: Arc<dyn OperationsApi>,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    draining: AtomicBool,
    membership: OnceLock<Arc<dyn Readiness>>,
}

impl GatewayHandler {
    pub(crate) fn new(
        config: gate::Config,
        shared: Arc<ProcessState>,
        service: Arc<dyn OperationsApi>,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
    ) -> Self {
        let gate = Gate::new(
            config.clone(),
            Arc::clone(&service),
            Arc::clone(&clock),
            metrics.clone(),
            Arc::clone(&shared),
        );
        Self {
            gate: ArcSwap::from_pointee(gate),
            parts: Mutex::new(GateParts {
                config,
                shared_tokens: None,
            }),
            shared,
            service,
            clock,
            metrics,
            draining: AtomicBool::new(false),
            membership: OnceLock::new(),
        }
    }

    /// From now on requests are handed on while another gateway is active.
    pub(crate) fn hand_on_by(&self, relay: Arc<dyn Relay>) {
        self.shared.hand_on_by(relay);
    }

    /// From now on readiness depends on the part that the gateway has in its cluster.
    pub(crate) fn join(&self, membership: Arc<dyn Readiness>) {
        // Called once, at the start.
        drop(self.membership.set(membership));
    }

    /// Requests that come from now on are decided by this; those under way by what was before.
    pub(crate) fn reload(&self, config: gate::Config) {
        let mut parts = self.parts.lock();
        parts.config = config;
        self.renew(&parts);
    }

    /// The same with the API tokens of the cluster, which stay through reloads.
    pub(crate) fn share_tokens(&self, tokens: Vec<ApiToken>) {
        let mut parts = self.parts.lock();
        parts.shared_tokens = Some(tokens);
        self.renew(&parts);
    }

    /// Called with the parts locked: the last change is what counts.
    fn renew(&self, parts: &GateParts) {
        let gate = Gate::new(
            parts.effective(),
            Arc::clone(&self.service),
            Arc::clone(&self.clock),
            self.metrics.clone(),
            Arc::clone(&self.shared),
        );
        self.gate.store(Arc::new(gate));
    }

    /// From now on the gateway says that it is not ready.
    pub(crate) fn draining(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Releases all waiters and refuses new ones; called at shutdown.
    pub(crate) fn release(&self) {
        self.shared.release_waiters();
    }
}

impl GatewayHandler {
    /// Decides about a request that another gateway of the cluster hands on.
    pub(crate) async fn handle_relayed(
        &self,
        head: RequestHead<'_>,
        body: &mut dyn Body,
        relayed: &RelayedRequest,
    ) -> GateDecision {
        let gate = self.gate.load_full();
        self.record(gate.handle_relayed(head, body, relayed).await)
    }

    /// Writes the line of the audit trail.
    fn record(&self, decision: GateDecision) -> GateDecision {
        let exchange = match decision {
            GateDecision::Answer(exchange) => exchange,
            GateDecision::PassThrough(pass) => return GateDecision::PassThrough(pass),
        };
        // Written before the answer leaves: a client that knows of a change finds it in the trail.
        if let Some(entry) = exchange.audit.as_ref().filter(|entry| !entry.written) {
            telemetry::record_audit(&entry.record(self.clock.now()));
        }
        GateDecision::Answer(exchange)
    }
}

#[async_trait]
impl Handler for GatewayHandler {
    async fn handle(&self, head: RequestHead<'_>, body: &mut dyn Body) -> GateDecision {
        let gate = self.gate.load_full();
        self.record(gate.handle(head, body).await)
    }

    fn refuse_unreadable(&self, peer: Option<IpAddr>) -> HandledRequest {
        let code = Code::MalformedRequest;
        self.metrics.requests.record_refusal(code.as_str());
        gate::refuse_unreadable(self.shared.request_id(), peer)
    }

    fn failed(&self, pass: &PassThrough, code: Code) -> HandledRequest {
        self.metrics.requests.record_refusal(code.as_str());
        gate::pass_through_failure(pass, code)
    }

    fn is_shared(&self, peer: IpAddr) -> bool {
        self.gate.load().is_shared(peer)
    }

    fn passed(&self, pass: &PassThrough, way: &UpstreamResult<'_>, access: &SentResponse<'_>) {
        let status = access.status.unwrap_or(499);
        let route = pass.route.name.as_str();
        self.metrics
            .requests
            .record_request("passthrough", pass.method, status, access.took);
        self.metrics.passthrough.record_passed_request(
            route,
            way.upstream.unwrap_or("none"),
            status,
            way.waited,
        );
        if way.retried {
            self.metrics.passthrough.record_pass_retry(route);
        }
        if !telemetry::is_access_logged() && !telemetry::is_tracing_exported() {
            return;
        }
        let agent = access.user_agent.map(String::from_utf8_lossy);
        self.report(&AccessRecord {
            time: self.clock.now(),
            request: pass.request.as_str(),
            trace: Some(pass.trace),
            peer: access.peer,
            client: pass.client,
            method: pass.method,
            route: "passthrough",
            status,
            bytes: u64::try_from(access.bytes).unwrap_or(u64::MAX),
            took: access.took,
            principal: pass.principal.as_ref().map(|principal| principal.as_str()),
            target: &String::from_utf8_lossy(access.target),
            user_agent: agent.as_deref(),
            operation: None,
            passthrough: Some(route),
            upstream: way.upstream,
        });
    }

    fn done(&self, exchange: Option<&HandledRequest>, access: &SentResponse<'_>) {
        let (route, method) = exchange.map_or(("none", "OTHER"), |exchange| {
            (exchange.route, exchange.method)
        });
        // A client that went away before the answer: the status that nginx made customary.
        let status = access.status.unwrap_or(499);
        self.metrics
            .requests
            .record_request(route, method, status, access.took);
        if !telemetry::is_access_logged() && !telemetry::is_tracing_exported() {
            return;
        }
        let client = exchange
            .and_then(|exchange| exchange.client)
            .or(access.peer);
        let agent = access.user_agent.map(String::from_utf8_lossy);
        self.report(&AccessRecord {
            time: self.clock.now(),
            request: exchange.map_or("", |exchange| exchange.request.as_str()),
            trace: exchange.and_then(|exchange| exchange.trace),
            peer: access.peer,
            client,
            method,
            route,
            status,
            bytes: u64::try_from(access.bytes).unwrap_or(u64::MAX),
            took: access.took,
            principal: exchange.and_then(|exchange| {
                exchange
                    .principal
                    .as_ref()
                    .map(|principal| principal.as_str())
            }),
            target: &String::from_utf8_lossy(access.target),
            user_agent: agent.as_deref(),
            operation: exchange
                .and_then(|exchange| exchange.operation.map(|operation| operation.number())),
            passthrough: None,
            upstream: None,
        });
    }
}

impl GatewayHandler {
    /// Reports a completed request to the access log and to the exporter of traces, where they are on.
    fn report(&self, access: &AccessRecord<'_>) {
        if telemetry::is_access_logged() {
            telemetry::log_access(access);
        }
        telemetry::record_request_span(access);
    }
}

impl Readiness for GatewayHandler {
    fn readiness(&self) -> Result<(), String> {
        if self.draining.load(Ordering::Acquire) {
            return Err("the gateway is stopping".to_owned());
        }
        if let Some(membership) = self.membership.get()
            && self.service.enter().is_none()
        {
            return membership.readiness();
        }
        if !self.service.is_ready() {
            return Err("the store of operations takes no writes".to_owned());
        }
        Ok(())
    }
}
