//! The interface through which the listener hands over requests. The application, which owns the gate, implements it.

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

/// Bytes of a request target or user agent that are logged.
pub(super) const LOGGED_BYTES_MAX: usize = 1024;

/// The outcome of a request, for the access log and the metrics.
#[derive(Clone, Copy, Debug)]
pub struct SentResponse<'a> {
    /// The method as sent.
    pub method: &'a http::Method,
    /// The first 1024 bytes of the request target as sent. Any bytes; the log escapes them.
    pub target: &'a [u8],
    /// The HTTP version.
    pub version: http::Version,
    /// The first 1024 bytes of `User-Agent` as sent. Any bytes; the log escapes them.
    pub user_agent: Option<&'a [u8]>,
    /// The remote address of the connection.
    pub peer: Option<IpAddr>,
    /// The status code that was sent; `None` if none was.
    pub status: Option<u16>,
    /// Bytes of the body that were sent.
    pub bytes: usize,
    /// Time from receiving the request head to the end of the response.
    pub took: Duration,
    /// Whether the whole response was written to the connection.
    pub delivered: bool,
}

/// How a request was forwarded.
#[derive(Clone, Copy, Debug, Default)]
pub struct UpstreamResult<'a> {
    /// The host and port of the last selected upstream; `None` if none was available.
    pub upstream: Option<&'a str>,
    /// Time from its selection to its response head; `None` without a response.
    pub waited: Option<Duration>,
    /// Whether the request was retried.
    pub retried: bool,
    /// The code of the refusal, if the gateway answered itself.
    pub refusal: Option<&'static str>,
}

/// Decides about requests.
#[async_trait]
pub trait Handler: fmt::Debug + Send + Sync {
    /// Decides about a request, and answers it unless it is to be forwarded. The listener drops the future of a GET or HEAD whose
    /// client disconnects; those of other methods run to their end.
    async fn handle(&self, head: RequestHead<'_>, body: &mut dyn Body) -> GateDecision;

    /// Called once per request after its response was sent. The exchange is `None` if the handler panicked or was not called.
    fn done(&self, exchange: Option<&HandledRequest>, access: &SentResponse<'_>);

    /// The response to a request whose head could not be parsed, for [`Handler::done`] as well.
    fn refuse_unreadable(&self, peer: Option<IpAddr>) -> HandledRequest;

    /// The response to a request that could not be forwarded.
    fn failed(&self, pass: &PassThrough, code: Code) -> HandledRequest;

    /// Whether many clients share this address, so that no limit per address applies.
    fn is_shared(&self, peer: IpAddr) -> bool;

    /// Called once per forwarded request, instead of [`Handler::done`].
    fn passed(&self, pass: &PassThrough, result: &UpstreamResult<'_>, access: &SentResponse<'_>);
}
