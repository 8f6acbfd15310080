use super::*;

use std::path::Path;

use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixListener;

use crate::model::Timestamp;
use crate::runtime::Clock;
use crate::runtime::Lease;
use crate::runtime::SystemClock;
use crate::runtime::Tasks;

fn client(endpoint: Endpoint, body_bytes_max: usize) -> Client {
    Client::new(ClientSettings {
        endpoint,
        connect_timeout: Duration::from_secs(2),
        body_bytes_max,
    })
    .unwrap()
}

fn by(millis: u64) -> Deadline {
    SystemClock.deadline(Duration::from_millis(millis))
}

/// A server that answers the first request with these bytes, ends, and gives what it was sent.
fn server(socket: &Path, answer: &'static str) -> tokio::task::JoinHandle<String> {
    let listener = UnixListener::bind(socket).unwrap();
    Tasks::default().spawn(async move {
        let (mut peer, _) = listener.accept().await.unwrap();
        let mut seen = vec![0; 4096];
        let length = peer.read(&mut seen).await.unwrap();
        seen.truncate(length);
        peer.write_all(answer.as_bytes()).await.unwrap();
        if answer.is_empty() {
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
        String::from_utf8(seen).unwrap()
    })
}

#[tokio::test]
async fn answers_come_whole_or_as_an_error_that_says_whether_it_was_sent() {
    let rows: [(&str, &str, Result<u16, &str>); 6] = [
        (
            "good",
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
            Ok(200),
        ),
        (
            "an error is an answer",
            "HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n",
            Ok(500),
        ),
        (
            "a redirect is not followed",
            "HTTP/1.1 302 Found\r\nlocation: http://localhost/b\r\ncontent-length: 0\r\n\r\n",
            Ok(302),
        ),
        (
            "too large",
            "HTTP/1.1 200 OK\r\ncontent-length: 40\r\n\r\n0123456789012345678901234567890123456789",
            Err("answer larger than 32 bytes"),
        ),
        (
            "broken off",
            "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok",
            Err("connection lost"),
        ),
        ("silent", "", Err("no answer before the deadline")),
    ];
    for (name, answer, expected) in rows {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s");
        let serving = server(&socket, answer);
        let client = client(Endpoint::Unix(socket), 32);
        let call = Call::new(Method::GET, &["1.0", "a b"]).query(&[("p", "x&y")]);
        let result = client.call(call, by(700)).await;
        match (result, expected) {
            (Ok(reply), Ok(status)) => {
                assert_eq!(reply.status.as_u16(), status, "{name}");
                let seen = serving.await.unwrap();
                assert!(
                    seen.starts_with("GET /1.0/a%20b?p=x%26y HTTP/1.1\r\n"),
                    "{name}: {seen}"
                );
            }
            (Err(error), Err(text)) => {
                assert!(error.to_string().starts_with(text), "{name}: {error}");
                assert!(error.was_sent(), "{name}: it reached the server");
            }
            (result, _) => panic!("{name}: {result:?}"),
        }
    }
}

#[tokio::test]
async fn what_was_not_sent_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let unreachable = client(Endpoint::Unix(folder.path().join("none")), 32);
    let rows: [(&str, &[&str], u64, &str); 5] = [
        ("no listener", &["1.0"], 1000, "cannot connect"),
        ("too late", &["1.0"], 0, "deadline over"),
        ("parent", &["1.0", ".."], 1000, "request cannot be made"),
        ("here", &["."], 1000, "request cannot be made"),
        ("empty", &["1.0", ""], 1000, "request cannot be made"),
    ];
    for (name, path, millis, text) in rows {
        let error = unreachable
            .call(Call::new(Method::GET, path), by(millis))
            .await
            .unwrap_err();
        assert!(error.to_string().starts_with(text), "{name}: {error}");
        assert!(!error.was_sent(), "{name}: nothing left the gateway");
    }
}

/// LXD takes one connection after the other and waits for the first bytes of each before it takes the next.
#[tokio::test]
async fn no_connection_to_a_socket_is_kept_or_left_unused() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    let serving = Tasks::default().spawn(async move {
        for number in 0..3 {
            let (mut peer, _) = listener.accept().await.unwrap();
            let mut seen = vec![0; 4096];
            let length = peer.read(&mut seen).await.unwrap();
            assert!(length > 0, "connection {number} brings a request");
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
            peer.write_all(answer).await.unwrap();
            let more = peer.read(&mut seen).await.unwrap();
            assert_eq!(more, 0, "connection {number} brings one and is closed");
        }
    });
    let client = client(Endpoint::Unix(socket), 32);
    for number in 0..3 {
        let reply = client.call(Call::new(Method::GET, &["1.0"]), by(30_000));
        let status = reply.await.map(|reply| reply.status.as_u16());
        assert_eq!(status.ok(), Some(200), "call {number}");
    }
    serving.await.unwrap();
}

#[test]
fn fingerprints_are_64_digits() {
    let digits = "ab".repeat(32);
    let colons = vec!["AB"; 32].join(":");
    assert_eq!(
        Pin::from_hex(&digits).unwrap(),
        Pin::from_hex(&colons).unwrap(),
        "both ways to write it"
    );
    for bad in [
        "",
        "ab",
        &"ab".repeat(31),
        &format!("{digits}a"),
        &digits.replace('b', "g"),
    ] {
        let error = Pin::from_hex(bad).unwrap_err();
        assert!(matches!(error, BuildError::Fingerprint), "{bad:?}: {error}");
    }
}

