//! From the head of a request to what is passed on.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderValue;
use http::Method;
use http::header;

use crate::gate::config::Grantee;
use crate::gate::limiter::Admitted;
use crate::gate::negotiate;
use crate::gate::passthrough::HeaderEdit;
use crate::gate::passthrough::PassThroughAccess;
use crate::gate::passthrough::PassThroughRoute;
use crate::gate::passthrough::paths;
use crate::gate::passthrough::paths::Folded;
use crate::gate::pipeline;
use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::gate::reply::REQUEST_ID;
use crate::gate::reply::Reply;
use crate::gate::request::HandledRequest;
use crate::gate::request::RequestHead;
use crate::gate::route;
use crate::model::Principal;
use crate::model::PrincipalName;
use crate::model::RequestId;

/// The word for all of them in metrics and logs that have a route.
pub(in crate::gate) const ROUTE: &str = "passthrough";

/// A request that is to be passed on: everything that whoever carries it needs to know.
#[derive(Clone, Debug)]
pub struct PassThrough {
    /// The route that took it.
    pub route: Arc<PassThroughRoute>,
    /// The id of the request.
    pub request: RequestId,
    /// From which address, as in [`HandledRequest::client`].
    pub client: Option<IpAddr>,
    /// The method as a bounded word.
    pub method: &'static str,
    /// Who called, unless nobody had to say.
    pub principal: Option<PrincipalName>,
    /// The request target for the upstream, in origin form.
    pub target: String,
    /// What is changed in the header fields.
    pub edit: HeaderEdit,
    /// Whether the client asks for a WebSocket, and may have one.
    pub upgrade: bool,
    /// What the client accepts, for an answer of the gateway's own.
    accept: Vec<HeaderValue>,
    /// Its place among the requests at work, held as long as this lives.
    admitted: Option<Arc<Admitted>>,
}

impl PassThrough {
    pub(in crate::gate) fn admitted(mut self, place: Arc<Admitted>) -> Self {
        self.admitted = Some(place);
        self
    }
}

/// The routes, in the order in which they are tried: those for a host first, the longer prefix first.
#[derive(Debug)]
pub(in crate::gate) struct Passes(Vec<Arc<PassThroughRoute>>);

impl Passes {
    pub(in crate::gate) fn new(routes: &[PassThroughRoute]) -> Self {
        let mut all: Vec<_> = routes.iter().cloned().map(Arc::new).collect();
        all.sort_by_key(|it| {
            let length = it.prefix.as_str().len();
            (it.hosts.is_empty(), std::cmp::Reverse(length))
        });
        Self(all)
    }

    /// The route of a request with what is left of its path; `None` when the gateway answers itself.
    ///
    /// # Errors
    /// When the path is below a route and can be read in more than one way.
    pub(in crate::gate) fn find(
        &self,
        head: &RequestHead<'_>,
        path: &str,
    ) -> Result<Option<Arc<PassThroughRoute>>, Refusal> {
        if self.0.is_empty() || path == "*" {
            return Ok(None);
        }
        let Some(folded) = Folded::of(path).filter(|it| !it.is_reserved()) else {
            return Ok(None);
        };
        let is_by_host = self.0.iter().any(|it| !it.hosts.is_empty());
        let host = if is_by_host {
            host_of(head)
        } else {
            String::new()
        };
        let fits = |it: &&Arc<PassThroughRoute>| it.hosts.is_empty() || it.hosts.contains(&host);
        let mut candidates = self.0.iter().filter(fits);
        let found = candidates.find(|candidate| candidate.prefix.rest(path).is_some());
        let mut again = self.0.iter().filter(fits);
        let other = again.find(|it| it.prefix.takes(&folded));
        match (found, other) {
            (None, None) => Ok(None),
            (Some(one), Some(two)) if Arc::ptr_eq(one, two) && paths::is_plain(path) => {
                Ok(Some(Arc::clone(one)))
            }
            (Some(_) | None, Some(_)) | (Some(_), None) => {
                Err(Refusal::from(Code::MalformedTarget).hint(
                    "Paths that are passed through hold no empty or dot segments and nothing encoded that need not be.",
                ))
            }
        }
    }
}

/// The host that the client named, in lower case and without port.
fn host_of(head: &RequestHead<'_>) -> String {
    let named = head.headers.get(header::HOST);
    let named = named
        .and_then(|named| named.to_str().ok())
        .unwrap_or_default();
    let host = named
        .parse::<http::uri::Authority>()
        .map_or_else(|_| String::new(), |it| it.host().to_ascii_lowercase());
    host.trim_end_matches('.').to_owned()
}

