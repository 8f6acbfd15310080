//! Answers that come in pieces.

use super::*;

/// Reads until what has come ends with the text.
async fn read_up_to(stream: &mut TcpStream, seen: &mut String, end: &str) {
    let mut buffer = [0; 4096];
    let read = tokio::time::timeout(PATIENCE, async {
        while !seen.ends_with(end) {
            let count = stream.read(&mut buffer).await.unwrap();
            assert_ne!(count, 0, "connection ended after {seen:?}");
            seen.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
        }
    })
    .await;
    assert!(read.is_ok(), "{end:?} comes in time: {seen:?}");
}

#[tokio::test]
async fn each_piece_is_sent_at_once_and_the_connection_lives_on() {
    let gateway = gateway();
    let mut stream = gateway.connect().await;
    stream
        .write_all(b"GET /pieces HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    let mut seen = String::new();
    read_up_to(&mut stream, &mut seen, "\r\n\r\n").await;
    let head = seen.to_ascii_lowercase();
    assert!(
        head.contains("transfer-encoding: chunked"),
        "framed: {head}"
    );
    assert!(!head.contains("content-length"), "once only: {head}");
    gateway.script.go.notify_one();
    read_up_to(&mut stream, &mut seen, "8\r\npiece 1\n\r\n").await;
    gateway.script.go.notify_one();
    read_up_to(&mut stream, &mut seen, "8\r\npiece 0\n\r\n0\r\n\r\n").await;
    stream
        .write_all(b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    assert_eq!(body(&answer(&mut stream).await), "/next", "used again");
    let reports = gateway.script.reports.lock()[0].clone();
    let expected = ("GET".into(), "/pieces".into(), Some(200), 16, true, true);
    assert_eq!(reports, expected, "reported at its end, with all its bytes");
}

#[tokio::test]
async fn older_clients_read_to_the_end_and_head_has_no_body() {
    let gateway = gateway();
    let asking = gateway.whole("GET /pieces HTTP/1.0\r\n\r\n");
    let letting_go = async {
        until("begun", || {
            gateway.script.finished.load(Ordering::SeqCst) == 1
        })
        .await;
        loop {
            gateway.script.go.notify_one();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let old = tokio::select! {
        old = asking => old,
        () = letting_go => String::new(),
    };
    assert_eq!(body(&old), "piece 1\npiece 0\n", "HTTP/1.0: {old:?}");
    assert!(
        !old.to_ascii_lowercase().contains("transfer-encoding"),
        "{old:?}"
    );
    let head = gateway
        .whole("HEAD /pieces HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await;
    assert_eq!((status(&head), body(&head)), ("200", ""), "HEAD: {head:?}");
    assert!(
        !head.to_ascii_lowercase().contains("content-length"),
        "{head:?}"
    );
}

#[tokio::test]
async fn a_panic_breaks_the_answer_off_and_a_client_that_leaves_ends_it() {
    let gateway = gateway();
    gateway.script.go.notify_one();
    let broken = gateway
        .whole("GET /pieces/panic HTTP/1.1\r\nHost: x\r\n\r\n")
        .await;
    assert!(
        !broken.ends_with("0\r\n\r\n"),
        "no end of chunks: {broken:?}"
    );
    assert!(
        gateway.metric("snapgate_panics_total{room=\"listener\"} 1"),
        "counted"
    );
    let mut leaving = gateway.connect().await;
    leaving
        .write_all(b"GET /pieces/many HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    read_up_to(&mut leaving, &mut String::new(), "\r\n\r\n").await;
    drop(leaving);
    until("noticed by the writes", || {
        gateway.script.go.notify_one();
        gateway.script.reports.lock().len() == 2
    })
    .await;
}
