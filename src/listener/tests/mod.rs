//! Whole connections over loopback, with a scripted handler and short limits.

mod admin;
mod drain;
mod limits;
mod request_bodies;
mod responses;
mod streamed_bodies;
mod tls_http2;

use std::net::IpAddr;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::*;
use crate::gate::Body;
use crate::gate::BodyError;
use crate::gate::BodyStream;
use crate::gate::Code;
use crate::gate::GateDecision;
use crate::gate::HandledRequest;
use crate::gate::PassThrough;
use crate::gate::RequestHead;
use crate::model::OperationSeq;
use crate::model::OperatorQuery;
use crate::model::RequestId;
use crate::runtime::Clock;
use crate::runtime::SystemClock;
use crate::telemetry::Metrics;

const BODY_LIMIT: usize = 100;
const PATIENCE: Duration = Duration::from_secs(30);

/// The report of one request: method, target, status, bytes, whether there was an exchange, whether it was delivered.
type Report = (String, String, Option<u16>, usize, bool, bool);

/// An operator interface without operations.
#[derive(Debug)]
pub(super) struct NoOperations;

#[async_trait]
impl Operator for NoOperations {
    fn is_token(&self, _token: &[u8]) -> bool {
        false
    }
    async fn list(&self, _query: OperatorQuery) -> Result<Vec<serde_json::Value>, OperatorError> {
        Ok(Vec::new())
    }
    async fn log_level(&self) -> Result<serde_json::Value, OperatorError> {
        Ok(serde_json::Value::Null)
    }
    async fn change_log_level(
        &self,
        _change: LogLevelChange,
        _caller: OperatorCaller<'_>,
    ) -> Result<serde_json::Value, OperatorError> {
        Ok(serde_json::Value::Null)
    }
    async fn examine(&self) -> Result<serde_json::Value, OperatorError> {
        Ok(serde_json::Value::Null)
    }
    async fn cluster(&self) -> Result<serde_json::Value, OperatorError> {
        Ok(serde_json::Value::Null)
    }
    async fn change_cluster(
        &self,
        _change: ClusterChange,
        _caller: OperatorCaller<'_>,
    ) -> Result<serde_json::Value, OperatorError> {
        Ok(serde_json::Value::Null)
    }
    async fn show(&self, seq: OperationSeq) -> Result<serde_json::Value, OperatorError> {
        Err(OperatorError::NoSuchOperation(seq.to_string()))
    }
    async fn acknowledge(
        &self,
        seq: OperationSeq,
        _caller: OperatorCaller<'_>,
    ) -> Result<serde_json::Value, OperatorError> {
        Err(OperatorError::NoSuchOperation(seq.to_string()))
    }
    async fn cancel(
        &self,
        seq: OperationSeq,
        _caller: OperatorCaller<'_>,
    ) -> Result<serde_json::Value, OperatorError> {
        Err(OperatorError::NoSuchOperation(seq.to_string()))
    }
    fn denied(&self, _reason: &'static str, _client: Option<IpAddr>) {}
}

/// As many pieces as are let go, and then the end; one that panics when asked to.
#[derive(Debug)]
struct Drops {
    go: Arc<Notify>,
    left: usize,
    panics: bool,
}

#[async_trait]
impl BodyStream for Drops {
    async fn next(&mut self) -> Option<Bytes> {
        self.left = self.left.checked_sub(1)?;
        self.go.notified().await;
        assert!(!self.panics, "meant to");
        Some(Bytes::from(format!("piece {}\n", self.left)))
    }
}

/// Answers by the path.
#[derive(Debug, Default)]
pub(super) struct Script {
    begun: AtomicUsize,
    finished: AtomicUsize,
    go: Arc<Notify>,
    reports: Mutex<Vec<Report>>,
}

#[async_trait]
impl Handler for Script {
    async fn handle(&self, head: RequestHead<'_>, body: &mut dyn Body) -> GateDecision {
        self.begun.fetch_add(1, Ordering::SeqCst);
        let (mut status, mut text, mut close) = (200, String::new(), false);
        let mut pieces: Option<Box<dyn BodyStream>> = None;
        match head.target {
            b"/wait" => {
                self.go.notified().await;
                text.push_str("waited");
            }
            b"/panic" => panic!("meant to"),
            b"/pieces" | b"/pieces/panic" | b"/pieces/many" => {
                let many = head.target.ends_with(b"many");
                pieces = Some(Box::new(Drops {
                    go: Arc::clone(&self.go),
                    left: if many { usize::MAX } else { 2 },
                    panics: head.target.ends_with(b"panic"),
                }));
            }
            b"/body" => match body.read(BODY_LIMIT).await {
                Ok(bytes) => text = String::from_utf8(bytes.to_vec()).unwrap(),
                Err(error) => {
                    close = true;
                    status = match error {
                        BodyError::TooLarge => 413,
                        BodyError::TooSlow => 408,
                        BodyError::Broken => 400,
                    };
                }
            },
            b"/refuse" => (status, close) = (401, body.is_present()),
            b"/none" => status = 204,
            b"/who" => {
                let names = head.certificate.iter().map(ToString::to_string);
                text = names.collect::<Vec<_>>().join(" ");
            }
            b"/host" => {
                let host = head.headers.get("host");
                text = host
                    .map_or("none", |host| host.to_str().unwrap())
                    .to_owned();
            }
            b"/large" => text = "x".repeat(300_000),
            target => text = String::from_utf8_lossy(target).into_owned(),
        }
        self.finished.fetch_add(1, Ordering::SeqCst);
        let head_only = head.method == http::Method::HEAD;
        let mut response = http::Response::builder().status(status);
        if head_only && pieces.is_none() {
            response = response.header("content-length", text.len());
            text.clear();
        }
        GateDecision::Answer(HandledRequest {
            response: response.body(Bytes::from(text)).unwrap(),
            pieces: pieces.filter(|_| !head_only),
            request: RequestId::new("r").unwrap(),
            trace: None,
            client: head.peer,
            route: "test",
            method: if head_only { "HEAD" } else { "GET" },
            principal: None,
            refusal: None,
            operation: None,
            close,
            audit: None,
        })
    }

