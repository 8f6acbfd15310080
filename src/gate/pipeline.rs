//! The walk of a request through the gate, in the documented order of checks.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;
use http::Method;
use http::StatusCode;
use http::header;

use crate::gate::authn::Account;
use crate::gate::authn::Around;
use crate::gate::authn::Authenticator;
use crate::gate::authn::ClaimedName;
use crate::gate::authn::Denied;
use crate::gate::client_address::ClientAddress;
use crate::gate::config::Config;
use crate::gate::config::Profile;
use crate::gate::framing;
use crate::gate::limiter::Admitted;
use crate::gate::limiter::Network;
use crate::gate::limiter::Quota;
use crate::gate::limiter::Reached;
use crate::gate::negotiate;
use crate::gate::passthrough;
use crate::gate::passthrough::PassThrough;
use crate::gate::passthrough::PassThroughAccess;
use crate::gate::passthrough::Passes;
use crate::gate::placement::Placements;
use crate::gate::prefer::Preferences;
use crate::gate::process_state::ProcessState;
use crate::gate::process_state::Waiter;
use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::gate::reply::PREFERENCE_APPLIED;
use crate::gate::reply::RATE_LIMIT;
use crate::gate::reply::RATE_LIMIT_POLICY;
use crate::gate::reply::REQUEST_ID;
use crate::gate::reply::Reply;
use crate::gate::reply::VARY;
use crate::gate::request::AuditAction;
use crate::gate::request::AuditEntry;
use crate::gate::request::AuditOutcome;
use crate::gate::request::Body;
use crate::gate::request::BodyError;
use crate::gate::request::Decision;
use crate::gate::request::HandledRequest;
use crate::gate::request::RequestHead;
use crate::gate::response_cache::Written;
use crate::gate::route;
use crate::gate::route::Kind;
use crate::gate::route::Place;
use crate::gate::route::Route;
use crate::gate::version;
use crate::gate::version::SpecVersion;
use crate::gate::wire;
use crate::model::BackendName;
use crate::model::OperationSeq;
use crate::model::PrincipalName;
use crate::model::RequestId;
use crate::model::Verb;
use crate::model::VmId;
use crate::operations::OperationsApi;
use crate::runtime::Clock;
use crate::runtime::hop_count;
use crate::telemetry::Metrics;

/// Decides about requests by one configuration. A reload makes a new one and keeps what is shared.
#[derive(Debug)]
pub struct Gate {
    pub(super) config: Config,
    pub(super) service: Arc<dyn OperationsApi>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) metrics: Metrics,
    pub(super) shared: Arc<ProcessState>,
    callers: Authenticator,
    placements: Placements,
    passes: Passes,
    pub(super) written: Written,
    /// The supported versions as header values, in the order of the configuration.
    versions: Vec<HeaderValue>,
}

/// One request on its way, with what is known of it so far.
#[derive(Debug)]
pub(super) struct Call<'a> {
    pub(super) head: RequestHead<'a>,
    /// The target taken apart; `None` when it is malformed.
    parts: Option<route::Parts<'a>>,
    pub(super) query: &'a str,
    pub(super) id: RequestId,
    pub(super) client: ClientAddress,
    pub(super) prefer: Preferences,
    pub(super) strict: bool,
    pub(super) operation: Option<OperationSeq>,
    pub(super) audit: Option<AuditEntry>,
    pub(super) route: &'static str,
    principal: Option<PrincipalName>,
    /// Its place among the requests at work.
    pub(super) admitted: Option<Admitted>,
    quota: Option<Quota>,
    version: Option<SpecVersion>,
    body_was_read: bool,
}

