//! The stages of a request through the gate, in the documented order of checks.
//!
//! framing -> page and pass-through -> target -> route -> method -> cross-site -> credentials -> specification version -> preferences -> limits ->
//! authorization and placement -> the handler of the resource. The first check that fails decides the refusal.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use http::Method;
use http::StatusCode;
use http::header;

use crate::gate::audit_entry::AuditAction;
use crate::gate::authn::AuthContext;
use crate::gate::authn::AuthenticatedCaller;
use crate::gate::authn::Authenticator;
use crate::gate::client_address::ClientAddress;
use crate::gate::config::Config;
use crate::gate::config::Profile;
use crate::gate::cross_site::CrossSiteRule;
use crate::gate::cross_site::RequestOrigin;
use crate::gate::cross_site::add_preflight_headers;
use crate::gate::decision::GateDecision;
use crate::gate::entry;
use crate::gate::entry::Entered;
use crate::gate::finish::finish;
use crate::gate::framing;
use crate::gate::handlers;
use crate::gate::limiter::AdmittedRequest;
use crate::gate::limiter::ClientNetwork;
use crate::gate::limiter::LimitReached;
use crate::gate::page;
use crate::gate::passthrough;
use crate::gate::passthrough::PassThrough;
use crate::gate::passthrough::PassThroughAccess;
use crate::gate::passthrough::PassThroughOrigin;
use crate::gate::passthrough::PassThroughRoutes;
use crate::gate::placement::Placements;
use crate::gate::prefer::Preferences;
use crate::gate::process_state::ProcessState;
use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::gate::relay::RelayedRequest;
use crate::gate::request::Body;
use crate::gate::request::RequestHead;
use crate::gate::request_body::IncomingBody;
use crate::gate::request_context::AuthenticatedRequest;
use crate::gate::request_context::AuthorizedRequest;
use crate::gate::request_context::ReceivedRequest;
use crate::gate::request_report::RequestReport;
use crate::gate::request_target;
use crate::gate::response_cache::ResponseCache;
use crate::gate::response_draft::ResponseDraft;
use crate::gate::route::Endpoint;
use crate::gate::route::MatchedRoute;
use crate::gate::route::Purpose;
use crate::gate::route::RequiredAccess;
use crate::gate::route::Route;
use crate::gate::route::find_route;
use crate::gate::services::Services;
use crate::gate::version;
use crate::model::PrincipalName;
use crate::model::TraceContext;
use crate::operations::OperationsApi;
use crate::public_text;
use crate::runtime::Clock;
use crate::runtime::hop_count;
use crate::runtime::work_context;
use crate::runtime::work_context::WorkContext;
use crate::telemetry;
use crate::telemetry::Metrics;

/// Decides about requests by one configuration. A reload makes a new one and keeps what is shared.
#[derive(Debug)]
pub struct Gate {
    pub(super) services: Services,
    authenticator: Authenticator,
    pass_through_routes: PassThroughRoutes,
    cross_site: CrossSiteRule,
    /// The supported versions as header values, in the order of the configuration.
    versions: Vec<HeaderValue>,
}

/// A request on one of the API's own routes.
struct RoutedRequest<'a> {
    query: &'a str,
    matched: MatchedRoute,
    endpoint: &'static Endpoint,
}

/// What the stages make of a request that no check refused.
enum Decided {
    Draft(ResponseDraft),
    PassThrough(Box<PassThrough>),
}

/// What an own path leads to.
enum Routed<'a> {
    Endpoint(RoutedRequest<'a>),
    /// OPTIONS, which is answered for everybody.
    Options(ResponseDraft),
}

