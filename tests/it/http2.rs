//! HTTP/2 over TLS as two independent implementations see it: the h2 library frame by frame, and nghttp2's h2load.

use std::fmt::Debug;
use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::client::SendRequest;
use http::HeaderMap;
use http::Request;
use http::request::Builder;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls;

use crate::client::basic;
use crate::harness::Gateway;
use crate::harness::PATIENCE;
use crate::harness::SIM;
use crate::harness::eventually;
use crate::harness::stop_in_background;
use crate::passthrough::route;
use crate::passthrough::upstream::Upstream;
use crate::requirements::require_programs;

const BACKUP: &str = "/vms/1/backups/456";
const CERTIFICATE: &str = "[[certificate]]\nchain = \"chain.pem\"\nkey = \"key.pem\"\n";

/// A gateway with a certificate for `localhost`, and the certificate.
pub(crate) struct Secure {
    pub(crate) gateway: Gateway,
    certificate: rustls::pki_types::CertificateDer<'static>,
}

impl Secure {
    pub(crate) fn start(settings: &str) -> Self {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("chain.pem"), made.cert.pem()).unwrap();
        fs::write(
            folder.path().join("key.pem"),
            made.signing_key.serialize_pem(),
        )
        .unwrap();
        Self {
            gateway: Gateway::start_in(folder, &format!("{settings}\n{CERTIFICATE}")),
            certificate: made.cert.der().clone(),
        }
    }

    pub(crate) fn connect(&self) -> Connection {
        self.connect_with(&h2::client::Builder::new())
    }

    fn connect_with(&self, builder: &h2::client::Builder) -> Connection {
        Connection::with(self.gateway.api, self.certificate.clone(), builder)
    }
}

/// One connection of a client.
pub(crate) struct Connection {
    runtime: Runtime,
    requests: SendRequest<Bytes>,
    driver: JoinHandle<Result<(), h2::Error>>,
}

/// One answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(PATIENCE, work).await;
    done.unwrap_or_else(|_| panic!("not in time: {what}"))
}

/// A request of `alice`, without its body.
pub(crate) fn request(method: &str, path: &str) -> Builder {
    Request::builder()
        .method(method)
        .uri(format!("https://localhost{path}"))
        .header("authorization", basic("alice", "secret"))
        .header("x-cloud-client-specification-version", "0.1")
}

async fn answer(response: ResponseFuture) -> Result<Answer, h2::Error> {
    let (head, mut body) = response.await?.into_parts();
    let mut bytes = Vec::new();
    while let Some(part) = body.data().await {
        let part = part?;
        body.flow_control().release_capacity(part.len())?;
        bytes.extend_from_slice(&part);
    }
    Ok(Answer {
        status: head.status.as_u16(),
        headers: head.headers,
        body: bytes,
    })
}

impl Connection {
    /// A connection to a server with this certificate.
    pub(crate) fn to(
        address: SocketAddr,
        certificate: rustls::pki_types::CertificateDer<'static>,
    ) -> Self {
        Self::with(address, certificate, &h2::client::Builder::new())
    }

    fn with(
        address: SocketAddr,
        certificate: rustls::pki_types::CertificateDer<'static>,
        builder: &h2::client::Builder,
    ) -> Self {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Self::over(address, config, "localhost", builder)
    }