impl Call<'_> {
    fn identified(&mut self, account: &Account) {
        let name = account.principal.name.clone();
        self.note(|it| {
            it.principal = Some(name.clone());
            it.token = account.token.clone();
        });
        self.principal = Some(name);
    }

    fn denied(&mut self, denied: Denied) {
        tracing::info!(
            target: "snapgate::authentication",
            request = self.id.as_str(),
            client = self.client.address.map(tracing::field::display),
            reason = denied.reason.as_str(),
            claimed = denied.claimed.as_ref().map(ClaimedName::as_str),
            token = denied.token.as_ref().map(|name| name.as_str()),
            "credentials refused"
        );
        let is_pass = self.route == passthrough::ROUTE;
        let action = if is_pass {
            AuditAction::PassThrough
        } else {
            AuditAction::Read
        };
        let entry = self.audit.take();
        let entry = entry.unwrap_or_else(|| entry_of(self, action, &Place::None));
        self.audit = Some(AuditEntry {
            denial: Some(denied.reason),
            claimed: denied.claimed,
            token: denied.token,
            ..entry
        });
    }

    pub(super) fn note(&mut self, change: impl FnOnce(&mut AuditEntry)) {
        if let Some(entry) = &mut self.audit {
            change(entry);
        }
    }
}

impl Gate {
    /// Makes ready what is constant for the configuration.
    #[must_use]
    pub fn new(
        config: Config,
        service: Arc<dyn OperationsApi>,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
        shared: Arc<ProcessState>,
    ) -> Self {
        let versions = config.specification.supported.iter();
        let versions = versions.filter_map(|version| HeaderValue::from_str(version).ok());
        Self {
            versions: versions.collect(),
            callers: Authenticator::new(&config, &shared),
            placements: Placements::new(&config.placements),
            passes: Passes::new(&config.passthrough),
            written: Written::new(config.public_url.as_str()),
            config,
            service,
            clock,
            metrics,
            shared,
        }
    }

    /// Whether many clients may connect from this address: it is a trusted proxy's, or a loopback address, which everybody
    /// has behind a proxy that is not trusted by name.
    #[must_use]
    pub fn is_shared(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        peer.is_loopback() || self.config.trusted_proxies.include(peer)
    }

    /// Decides about one request. The body is read only when it is wanted, and never of a request that is passed on.
    pub async fn handle(&self, head: RequestHead<'_>, body: &mut dyn Body) -> Decision {
        let (prefer, preferred) = Preferences::of(head.headers);
        let has_body = body.is_present();
        let client = ClientAddress::of(&head, &self.config.trusted_proxies);
        let id = client.request_id(head.headers);
        let mut call = Call {
            parts: route::parts(head.target).ok(),
            head,
            query: "",
            id: id.unwrap_or_else(|| self.shared.request_id()),
            client,
            strict: prefer.strict || self.config.specification.profile == Profile::Strict,
            prefer,
            operation: None,
            audit: None,
            route: "none",
            principal: None,
            admitted: None,
            quota: None,
            version: None,
            body_was_read: false,
        };
        let result = match self.pass(&mut call).await {
            Ok(Some(pass)) => return Decision::PassThrough(Box::new(pass)),
            Ok(None) => {
                let passed = hop_count::of(call.head.headers);
                hop_count::within(passed, self.walk(&mut call, preferred, body)).await
            }
            Err(refusal) => Err(refusal),
        };
        let close = has_body && !call.body_was_read;
        Decision::Answer(self.finish(call, result, close))
    }

    /// What is passed on of the request; `None` when it is answered here.
    async fn pass(&self, call: &mut Call<'_>) -> Result<Option<PassThrough>, Refusal> {
        // What is passed on names the client as it is known here.
        let head = RequestHead {
            peer: call.client.address,
            ..call.head
        };
        framing::check(&head, &self.config.limits)?;
        let Some(parts) = call.parts else {
            return Ok(None);
        };
        let Some(route) = self.passes.find(&head, parts.path)? else {
            return Ok(None);
        };
        call.route = passthrough::ROUTE;
        route.check_method(head.method)?;
        if route.access != PassThroughAccess::Open {
            let account = self.identify(call).await?;
            // What is behind a route knows nothing of scopes.
            if !account.rights.is_whole() {
                return Err(Refusal::from(Code::NotPermitted));
            }
            route.check_caller(Some(&account.principal))?;
        }
        let admitted = Arc::new(self.admit(call)?);
        framing::check_length(head.headers, route.body.bytes_max)?;
        let (request, caller) = (call.id.clone(), call.principal.clone());
        let scheme = self.config.public_url.scheme();
        let pass = route.pass(&head, parts, request, caller, scheme)?;
        Ok(Some(pass.admitted(admitted)))
    }

