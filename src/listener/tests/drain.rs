//! Start and drain.

use super::*;

const ASK: &[u8] = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n";

#[tokio::test]
async fn a_drain_answers_what_is_on_its_way_and_waits_for_busy_connections() {
    let gateway = gateway();
    let address = gateway.port.address();
    let mut idle = gateway.connect().await;
    idle.write_all(ASK).await.unwrap();
    assert!(!closes(&answer(&mut idle).await), "kept");
    let mut fresh = gateway.connect().await;
    let mut begun = gateway.connect().await;
    begun.write_all(&ASK[..20]).await.unwrap();
    let mut silent = gateway.connect().await;
    let mut busy = gateway.connect().await;
    busy.write_all(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    until("request begun", || {
        gateway.script.begun.load(Ordering::SeqCst) == 2
    })
    .await;
    until("all accepted", || gateway.port.connections() == 5).await;
    let (script, port) = (gateway.script, gateway.port);
    let drained = tokio::join!(port.drain(PATIENCE), async {
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
        // The gateway stops by now, and the clients do not know.
        for (name, kept) in [("idle", &mut idle), ("fresh", &mut fresh)] {
            kept.write_all(ASK).await.unwrap();
            let last = rest(kept).await;
            assert_eq!(body(&last), "/a", "{name}: answered");
            assert!(closes(&last), "{name}: and the last: {last:?}");
        }
        assert_eq!(rest(&mut silent).await, "", "nothing came: closed");
        begun.write_all(&ASK[20..]).await.unwrap();
        let last = rest(&mut begun).await;
        assert_eq!(body(&last), "/a", "a head that had begun is waited for");
        assert!(closes(&last), "and the last: {last:?}");
        script.go.notify_one();
        let last = rest(&mut busy).await;
        assert_eq!(body(&last), "waited", "the busy one is answered");
        assert!(closes(&last), "and says that it is the last: {last:?}");
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
async fn before_a_drain_every_answer_is_the_last_of_its_connection() {
    let gateway = gateway();
    let mut kept = gateway.connect().await;
    kept.write_all(ASK).await.unwrap();
    assert!(!closes(&answer(&mut kept).await), "kept");
    gateway.port.ask_clients_to_leave();
    for path in ["/a", "/refuse", "/none", "/large", "/panic"] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        let mut stream = if path == "/a" {
            std::mem::replace(&mut kept, gateway.connect().await)
        } else {
            gateway.connect().await
        };
        stream.write_all(request.as_bytes()).await.unwrap();
        let found = rest(&mut stream).await;
        assert!(closes(&found), "{path}: {:?}", found.lines().next());
    }
    assert_eq!(gateway.port.drain(PATIENCE).await.cut, 0, "all end");
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
    let text = String::from_utf8(metrics.encode_text()).unwrap();
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
        .args(["--exact", "listener::tests::drain::starts_and_answers"])
        .env("SSL_CERT_FILE", "/nonexistent/certificates.pem")
        .env("SSL_CERT_DIR", "/nonexistent")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("1 passed"), "it did: {output:?}");
}