impl Gate {
    /// Prepares what is constant for the configuration.
    #[must_use]
    pub fn new(
        config: Config,
        operations: Arc<dyn OperationsApi>,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
        shared: Arc<ProcessState>,
    ) -> Self {
        let versions = config.specification.supported.iter();
        let versions = versions.filter_map(|version| HeaderValue::from_str(version).ok());
        Self {
            versions: versions.collect(),
            authenticator: Authenticator::new(&config, &shared),
            pass_through_routes: PassThroughRoutes::new(&config.passthrough),
            cross_site: CrossSiteRule::new(&config),
            services: Services {
                placements: Placements::new(&config.placements),
                response_cache: ResponseCache::new(config.public_url.as_str()),
                generation: shared.begin_generation(),
                config,
                operations,
                clock,
                metrics,
                shared,
            },
        }
    }

    /// Whether many clients may connect from this address: a trusted proxy's, or a loopback address, which all clients share
    /// behind a proxy that is not configured as trusted.
    #[must_use]
    pub fn is_shared(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        peer.is_loopback() || self.services.config.trusted_proxies.include(peer)
    }

    /// Decides about one request. The body is read only when it is needed, and never of a request that is passed through.
    pub async fn handle(&self, head: RequestHead<'_>, body: &mut dyn Body) -> GateDecision {
        self.handle_from(head, body, None).await
    }

    /// The same for a request that another gateway of the cluster hands on.
    pub async fn handle_relayed(
        &self,
        head: RequestHead<'_>,
        body: &mut dyn Body,
        relayed: &RelayedRequest,
    ) -> GateDecision {
        self.handle_from(head, body, Some(relayed)).await
    }

    async fn handle_from(
        &self,
        head: RequestHead<'_>,
        body: &mut dyn Body,
        relayed: Option<&RelayedRequest>,
    ) -> GateDecision {
        let (received, preferences) = self.receive(head, relayed);
        let mut report = RequestReport::new();
        let mut body = IncomingBody::new(body, self.services.config.limits.body_bytes);
        let context = WorkContext {
            request: Some(received.id.clone()),
            trace: Some(received.trace),
            operation: None,
        };
        let result = {
            // Pinned where they are: both futures are large, and each scope around them would copy them.
            let decided = std::pin::pin!(async {
                if let Some(rest) = self.page_path(&received) {
                    report.route = page::ROUTE_NAME;
                    let limits = &self.services.config.limits;
                    let page = page::answer(&received, rest, limits, &mut body).await;
                    return page.map(Decided::Draft);
                }
                let content_length =
                    framing::check_head(&received.head, &self.services.config.limits)?;
                let pass = self.pass_through(&received, content_length, &mut report);
                if let Some(pass) = pass.await? {
                    return Ok(Decided::PassThrough(Box::new(pass)));
                }
                let bytes_max = self.services.config.limits.body_bytes;
                let bytes_max = u64::try_from(bytes_max).unwrap_or(u64::MAX);
                framing::check_content_length(content_length, bytes_max)?;
                let hops = hop_count::of(head.headers);
                let answer = self.answer(&received, preferences, &mut body, &mut report);
                let answer = std::pin::pin!(answer);
                hop_count::within(hops, answer).await.map(Decided::Draft)
            });
            match work_context::within(context, decided).await {
                Ok(Decided::PassThrough(pass)) => return GateDecision::PassThrough(pass),
                Ok(Decided::Draft(draft)) => Ok(draft),
                Err(refusal) => Err(refusal),
            }
        };
        let close = body.is_left_unread();
        let metrics = &self.services.metrics;
        GateDecision::Answer(finish(
            received,
            report,
            result,
            close,
            (&self.versions, self.cross_site.allows_any()),
            metrics,
        ))
    }

