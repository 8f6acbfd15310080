//! The admin port.

use super::*;

#[derive(Debug)]
struct Switch(Mutex<Result<(), String>>);

impl Readiness for Switch {
    fn readiness(&self) -> Result<(), String> {
        self.0.lock().clone()
    }
}

#[tokio::test]
async fn the_admin_port_answers_until_the_very_end() {
    let switch = Arc::new(Switch(Mutex::new(Ok(()))));
    let metrics = Arc::new(Metrics::new().unwrap());
    let readiness: Arc<dyn Readiness> = Arc::<Switch>::clone(&switch);
    let port = Server::admin(
        any_port(),
        (readiness, Arc::new(NoOperations)),
        &limits(),
        &metrics,
        &SystemClock::shared(),
    )
    .unwrap();
    let ask = async |request: &str| {
        let mut stream = connect(port.address()).await;
        stream
            .write_all(format!("{request} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())
            .await
            .unwrap();
        rest(&mut stream).await
    };
    assert_eq!(body(&ask("GET /readyz").await), "ready\n", "ready");
    *switch.0.lock() = Err("stopping".to_owned());
    let unready = ask("GET /readyz").await;
    assert_eq!(
        (status(&unready), body(&unready)),
        ("503", "not ready: stopping\n"),
        "not ready"
    );
    assert_eq!(
        status(&ask("GET /healthz").await),
        "200",
        "healthy all the same"
    );
    let text = ask("GET /metrics").await;
    assert!(
        body(&text).contains("snapgate_build_info"),
        "metrics: {text:?}"
    );
    assert_eq!(length(&text), body(&text).len(), "framed exactly");
    let head = ask("HEAD /version").await;
    assert_eq!(
        (body(&head), length(&head) > 0),
        ("", true),
        "HEAD has a length and no body"
    );
    assert!(
        body(&ask("GET /version").await).contains(env!("CARGO_PKG_VERSION")),
        "version"
    );
    let refused = ask("POST /metrics").await;
    assert_eq!(status(&refused), "405", "no other method");
    assert!(refused.contains("GET, HEAD"), "says which: {refused:?}");
    assert_eq!(
        status(&ask("GET /operations").await),
        "401",
        "operations are for those who know the token"
    );
    assert_eq!(status(&ask("GET /nothing").await), "404", "no other page");
    assert!(closes(&refused), "one request a connection");
    let silent = connect(port.address()).await;
    until("accepted", || port.connections() == 1).await;
    let drained = port.drain(PATIENCE).await;
    assert_eq!(drained.cut, 0, "nothing left");
    assert!(
        drained.took < Duration::from_secs(4),
        "a silent connection holds nothing up"
    );
    drop(silent);
}
