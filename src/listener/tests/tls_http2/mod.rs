//! Encrypted connections, and HTTP/2 on them.

mod endings;

use std::pin::Pin;
use std::task::Context;
use std::task::Poll;

use h2::client::SendRequest;
use rustls::ClientConfig;
use rustls::RootCertStore;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;
use crate::listener::tls::tests::pem;
use crate::model::Secret;
use crate::runtime::Tasks;

/// A certificate for `localhost` made for one test.
struct Made {
    chain: String,
    tls: Tls,
}

fn made_for(names: &[&str], clients: ClientCertificates) -> Made {
    let (chain, key) = pem(names);
    let certificate = Certificate::new(&chain, &Secret::new(key), &[]).unwrap();
    Made {
        tls: Tls::new(vec![certificate], clients).unwrap(),
        chain,
    }
}

fn made() -> Made {
    made_for(&["localhost"], ClientCertificates::Off)
}

/// A client that trusts the certificate and speaks these protocols.
fn client(trusted: &str, protocol: &str, identity: Option<(String, String)>) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(trusted.as_bytes()).unwrap())
        .unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let chain = vec![CertificateDer::from_pem_slice(chain.as_bytes()).unwrap()];
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    };
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    TlsConnector::from(Arc::new(config))
}

impl Gateway {
    async fn secure(
        &self,
        client: &TlsConnector,
        host: &str,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(host.to_owned()).unwrap();
        client.connect(name, self.connect().await).await
    }

    /// A connection of HTTP/2, and the task that drives it.
    async fn many(
        &self,
        made: &Made,
    ) -> (
        SendRequest<Bytes>,
        tokio::task::JoinHandle<Result<(), h2::Error>>,
    ) {
        let client = client(&made.chain, "h2", None);
        let stream = self.secure(&client, "localhost").await.unwrap();
        let (sender, connection) = h2::client::handshake(stream).await.unwrap();
        (sender.ready().await.unwrap(), drive(connection))
    }
}

fn drive(
    connection: h2::client::Connection<TlsStream<TcpStream>, Bytes>,
) -> tokio::task::JoinHandle<Result<(), h2::Error>> {
    Tasks::default().spawn(connection)
}

fn request(path: &str) -> http::Request<()> {
    let uri = format!("https://localhost{path}");
    http::Request::get(uri).body(()).unwrap()
}

async fn text_of(response: http::Response<h2::RecvStream>) -> String {
    let mut body = response.into_body();
    let mut bytes = Vec::new();
    while let Some(part) = body.data().await {
        let part = part.unwrap();
        body.flow_control().release_capacity(part.len()).unwrap();
        bytes.extend_from_slice(&part);
    }
    String::from_utf8(bytes).unwrap()
}

async fn in_time<T>(what: &str, work: impl Future<Output = T>) -> T {
    let work: Pin<Box<dyn Future<Output = T>>> = Box::pin(work);
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(done) => done,
        Err(_) => panic!("not in time: {what}"),
    }
}

#[tokio::test]
async fn http_1_is_spoken_over_tls() {
    let made = made();
    let gateway = gateway_over(&limits(), Some(&made.tls));
    let client = client(&made.chain, "http/1.1", None);
    let mut stream = gateway.secure(&client, "localhost").await.unwrap();
    let text = b"GET /one HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(text).await.unwrap();
    let mut bytes = Vec::new();
    in_time("an answer", stream.read_to_end(&mut bytes))
        .await
        .unwrap();
    let text = String::from_utf8(bytes).unwrap();
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
    assert!(text.ends_with("\r\n\r\n/one"), "{text}");
    // A target is handed on as it was sent here, too.
    let mut stream = gateway.secure(&client, "localhost").await.unwrap();
    let text = b"GET /o ne HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(text).await.unwrap();
    let mut bytes = Vec::new();
    in_time("an answer", stream.read_to_end(&mut bytes))
        .await
        .unwrap();
    let text = String::from_utf8(bytes).unwrap();
    assert!(text.ends_with("\r\n\r\n/o ne"), "{text}");
    assert!(
        gateway.secure(&client, "other.example").await.is_err(),
        "a host that no certificate is for gets none"
    );
}

/// A connection that keeps a copy of what it reads.
struct Taped {
    socket: TcpStream,
    tape: Arc<Mutex<Vec<u8>>>,
}

impl AsyncRead for Taped {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.socket).poll_read(context, buffer);
        self.tape
            .lock()
            .extend_from_slice(&buffer.filled()[before..]);
        read
    }
}