impl PassThroughRoute {
    /// Whether the method is passed on.
    pub(in crate::gate) fn check_method(&self, method: &Method) -> Result<(), Refusal> {
        if self.methods.contains(&method.as_str()) {
            return Ok(());
        }
        let allow = self.methods.join(", ");
        Err(Refusal::from(Code::MethodNotAllowed).with(header::ALLOW, &allow))
    }

    /// Whether the caller may use the route. Nobody may who is not named.
    pub(in crate::gate) fn check_caller(&self, caller: Option<&Principal>) -> Result<(), Refusal> {
        let is_for = |grantee: &Grantee, principal: &Principal| match grantee {
            Grantee::User(name) => *name == principal.name,
            Grantee::Group(name) => principal.groups.contains(name),
        };
        match (&self.access, caller) {
            (PassThroughAccess::Open, _) => Ok(()),
            (PassThroughAccess::Allowed(all), Some(it)) if all.iter().any(|to| is_for(to, it)) => {
                Ok(())
            }
            (PassThroughAccess::Allowed(_), Some(_)) => Err(Refusal::from(Code::NotPermitted)),
            (PassThroughAccess::Allowed(_), None) => Err(Refusal::from(Code::Unauthenticated)),
        }
    }

    /// What is passed on of a request that may be.
    ///
    /// # Errors
    /// When what is left of the path after the prefix is one of this API's own paths.
    pub(in crate::gate) fn pass(
        self: &Arc<Self>,
        head: &RequestHead<'_>,
        parts: route::Parts<'_>,
        request: RequestId,
        caller: Option<PrincipalName>,
        scheme: &'static str,
    ) -> Result<PassThrough, Refusal> {
        let path = if self.strip {
            self.prefix.rest(parts.path).unwrap_or(parts.path)
        } else {
            parts.path
        };
        // The whole path is none: it was found to be ours to pass on.
        if self.strip && paths::is_reserved(path) {
            return Err(Refusal::from(Code::NoSuchRoute));
        }
        let target = if parts.query.is_empty() {
            path.to_owned()
        } else {
            format!("{path}?{}", route::encode_browser_query(parts.query))
        };
        Ok(PassThrough {
            edit: HeaderEdit::of(self, head, &request, scheme),
            request,
            client: head.peer,
            method: pipeline::method_word(head.method),
            principal: caller,
            target,
            upgrade: self.upgrade && asks_for_websocket(head),
            accept: head
                .headers
                .get_all(header::ACCEPT)
                .iter()
                .cloned()
                .collect(),
            admitted: None,
            route: Arc::clone(self),
        })
    }
}

/// Whether the client asks for a WebSocket (RFC 6455 section 4.1): with `Connection: upgrade`, and without a body.
fn asks_for_websocket(head: &RequestHead<'_>) -> bool {
    let field = |name| head.headers.get_all(name).iter();
    let mut upgrades = field(header::UPGRADE);
    let is_websocket = upgrades
        .next()
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
        && upgrades.next().is_none();
    let is_named = || {
        let mut names = field(header::CONNECTION)
            .flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
        names.any(|name| name.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
    };
    let has_body = || {
        head.headers.contains_key(header::TRANSFER_ENCODING)
            || field(header::CONTENT_LENGTH).any(|length| length.as_bytes() != b"0")
    };
    head.version == http::Version::HTTP_11
        && *head.method == Method::GET
        && is_websocket
        && is_named()
        && !has_body()
}

/// The answer when a request that was to be passed on could not be.
#[must_use]
pub fn failed(pass: &PassThrough, code: Code) -> HandledRequest {
    let refusal = Refusal::from(code);
    let method = if pass.method == "HEAD" {
        Method::HEAD
    } else {
        Method::GET
    };
    let media = negotiate::error_type(pass.accept.iter());
    let mut reply = Reply::refused(&refusal, media, pass.request.as_str(), &method);
    let length = HeaderValue::from(reply.body.len());
    reply.headers.insert(header::CONTENT_LENGTH, length);
    reply.set(REQUEST_ID, pass.request.as_str());
    let is_head = method == Method::HEAD;
    let mut response = http::Response::new(if is_head { Bytes::new() } else { reply.body });
    *response.status_mut() = reply.status;
    *response.headers_mut() = reply.headers;
    HandledRequest {
        response,
        pieces: None,
        request: pass.request.clone(),
        client: pass.client,
        route: ROUTE,
        method: pass.method,
        principal: pass.principal.clone(),
        refusal: Some(code.as_str()),
        operation: None,
        close: true,
        audit: None,
    }
}