#[test]
fn nothing_secret_is_printed_and_bad_keys_are_refused() {
    let identity = ClientIdentity {
        certificates: b"none".to_vec(),
        key: Secret::new("hunter2".to_owned()),
    };
    assert!(!format!("{identity:?}").contains("hunter2"), "debug output");
    let secret = Secret::new("Bearer hunter2".to_owned());
    let call = Call::new(Method::GET, &["a"])
        .secret_header(http::header::AUTHORIZATION, &secret)
        .unwrap();
    assert!(!format!("{call:?}").contains("hunter2"), "debug output");
    let endpoint = Endpoint::Https {
        authority: "localhost:1".to_owned(),
        trust: Trust::NoServer,
        identity: Some(identity),
    };
    let settings = ClientSettings {
        endpoint,
        connect_timeout: Duration::from_secs(1),
        body_bytes_max: 1,
    };
    let error = Client::new(settings).unwrap_err();
    assert!(matches!(error, BuildError::Certificate(_)), "{error}");
}

/// A TLS server with a certificate that it signed itself, and the PEM text of that certificate.
async fn self_signed(change: impl FnOnce(&mut rcgen::CertificateParams)) -> (u16, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    change(&mut params);
    let certificate = params.self_signed(&key).unwrap();
    let secret = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let crypto = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(crypto)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], secret)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(tls));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    Tasks::default().spawn(async move {
        let (peer, _) = listener.accept().await.unwrap();
        // The client refuses the certificate.
        drop(acceptor.accept(peer).await);
    });
    (port, certificate.pem())
}

#[tokio::test]
async fn a_refused_certificate_names_the_remedy() {
    let is_ca = |params: &mut rcgen::CertificateParams| {
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    };
    let (authority, other) = (self_signed(is_ca).await, self_signed(|_| {}).await);
    let rows = [
        (
            "its own authority",
            authority.0,
            Trust::Authorities(authority.1.clone().into_bytes()),
            "name it as `server_cert` instead",
        ),
        (
            "of another authority",
            self_signed(|_| {}).await.0,
            Trust::Authorities(authority.1.into_bytes()),
            "no authority in `ca` signed the server's certificate",
        ),
        (
            "another than the pinned one",
            self_signed(|_| {}).await.0,
            Trust::Pin(Pin::from_pem(other.1.as_bytes()).unwrap()),
            "another certificate than the one in `server_cert` or `server_fingerprint`",
        ),
    ];
    for (name, port, trust, expected) in rows {
        let endpoint = Endpoint::Https {
            authority: format!("localhost:{port}"),
            trust,
            identity: None,
        };
        let call = Call::new(Method::GET, &["1.0"]);
        let error = client(endpoint, 100)
            .call(call, by(5000))
            .await
            .unwrap_err();
        assert!(
            matches!(error, TransportError::Untrusted(_)),
            "{name}: {error:?}"
        );
        assert!(error.to_string().contains(expected), "{name}: {error}");
    }
}

/// A clock on which a second passes with each look.
#[derive(Debug, Default)]
struct Passing(std::sync::atomic::AtomicU64);

impl Clock for Passing {
    fn now(&self) -> Timestamp {
        SystemClock.now()
    }

    fn instant(&self) -> std::time::Instant {
        SystemClock.instant()
    }

    fn since_boot(&self) -> Duration {
        let before = self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Duration::from_secs(before)
    }
}

#[tokio::test]
async fn no_byte_of_a_change_leaves_after_the_lease_however_long_connecting_took() {
    // The first look is made at second 0, before the connection; the next one at second 1, when it is about to write.
    for (name, method, body, seconds) in [
        ("in time", Method::PUT, Some("words"), 60),
        ("in time, no body", Method::DELETE, None, 60),
        ("too late", Method::PUT, Some("words"), 1),
        ("too late, no body", Method::DELETE, None, 1),
        ("before the connection", Method::PUT, Some("words"), 0),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s");
        let serving = server(&socket, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
        let client = client(Endpoint::Unix(socket), 32);
        let mut call = Call::new(method.clone(), &["a"]);
        if let Some(body) = body {
            call = call.with_body(body.as_bytes().to_vec());
        }
        let lease = Lease::until(
            Duration::from_secs(seconds),
            std::sync::Arc::new(Passing::default()),
        );
        let result = lease.within(client.call(call, by(700))).await;
        if seconds == 0 {
            assert!(!result.unwrap_err().was_sent(), "{name}: provably not");
            serving.abort();
            continue;
        }
        let seen = serving.await.unwrap();
        if seconds == 60 {
            assert_eq!(result.unwrap().status, StatusCode::OK, "{name}");
            assert!(seen.starts_with(method.as_str()), "{name}: {seen}");
            let length = body.map_or(0, str::len);
            assert!(
                seen.to_lowercase()
                    .contains(&format!("content-length: {length}\r\n")),
                "{name}: {seen}"
            );
            assert!(seen.ends_with(body.unwrap_or("\r\n\r\n")), "{name}: {seen}");
        } else {
            assert!(result.is_err(), "{name}");
            assert_eq!(seen, "", "{name}: nothing arrived");
        }
    }
}
