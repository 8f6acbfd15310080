//! Deviation D36: which requests are refused because a page of another site made them.
//!
//! Browsers attach passwords and client certificates that they know to requests of any page, so a page could change
//! something with the rights of its reader. They also say where a page is from, in fields that the page cannot set:
//! `Origin` (RFC 6454, Fetch) and `Sec-Fetch-Site` (W3C Fetch Metadata). Clients other than browsers send neither.

use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::Method;
use http::header::HOST;
use http::header::ORIGIN;

use crate::gate::config::Config;
use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::gate::web_origin::WebOrigin;
use crate::public_text;

const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Where the page is from that made a request.
#[derive(Clone, Copy, Debug)]
pub(in crate::gate) enum RequestOrigin<'a> {
    /// The request does not say: no browser made it, or it only follows a link.
    Absent,
    /// The origin of `server.public_url`.
    Own,
    /// One of `server.allowed_origins`, as it was written.
    Allowed(&'a HeaderValue),
    /// Any other, or not readable as exactly one origin.
    Foreign,
}

/// The relation of the page to this server, as the browser saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FetchSite {
    Absent,
    /// `same-origin`, or `none`: the user typed the address.
    SameOrigin,
    /// `same-site` or `cross-site`.
    Other,
    /// Repeated, or not a value that browsers send.
    Malformed,
}

/// The origins of one configuration.
#[derive(Debug)]
pub(in crate::gate) struct CrossSiteRule {
    /// That of `server.public_url`.
    own: Option<WebOrigin>,
    allowed: Vec<WebOrigin>,
    scheme: &'static str,
}

impl CrossSiteRule {
    pub(in crate::gate) fn new(config: &Config) -> Self {
        Self {
            own: config.public_url.origin(),
            allowed: config.allowed_origins.clone(),
            scheme: config.public_url.scheme(),
        }
    }

    /// Whether responses depend on `Origin`.
    pub(in crate::gate) const fn allows_any(&self) -> bool {
        !self.allowed.is_empty()
    }

    /// Where the page is from that made the request.
    pub(in crate::gate) fn origin_of<'a>(&self, headers: &'a HeaderMap) -> RequestOrigin<'a> {
        let mut values = headers.get_all(ORIGIN).iter();
        let Some(value) = values.next() else {
            return RequestOrigin::Absent;
        };
        // Two of them were not sent by a browser: which one counts would be a guess.
        if values.next().is_some() {
            return RequestOrigin::Foreign;
        }
        let Some(origin) = parse_origin(value) else {
            return RequestOrigin::Foreign;
        };
        if self.allowed.contains(&origin) {
            RequestOrigin::Allowed(value)
        } else if self.own.as_ref() == Some(&origin) {
            RequestOrigin::Own
        } else {
            RequestOrigin::Foreign
        }
    }

    /// Refuses a request that may change something and that a page of another site made.
    pub(in crate::gate) fn check(
        &self,
        method: &Method,
        headers: &HeaderMap,
        origin: RequestOrigin<'_>,
    ) -> Result<(), Refusal> {
        if is_read(method) {
            return Ok(());
        }
        judge(origin, headers)
    }

    /// The same for a request that is passed through. WebSockets begin with a GET and may then do anything, so they are
    /// judged like changes. `has_own_hosts` says that the route is for hosts that the operator named, one of which the
    /// request is for: pages of that host are its own.
    pub(in crate::gate) fn check_passed(
        &self,
        (method, is_websocket): (&Method, bool),
        headers: &HeaderMap,
        origin: RequestOrigin<'_>,
        has_own_hosts: bool,
    ) -> Result<(), Refusal> {
        if is_read(method) && !is_websocket {
            return Ok(());
        }
        let is_foreign = matches!(origin, RequestOrigin::Foreign);
        if is_foreign && has_own_hosts && self.is_from_same_host(headers) {
            return judge(RequestOrigin::Own, headers);
        }
        judge(origin, headers)
    }

    /// Whether the page is from the host that the request is for.
    fn is_from_same_host(&self, headers: &HeaderMap) -> bool {
        let mut origins = headers.get_all(ORIGIN).iter();
        let origin = origins.next().and_then(parse_origin);
        let host = headers.get(HOST).and_then(|host| host.to_str().ok());
        let Some((origin, host)) = origin.zip(host).filter(|_| origins.next().is_none()) else {
            return false;
        };
        WebOrigin::parse(&format!("{}://{host}", self.scheme)) == Ok(origin)
    }
}

fn parse_origin(value: &HeaderValue) -> Option<WebOrigin> {
    WebOrigin::parse(value.to_str().ok()?).ok()
}

/// Whether the method only reads: pages of every site may make such requests, and cannot read the answers.
fn is_read(method: &Method) -> bool {
    [Method::GET, Method::HEAD, Method::OPTIONS].contains(method)
}

fn judge(origin: RequestOrigin<'_>, headers: &HeaderMap) -> Result<(), Refusal> {
    let site = fetch_site(headers);
    let is_fine = match origin {
        RequestOrigin::Foreign => false,
        // The operator trusts its pages, which are of another origin by definition.
        RequestOrigin::Allowed(_) => site != FetchSite::Malformed,
        RequestOrigin::Own | RequestOrigin::Absent => {
            matches!(site, FetchSite::Absent | FetchSite::SameOrigin)
        }
    };
    if is_fine {
        return Ok(());
    }
    Err(Refusal::from(Code::CrossSite).hint(public_text!(
        "Ask the operator of the gateway to allow the origin of this page."
    )))
}

fn fetch_site(headers: &HeaderMap) -> FetchSite {
    let mut values = headers.get_all(FETCH_SITE).iter();
    let Some(value) = values.next() else {
        return FetchSite::Absent;
    };
    if values.next().is_some() {
        return FetchSite::Malformed;
    }
    match value.as_bytes() {
        b"same-origin" | b"none" => FetchSite::SameOrigin,
        b"same-site" | b"cross-site" => FetchSite::Other,
        _ => FetchSite::Malformed,
    }
}
