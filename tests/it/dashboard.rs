//! The Grafana dashboard and the alert rules: every series is documented, and a real Prometheus answers every query.

use std::collections::BTreeSet;
use std::fs;
use std::io::BufRead;
use std::io::BufReader;
use std::net::SocketAddr;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;

use percent_encoding::NON_ALPHANUMERIC;
use percent_encoding::utf8_percent_encode;
use serde_json::Value;

use crate::client::Client;
use crate::harness::Gateway;
use crate::harness::SIM;
use crate::harness::eventually;
use crate::requirements::require_programs;

const DASHBOARD: &str = "config/grafana/snapgate.json";
const ALERTS: &str = "config/prometheus/alerts.yml";
/// Series that a single gateway on a file, without TLS, pass-through routes and issuers, does not have.
const ABSENT: [&str; 5] = [
    "certificate_expires",
    "passthrough",
    "issuer",
    "cluster",
    "etcd",
];

/// Every query of the dashboard, with the title of its panel.
fn queries() -> Vec<(String, String)> {
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(DASHBOARD).unwrap()).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut queries = Vec::new();
    for panel in panels {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let title = panel["title"].as_str().unwrap().to_owned();
            queries.push((title, target["expr"].as_str().unwrap().to_owned()));
        }
    }
    assert!(queries.len() > 25, "the queries of the dashboard are found");
    queries
}

/// The metrics of the gateway that a text names.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let is_name = |character: char| character.is_ascii_alphanumeric() || character == '_';
    text.split(|character| !is_name(character))
        .filter(|word| word.starts_with("snapgate_"))
        .map(|word| word.trim_end_matches("_bucket").to_owned())
        .collect()
}

#[apply(test)]
fn queries_and_alerts_name_documented_metrics_only() {
    let documented = metrics_in(&fs::read_to_string("docs/metrics.md").unwrap());
    let alerts = fs::read_to_string(ALERTS).unwrap();
    let mut queries = queries();
    let rules = alerts
        .lines()
        .filter_map(|line| line.trim().strip_prefix("expr: "));
    queries.extend(rules.map(|rule| ("an alert".to_owned(), rule.to_owned())));
    for (title, query) in queries {
        for metric in metrics_in(&query) {
            assert!(
                documented.contains(&metric),
                "{title}: {metric} is not in docs/metrics.md"
            );
        }
    }
}

#[apply(test)]
fn every_alert_has_a_runbook() {
    let alerts = fs::read_to_string(ALERTS).unwrap();
    let index = fs::read_to_string("docs/runbooks/README.md").unwrap();
    for name in alerts
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
    {
        let page = fs::read_to_string(format!("docs/runbooks/{name}.md")).unwrap();
        for part in ["## Meaning", "## Effect", "## What to do"] {
            assert!(page.contains(part), "{name}: {part}");
        }
        assert!(index.contains(&format!("({name}.md)")), "{name}: listed");
        let severity = format!("- alert: {name}\n");
        let rule = alerts.split(&severity).nth(1).unwrap();
        let rule = rule.split("- alert: ").next().unwrap();
        assert!(rule.contains("severity: "), "{name}: has a severity");
        assert!(
            rule.contains(&format!("docs/runbooks/{name}.md")),
            "{name}: links its runbook"
        );
    }
}

/// A Prometheus that scrapes one gateway every second.
struct Prometheus {
    child: Child,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    fn start(gateway: &Gateway) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("prometheus.yml");
        let target = gateway.admin;
        let text = format!(
            "global: {{scrape_interval: 1s}}\nscrape_configs:\n- job_name: snapgate\n  static_configs: [{{targets: ['{target}']}}]\n"
        );
        fs::write(&config, text).unwrap();
        let mut child = Command::new("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().display()))
            .arg("--web.listen-address=127.0.0.1:0")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = lines
            .find_map(|line| {
                let line = line.unwrap();
                let (_, rest) = line.split_once("msg=\"Listening on\" address=")?;
                rest.split_whitespace().next()?.parse().ok()
            })
            .expect("Prometheus prints its address");
        // Its log is read to the end, so that it never waits for a reader.
        std::thread::spawn(move || lines.for_each(drop));
        Self {
            child,
            address,
            _folder: folder,
        }
    }

    /// The series that a query returns.
    fn query(&self, query: &str) -> Result<Vec<Value>, String> {
        let query = utf8_percent_encode(query, NON_ALPHANUMERIC);
        let reply = Client::bare(self.address).get(&format!("/api/v1/query?query={query}"));
        let found: Value = serde_json::from_slice(&reply.body).unwrap();
        if found["status"] != "success" {
            return Err(found["error"].to_string());
        }
        Ok(found["data"]["result"].as_array().unwrap().clone())
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[apply(test)]
fn a_prometheus_answers_every_query_of_the_dashboard() {
    require_programs(&["prometheus"]);
    let gateway = Gateway::start(SIM);
    let prometheus = Prometheus::start(&gateway);
    let alice = gateway.client("alice");
    let work = || {
        let status_uri = alice.post("/vms/1/backups/456/restore", "").status_uri();
        assert_eq!(alice.finished(&status_uri)["status"], 200, "restored");
        assert_eq!(gateway.bare().get("/vms/1").status, 401, "no credentials");
    };
    let changes = "sum(increase(snapgate_operations_total{outcome=\"succeeded\"}[1m])) > 0";
    eventually("Prometheus has seen operations end", || {
        work();
        !prometheus.query(changes).unwrap().is_empty()
    });
    for (title, query) in queries() {
        let query = query
            .replace("$job", "snapgate")
            .replace("$instance", ".*")
            .replace("$backend", ".*")
            .replace("$__rate_interval", "1m");
        let found = prometheus.query(&query);
        let found = found.unwrap_or_else(|error| panic!("{title}: {query}: {error}"));
        let may_be_empty = ABSENT.iter().any(|part| query.contains(part))
            || [
                "limited_total",
                "lockouts_total",
                "closed_total",
                "audit_records_lost",
            ]
            .iter()
            .any(|part| query.contains(part));
        assert!(
            may_be_empty || !found.is_empty(),
            "{title}: {query}: no data"
        );
    }
}

#[apply(test)]
fn runbooks_search_the_log_for_lines_that_exist() {
    let sources = crate::source_tree::read_rust_below("src");
    let mut phrases = 0;
    for entry in fs::read_dir("docs/runbooks").unwrap() {
        let page = fs::read_to_string(entry.unwrap().path()).unwrap();
        for search in page.split("journalctl ").skip(1) {
            let Some(phrase) = search.split('`').next().unwrap().split("-g '").nth(1) else {
                continue;
            };
            let phrase = phrase.trim_end_matches('\'');
            let literal = format!("\"{phrase}\"");
            phrases += 1;
            let is_logged = sources.iter().any(|(_, text)| text.contains(&literal));
            assert!(is_logged, "no log line says {phrase:?}");
        }
    }
    assert!(phrases > 0, "the phrases are found");
}
