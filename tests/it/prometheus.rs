//! What a Prometheus server sees of a gateway that has worked.

use std::io::Write;
use std::process::Command;
use std::process::Stdio;

use crate::harness::Gateway;
use crate::harness::SIM;
use crate::requirements::require_programs;

/// A gateway on which something of everything happened.
fn worked() -> Gateway {
    let gateway = Gateway::start(SIM);
    let alice = gateway.client("alice");
    let status_uri = alice.post("/vms/1/backups/456/restore", "").status_uri();
    assert_eq!(alice.finished(&status_uri)["status"], 200, "restored");
    assert_eq!(alice.get("/vms/9/backups/456").status, 404, "nowhere");
    assert_eq!(gateway.bare().get("/vms/1").status, 401, "no credentials");
    gateway
}

#[apply(test)]
fn metrics_count_what_happened() {
    let gateway = worked();
    let rows = [
        (
            "snapgate_requests_total{code=\"202\",method=\"POST\",route=\"restore\"}",
            1.0,
        ),
        (
            "snapgate_operations_total{backend=\"lab\",outcome=\"succeeded\",verb=\"restore\"}",
            1.0,
        ),
        ("snapgate_refusals_total{code=\"Unauthenticated\"}", 1.0),
        ("snapgate_credential_checks_total{result=\"verified\"}", 1.0),
        (
            "snapgate_backend_calls_total{backend=\"lab\",call=\"begin\",result=\"ok\"}",
            1.0,
        ),
        ("snapgate_build_info", 1.0),
        ("snapgate_waiters", 0.0),
        ("snapgate_operations_unknown", 0.0),
    ];
    for (series, expected) in rows {
        let found = gateway.metric(series);
        assert!(
            (found - expected).abs() < 0.1,
            "{series}: {found}, not {expected}"
        );
    }
    for series in [
        "snapgate_store_commit_duration_seconds_count",
        "snapgate_credential_checks_total{result=\"remembered\"}",
    ] {
        assert!(gateway.metric(series) > 0.5, "{series}");
    }
}

#[apply(test)]
fn promtool_accepts_the_scrape() {
    let gateway = worked();
    let scrape = crate::client::Client::bare(gateway.admin).get("/metrics");
    assert_eq!(
        scrape.header("content-type"),
        "text/plain; version=0.0.4",
        "the format it is in"
    );
    require_programs(&["promtool"]);
    let started = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = started.unwrap();
    child.stdin.take().unwrap().write_all(&scrape.body).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.trim().is_empty(), "not even a remark: {said}");
}

#[apply(test)]
fn promtool_accepts_the_alert_rules() {
    require_programs(&["promtool"]);
    let ended = Command::new("promtool")
        .args(["check", "rules", "config/prometheus/alerts.yml"])
        .output();
    let output = ended.unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(printed.contains("17 rules found"), "all of them: {printed}");
}

/// `tests/alerts.yml` says what each rule makes of a series that is well and of one that is not.
#[apply(test)]
fn each_alert_fires_when_it_should_and_only_then() {
    let tested = std::fs::read_to_string("tests/alerts.yml").unwrap();
    let rules = std::fs::read_to_string("config/prometheus/alerts.yml").unwrap();
    for name in rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
    {
        let counted = tested.matches(&format!("alertname: {name}\n")).count();
        assert!(counted >= 2, "{name} is tested well and not: {counted}");
    }
    require_programs(&["promtool"]);
    let ended = Command::new("promtool")
        .args(["test", "rules", "tests/alerts.yml"])
        .output();
    let output = ended.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{complained}");
}
