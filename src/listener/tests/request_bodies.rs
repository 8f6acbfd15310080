//! Bodies of requests.

use super::*;

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
    let framings = [
        ("announced", "Content-Length: 400000", "x".repeat(10_000)),
        (
            "chunked",
            "Transfer-Encoding: chunked",
            format!("2710\r\n{}\r\n", "x".repeat(10_000)),
        ),
    ];
    for (name, framing, piece) in framings {
        let mut stream = gateway.connect().await;
        let head = format!("POST /body HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        // Like most clients: send all of it, as fast as the line allows, before looking for the answer.
        for number in 0..40 {
            let sent = stream.write_all(piece.as_bytes()).await;
            assert!(sent.is_ok(), "{name}: piece {number} is taken: {sent:?}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        stream.shutdown().await.unwrap();
        let answer = rest(&mut stream).await;
        assert_eq!(status(&answer), "413", "{name}: {answer:?}");
    }
}

#[tokio::test]
async fn continue_is_sent_only_for_a_wanted_body() {
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