    fn refuse_unreadable(&self, peer: Option<IpAddr>) -> HandledRequest {
        crate::gate::refuse_unreadable(RequestId::new("r").unwrap(), peer)
    }

    fn failed(&self, pass: &PassThrough, code: Code) -> HandledRequest {
        crate::gate::pass_through_failure(pass, code)
    }

    fn is_shared(&self, peer: IpAddr) -> bool {
        peer == IpAddr::from([127, 0, 0, 1])
    }

    fn passed(&self, pass: &PassThrough, _: &UpstreamResult<'_>, _: &SentResponse<'_>) {
        panic!("nothing here is passed on: {pass:?}");
    }

    fn done(&self, exchange: Option<&HandledRequest>, access: &SentResponse<'_>) {
        self.reports.lock().push((
            access.method.to_string(),
            String::from_utf8_lossy(access.target).into_owned(),
            access.status,
            access.bytes,
            exchange.is_some(),
            access.delivered,
        ));
    }
}

fn limits() -> Limits {
    Limits {
        connections: 100,
        connections_per_address: 0,
        handshake_timeout: PATIENCE,
        streams: 10,
        header_timeout: Duration::from_secs(5),
        body_timeout: Duration::from_secs(5),
        body_rate: 0,
        body_grace: Duration::ZERO,
        idle_timeout: Duration::from_secs(5),
        write_timeout: Duration::from_secs(5),
    }
}

struct Gateway {
    script: Arc<Script>,
    metrics: Arc<Metrics>,
    port: Server,
}

fn any_port() -> Socket {
    Socket::bind("127.0.0.1:0".parse().unwrap()).unwrap()
}

fn gateway_with(limits: &Limits) -> Gateway {
    gateway_over(limits, None)
}

fn gateway_over(limits: &Limits, tls: Option<&Tls>) -> Gateway {
    let script = Arc::new(Script::default());
    let metrics = Arc::new(Metrics::new().unwrap());
    let handler: Arc<dyn Handler> = Arc::<Script>::clone(&script);
    let clock = SystemClock::shared();
    let tasks = crate::runtime::Tasks::default();
    let upstreams = Upstreams::new(Arc::clone(&clock), Arc::clone(&metrics), tasks);
    let its = (handler, upstreams);
    let port = Server::api(any_port(), its, limits, tls, &metrics, &clock).unwrap();
    Gateway {
        script,
        metrics,
        port,
    }
}

fn gateway() -> Gateway {
    gateway_with(&limits())
}

impl Gateway {
    async fn connect(&self) -> TcpStream {
        connect(self.port.address()).await
    }

    /// Sends the text on a fresh connection and reads until the gateway closes it.
    async fn whole(&self, text: &str) -> String {
        let mut stream = self.connect().await;
        stream.write_all(text.as_bytes()).await.unwrap();
        rest(&mut stream).await
    }

    fn metric(&self, line: &str) -> bool {
        let text = String::from_utf8(self.metrics.encode_text()).unwrap();
        text.lines().any(|found| found == line)
    }

    async fn metric_becomes(&self, line: &str) {
        until(line, || self.metric(line)).await;
    }
}

async fn connect(to: SocketAddr) -> TcpStream {
    TcpStream::connect(to).await.unwrap()
}

/// Waits for the condition, not longer than a test should take.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert!(waited.is_ok(), "never happened: {what}");
}

/// Everything until the end of the connection, orderly or not.
async fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await;
    assert!(read.is_ok(), "the connection is closed in time");
    String::from_utf8(bytes).unwrap()
}

/// One answer with a `Content-Length`, and nothing after it.
async fn answer(stream: &mut TcpStream) -> String {
    let mut text = String::new();
    let mut buffer = [0; 4096];
    let read = tokio::time::timeout(PATIENCE, async {
        loop {
            let count = stream.read(&mut buffer).await.unwrap();
            assert_ne!(count, 0, "connection ended after {text:?}");
            text.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
            if let Some((head, body)) = text.split_once("\r\n\r\n")
                && (head.starts_with("HTTP/1.1 1") || body.len() >= length(head))
            {
                break;
            }
        }
    })
    .await;
    assert!(read.is_ok(), "a whole answer comes in time: {text:?}");
    text
}

fn length(head: &str) -> usize {
    head.lines()
        .find_map(|line| {
            line.to_ascii_lowercase()
                .strip_prefix("content-length: ")?
                .parse()
                .ok()
        })
        .unwrap_or(0)
}

fn status(answer: &str) -> &str {
    answer.get(9..12).unwrap_or("none")
}

fn closes(answer: &str) -> bool {
    answer
        .to_ascii_lowercase()
        .contains("\r\nconnection: close\r\n")
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}
