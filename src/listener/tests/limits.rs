//! Limits of time and number.

use super::*;

/// Sends the text, then the drip again and again, and tells what came back and when the gateway closed the connection.
async fn converse(stream: TcpStream, first: &str, drip: &str) -> (String, Duration) {
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
    let took = SystemClock.instant().saturating_duration_since(began);
    (String::from_utf8(bytes).unwrap(), took)
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
    // name, what is sent first, what drips, expected status
    let rows = [
        ("silent", "", "", "none"),
        ("half a head", "GET / HT", "", "none"),
        ("dripping head", "GET / HTTP/1.1\r\n", "X", "none"),
        (
            "stalled body",
            "POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\nab",
            "",
            "408",
        ),
        (
            "dripping body",
            "POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\nab",
            "c",
            "408",
        ),
        ("idle", "GET /a HTTP/1.1\r\nHost: x\r\n\r\n", "", "200"),
        (
            "dripping next head",
            "GET /a HTTP/1.1\r\nHost: x\r\n\r\n",
            "G",
            "200",
        ),
    ];
    let mut running = Vec::new();
    for (name, first, drip, code) in rows {
        let stream = gateway.connect().await;
        running.push(async move {
            let (answer, took) = converse(stream, first, drip).await;
            assert_eq!(status(&answer), code, "{name}: {answer:?}");
            // One that is not closed, or closed later with each byte, is there to the end of the patience.
            assert!(took < PATIENCE / 2, "{name}: closed after {took:?}");
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
