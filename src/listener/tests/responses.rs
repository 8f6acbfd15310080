//! Answers, their framing, and what becomes of their connections.

use super::*;

#[tokio::test]
async fn answers_are_framed_exactly() {
    let gateway = gateway();
    // name, request line, status, Content-Length, body
    let rows = [
        ("GET", "GET /a HTTP/1.1", "200", Some(2), "/a"),
        ("HEAD", "HEAD /abc HTTP/1.1", "200", Some(4), ""),
        ("204", "GET /none HTTP/1.1", "204", None, ""),
        ("1.0", "GET /a HTTP/1.0", "200", Some(2), "/a"),
        (
            "raw",
            "GET /%2F../b//?x=%00 HTTP/1.1",
            "200",
            Some(16),
            "/%2F../b//?x=%00",
        ),
        (
            "absolute",
            "GET http://x/a HTTP/1.1",
            "200",
            Some(10),
            "http://x/a",
        ),
        ("star", "OPTIONS * HTTP/1.1", "200", Some(1), "*"),
        ("no body to read", "GET /body HTTP/1.1", "200", Some(0), ""),
    ];
    for (name, line, code, announced, expected) in rows {
        let answer = gateway
            .whole(&format!("{line}\r\nHost: x\r\nConnection: close\r\n\r\n"))
            .await;
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
        assert_eq!(length(&head), announced.unwrap_or(0), "{name}: length");
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
    until("reported", || gateway.script.reports.lock().len() == 1).await;
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
    until("both reported", || gateway.script.reports.lock().len() == 2).await;
    let reports = gateway.script.reports.lock();
    assert_eq!(
        reports[0],
        ("GET".into(), "/panic".into(), Some(500), 22, false, true),
        "reported without an exchange"
    );
    assert_eq!(
        reports[1],
        ("GET".into(), "/a".into(), Some(200), 2, true, true),
        "reported with one"
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