    async fn walk(
        &self,
        call: &mut Call<'_>,
        preferred: Result<(), Refusal>,
        body: &mut dyn Body,
    ) -> Result<Reply, Refusal> {
        let bytes_max = u64::try_from(self.config.limits.body_bytes).unwrap_or(u64::MAX);
        framing::check_length(call.head.headers, bytes_max)?;
        let method = call.head.method;
        if *method == Method::CONNECT || *method == Method::TRACE {
            let known = call.parts.and_then(|part| route::find(part.path).ok());
            return Err(not_allowed(known.map_or("OPTIONS", |it| it.spec.allow)));
        }
        let malformed = || Refusal::from(Code::MalformedTarget);
        let parts = call.parts.ok_or_else(malformed)?;
        if route::is_browser_query(parts.query) {
            return Err(malformed());
        }
        call.query = parts.query;
        if parts.path == "*" {
            return if *method == Method::OPTIONS {
                Ok(options("GET, HEAD, PUT, POST, DELETE, OPTIONS"))
            } else {
                Err(Refusal::from(Code::MalformedTarget))
            };
        }
        let route = route::find(parts.path)?;
        call.route = route.spec.name;
        if *method == Method::OPTIONS {
            return Ok(options(route.spec.allow));
        }
        if !route.spec.methods.contains(&method.as_str()) {
            return Err(not_allowed(route.spec.allow));
        }
        call.audit = audit_of(call, &route);
        if route.spec.kind == Kind::Versions {
            let media = self.own_type(call, negotiate::VERSION)?;
            self.skip_body(call, body).await?;
            let body = wire::versions(&self.config.specification.supported);
            return Ok(Reply::read(media, body));
        }
        let headers = call.head.headers;
        let account = self.identify(call).await?;
        let rule = &self.config.specification;
        call.version = Some(version::choose(headers, rule, route.spec.is_versioned())?);
        preferred?;
        call.admitted = Some(self.admit(call)?);
        self.dispatch(call, route, &account, body).await
    }

    /// Check 6: rates and requests at once.
    fn admit(&self, call: &mut Call<'_>) -> Result<Admitted, Refusal> {
        let (principal, client) = (call.principal.as_ref(), call.client.address);
        let now = self.clock.instant();
        let limiter = &self.shared.limiter;
        let reached = match limiter.admit(principal, client, &self.config.rates, now) {
            Ok(admitted) => {
                call.quota = admitted.quota;
                return Ok(admitted);
            }
            Err(reached) => reached,
        };
        let (limit, code, after) = match reached {
            Reached::AtOnce(limit) => (limit, Code::TooManyAtOnce, Duration::from_secs(1)),
            Reached::Rate(limit, quota) => {
                call.quota = Some(quota);
                (limit, Code::RateLimited, quota.retry_after)
            }
        };
        self.metrics.callers.record_limited_request(limit);
        Err(Refusal::from(code).retry_after(after))
    }

    /// A place among those who wait, if one is free for this caller.
    pub(super) fn waiter(&self, call: &Call<'_>) -> Option<Waiter> {
        let name = call.principal.as_ref().map_or("", |it| it.as_str());
        let most = self.config.rates.principal_waiters;
        let own = self.shared.limiter.waiters.begin(&[name.as_bytes()], most);
        let place = self
            .shared
            .waiter(self.config.limits.waiters, &self.metrics)?;
        Some(place.with(own.ok()?))
    }

    /// Check 4: who calls. Why a caller is not known goes to the log and the audit trail.
    async fn identify(&self, call: &mut Call<'_>) -> Result<Arc<Account>, Refusal> {
        let head = &call.head;
        let around = self.around(call.client.address);
        let found = self
            .callers
            .identify(head.headers, head.certificate, around)
            .await;
        match found {
            Ok(account) => {
                call.identified(&account);
                Ok(account)
            }
            Err(denied) => {
                let refusal = self.callers.refusal(&denied, &self.metrics);
                call.denied(denied);
                Err(refusal)
            }
        }
    }

