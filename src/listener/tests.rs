//! Whole connections over loopback, with a scripted handler and short limits.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::*;
use crate::gate::Body;
use crate::gate::BodyError;
use crate::gate::Exchange;
use crate::gate::RequestHead;
use crate::model::RequestId;
use crate::runtime::Clock;
use crate::runtime::SystemClock;
use crate::telemetry::Metrics;

const BODY_LIMIT: usize = 100;
const PATIENCE: Duration = Duration::from_secs(10);

/// What was told of one request: method, target, status, bytes, whether there was an exchange, whether it was delivered.
type Told = (String, String, Option<u16>, usize, bool, bool);

/// Answers by the path.
#[derive(Debug, Default)]
struct Script {
    begun: AtomicUsize,
    finished: AtomicUsize,
    go: Notify,
    told: Mutex<Vec<Told>>,
}

#[async_trait]
impl Handler for Script {
    async fn handle(&self, head: RequestHead<'_>, body: &mut dyn Body) -> Exchange {
        self.begun.fetch_add(1, Ordering::SeqCst);
        let (mut status, mut text, mut close) = (200, String::new(), false);
        match head.target {
            b"/wait" => {
                self.go.notified().await;
                text.push_str("waited");
            }
            b"/panic" => panic!("meant to"),
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
            b"/large" => text = "x".repeat(300_000),
            target => text = String::from_utf8_lossy(target).into_owned(),
        }
        self.finished.fetch_add(1, Ordering::SeqCst);
        let head_only = head.method == http::Method::HEAD;
        let mut response = http::Response::builder().status(status);
        if head_only {
            response = response.header("content-length", text.len());
            text.clear();
        }
        Exchange {
            response: response.body(Bytes::from(text)).unwrap(),
            request: RequestId::new("r").unwrap(),
            route: "test",
            method: if head_only { "HEAD" } else { "GET" },
            principal: None,
            refusal: None,
            operation: None,
            close,
        }
    }

