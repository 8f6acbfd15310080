//! What the listener calls for every request: implemented by the application, which owns the gate.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use async_trait::async_trait;

use crate::gate::Body;
use crate::gate::Code;
use crate::gate::GateDecision;
use crate::gate::HandledRequest;
use crate::gate::PassThrough;
use crate::gate::RequestHead;

/// Most bytes of a request target or user agent that are handed on for the log.
pub(super) const LOGGED_BYTES_MAX: usize = 1024;

/// What became of an answer, for the access log and the metrics.
#[derive(Clone, Copy, Debug)]
pub struct SentResponse<'a> {
    /// The method as sent.
    pub method: &'a http::Method,
    /// The first 1024 bytes of the request target as sent: any bytes, to be escaped by the log.
    pub target: &'a [u8],
    /// The version of HTTP.
    pub version: http::Version,
    /// The first 1024 bytes of `User-Agent` as sent, to be escaped by the log.
    pub user_agent: Option<&'a [u8]>,
    /// The address the connection comes from.
    pub peer: Option<IpAddr>,
    /// The status that was sent; `None` when nothing could be sent.
    pub status: Option<u16>,
    /// Bytes of the body that were sent.
    pub bytes: usize,
    /// Time from the head of the request to the end of the answer.
    pub took: Duration,
    /// Whether the whole answer was handed to the system for delivery.
    pub delivered: bool,
}

/// How a request was passed on.
#[derive(Clone, Copy, Debug, Default)]
pub struct UpstreamResult<'a> {
    /// The host and port of the upstream that was asked last; `None` when there was none to ask.
    pub upstream: Option<&'a str>,
    /// Time from the choice of that upstream to the head of its answer; `None` without one.
    pub waited: Option<Duration>,
    /// Whether a first attempt had failed.
    pub retried: bool,
    /// Why the gateway answered itself, if it did.
    pub refusal: Option<&'static str>,
}

/// Answers requests.
#[async_trait]
pub trait Handler: fmt::Debug + Send + Sync {
    /// Decides about one request, and answers it unless it is to be passed on. Runs to its end even when the client has
    /// gone away.
    async fn handle(&self, head: RequestHead<'_>, body: &mut dyn Body) -> GateDecision;

    /// Called once for each request after its answer was sent. The exchange is `None` when there is none: the handler
    /// panicked, or Pingora gave the request up.
    fn done(&self, exchange: Option<&HandledRequest>, access: &SentResponse<'_>);

    /// The answer to a request that could not be passed on, for this reason.
    fn failed(&self, pass: &PassThrough, code: Code) -> HandledRequest;

    /// Whether many clients may connect from this address, so that it has no limit of its own.
    fn is_shared(&self, peer: IpAddr) -> bool;

    /// Called once for each request that was to be passed on, in place of [`Handler::done`].
    fn passed(&self, pass: &PassThrough, way: &UpstreamResult<'_>, access: &SentResponse<'_>);
}