    /// The request as it came, and whether its preferences are well-formed, which is checked later.
    fn receive<'a>(
        &self,
        head: RequestHead<'a>,
        relayed: Option<&RelayedRequest>,
    ) -> (ReceivedRequest<'a>, Result<(), Refusal>) {
        let config = &self.services.config;
        let (preferences, validity) = Preferences::from_headers(head.headers);
        let client = ClientAddress::from_request(&head, &config.trusted_proxies);
        let id = relayed.map_or_else(
            || client.request_id(head.headers),
            |relayed| Some(relayed.request.clone()),
        );
        let shared = &self.services.shared;
        let trace = shared.trace(telemetry::is_tracing_exported(), |span| match relayed {
            Some(relayed) => TraceContext::continued(&relayed.trace, span),
            None => client.trace(head.headers, span),
        });
        let received = ReceivedRequest {
            target: request_target::parse_target(head.target).ok(),
            id: id.unwrap_or_else(|| shared.request_id()),
            trace,
            client,
            origin: self.cross_site.origin_of(head.headers),
            is_strict: preferences.strict || config.specification.profile == Profile::Strict,
            preferences,
            is_relayed: relayed.is_some(),
            head,
        };
        (received, validity)
    }

    /// What follows `/ui` in the path of a request for the page, where it is served. It wins over pass-through routes, but for
    /// those that the operator named hosts for.
    fn page_path<'a>(&self, received: &ReceivedRequest<'a>) -> Option<&'a str> {
        let target = received.target.filter(|_| self.services.config.page)?;
        let rest = page::path_within(target.path)?;
        let routes = &self.pass_through_routes;
        (!routes.is_path_of_host(&received.head, target.path)).then_some(rest)
    }

    /// The request prepared for its upstream; `None` when the gateway answers itself.
    async fn pass_through(
        &self,
        received: &ReceivedRequest<'_>,
        content_length: Option<u64>,
        report: &mut RequestReport,
    ) -> Result<Option<PassThrough>, Refusal> {
        let config = &self.services.config;
        // The upstream gets the client's address as it is known here, which a trusted proxy may have set.
        let head = RequestHead {
            peer: received.client.address,
            ..received.head
        };
        let Some(target) = received.target else {
            return Ok(None);
        };
        let Some(route) = self.pass_through_routes.find(&head, target.path)? else {
            return Ok(None);
        };
        report.route = passthrough::ROUTE_NAME;
        route.check_method(head.method)?;
        let is_websocket = route.upgrade && passthrough::asks_for_websocket(&head);
        self.cross_site.check_passed(
            (head.method, is_websocket),
            head.headers,
            received.origin,
            !route.hosts.is_empty(),
        )?;
        let principal = if route.access == PassThroughAccess::Open {
            None
        } else {
            let action = AuditAction::PassThrough;
            let caller = self.authenticate(received, action, report).await?;
            // The upstream does not know the scopes of tokens, so only a token without one may reach it.
            if !caller.rights.is_unrestricted() {
                return Err(Refusal::from(Code::NotPermitted));
            }
            route.check_caller(Some(&caller.principal))?;
            Some(caller.principal.name.clone())
        };
        let admitted = self.admit(principal.as_ref(), received, report)?;
        framing::check_content_length(content_length, route.body.bytes_max)?;
        let origin = PassThroughOrigin {
            request: received.id.clone(),
            trace: received.trace,
            principal,
            admitted,
            scheme: config.public_url.scheme(),
            readable_by: match received.origin {
                RequestOrigin::Allowed(origin) => Some(origin.clone()),
                RequestOrigin::Absent | RequestOrigin::Own | RequestOrigin::Foreign => None,
            },
        };
        PassThrough::prepare(route, &head, target, origin).map(Some)
    }

    /// Answers a request to the API itself.
    async fn answer(
        &self,
        received: &ReceivedRequest<'_>,
        preferences: Result<(), Refusal>,
        body: &mut IncomingBody<'_>,
        report: &mut RequestReport,
    ) -> Result<ResponseDraft, Refusal> {
        let config = &self.services.config;
        let routed = match self.find_endpoint(received, report)? {
            Routed::Endpoint(routed) => routed,
            Routed::Options(mut draft) => {
                let asked = received.head.headers;
                add_preflight_headers(&mut draft.headers, asked, received.origin);
                return Ok(draft);
            }
        };
        let head = &received.head;
        self.cross_site
            .check(head.method, head.headers, received.origin)?;
        if routed.endpoint.access == RequiredAccess::Nothing {
            let (endpoint, route) = (routed.endpoint, &routed.matched.route);
            return handlers::read_public(received, endpoint, route, config, body).await;
        }
        // Held until the answer is made: a gateway that steps down waits for it.
        let _active = match entry::enter(&self.services, received, body).await? {
            Entered::Here(guard) => guard,
            Entered::Elsewhere(draft) => return Ok(draft),
        };
        let caller = self
            .authenticate(received, AuditAction::Read, report)
            .await?;
        let is_versioned = routed.matched.spec.is_versioned();
        let headers = received.head.headers;
        let version = version::choose(headers, &config.specification, is_versioned)?;
        report.version = Some(version);
        preferences?;
        let request = AuthenticatedRequest {
            received,
            query: routed.query,
            endpoint: routed.endpoint,
            admitted: self.admit(Some(&caller.principal.name), received, report)?,
            caller: &caller,
        };
        self.dispatch(&request, routed.matched.route, body, report)
            .await
    }

    /// Checks 2 and 3: target, route and method.
    fn find_endpoint<'a>(
        &self,
        received: &ReceivedRequest<'a>,
        report: &mut RequestReport,
    ) -> Result<Routed<'a>, Refusal> {
        let method = received.head.method;
        if *method == Method::CONNECT || *method == Method::TRACE {
            let known = received
                .target
                .and_then(|target| find_route(target.path).ok());
            let allow = known.map_or("OPTIONS", |matched| matched.spec.allow);
            return Err(method_not_allowed(allow));
        }
        let malformed = || Refusal::from(Code::MalformedTarget);
        let target = received.target.ok_or_else(malformed)?;
        if request_target::is_browser_query(target.query) {
            return Err(malformed());
        }
        if target.path == "*" {
            return if *method == Method::OPTIONS {
                Ok(Routed::Options(options(
                    "GET, HEAD, PUT, POST, DELETE, OPTIONS",
                )))
            } else {
                Err(malformed())
            };
        }
        let matched = find_route(target.path)?;
        let spec = matched.spec;
        report.route = spec.name;
        if *method == Method::OPTIONS {
            return Ok(Routed::Options(options(spec.allow)));
        }
        let endpoint = spec.endpoint(method);
        let endpoint = endpoint.ok_or_else(|| method_not_allowed(spec.allow))?;
        report.begin_audit(received, endpoint.purpose, &matched.route);
        Ok(Routed::Endpoint(RoutedRequest {
            query: target.query,
            matched,
            endpoint,
        }))
    }

    /// Check 4: credentials. Why they are denied goes to the log and the audit trail, never to the client.
    async fn authenticate(
        &self,
        received: &ReceivedRequest<'_>,
        action: AuditAction,
        report: &mut RequestReport,
    ) -> Result<Arc<AuthenticatedCaller>, Refusal> {
        let services = &self.services;
        let context = AuthContext {
            shared: &services.shared,
            clock: &*services.clock,
            metrics: &services.metrics,
            network: received
                .client
                .address
                .and_then(ClientNetwork::from_address),
        };
        let head = &received.head;
        let found = self
            .authenticator
            .identify(head.headers, head.certificate, context)
            .await;
        match found {
            Ok(caller) => {
                report.note_caller(&caller);
                Ok(caller)
            }
            Err(denied) => {
                let refusal = self.authenticator.refusal(&denied, &services.metrics);
                report.note_denial(received, action, denied);
                Err(refusal)
            }
        }
    }

    /// Check 6: rates and concurrent requests.
    fn admit(
        &self,
        principal: Option<&PrincipalName>,
        received: &ReceivedRequest<'_>,
        report: &mut RequestReport,
    ) -> Result<AdmittedRequest, Refusal> {
        let services = &self.services;
        let now = services.clock.instant();
        let client = received.client.address;
        let limiter = &services.shared.limiter;
        let reached = match limiter.admit(principal, client, &services.config.rates, now) {
            Ok(admitted) => {
                report.quota = admitted.quota;
                return Ok(admitted);
            }
            Err(reached) => reached,
        };
        let (limit, code, after) = match reached {
            LimitReached::Concurrency(limit) => {
                (limit, Code::TooManyAtOnce, Duration::from_secs(1))
            }
            LimitReached::Rate(limit, quota) => {
                report.quota = Some(quota);
                (limit, Code::RateLimited, quota.retry_after)
            }
        };
        services.metrics.callers.record_limited_request(limit);
        Err(Refusal::from(code).retry_after(after))
    }

    async fn dispatch(
        &self,
        request: &AuthenticatedRequest<'_>,
        route: Route,
        body: &mut IncomingBody<'_>,
        report: &mut RequestReport,
    ) -> Result<ResponseDraft, Refusal> {
        let services = &self.services;
        // Changes are boxed: a request that waits for a Status should not reserve room for a change all that time.
        match request.endpoint.purpose {
            Purpose::Change(verb) => {
                let is_named_by_query = route == Route::BackUp;
                let route = route.resolve(request.query)?;
                if is_named_by_query {
                    report.note(|entry| entry.vm = route.vm().cloned());
                }
                let authorized = self.authorize(request, &route, report)?;
                Box::pin(handlers::change(
                    services,
                    &authorized,
                    route,
                    verb,
                    body,
                    report,
                ))
                .await
            }
            Purpose::Cancel => {
                Box::pin(handlers::cancel_operation(services, request, body, report)).await
            }
            Purpose::Plan => {
                let authorized = self.authorize(request, &route, report)?;
                Box::pin(handlers::make_plan(services, &authorized, &route, body)).await
            }
            Purpose::Read => match &route {
                Route::Backup(target) => {
                    let authorized = self.authorize(request, &route, report)?;
                    handlers::read_backup(services, &authorized, target, body).await
                }
                Route::Backups(vm) => {
                    let authorized = self.authorize(request, &route, report)?;
                    handlers::list_backups(services, &authorized, vm, body).await
                }
                Route::Vm(vm) => {
                    let authorized = self.authorize(request, &route, report)?;
                    handlers::read_vm(services, &authorized, vm, body).await
                }
                Route::Vms => Box::pin(handlers::list_vms(services, request, body)).await,
                Route::Capabilities(vm) => {
                    let authorized = self.authorize(request, &route, report)?;
                    handlers::read_capabilities(services, &authorized, vm, body).await
                }
                Route::Permissions => handlers::read_permissions(services, request, body).await,
                Route::Statuses => handlers::read_statuses(services, request, body, report).await,
                // The table has no reads of these, or they need no caller.
                Route::Restore(_)
                | Route::Plan(_)
                | Route::BackUp
                | Route::Versions
                | Route::Document
                | Route::Root => Err(Refusal::from(Code::NoSuchRoute)),
            },
        }
    }

    /// Checks 7 and 8: whether the caller may do this, and only then where the VM is placed. The other way round a caller
    /// could learn which VMs exist.
    fn authorize<'a>(
        &'a self,
        request: &'a AuthenticatedRequest<'a>,
        route: &Route,
        report: &mut RequestReport,
    ) -> Result<AuthorizedRequest<'a>, Refusal> {
        let rights = &request.caller.rights;
        rights.check_access(request.endpoint.access, route)?;
        let backend = route.vm().and_then(|vm| self.services.placements.find(vm));
        report.note(|entry| entry.backend = backend.cloned());
        let backend = backend.ok_or_else(|| Refusal::from(Code::NoSuchVm))?;
        if !self.services.operations.reaches(backend) {
            let text = public_text!(
                "This VM is served by one gateway of the cluster, which is not the active one now. Nothing was changed. Try again later."
            );
            return Err(Refusal::says(Code::Unavailable, text));
        }
        Ok(AuthorizedRequest { request, backend })
    }
}

fn method_not_allowed(allow: &'static str) -> Refusal {
    Refusal::from(Code::MethodNotAllowed).with(header::ALLOW, allow)
}

fn options(allow: &'static str) -> ResponseDraft {
    let mut draft = ResponseDraft::empty(StatusCode::NO_CONTENT);
    draft.fix(header::ALLOW, allow);
    draft
}