    fn around(&self, client: Option<IpAddr>) -> Around<'_> {
        Around {
            shared: &self.shared,
            clock: &*self.clock,
            metrics: &self.metrics,
            network: client.and_then(Network::of),
        }
    }

    async fn dispatch(
        &self,
        call: &mut Call<'_>,
        route: Route,
        account: &Account,
        body: &mut dyn Body,
    ) -> Result<Reply, Refusal> {
        let method = call.head.method;
        // Changes are boxed: who waits for a Status does not hold room for one all that time.
        match (route.spec.kind, route.place) {
            (Kind::Backup, Place::Backup(target)) if *method == Method::PUT => {
                Box::pin(self.update(call, account, target, body)).await
            }
            (Kind::Backup, Place::Backup(target)) if *method == Method::DELETE => {
                Box::pin(self.delete(call, account, target, body)).await
            }
            (Kind::Backup, Place::Backup(target)) => {
                self.read_backup(call, account, &target, body).await
            }
            (Kind::Restore, Place::Backup(target)) => {
                Box::pin(self.restore(call, account, target, body)).await
            }
            (Kind::Backups, Place::Vm(vm)) if *method == Method::POST => {
                Box::pin(self.create(call, account, vm, body)).await
            }
            (Kind::Backups, Place::Vm(vm)) => self.list_backups(call, account, &vm, body).await,
            (Kind::Vm, Place::Vm(vm)) => self.read_vm(call, account, &vm, body).await,
            (Kind::BackUp, Place::None) => {
                let vm = vm_parameter(call.query)?;
                call.note(|call| call.vm = Some(vm.clone()));
                Box::pin(self.create(call, account, vm, body)).await
            }
            (Kind::Statuses, Place::None) if *method == Method::DELETE => {
                Box::pin(self.cancel(call, account, body)).await
            }
            (Kind::Statuses, Place::None) => self.statuses(call, account, body).await,
            // The table of routes and the templates in it say that nothing else can be.
            (
                Kind::Backup
                | Kind::Restore
                | Kind::Backups
                | Kind::BackUp
                | Kind::Vm
                | Kind::Statuses
                | Kind::Versions,
                Place::None | Place::Vm(_) | Place::Backup(_),
            ) => Err(Refusal::from(Code::NoSuchRoute)),
        }
    }

    /// Where the VM is; asked only after the caller is known to see it.
    pub(super) fn place(&self, call: &mut Call<'_>, vm: &VmId) -> Result<&BackendName, Refusal> {
        let backend = self.placements.find(vm);
        call.note(|call| call.backend = backend.cloned());
        backend.ok_or_else(|| Refusal::from(Code::NoSuchVm))
    }

    pub(super) fn own_type(
        &self,
        call: &Call<'_>,
        own: &'static str,
    ) -> Result<&'static str, Refusal> {
        negotiate::accept(call.head.headers, negotiate::Reply::Own(own), call.strict)
    }

    pub(super) async fn read_body(
        &self,
        call: &mut Call<'_>,
        body: &mut dyn Body,
    ) -> Result<Bytes, Refusal> {
        let read = body.read(self.config.limits.body_bytes).await;
        let bytes = read.map_err(|error| {
            Refusal::from(match error {
                BodyError::TooLarge => Code::BodyTooLarge,
                BodyError::TooSlow => Code::BodyTooSlow,
                BodyError::Broken => Code::UnreadableBody,
            })
        })?;
        call.body_was_read = true;
        Ok(bytes)
    }

    /// Reads a body that means nothing, so that the connection can be used again.
    pub(super) async fn skip_body(
        &self,
        call: &mut Call<'_>,
        body: &mut dyn Body,
    ) -> Result<(), Refusal> {
        if body.is_present() {
            drop(self.read_body(call, body).await?);
        }
        Ok(())
    }

    fn finish(
        &self,
        mut call: Call<'_>,
        result: Result<Reply, Refusal>,
        close: bool,
    ) -> HandledRequest {
        let code = result.as_ref().err().map(|it| it.code().as_str());
        let method = call.head.method;
        let mut reply = result.unwrap_or_else(|refusal| {
            self.metrics
                .requests
                .record_refusal(refusal.code().as_str());
            let accept = call.head.headers.get_all(header::ACCEPT);
            let media = negotiate::error_type(accept.iter());
            Reply::refused(&refusal, media, call.id.as_str(), method)
        });
        if let Some(code) = code {
            call.note(|call| {
                call.outcome = AuditOutcome::Refused;
                call.refusal = Some(code);
            });
        }
        let is_head = *method == Method::HEAD;
        if is_head || *method == Method::GET {
            reply.headers.insert(header::VARY, VARY);
        }
        let is_bodiless =
            [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED].contains(&reply.status);
        if !is_bodiless && reply.pieces.is_none() {
            let length = HeaderValue::from(reply.body.len());
            reply.headers.insert(header::CONTENT_LENGTH, length);
        }
        if let Some(quota) = call.quota {
            reply.set(RATE_LIMIT_POLICY, &quota.policy());
            reply.set(RATE_LIMIT, &quota.left());
        }
        reply.set(REQUEST_ID, call.id.as_str());
        let version = call
            .version
            .and_then(|version| self.versions.get(version.0));
        if let Some(version) = version.or_else(|| self.versions.last()) {
            reply.headers.insert(version::ECHO, version.clone());
        }
        if call.prefer.strict {
            reply.headers.append(
                PREFERENCE_APPLIED,
                HeaderValue::from_static("handling=strict"),
            );
        }
        let mut response = http::Response::new(if is_head { Bytes::new() } else { reply.body });
        *response.status_mut() = reply.status;
        *response.headers_mut() = reply.headers;
        HandledRequest {
            response,
            pieces: reply.pieces.filter(|_| !is_head),
            request: call.id,
            client: call.client.address,
            route: call.route,
            method: method_word(method),
            principal: call.principal,
            refusal: code,
            operation: call.operation,
            close,
            audit: call.audit.map(Box::new),
        }
    }
}