    /// A connection that is encrypted in this way.
    pub(crate) fn over(
        address: SocketAddr,
        config: rustls::ClientConfig,
        host: &'static str,
        builder: &h2::client::Builder,
    ) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (requests, driver) = runtime.block_on(within("a connection", async {
            let stream = TcpStream::connect(address).await.unwrap();
            let connector = TlsConnector::from(Arc::new(config));
            let name = host.try_into().unwrap();
            let stream = connector.connect(name, stream).await.unwrap();
            let (_, session) = stream.get_ref();
            assert_eq!(session.alpn_protocol(), Some(&b"h2"[..]), "h2 is chosen");
            let (requests, connection) = builder.handshake(stream).await.unwrap();
            (requests, tokio::spawn(connection))
        }));
        Self {
            runtime,
            requests,
            driver,
        }
    }

    /// Sends head and body and does not wait for the answer.
    pub(crate) fn begin(&self, head: Builder, body: Option<&[u8]>) -> ResponseFuture {
        let request = head.body(()).unwrap();
        self.runtime
            .block_on(within("a stream", async {
                let mut requests = self.requests.clone().ready().await.unwrap();
                let (response, mut stream) =
                    requests.send_request(request, body.is_none()).unwrap();
                if let Some(body) = body {
                    // Fails if the answer came first, which `finish` reads.
                    drop(stream.send_data(Bytes::copy_from_slice(body), true));
                }
                (response,)
            }))
            .0
    }

    /// Sends a request without a body, unless the server has said that it takes no more on this connection.
    pub(crate) fn try_begin(&self, head: Builder) -> Result<ResponseFuture, h2::Error> {
        let request = head.body(()).unwrap();
        self.runtime.block_on(within("a stream", async {
            let mut requests = self.requests.clone().ready().await?;
            Ok(requests.send_request(request, true)?.0)
        }))
    }

    pub(crate) fn finish(&self, response: ResponseFuture) -> Result<Answer, h2::Error> {
        self.runtime.block_on(within("an answer", answer(response)))
    }

    pub(crate) fn send(&self, head: Builder, body: Option<&[u8]>) -> Answer {
        let response = self.begin(head, body);
        self.finish(response).unwrap()
    }

    fn get(&self, path: &str) -> Answer {
        self.send(request("GET", path), None)
    }

    pub(crate) fn status_uri(&self, head: Builder, body: Option<&[u8]>) -> String {
        let accepted = self.send(head, body);
        assert_eq!(accepted.status, 202, "accepted: {accepted:?}");
        let uri = accepted.json()["status_uri"].as_str().map(str::to_owned);
        assert_eq!(
            uri.as_deref(),
            accepted.headers["location"].to_str().ok(),
            "with its Status"
        );
        uri.unwrap()
    }

    /// How the connection ended.
    fn ended(self) -> Result<(), h2::Error> {
        drop(self.requests);
        self.runtime
            .block_on(within("the end of the connection", self.driver))
            .unwrap()
    }
}

/// A request whose body has only begun.
struct Upload<'a> {
    client: &'a Connection,
    body: h2::SendStream<Bytes>,
    _answer: ResponseFuture,
}

impl<'a> Upload<'a> {
    fn begin(client: &'a Connection, path: &str) -> Self {
        let head = json(request("PUT", path)).body(()).unwrap();
        let (answer, body) = client.runtime.block_on(within("a stream", async {
            let mut requests = client.requests.clone().ready().await.unwrap();
            requests.send_request(head, false).unwrap()
        }));
        Self {
            client,
            body,
            _answer: answer,
        }
    }

    /// How many bytes may be sent before the other side has read any: waits until it is so many, if `waits`.
    fn window(&mut self, wanted: usize, waits: bool) -> usize {
        self.body.reserve_capacity(wanted);
        let more = std::future::poll_fn(|context| self.body.poll_capacity(context));
        let more = if waits {
            self.client.runtime.block_on(within("a window", more))
        } else {
            let limit = Duration::from_millis(300);
            let more = async { tokio::time::timeout(limit, more).await };
            self.client.runtime.block_on(more).unwrap_or_default()
        };
        more.transpose().unwrap();
        let found = self.body.capacity();
        if waits && found < wanted {
            return self.window(wanted, waits);
        }
        found
    }
}

#[apply(test)]
fn uploads_that_are_passed_on_get_large_windows_and_all_others_small_ones() {
    const SMALL: usize = 64 * 1024;
    // The client's library buffers no more than 400 KiB.
    const WIDE: usize = 4 * SMALL;
    const WIDE_CONNECTIONS: usize = 32;
    let upstream = Upstream::start();
    let route = route("up", "/up", &[crate::passthrough::http(&upstream)], "");
    let secure = Secure::start(&format!("{SIM}{route}"));
    let clients: Vec<Connection> = (0..=WIDE_CONNECTIONS).map(|_| secure.connect()).collect();
    let [first, others @ ..] = &*clients else {
        panic!("no client");
    };
    let mut own = Upload::begin(first, BACKUP);
    let found = own.window(WIDE, false);
    assert!(found <= SMALL, "of the API's own: {found}");
    let mut all = Vec::new();
    for client in others {
        let mut upload = Upload::begin(client, "/up/load");
        assert!(upload.window(WIDE, true) >= WIDE, "passed on");
        all.push(upload);
    }
    let mut upload = Upload::begin(first, "/up/load");
    let found = upload.window(WIDE, false);
    assert!(found <= SMALL, "one connection too many: {found}");
}

fn json(head: Builder) -> Builder {
    head.header("content-type", "application/json")
}