    fn done(&self, exchange: Option<&Exchange>, access: &Access<'_>) {
        self.told.lock().unwrap().push((
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
        header_timeout: Duration::from_secs(5),
        body_timeout: Duration::from_secs(5),
        idle_timeout: Duration::from_secs(5),
        write_timeout: Duration::from_secs(5),
    }
}

struct Gateway {
    script: Arc<Script>,
    metrics: Arc<Metrics>,
    port: Port,
}

fn any_port() -> Socket {
    Socket::bind("127.0.0.1:0".parse().unwrap()).unwrap()
}

fn gateway_with(limits: &Limits) -> Gateway {
    let script = Arc::new(Script::default());
    let metrics = Arc::new(Metrics::new().unwrap());
    let handler: Arc<dyn Handler> = Arc::<Script>::clone(&script);
    let port = Port::api(
        any_port(),
        handler,
        limits,
        &metrics,
        &SystemClock::shared(),
    )
    .unwrap();
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
        let text = String::from_utf8(self.metrics.text()).unwrap();
        text.lines().any(|it| it == line)
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
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                if head.starts_with("HTTP/1.1 1") || body.len() >= length(head) {
                    break;
                }
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

#[tokio::test]
async fn answers_are_framed_exactly() {
    let gateway = gateway();
    // name, request, status, Content-Length, body
    let rows = [
        (
            "GET",
            "GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            "200",
            Some(2),
            "/a",
        ),
        (
            "HEAD",
            "HEAD /abc HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            "200",
            Some(4),
            "",
        ),
        (
            "204",
            "GET /none HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            "204",
            None,
            "",
        ),
        ("1.0", "GET /a HTTP/1.0\r\n\r\n", "200", Some(2), "/a"),
        (
            "raw target",
            "GET /a%2F../b//?x=%00 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            "200",
            Some(16),
            "/a%2F../b//?x=%00",
        ),
        (
            "absolute",
            "GET http://x/a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            "200",
            Some(10),
            "http://x/a",
        ),
        (
            "star",
            "OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            "200",
            Some(1),
            "*",
        ),
        (
            "empty body asked for",
            "GET /body HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            "200",
            Some(0),
            "",
        ),
    ];
    for (name, request, code, announced, expected) in rows {
        let answer = gateway.whole(request).await;
        let head = answer
            .split_once("\r\n\r\n")
            .unwrap()
            .0
            .to_ascii_lowercase();
        assert_eq!(status(&answer), code, "{name}: status in {answer:?}");
        assert_eq!(
            head.contains("content-length:"),
            announced.is_some(),
            "{name}: Content-Length in {answer:?}"
        );
        if name != "raw target" {
            assert_eq!(length(&head), announced.unwrap_or(0), "{name}: length");
        }
        assert_eq!(body(&answer), expected, "{name}: body");
        assert!(!head.contains("transfer-encoding"), "{name}: never chunked");
    }
}

#[tokio::test]
async fn a_large_answer_arrives_whole() {
    let gateway = gateway();
    let answer = gateway
        .whole("GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await;
    assert_eq!(body(&answer).len(), 300_000, "every byte");
}

#[tokio::test]
async fn connections_are_kept_and_closed_as_asked() {
    let gateway = gateway();
    let mut kept = gateway.connect().await;
    for turn in 0..3 {
        kept.write_all(b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi")
            .await
            .unwrap();
        let answer = answer(&mut kept).await;
        assert_eq!((status(&answer), body(&answer)), ("200", "hi"), "{turn}");
        assert!(!closes(&answer), "{turn}: stays open");
    }
    let rows = [
        (
            "asked",
            "GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            "200",
        ),
        ("1.0", "GET /a HTTP/1.0\r\n\r\n", "200"),
        (
            "the exchange says so",
            "POST /refuse HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi",
            "401",
        ),
        (
            "unread body",
            "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi",
            "200",
        ),
        (
            "two framings",
            "POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "200",
        ),
    ];
    for (name, request, code) in rows {
        let answer = gateway.whole(request).await;
        assert_eq!(status(&answer), code, "{name}");
        assert!(closes(&answer), "{name}: says that it closes: {answer:?}");
    }
}

#[tokio::test]
async fn bodies_are_read_within_the_limit() {
    let gateway = gateway();
    let chunked = "POST /body HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    let rows = [
        (
            "chunked",
            format!("{chunked}3\r\nabc\r\n2;ext=1\r\nde\r\n0\r\n\r\n"),
            "200",
            "abcde",
        ),
        (
            "at the limit",
            format!(
                "POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{}",
                "y".repeat(100)
            ),
            "200",
            "y",
        ),
        (
            "announced too large",
            format!(
                "POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 101\r\n\r\n{}",
                "y".repeat(101)
            ),
            "413",
            "",
        ),
        (
            "chunked too large",
            format!("{chunked}65\r\n{}\r\n0\r\n\r\n", "z".repeat(101)),
            "413",
            "",
        ),
        ("bad chunk", format!("{chunked}zz\r\n"), "400", ""),
    ];
    for (name, request, code, expected) in rows {
        let mut stream = gateway.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        let answer = answer(&mut stream).await;
        assert_eq!(status(&answer), code, "{name}: {answer:?}");
        assert!(body(&answer).starts_with(expected), "{name}: body");
        assert_eq!(
            closes(&answer),
            code != "200",
            "{name}: closed after a body not read"
        );
    }
}

#[tokio::test]
async fn the_refusal_of_a_large_body_reaches_a_client_that_is_still_sending() {
    let gateway = gateway();
    for turn in 0..10 {
        let mut stream = gateway.connect().await;
        stream
            .write_all(b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 600000\r\n\r\n")
            .await
            .unwrap();
        // Like most clients: send all of it before looking for the answer.
        stream.write_all(&vec![b'x'; 600_000]).await.unwrap();
        let answer = rest(&mut stream).await;
        assert_eq!(status(&answer), "413", "{turn}: {answer:?}");
    }
}

#[tokio::test]
async fn a_client_is_invited_to_send_only_a_wanted_body() {
    let gateway = gateway();
    let head = "POST /body HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length:";
    let mut wanted = gateway.connect().await;
    wanted
        .write_all(format!("{head} 5\r\n\r\n").as_bytes())
        .await
        .unwrap();
    assert_eq!(status(&answer(&mut wanted).await), "100", "invited");
    wanted.write_all(b"hello").await.unwrap();
    let final_answer = answer(&mut wanted).await;
    assert_eq!(
        (status(&final_answer), body(&final_answer)),
        ("200", "hello"),
        "answered"
    );
    assert!(!closes(&final_answer), "and the connection is kept");
    wanted
        .write_all(b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    assert_eq!(
        body(&answer(&mut wanted).await),
        "/next",
        "for the next request"
    );

    let refused = gateway.connect().await;
    let (mut read, mut write) = refused.into_split();
    write
        .write_all(format!("{head} 500\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let mut bytes = Vec::new();
    tokio::time::timeout(PATIENCE, read.read_to_end(&mut bytes))
        .await
        .unwrap()
        .unwrap();
    let text = String::from_utf8(bytes).unwrap();
    assert_eq!(
        status(&text),
        "413",
        "refused without an invitation: {text:?}"
    );
}

#[tokio::test]
async fn slow_and_idle_clients_are_closed_in_time() {
    let short = Limits {
        header_timeout: Duration::from_millis(300),
        body_timeout: Duration::from_millis(600),
        idle_timeout: Duration::from_secs(1),
        ..limits()
    };
    let gateway = gateway_with(&short);
    // name, what is sent first, what drips, expected status, longest wait
    let rows = [
        ("silent", "", "", "none", 900),
        ("half a head", "GET / HT", "", "none", 900),
        ("dripping head", "GET / HTTP/1.1\r\n", "X", "none", 900),
        (
            "stalled body",
            "POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\nab",
            "",
            "408",
            1200,
        ),
        (
            "dripping body",
            "POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\nab",
            "c",
            "408",
            1500,
        ),
        (
            "idle",
            "GET /a HTTP/1.1\r\nHost: x\r\n\r\n",
            "",
            "200",
            1900,
        ),
        (
            "dripping next head",
            "GET /a HTTP/1.1\r\nHost: x\r\n\r\n",
            "G",
            "200",
            2300,
        ),
    ];
    let mut running = Vec::new();
    for (name, first, drip, code, millis) in rows {
        let stream = gateway.connect().await;
        running.push(async move {
            let began = SystemClock.instant();
            let (mut read, mut write) = stream.into_split();
            write.write_all(first.as_bytes()).await.unwrap();
            let dripping = async {
                // Not at once: bytes right behind a request are a pipelined one, and dropped.
                tokio::time::sleep(Duration::from_millis(150)).await;
                while !drip.is_empty() && write.write_all(drip.as_bytes()).await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                std::future::pending::<()>().await;
            };
            let mut bytes = Vec::new();
            let reading = async {
                // A reset is an end as well.
                drop(read.read_to_end(&mut bytes).await);
            };
            tokio::select! {
                () = reading => {}
                () = dripping => {}
                () = tokio::time::sleep(PATIENCE) => {}
            }
            let took = SystemClock.instant() - began;
            assert_eq!(status(&String::from_utf8_lossy(&bytes)), code, "{name}");
            assert!(
                took < Duration::from_millis(millis),
                "{name}: closed after {took:?}"
            );
        });
    }
    futures_util::future::join_all(running).await;
    gateway
        .metric_becomes("snapgate_connections_closed_total{reason=\"slow_header\"} 4")
        .await;
    gateway
        .metric_becomes("snapgate_connections_closed_total{reason=\"idle\"} 1")
        .await;
    gateway.metric_becomes("snapgate_connections 0").await;
}

#[tokio::test]
async fn connections_over_the_limit_wait_for_their_turn() {
    let gateway = gateway_with(&Limits {
        connections: 2,
        ..limits()
    });
    let first = gateway.connect().await;
    let _second = gateway.connect().await;
    gateway.metric_becomes("snapgate_connections 2").await;
    let mut third = gateway.connect().await;
    third
        .write_all(b"GET /third HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    let early = tokio::time::timeout(Duration::from_millis(150), third.readable()).await;
    assert!(early.is_err(), "not served yet");
    drop(first);
    assert_eq!(
        body(&answer(&mut third).await),
        "/third",
        "served when there is room"
    );
}

#[tokio::test]
async fn pipelined_requests_are_never_mixed_up() {
    let gateway = gateway();
    let one = "POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\none";
    let text = gateway
        .whole(&format!("{one}GET /two HTTP/1.1\r\nHost: x\r\n\r\n"))
        .await;
    assert!(body(&text).starts_with("one"), "first: {text:?}");
    assert!(
        body(&text) == "one" || text.ends_with("/two"),
        "the second is answered in full or not at all: {text:?}"
    );
}

#[tokio::test]
async fn a_client_that_leaves_cancels_nothing() {
    let gateway = gateway();
    let mut stream = gateway.connect().await;
    stream
        .write_all(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    until("request begun", || {
        gateway.script.begun.load(Ordering::SeqCst) == 1
    })
    .await;
    drop(stream);
    tokio::time::sleep(Duration::from_millis(50)).await;
    gateway.script.go.notify_one();
    until("handler finished", || {
        gateway.script.finished.load(Ordering::SeqCst) == 1
    })
    .await;
    until("told of", || gateway.script.told.lock().unwrap().len() == 1).await;
}

#[tokio::test]
async fn a_client_that_half_closes_gets_its_answer() {
    let gateway = gateway();
    let mut stream = gateway.connect().await;
    stream
        .write_all(b"GET /half HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(body(&rest(&mut stream).await), "/half", "answered");
}

#[tokio::test]
async fn a_panic_is_one_answer_and_not_the_end() {
    let gateway = gateway();
    let answer = gateway
        .whole("GET /panic HTTP/1.1\r\nHost: x\r\n\r\n")
        .await;
    assert_eq!(status(&answer), "500", "{answer:?}");
    assert!(closes(&answer), "the connection is not used again");
    assert!(
        gateway.metric("snapgate_panics_total{room=\"listener\"} 1"),
        "counted"
    );
    let next = gateway.whole("GET /a HTTP/1.0\r\n\r\n").await;
    assert_eq!(status(&next), "200", "the gateway lives");
    until("both told of", || {
        gateway.script.told.lock().unwrap().len() == 2
    })
    .await;
    let told = gateway.script.told.lock().unwrap();
    assert_eq!(
        told[0],
        ("GET".into(), "/panic".into(), Some(500), 22, false, true),
        "told without an exchange"
    );
    assert_eq!(
        told[1],
        ("GET".into(), "/a".into(), Some(200), 2, true, true),
        "told with one"
    );
}

#[tokio::test]
async fn what_the_parser_refuses_is_counted() {
    let gateway = gateway();
    for request in ["GET / HTTP/9.9\r\n\r\n", "\u{16}\u{3}\u{1}", "G@T\r\n\r\n"] {
        let mut stream = gateway.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let answer = rest(&mut stream).await;
        assert!(
            answer.is_empty() || status(&answer) == "400",
            "{request:?}: {answer:?}"
        );
    }
    gateway
        .metric_becomes("snapgate_connections_closed_total{reason=\"no_request\"} 3")
        .await;
    assert_eq!(
        gateway.script.begun.load(Ordering::SeqCst),
        0,
        "none reached the handler"
    );
}

#[tokio::test]
async fn a_drain_ends_idle_connections_at_once_and_waits_for_busy_ones() {
    let gateway = gateway();
    let address = gateway.port.address();
    let mut idle = gateway.connect().await;
    idle.write_all(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    answer(&mut idle).await;
    let mut fresh = gateway.connect().await;
    let mut busy = gateway.connect().await;
    busy.write_all(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    until("request begun", || {
        gateway.script.begun.load(Ordering::SeqCst) == 2
    })
    .await;
    until("all accepted", || gateway.port.connections() == 3).await;
    let (script, port) = (gateway.script, gateway.port);
    let drained = tokio::join!(port.drain(PATIENCE), async {
        assert_eq!(rest(&mut idle).await, "", "idle one closed");
        assert_eq!(rest(&mut fresh).await, "", "fresh one closed");
        assert!(TcpStream::connect(address).await.is_err(), "port closed");
        script.go.notify_one();
        let answer = rest(&mut busy).await;
        assert_eq!(body(&answer), "waited", "the busy one is answered");
        assert!(closes(&answer), "and told that it is the last: {answer:?}");
    })
    .0;
    assert_eq!(drained.cut, 0, "nothing cut");
    assert!(
        drained.took < Duration::from_secs(4),
        "no longer than needed: {:?}",
        drained.took
    );
}

#[tokio::test]
async fn a_drain_cuts_what_does_not_end() {
    let gateway = gateway();
    let mut busy = gateway.connect().await;
    busy.write_all(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    until("request begun", || {
        gateway.script.begun.load(Ordering::SeqCst) == 1
    })
    .await;
    let metrics = Arc::clone(&gateway.metrics);
    let drained = gateway.port.drain(Duration::from_millis(100)).await;
    assert_eq!(drained.cut, 1, "one was cut");
    assert_eq!(rest(&mut busy).await, "", "without an answer");
    let text = String::from_utf8(metrics.text()).unwrap();
    assert!(
        text.contains("snapgate_connections_closed_total{reason=\"cut\"} 1"),
        "counted: {text}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_gateways_live_in_one_process() {
    let gateways: Vec<_> = (0..20).map(|_| gateway()).collect();
    for (number, gateway) in gateways.iter().enumerate() {
        let answer = gateway
            .whole(&format!("GET /{number} HTTP/1.0\r\n\r\n"))
            .await;
        assert_eq!(body(&answer), format!("/{number}"), "the right one answers");
    }
    for gateway in gateways {
        assert_eq!(gateway.port.drain(PATIENCE).await.cut, 0, "all end");
    }
}

#[derive(Debug)]
struct Switch(Mutex<Result<(), String>>);

impl Readiness for Switch {
    fn readiness(&self) -> Result<(), String> {
        self.0.lock().unwrap().clone()
    }
}

#[tokio::test]
async fn the_admin_port_answers_until_the_very_end() {
    let switch = Arc::new(Switch(Mutex::new(Ok(()))));
    let metrics = Arc::new(Metrics::new().unwrap());
    let readiness: Arc<dyn Readiness> = Arc::<Switch>::clone(&switch);
    let port = Port::admin(
        any_port(),
        readiness,
        &limits(),
        &metrics,
        &SystemClock::shared(),
    )
    .unwrap();
    let ask = async |request: &str| {
        let mut stream = connect(port.address()).await;
        stream
            .write_all(format!("{request} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())
            .await
            .unwrap();
        rest(&mut stream).await
    };
    assert_eq!(body(&ask("GET /readyz").await), "ready\n", "ready");
    *switch.0.lock().unwrap() = Err("stopping".to_owned());
    let unready = ask("GET /readyz").await;
    assert_eq!(
        (status(&unready), body(&unready)),
        ("503", "not ready: stopping\n"),
        "not ready"
    );
    assert_eq!(
        status(&ask("GET /healthz").await),
        "200",
        "healthy all the same"
    );
    let text = ask("GET /metrics").await;
    assert!(
        body(&text).contains("snapgate_build_info"),
        "metrics: {text:?}"
    );
    assert_eq!(length(&text), body(&text).len(), "framed exactly");
    let head = ask("HEAD /version").await;
    assert_eq!(
        (body(&head), length(&head) > 0),
        ("", true),
        "HEAD has a length and no body"
    );
    assert!(
        body(&ask("GET /version").await).contains(env!("CARGO_PKG_VERSION")),
        "version"
    );
    let refused = ask("POST /metrics").await;
    assert_eq!(status(&refused), "405", "no other method");
    assert!(refused.contains("GET, HEAD"), "says which: {refused:?}");
    assert_eq!(status(&ask("GET /nothing").await), "404", "no other page");
    assert!(closes(&refused), "one request a connection");
    let silent = connect(port.address()).await;
    let drained = port.drain(PATIENCE).await;
    assert_eq!(drained.cut, 0, "nothing left");
    assert!(
        drained.took < Duration::from_secs(2),
        "a silent connection holds nothing up"
    );
    drop(silent);
}

/// Run by the test below in a process without certificate authorities, and by itself with those of the system.
#[tokio::test]
async fn starts_and_answers() {
    let gateway = gateway();
    let answer = gateway.whole("GET /a HTTP/1.0\r\n\r\n").await;
    assert_eq!(status(&answer), "200", "{answer:?}");
}

#[test]
fn the_certificate_store_of_the_system_is_not_needed() {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "listener::tests::starts_and_answers"])
        .env("SSL_CERT_FILE", "/nonexistent/certificates.pem")
        .env("SSL_CERT_DIR", "/nonexistent")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}