impl AsyncWrite for Taped {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

/// Lengths of the records of TLS (RFC 8446, 5.1: a type, a version, a length of two bytes).
fn records(mut bytes: &[u8]) -> Vec<usize> {
    let mut found = Vec::new();
    while let [_, _, _, high, low, rest @ ..] = bytes {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        bytes = rest.get(length..).expect("a whole record");
        found.push(length);
    }
    found
}

#[tokio::test]
async fn head_and_body_of_an_answer_are_one_record() {
    let made = made();
    let gateway = gateway_over(&limits(), Some(&made.tls));
    let client = client(&made.chain, "http/1.1", None);
    let tape = Arc::new(Mutex::new(Vec::new()));
    let socket = Taped {
        socket: gateway.connect().await,
        tape: Arc::clone(&tape),
    };
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = client.connect(name, socket).await.unwrap();
    // The tickets of the handshake come with the first answer.
    for path in ["/first", "/second", "/third"] {
        tape.lock().clear();
        let text = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(path.as_bytes()) {
            let read = in_time("an answer", stream.read_buf(&mut answer)).await;
            assert_ne!(read.unwrap(), 0, "{path}: the connection goes on");
        }
        if path != "/first" {
            let found = records(&tape.lock());
            assert_eq!(found.len(), 1, "{path}: {found:?}");
        }
    }
}

#[tokio::test]
async fn responses_of_http_2_that_are_ready_at_once_leave_together() {
    const REQUESTS: usize = 20;
    let made = made();
    let gateway = gateway_over(&limits(), Some(&made.tls));
    let tape = Arc::new(Mutex::new(Vec::new()));
    let socket = Taped {
        socket: gateway.connect().await,
        tape: Arc::clone(&tape),
    };
    let name = ServerName::try_from("localhost").unwrap();
    let connector = client(&made.chain, "h2", None);
    let stream = connector.connect(name, socket).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    let _end = Tasks::default().spawn(connection);
    // Longer than what the h2 library copies into its own buffer, and shorter.
    for length in [1000, 10] {
        let path = format!("/{}", "x".repeat(length));
        let mut sender = sender.clone().ready().await.unwrap();
        // The settings and the tickets of the handshake come with the first response.
        let (first, _) = sender.send_request(request("/first"), true).unwrap();
        let first = in_time("the first", first).await.unwrap();
        assert_eq!(text_of(first).await, "/first", "text");
        tape.lock().clear();
        let waiting: Vec<_> = (0..REQUESTS)
            .map(|_| sender.send_request(request(&path), true).unwrap().0)
            .collect();
        for waiting in waiting {
            let response = in_time("a response", waiting).await.unwrap();
            assert_eq!(text_of(response).await, path, "text");
        }
        let found = records(&tape.lock());
        assert!(found.len() <= REQUESTS / 2, "{length}: {found:?}");
    }
}

#[tokio::test]
async fn requests_of_http_2_run_side_by_side() {
    let made = made();
    let short = Limits {
        header_timeout: Duration::from_millis(300),
        ..limits()
    };
    let gateway = gateway_over(&short, Some(&made.tls));
    let (mut sender, _end) = gateway.many(&made).await;
    let (waits, _) = sender.send_request(request("/wait"), true).unwrap();
    let (host, _) = sender.send_request(request("/host"), true).unwrap();
    let host = in_time("host", host).await.unwrap();
    assert_eq!(host.status(), 200, "status");
    assert_eq!(
        text_of(host).await,
        "localhost",
        "the authority is the host"
    );
    let mut large = request("/large");
    *large.method_mut() = http::Method::HEAD;
    let (large, _) = sender.send_request(large, true).unwrap();
    let large = in_time("head", large).await.unwrap();
    assert_eq!(large.headers()["content-length"], "300000", "of the GET");
    // Longer than a head may take: the connection is not idle while a request is handled.
    tokio::time::sleep(Duration::from_millis(700)).await;
    gateway.script.go.notify_one();
    let waited = in_time("the waiting one", waits).await.unwrap();
    assert_eq!(text_of(waited).await, "waited", "whole");
}

#[tokio::test]
async fn bodies_of_http_2_are_read_within_limits() {
    let made = made();
    let short = Limits {
        body_timeout: Duration::from_millis(500),
        ..limits()
    };
    let gateway = gateway_over(&short, Some(&made.tls));
    let (mut sender, _end) = gateway.many(&made).await;
    // name, what is sent, whether the body is ended, status, text
    let rows = [
        ("whole", "abc", true, 200, "abc"),
        ("too large", &"x".repeat(200), true, 413, ""),
        ("never ended", "abc", false, 408, ""),
    ];
    for (name, sent, ends, status, expected) in rows {
        let mut post = request("/body");
        *post.method_mut() = http::Method::POST;
        let (answer, mut body) = sender.send_request(post, false).unwrap();
        body.send_data(Bytes::from(sent.to_owned()), ends).unwrap();
        let answer = in_time(name, answer).await.unwrap();
        assert_eq!(answer.status(), status, "{name}: status");
        assert_eq!(text_of(answer).await, expected, "{name}: text");
    }
    let (again, _) = sender.send_request(request("/still"), true).unwrap();
    let again = in_time("again", again).await.unwrap();
    assert_eq!(again.status(), 200, "the connection goes on");
}

#[tokio::test]
async fn slow_clients_of_tls_and_http_2_are_closed_in_time() {
    let made = made();
    let short = Limits {
        handshake_timeout: Duration::from_millis(300),
        header_timeout: Duration::from_millis(400),
        write_timeout: Duration::from_millis(500),
        idle_timeout: Duration::from_secs(1),
        ..limits()
    };
    let gateway = gateway_over(&short, Some(&made.tls));
    let mut silent = gateway.connect().await;
    assert_eq!(rest(&mut silent).await, "", "closed without a word");
    gateway
        .metric_becomes("snapgate_connections_closed_total{reason=\"slow_handshake\"} 1")
        .await;
    let mut plain = gateway.connect().await;
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut bytes = Vec::new();
    drop(in_time("plain", plain.read_to_end(&mut bytes)).await);
    gateway
        .metric_becomes("snapgate_connections_closed_total{reason=\"bad_handshake\"} 1")
        .await;
    let (_sender, end) = gateway.many(&made).await;
    drop(in_time("no request at all", end).await);
    gateway
        .metric_becomes("snapgate_connections_closed_total{reason=\"slow_header\"} 1")
        .await;
    let (mut sender, end) = gateway.many(&made).await;
    let (answer, _) = sender.send_request(request("/one"), true).unwrap();
    assert_eq!(text_of(in_time("one", answer).await.unwrap()).await, "/one");
    drop(in_time("idle", end).await);
    gateway
        .metric_becomes("snapgate_connections_closed_total{reason=\"idle\"} 1")
        .await;
    // A response that is never read: its window is not opened.
    let (mut sender, _end) = gateway.many(&made).await;
    let (answer, _) = sender.send_request(request("/large"), true).unwrap();
    let mut body = in_time("head", answer).await.unwrap().into_body();
    let ends = in_time("given up", async {
        // What comes is not acknowledged.
        loop {
            match body.data().await {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Some(error),
                None => return None,
            }
        }
    });
    assert!(ends.await.is_some(), "the stream is reset");
}

#[tokio::test]
async fn a_stop_ends_idle_connections_of_http_2_and_waits_for_busy_ones() {
    let made = made();
    let gateway = gateway_over(&limits(), Some(&made.tls));
    let (mut idle, idle_end) = gateway.many(&made).await;
    let (answer, _) = idle.send_request(request("/one"), true).unwrap();
    drop(in_time("one", answer).await.unwrap());
    let (mut busy, _busy_end) = gateway.many(&made).await;
    let (waits, _) = busy.send_request(request("/wait"), true).unwrap();
    until("the request has begun", || {
        gateway.script.begun.load(Ordering::SeqCst) == 2
    })
    .await;
    gateway.port.ask_clients_to_leave();
    drop(in_time("the idle one gets a GOAWAY", idle_end).await);
    let (mut late, _late_end) = gateway.many(&made).await;
    let (answer, _) = late.send_request(request("/late"), true).unwrap();
    let answer = in_time("a new one is served", answer).await.unwrap();
    assert_eq!(text_of(answer).await, "/late", "whole");
    drop(late);
    let script = Arc::clone(&gateway.script);
    let (drained, ()) = tokio::join!(gateway.port.drain(PATIENCE), async {
        script.go.notify_one();
        let waited = in_time("the busy one", waits).await.unwrap();
        assert_eq!(text_of(waited).await, "waited", "whole");
        drop(busy);
    });
    assert_eq!(drained.cut, 0, "nothing was cut");
}

#[tokio::test]
async fn certificates_are_exchanged_while_connections_come_in() {
    let (one, two) = (
        made(),
        made_for(&["other.example"], ClientCertificates::Off),
    );
    let gateway = gateway_over(&limits(), Some(&one.tls));
    let trusts_one = client(&one.chain, "http/1.1", None);
    let trusts_two = client(&two.chain, "http/1.1", None);
    let mut old = gateway.secure(&trusts_one, "localhost").await.unwrap();
    gateway.port.replace_certificates(&two.tls).unwrap();
    assert!(
        gateway.secure(&trusts_one, "localhost").await.is_err(),
        "the old one is gone"
    );
    assert!(
        gateway.secure(&trusts_two, "other.example").await.is_ok(),
        "the new one is served"
    );
    old.write_all(b"GET /old HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut bytes = Vec::new();
    in_time("old", old.read_to_end(&mut bytes)).await.unwrap();
    assert!(bytes.ends_with(b"/old"), "a connection there is stays");
}

#[tokio::test]
async fn certificates_of_clients_are_believed_when_signed() {
    let authority = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root = params.self_signed(&authority).unwrap().pem();
    let issuer = rcgen::Issuer::new(params, authority);
    let key = rcgen::KeyPair::generate().unwrap();
    let signed = rcgen::CertificateParams::new(vec!["ci.example".to_owned()]).unwrap();
    let signed = signed.signed_by(&key, &issuer).unwrap().pem();
    let good = Some((signed, key.serialize_pem()));
    let bad = Some(pem(&["ci.example"]));
    let required = ClientCertificates::Required(root.clone());
    let optional = ClientCertificates::Optional(root);
    // name, what the port wants, what the client shows, the names that the handler sees
    let rows = [
        ("required, signed", &required, &good, Some("dns:ci.example")),
        ("required, none", &required, &None, None),
        ("required, untrusted", &required, &bad, None),
        ("optional, signed", &optional, &good, Some("dns:ci.example")),
        ("optional, none", &optional, &None, Some("")),
        ("optional, untrusted", &optional, &bad, None),
    ];
    for (name, wants, shows, expected) in rows {
        for protocol in ["http/1.1", "h2"] {
            let made = made_for(&["localhost"], wants.clone());
            let gateway = gateway_over(&limits(), Some(&made.tls));
            let client = client(&made.chain, protocol, shows.clone());
            let found = who(&gateway, &client, protocol).await;
            let found = found.map(|found| {
                let mut names = found.split(' ');
                names
                    .find(|name| name.starts_with("dns:"))
                    .unwrap_or("")
                    .to_owned()
            });
            assert_eq!(found.as_deref(), expected, "{name}, {protocol}");
        }
    }
}

/// The names that the handler sees; `None` when there is no connection.
async fn who(gateway: &Gateway, client: &TlsConnector, protocol: &str) -> Option<String> {
    let mut stream = gateway.secure(client, "localhost").await.ok()?;
    if protocol == "h2" {
        let (sender, connection) = h2::client::handshake(stream).await.ok()?;
        let _end = drive(connection);
        let (answer, _) = sender
            .ready()
            .await
            .ok()?
            .send_request(request("/who"), true)
            .ok()?;
        return Some(text_of(answer.await.ok()?).await);
    }
    let text = b"GET /who HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(text).await.ok()?;
    let mut bytes = Vec::new();
    in_time("who", stream.read_to_end(&mut bytes)).await.ok()?;
    let text = String::from_utf8(bytes).unwrap();
    Some(text.split_once("\r\n\r\n")?.1.to_owned())
}

#[tokio::test]
async fn pieces_come_one_by_one_over_http_2() {
    let made = made();
    let gateway = gateway_over(&limits(), Some(&made.tls));
    let (mut sender, _driven) = gateway.many(&made).await;
    let (response, _) = sender.send_request(request("/pieces"), true).unwrap();
    let response = in_time("a head", response).await.unwrap();
    for name in ["content-length", "transfer-encoding"] {
        let found = response.headers().get(name);
        assert_eq!(found, None, "{name}: HTTP/2 frames by itself");
    }
    let mut body = response.into_body();
    for expected in ["piece 1\n", "piece 0\n"] {
        gateway.script.go.notify_one();
        let piece = in_time(expected, body.data()).await.unwrap().unwrap();
        assert_eq!(piece, expected, "sent at once");
    }
    // The end is a frame without content.
    while let Some(rest) = in_time("the end", body.data()).await {
        assert_eq!(rest.expect("a proper end"), "", "nothing more");
    }

    gateway.script.go.notify_one();
    let broken = request("/pieces/panic");
    let (response, _) = sender.send_request(broken, true).unwrap();
    let mut body = in_time("a head", response).await.unwrap().into_body();
    let end = in_time("a reset", body.data()).await;
    assert!(matches!(end, Some(Err(_))), "broken off: {end:?}");
    let (response, _) = sender.send_request(request("/next"), true).unwrap();
    let response = in_time("the next", response).await.unwrap();
    assert_eq!(text_of(response).await, "/next", "other streams go on");
}
