//! Lists of backups and Statuses: filters, order, cursors, counts, and who sees what.

use serde_json::Value;
use serde_json::json;

use crate::client::Client;
use crate::client::Reply;
use crate::harness::Gateway;
use crate::harness::Process;
use crate::harness::SECRET_HASH;
use crate::harness::SIM;

const BACKUPS: &str = "/vms/1/backups";

/// `alice` creates these backups of VM 1, each with a tag of its own and one that all have.
fn create_all(alice: &Client, names: &[&str]) {
    for name in names {
        let body = json!({ "name": name, "tags": ["all", name] }).to_string();
        let accepted = alice.post(BACKUPS, &body);
        assert_eq!(accepted.status, 202, "{accepted:?}");
        alice.finished(&accepted.status_uri());
    }
}

fn names(reply: &Reply) -> Vec<String> {
    assert_eq!(reply.status, 200, "{reply:?}");
    let body = reply.json();
    let backups = body["backups"].as_array().unwrap().iter();
    backups
        .map(|backup| backup["name"].as_str().unwrap().to_owned())
        .collect()
}

/// The path of the next page.
fn next(reply: &Reply) -> Option<String> {
    let link = reply.header("link");
    link.split(['<', '>']).nth(1).map(str::to_owned)
}

#[apply(test)]
fn backups_are_filtered_sorted_counted_and_read_page_by_page() {
    let gateway =
        Gateway::start(&SIM.replace("[backend.sim]", "[backend.sim]\nsimulated_backups = 0"));
    let alice = gateway.client("alice");
    create_all(&alice, &["web-2", "db", "web-1", "mail"]);
    let rows: [(&str, &[&str]); 9] = [
        ("sort=name", &["db", "mail", "web-1", "web-2"]),
        ("sort=-name", &["web-2", "web-1", "mail", "db"]),
        ("name=web-1", &["web-1"]),
        ("name=web*&sort=-name", &["web-2", "web-1"]),
        ("tag=all&tag=db", &["db"]),
        ("tag=none", &[]),
        ("protected=true", &[]),
        (
            "state=AVAILABLE&sort=name&limit=1000",
            &["db", "mail", "web-1", "web-2"],
        ),
        ("before=2020-01-01T00:00:00Z", &[]),
    ];
    for (query, expected) in rows {
        let found = alice.get(&format!("{BACKUPS}?{query}&count=true"));
        assert_eq!(names(&found), expected, "{query}");
        assert_eq!(found.json()["count"], expected.len(), "{query}: count");
    }
    let mut seen = Vec::new();
    let mut path = Some(format!("{BACKUPS}?sort=-name&limit=1&count=true"));
    while let Some(now) = path {
        let page = alice.get(&now);
        seen.extend(names(&page));
        assert_eq!(page.json()["count"], 4, "{now}: of every page");
        path = next(&page);
    }
    assert_eq!(
        seen,
        ["web-2", "web-1", "mail", "db"],
        "each once, in order"
    );
    let page = alice.get(&format!("{BACKUPS}?sort=name&limit=1"));
    let other = next(&page).unwrap().replace("sort=name", "sort=size");
    let refused = alice.get(&other);
    assert_eq!(
        refused.status, 400,
        "a cursor of another order: {refused:?}"
    );
    assert_eq!(
        refused.json()["message"][0]["field"],
        "cursor",
        "{refused:?}"
    );
    let tag = page.header("etag").to_owned();
    let known = alice
        .with("If-None-Match", &tag)
        .get(&format!("{BACKUPS}?sort=name&limit=1"));
    assert_eq!(known.status, 304, "unchanged: {known:?}");
}