#[apply(test)]
fn every_kind_of_request_is_answered_over_http_2() {
    let secure = Secure::start(SIM);
    let client = secure.connect();
    let read = client.get(BACKUP);
    assert_eq!(read.status, 200, "read: {read:?}");
    assert_eq!(read.json()["state"], "AVAILABLE", "a Backup: {read:?}");
    let head = client.send(request("HEAD", BACKUP), None);
    assert_eq!(
        (head.status, head.body.len()),
        (200, 0),
        "a head without a body"
    );
    assert_eq!(
        head.headers["content-length"], read.headers["content-length"],
        "the length of what GET answers"
    );
    let changed = client.status_uri(json(request("PUT", BACKUP)), Some(br#"{"tags": ["a"]}"#));
    let waiting = request("GET", &changed).header("prefer", "wait=20");
    assert_eq!(client.send(waiting, None).json()["status"], 200, "changed");
    let restored = client.status_uri(request("POST", &format!("{BACKUP}/restore")), None);
    // A long poll ends with every change, the last of which is the end.
    let mut over = Value::Null;
    for _change in 0..10 {
        let waiting = request("GET", &restored).header("prefer", "wait=20");
        over = client.send(waiting, None).json();
        if over["progress"] == 100 {
            break;
        }
    }
    assert_eq!(over["status"], 200, "restored: {over}");
    let second = client.status_uri(request("POST", &format!("{BACKUP}/restore")), None);
    let events = client.send(
        request("GET", &second).header("accept", "text/event-stream"),
        None,
    );
    assert_eq!(
        events.headers["content-type"], "text/event-stream",
        "a stream of events: {events:?}"
    );
    assert!(
        !events.headers.contains_key("content-length"),
        "of no known length: {events:?}"
    );
    let text = String::from_utf8(events.body).unwrap();
    let last = text
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("data: "));
    let last: Value = serde_json::from_str(last.unwrap()).unwrap();
    assert_eq!(last["progress"], 100, "the last event is the end: {text}");
    let refused = client.get("/vms/9/backups/456");
    assert_eq!(refused.status, 404, "a refusal: {refused:?}");
    assert_eq!(
        refused.json()["message"][0]["code"],
        "NoSuchVm",
        "with its code"
    );
    assert_eq!(
        client.ended().err().map(|error| error.to_string()),
        None,
        "a clean end"
    );
}

#[apply(test)]
fn many_streams_share_a_connection_and_trailers_are_taken() {
    let secure = Secure::start(SIM);
    let client = secure.connect();
    // From then on the client knows how many streams it may open at once.
    let first = client.get(BACKUP);
    assert_eq!(first.status, 200, "the first: {first:?}");
    let begun: Vec<ResponseFuture> = (0..200)
        .map(|_| client.begin(request("GET", BACKUP), None))
        .collect();
    for (number, response) in begun.into_iter().enumerate() {
        let found = client.finish(response).unwrap();
        assert_eq!(found.status, 200, "stream {number}: {found:?}");
    }
    // Fields after the body mean nothing here, and break nothing.
    let head = json(request("PUT", BACKUP)).body(()).unwrap();
    let response = client.runtime.block_on(within("an answer", async {
        let mut requests = client.requests.clone().ready().await.unwrap();
        let (response, mut stream) = requests.send_request(head, false).unwrap();
        stream
            .send_data(Bytes::from_static(br#"{"tags": ["b"]}"#), false)
            .unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("authorization", "Basic bm9ib2R5".parse().unwrap());
        stream.send_trailers(trailers).unwrap();
        answer(response).await
    }));
    let found = response.unwrap();
    assert_eq!(found.status, 202, "trailers: {found:?}");
    assert_eq!(client.get(BACKUP).json()["tags"][0], "b", "the body counts");
}

#[apply(test)]
fn streams_that_are_reset_harm_no_others() {
    let secure = Secure::start(SIM);
    let client = secure.connect();
    let reset = |client: &Connection| -> Result<(), h2::Error> {
        client.runtime.block_on(within("a reset", async {
            let head = json(request("PUT", BACKUP)).body(()).unwrap();
            let mut requests = client.requests.clone().ready().await?;
            let (_response, mut stream) = requests.send_request(head, false)?;
            stream.send_reset(h2::Reason::CANCEL);
            Ok(())
        }))
    };
    for number in 0..5 {
        reset(&client).unwrap();
        let found = client.get(BACKUP);
        assert_eq!(found.status, 200, "after reset {number}: {found:?}");
    }
    assert_eq!(
        client.get(BACKUP).json()["tags"],
        serde_json::json!([]),
        "what was not sent to its end changed nothing"
    );
    // A flood of resets ends at worst its own connection.
    for _ in 0..2000 {
        if reset(&client).is_err() {
            break;
        }
    }
    let other = secure.connect().get(BACKUP);
    assert_eq!(other.status, 200, "another connection: {other:?}");
}

#[apply(test)]
fn a_client_that_takes_nothing_stalls_only_itself() {
    let secure = Secure::start(SIM);
    let mut narrow = h2::client::Builder::new();
    narrow.initial_window_size(1);
    let stalled = secure.connect_with(&narrow);
    let response = stalled.begin(request("GET", BACKUP), None);
    let (_head, mut body) = stalled
        .runtime
        .block_on(within("a head", response))
        .unwrap()
        .into_parts();
    let quick = secure.connect().get(BACKUP);
    assert_eq!(quick.status, 200, "another connection: {quick:?}");
    // Byte by byte it still gets all of it.
    let taken = stalled.runtime.block_on(within("the whole body", async {
        let mut taken = Vec::new();
        while let Some(part) = body.data().await {
            let part = part.unwrap();
            taken.extend_from_slice(&part);
            body.flow_control().release_capacity(part.len()).unwrap();
        }
        taken
    }));
    assert_eq!(taken, quick.body, "the same body");
}

#[apply(test)]
fn header_lists_beyond_the_limits_are_refused() {
    let secure = Secure::start(SIM);
    let client = secure.connect();
    let long = "x".repeat(40 * 1024);
    let head = request("GET", BACKUP).header("x-long", long);
    let response = client.begin(head, None);
    match client.finish(response) {
        Ok(found) => assert_eq!(found.status, 431, "too long: {found:?}"),
        Err(error) => assert!(error.is_reset() || error.is_go_away(), "refused: {error}"),
    }
    let mut many = request("GET", BACKUP);
    for number in 0..150 {
        many = many.header(format!("x-{number}"), "y");
    }
    let second = secure.connect();
    let found = second.send(many, None);
    assert_eq!(found.status, 431, "too many: {found:?}");
    assert_eq!(second.get(BACKUP).status, 200, "the connection lives");
}

#[apply(test)]
fn a_gateway_that_stops_says_goodbye_and_answers_what_it_took() {
    let slow = SIM.replace("50ms", "3s");
    let secure = Secure::start(&slow);
    let client = secure.connect();
    let uri = client.status_uri(request("POST", &format!("{BACKUP}/restore")), None);
    let waiting = client.begin(request("GET", &uri).header("prefer", "wait=30"), None);
    // What was not taken yet may be turned away by a stop.
    let of = |series: &str| secure.gateway.metric(series);
    eventually("the request waits, or has been answered", || {
        of("snapgate_waiters") + of("snapgate_requests_total{code=\"200\"") > 0.0
    });
    let stopping = stop_in_background(secure.gateway);
    let found = client.finish(waiting).unwrap();
    assert_eq!(found.status, 200, "what it took is answered: {found:?}");
    // The gateway may be gone before the client has said good-bye in turn.
    let end = client.ended().err().map(|error| error.to_string());
    let gone = |error: &String| error.contains("broken pipe") || error.contains("reset by peer");
    assert!(
        end.as_ref().is_none_or(gone),
        "GOAWAY without an error: {end:?}"
    );
    let took = stopping.join().unwrap();
    assert!(
        took < Duration::from_secs(30),
        "it did not wait for idle connections: {took:?}"
    );
}

/// Runs h2load; all requests must be answered with 2xx.
fn load(secure: &Secure, requests: u32, at_once: (&str, &str), extra: &[&str]) {
    let address = secure.gateway.api;
    let authorization = format!("authorization: {}", basic("alice", "secret"));
    require_programs(&["h2load"]);
    let ended = Command::new("h2load")
        .args([
            "-n",
            &requests.to_string(),
            "-c",
            at_once.0,
            "-m",
            at_once.1,
        ])
        .args(["-H", &authorization])
        .args(["-H", "x-cloud-client-specification-version: 0.1"])
        .args(extra)
        .arg(format!("https://localhost:{}{BACKUP}", address.port()))
        .output();
    let output = ended.unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "h2load: {output:?}");
    assert!(said.contains("Application protocol: h2"), "h2: {said}");
    let all = format!("{requests} succeeded, 0 failed, 0 errored, 0 timeout");
    assert!(said.contains(&all), "all succeed: {said}");
    let good = format!("status codes: {requests} 2xx, 0 3xx, 0 4xx, 0 5xx");
    assert!(said.contains(&good), "all are 2xx: {said}");
}

#[apply(test)]
fn h2load_gets_2xx_for_every_request() {
    let secure = Secure::start(SIM);
    load(&secure, 2000, ("4", "16"), &[]);
    let folder = TempDir::new().unwrap();
    let body = folder.path().join("body");
    fs::write(&body, r#"{"description": "d"}"#).unwrap();
    let body = body.to_str().unwrap();
    let put = [
        "-d",
        body,
        "-H",
        ":method: PUT",
        "-H",
        "content-type: application/json",
    ];
    // Changes of one VM queue, and the queue is bounded.
    load(&secure, 100, ("2", "4"), &put);
}
