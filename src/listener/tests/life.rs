//! Start and drain.

use super::*;

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
        .args(["--exact", "listener::tests::life::starts_and_answers"])
        .env("SSL_CERT_FILE", "/nonexistent/certificates.pem")
        .env("SSL_CERT_DIR", "/nonexistent")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("1 passed"), "it did: {output:?}");
}
