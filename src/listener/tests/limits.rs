//! Limits of time and number.

use super::*;

/// When something drips.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Drip {
    Never,
    /// Right after what is sent first.
    AtOnce(&'static str),
    /// After an answer: before that, it would be a pipelined request.
    AfterAnswer(&'static str),
}

/// Sends the text, then the drip again and again, and returns what came back until the gateway closed the connection, and when.
async fn converse(stream: TcpStream, first: &str, drip: Drip) -> (String, Duration) {
    let began = SystemClock.instant();
    let (mut read, mut write) = stream.into_split();
    write.write_all(first.as_bytes()).await.unwrap();
    let answered = Notify::new();
    let dripping = async {
        let text = match drip {
            Drip::Never => return std::future::pending().await,
            Drip::AtOnce(text) => text,
            Drip::AfterAnswer(text) => {
                answered.notified().await;
                text
            }
        };
        while write.write_all(text.as_bytes()).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        std::future::pending::<()>().await;
    };
    let mut bytes = Vec::new();
    let reading = async {
        // A reset is an end as well.
        while read.read_buf(&mut bytes).await.is_ok_and(|count| count > 0) {
            if bytes.windows(4).any(|window| window == b"\r\n\r\n") {
                answered.notify_one();
            }
        }
    };
    // One that is not closed, or closed later with each byte, is there to the end of the patience.
    let is_closed = tokio::select! {
        () = reading => true,
        () = dripping => false,
        () = tokio::time::sleep(PATIENCE) => false,
    };
    let text = String::from_utf8(bytes).unwrap();
    assert!(
        is_closed,
        "not closed in {PATIENCE:?} after {first:?}: {text:?}"
    );
    let took = SystemClock.instant().saturating_duration_since(began);
    (text, took)
}

#[tokio::test]
async fn slow_and_idle_clients_are_closed_in_time() {
    let short = Limits {
        // Long enough for a loaded machine to read a head that has been sent.
        header_timeout: Duration::from_secs(2),
        body_timeout: Duration::from_secs(2),
        idle_timeout: Duration::from_secs(1),
        ..limits()
    };
    let gateway = gateway_with(&short);
    // name, what is sent first, what drips, expected status
    let rows = [
        ("silent", "", Drip::Never, "none"),
        ("half a head", "GET / HT", Drip::Never, "none"),
        (
            "dripping head",
            "GET / HTTP/1.1\r\n",
            Drip::AtOnce("X"),
            "none",
        ),
        (
            "stalled body",
            "POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 90\r\n\r\nab",
            Drip::Never,
            "408",
        ),
        (
            "dripping body",
            "POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 90\r\n\r\nab",
            Drip::AtOnce("c"),
            "408",
        ),
        (
            "idle",
            "GET /a HTTP/1.1\r\nHost: x\r\n\r\n",
            Drip::Never,
            "200",
        ),
        (
            "dripping next head",
            "GET /a HTTP/1.1\r\nHost: x\r\n\r\n",
            Drip::AfterAnswer("G"),
            "200",
        ),
    ];
    let mut running = Vec::new();
    for (name, first, drip, code) in rows {
        let stream = gateway.connect().await;
        running.push(async move {
            let (answer, _) = converse(stream, first, drip).await;
            assert_eq!(status(&answer), code, "{name}: {answer:?}");
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
async fn a_body_that_drips_is_given_up_long_before_its_deadline() {
    let gateway = gateway_with(&Limits {
        body_timeout: PATIENCE * 2,
        body_rate: 1000,
        body_grace: Duration::from_millis(300),
        ..limits()
    });
    let head = "POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 90\r\n\r\n";
    // name, what is sent first, what drips
    let rows = [
        ("stalled", "", Drip::Never),
        ("stalled on the way", "ab", Drip::Never),
        ("dripping", "", Drip::AtOnce("c")),
        ("dripping, in pieces", "ab", Drip::AtOnce("cd")),
    ];
    let mut running = Vec::new();
    for (name, first, drip) in rows {
        let stream = gateway.connect().await;
        running.push(async move {
            let (answer, took) = converse(stream, &format!("{head}{first}"), drip).await;
            assert_eq!(status(&answer), "408", "{name}: {answer:?}");
            assert!(took < PATIENCE, "{name}: answered after {took:?}");
        });
    }
    futures_util::future::join_all(running).await;
    let close = head.replace("Host", "Connection: close\r\nHost");
    let quick = gateway.whole(&format!("{close}{}", "x".repeat(90))).await;
    assert_eq!(status(&quick), "200", "one that comes at once");
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

/// A connection from this loopback address.
async fn connect_from(source: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind((source, 0).into()).unwrap();
    socket.connect(to).await.unwrap()
}

#[tokio::test]
async fn connections_over_the_limit_of_their_address_are_closed_and_hurt_no_other() {
    const SITE: [u8; 4] = [127, 0, 0, 2];
    const OTHER: [u8; 4] = [127, 0, 0, 3];
    // The one that the script knows to be shared, as trusted proxies are.
    const PROXY: [u8; 4] = [127, 0, 0, 1];
    let gateway = gateway_with(&Limits {
        connections: 20,
        connections_per_address: 3,
        ..limits()
    });
    let to = gateway.port.address();
    let get = "GET /a HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(connect_from(SITE, to).await);
    }
    gateway.metric_becomes("snapgate_connections 3").await;
    for number in 1..=40 {
        let mut refused = connect_from(SITE, to).await;
        // It may be gone before anything could be sent.
        drop(refused.write_all(get.as_bytes()).await);
        let mut bytes = Vec::new();
        let closed = tokio::time::timeout(PATIENCE, refused.read_to_end(&mut bytes)).await;
        assert!(closed.is_ok(), "{number}: closed in time");
        assert!(bytes.is_empty(), "{number}: not served: {bytes:?}");
    }
    gateway
        .metric_becomes("snapgate_connections_closed_total{reason=\"address_limit\"} 40")
        .await;
    assert!(
        gateway.metric("snapgate_connections 3"),
        "none of them counts"
    );
    let mut other = connect_from(OTHER, to).await;
    other.write_all(get.as_bytes()).await.unwrap();
    assert_eq!(status(&answer(&mut other).await), "200", "another address");
    let mut proxied = Vec::new();
    for number in 0..8 {
        let mut one = connect_from(PROXY, to).await;
        one.write_all(get.as_bytes()).await.unwrap();
        let answer = answer(&mut one).await;
        assert_eq!(status(&answer), "200", "{number}: many are behind a proxy");
        proxied.push(one);
    }
    for mut one in open.drain(..) {
        one.write_all(get.as_bytes()).await.unwrap();
        assert_eq!(status(&answer(&mut one).await), "200", "those there go on");
    }
    gateway.metric_becomes("snapgate_connections 9").await;
    let mut again = connect_from(SITE, to).await;
    again.write_all(get.as_bytes()).await.unwrap();
    assert_eq!(status(&answer(&mut again).await), "200", "places come back");
}