fn not_allowed(allow: &'static str) -> Refusal {
    Refusal::from(Code::MethodNotAllowed).with(header::ALLOW, allow)
}

fn options(allow: &'static str) -> Reply {
    let mut reply = Reply::empty(StatusCode::NO_CONTENT);
    reply.fix(header::ALLOW, allow);
    reply
}

pub(super) fn vm_parameter(query: &str) -> Result<VmId, Refusal> {
    let text = route::parameter(query, "vm")?;
    let text = text.ok_or_else(|| Refusal::from(Code::MissingParameter).on("vm"))?;
    VmId::new(&text).map_err(|error| Refusal::text(Code::InvalidParameter, "vm", &error))
}

/// The line of the audit trail for a change, refused until it is accepted.
fn audit_of(call: &Call<'_>, route: &Route) -> Option<AuditEntry> {
    let action = match (call.head.method.as_str(), route.spec.kind) {
        ("PUT", _) => AuditAction::Change(Verb::Update),
        ("DELETE", Kind::Statuses) => AuditAction::Cancel,
        ("DELETE", _) => AuditAction::Change(Verb::Delete),
        ("POST", Kind::Restore) => AuditAction::Change(Verb::Restore),
        ("POST", _) => AuditAction::Change(Verb::Create),
        _ => return None,
    };
    Some(entry_of(call, action, &route.place))
}

fn entry_of(call: &Call<'_>, action: AuditAction, place: &Place) -> AuditEntry {
    let (vm, backup) = match place {
        Place::None => (None, None),
        Place::Vm(vm) => (Some(vm.clone()), None),
        Place::Backup(target) => (Some(target.vm.clone()), Some(target.backup.clone())),
    };
    AuditEntry {
        request: call.id.clone(),
        principal: None,
        token: None,
        client: call.client.address,
        action,
        backend: None,
        vm,
        backup,
        note: None,
        outcome: AuditOutcome::Refused,
        refusal: None,
        operation: None,
        denial: None,
        claimed: None,
        written: false,
    }
}

pub(super) fn method_word(method: &Method) -> &'static str {
    const KNOWN: &[&str] = &[
        "GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT",
    ];
    let mut known = KNOWN.iter();
    known
        .find(|it| **it == method.as_str())
        .copied()
        .unwrap_or("OTHER")
}