#[apply(test)]
fn unknown_parameters_are_refused_by_those_who_ask_for_it() {
    let gateway = Gateway::start(SIM);
    let alice = gateway.client("alice");
    for path in ["/vms/1/backups?nmae=x", "/statuses?limt=5"] {
        assert_eq!(alice.get(path).status, 200, "{path}: lenient");
        let refused = alice.with("Prefer", "handling=strict").get(path);
        assert_eq!(refused.status, 400, "{path}: strict: {refused:?}");
        let named = refused.json()["message"][0]["field"].clone();
        assert!(
            path.contains(named.as_str().unwrap()),
            "{path}: named: {named}"
        );
    }
}

#[apply(test)]
fn cursors_outlive_a_restart_and_changes_in_between() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("snapgate.toml");
    let sim = SIM.replace("SECRET_HASH", SECRET_HASH);
    let text = format!("[server]\nlisten = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n{sim}");
    std::fs::write(&config, text).unwrap();
    let arguments = ["serve", "--config", config.to_str().unwrap()];
    let process = Process::start(&arguments);
    let alice = Client::new(process.api, "alice", "secret");
    create_all(&alice, &["c", "a", "e"]);
    let page = alice.get("/statuses?limit=2&op=back_up&principal=me&sort=created");
    let first: Vec<Value> = page.json()["statuses"].as_array().unwrap().clone();
    let path = next(&page).unwrap();
    assert!(
        path.starts_with("/statuses?op=back_up&principal=alice&sort=created&limit=2&cursor="),
        "the filters are repeated: {path}"
    );
    create_all(&alice, &["d"]);
    process.kill();
    let process = Process::start(&arguments);
    let alice = Client::new(process.api, "alice", "secret");
    let rest = alice.get(&path).json();
    let rest = rest["statuses"].as_array().unwrap();
    assert_eq!(
        rest.len(),
        2,
        "the third, and the one that came meanwhile: {rest:?}"
    );
    assert!(
        first.iter().all(|status| !rest.contains(status)),
        "none twice"
    );
}

#[apply(test)]
fn lists_of_statuses_have_what_the_caller_may_see() {
    let observer = r#"
[[user]]
name = "olga"
password_hash = "SECRET_HASH"
[[grant]]
to = ["user:olga"]
actions = ["observe"]
vms = ["2"]
backups = ["*"]
"#;
    let gateway = Gateway::start(&format!("{SIM}{observer}"));
    let (alice, carol) = (gateway.client("alice"), gateway.client("carol"));
    let olga = gateway.client("olga");
    let body = r#"{"name": "x"}"#;
    for vm in ["1", "2"] {
        let accepted = alice.post(&format!("/vms/{vm}/backups"), body);
        assert_eq!(accepted.status, 202, "{accepted:?}");
    }
    let restored = carol.post("/vms/1/backups/456/restore", "{}");
    assert_eq!(restored.status, 202, "{restored:?}");
    // Who asks, how many of these that caller sees, and under which filters.
    let rows = [
        (&alice, "", 3),
        (&alice, "principal=me", 2),
        (&alice, "principal=carol", 1),
        (&alice, "op=restore-backup", 1),
        (&alice, "vm=1&state=CANCELLED", 0),
        (&alice, "b=456&limit=9", 1),
        (
            &alice,
            "since=2020-01-01T00:00:00Z&before=2020-01-02T00:00:00Z",
            0,
        ),
        (&carol, "", 1),
        (&carol, "principal=alice", 0),
        (&olga, "", 1),
        (&olga, "vm=1", 0),
        (&olga, "principal=me", 0),
    ];
    for (caller, query, expected) in rows {
        let found = caller.get(&format!("/statuses?count=true&{query}"));
        assert_eq!(found.status, 200, "{query}: {found:?}");
        let body = found.json();
        let length = body["statuses"].as_array().unwrap().len();
        assert_eq!(
            (length, &body["count"]),
            (expected, &json!(expected)),
            "{query}: {body}"
        );
    }
    let one = alice.get("/statuses?b=456&op=restore-Backup").json();
    assert_eq!(
        one["op"], "restore-Backup",
        "without a parameter of lists it names one: {one}"
    );
}
