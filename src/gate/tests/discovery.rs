//! Finding things: the list of VMs over several backends, capabilities, permissions, the document and the page at `/`.

#![expect(
    clippy::arithmetic_side_effects,
    reason = "what a test counts is small"
)]

use std::collections::BTreeMap;

use serde_json::Value;
use serde_json::json;

use crate::gate::tests::rig::Rig;
use crate::gate::tests::rig::backup;
use crate::gate::tests::rig::header;
use crate::gate::tests::rig::json;
use crate::gate::tests::rig::status;
use crate::gate::tests::rig::target;
use crate::gate::*;
use crate::model::Action;
use crate::model::BackendName;
use crate::model::Pattern;
use crate::model::PrincipalName;
use crate::model::RunState;
use crate::model::Timestamp;
use crate::model::Vm;
use crate::model::VmId;
use crate::operations::Capability;
use crate::operations::memory_operations::ListManner;
use crate::operations::memory_operations::ListedVms;
use crate::operations::memory_operations::full_capability;

fn vm(id: &str) -> Vm {
    Vm {
        id: VmId::new(id).unwrap(),
        name: format!("name-{id}"),
        description: None,
        run_state: Some(RunState::Started),
    }
}

fn name(text: &str) -> BackendName {
    BackendName::new(text).unwrap()
}

fn pattern(text: &str) -> Pattern {
    Pattern::new(text).unwrap()
}

/// A gate whose `reader` may read these VMs, with `web-*`, `1` and `gone` on `east` and everything else on `west`.
fn rig(readable: &[&str], east: &[&str], west: &[&str]) -> Rig {
    let mut rig = Rig::new();
    rig.reload(|config| {
        let place = |pattern_text: &str, backend: &str| Placement {
            pattern: pattern(pattern_text),
            backend: name(backend),
        };
        config.placements = vec![
            place("web-*", "east"),
            place("1", "east"),
            place("gone", "east"),
            place("*", "west"),
        ];
        config.grants = vec![
            grant("ann", &Action::ALL, &["*"]),
            grant("reader", &[Action::Read], readable),
            grant("shield", &[Action::Restore], &["web-1"]),
        ];
    });
    let listed = [("east", east), ("west", west)].map(|(backend, ids)| {
        let mut vms: Vec<Vm> = ids.iter().map(|id| vm(id)).collect();
        vms.sort_by(|one, other| one.id.cmp(&other.id));
        let listed = ListedVms {
            vms,
            ..ListedVms::default()
        };
        (name(backend), listed)
    });
    rig.operations.state().listed = BTreeMap::from(listed);
    rig
}

fn grant(to: &str, actions: &[Action], vms: &[&str]) -> Grant {
    Grant {
        to: vec![Grantee::User(PrincipalName::new(to).unwrap())],
        actions: actions.iter().copied().collect(),
        vms: vms.iter().map(|text| pattern(text)).collect(),
        backups: vec![pattern("*")],
        line: 0,
    }
}

fn set_manner(rig: &Rig, backend: &str, manner: ListManner) {
    let mut state = rig.operations.state();
    state.listed.get_mut(&name(backend)).unwrap().manner = manner;
}

/// Calls and VMs looked at since the last count, of both backends.
fn take_work(rig: &Rig) -> (usize, usize) {
    let mut state = rig.operations.state();
    let mut work = (0, 0);
    for listed in state.listed.values_mut() {
        work.0 += std::mem::take(&mut listed.calls);
        work.1 += std::mem::take(&mut listed.looked_at);
    }
    work
}

fn ids(page: &Value) -> Vec<&str> {
    let all = page["vms"].as_array().unwrap().iter();
    all.map(|vm| vm["id"].as_str().unwrap()).collect()
}

/// Every page from this target on, as (ids, complete).
async fn walk(rig: &Rig, user: &str, target: &str) -> Vec<(Vec<String>, bool)> {
    let (mut pages, mut next) = (Vec::new(), Some(target.to_owned()));
    while let Some(target) = next.take() {
        let reply = rig.send(&format!("GET {target}\nas: {user}\nv:")).await;
        assert_eq!(status(&reply), 200, "{target}: {reply:?}");
        let page = json(&reply);
        let found = ids(&page).iter().map(|id| (*id).to_owned()).collect();
        pages.push((found, page["complete"].as_bool().unwrap()));
        let link = header(&reply, "link");
        let target = link.strip_prefix('<').and_then(|link| link.split_once('>'));
        next = target.map(|(target, _)| target.to_owned());
        assert!(pages.len() < 50, "the list does not end");
    }
    pages
}

#[tokio::test(start_paused = true)]
async fn a_caller_sees_the_vms_that_it_may_read_where_they_are_placed() {
    // `web-9` is on `west` too, where no request for it leads; `1` is on both.
    let (east, west) = (
        ["web-1", "web-2", "1", "stray"],
        ["1", "a", "db", "web-9", "web-1"],
    );
    let rows: [(&str, &[&str], &[&str]); 9] = [
        ("everything", &["*"], &["1", "a", "db", "web-1", "web-2"]),
        ("a prefix", &["web-*"], &["web-1", "web-2"]),
        ("exact ids", &["db", "web-2"], &["db", "web-2"]),
        ("exact, one gone", &["gone", "db"], &["db"]),
        ("exact, hidden by its placement", &["web-9", "stray"], &[]),
        ("a star in front", &["*-1"], &["web-1"]),
        (
            "a prefix and an id in it",
            &["web-*", "web-1", "a"],
            &["a", "web-1", "web-2"],
        ),
        ("prefixes of both", &["d*", "web-2*"], &["db", "web-2"]),
        ("nothing there", &["x*"], &[]),
    ];
    for (row, readable, expected) in rows {
        let rig = rig(readable, &east, &west);
        for limit in [1, 2, 3, 100] {
            let pages = walk(&rig, "reader", &format!("/vms?limit={limit}")).await;
            let found: Vec<&String> = pages.iter().flat_map(|(ids, _)| ids).collect();
            assert_eq!(found, expected, "{row}, by {limit}");
            assert!(
                pages.iter().all(|(_, complete)| *complete),
                "{row}: complete"
            );
        }
    }
    let rig = rig(&["*"], &east, &west);
    let pages = walk(&rig, "shield", "/vms").await;
    assert_eq!(
        pages,
        [(Vec::new(), true)],
        "who may restore alone reads none"
    );
    let pages = walk(&rig, "stranger", "/vms").await;
    assert_eq!(pages, [(Vec::new(), true)], "a stranger");
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_does_not_answer_makes_the_list_incomplete() {
    let silent = "Some VM managers did not answer";
    let unlisted = "Some VM managers do not list";
    let rows = [
        (ListManner::Lists, &["*"][..], &["1", "db", "web-1"][..], ""),
        (ListManner::Down, &["*"], &["1", "web-1"], silent),
        (ListManner::Hangs, &["*"], &["1", "web-1"], silent),
        (ListManner::Partial, &["*"], &["1", "db", "web-1"], silent),
        (ListManner::Unlisted, &["*"], &["1", "web-1"], unlisted),
        (ListManner::Unable, &["*"], &["1", "web-1"], unlisted),
        // Named exactly: looked up where nothing is listed.
        (
            ListManner::Unlisted,
            &["web-*", "db", "x"],
            &["db", "web-1"],
            "",
        ),
        (ListManner::Unlisted, &["db"], &["db"], ""),
        // Nothing of the caller's is there.
        (ListManner::Down, &["web-*"], &["web-1"], ""),
        (ListManner::Hangs, &["1", "web-1"], &["1", "web-1"], ""),
    ];
    for (manner, readable, expected, message) in rows {
        let rig = rig(readable, &["1", "web-1"], &["db"]);
        set_manner(&rig, "west", manner);
        let begun = tokio::time::Instant::now();
        let reply = rig.send("GET /vms\nas: reader\nv:").await;
        let took = begun.elapsed();
        let what = format!("{manner:?} {readable:?}");
        assert_eq!(status(&reply), 200, "{what}: {reply:?}");
        let page = json(&reply);
        assert_eq!(ids(&page), expected, "{what}");
        assert_eq!(page["complete"], message.is_empty(), "{what}");
        let found = page["message"].as_str().unwrap_or_default();
        assert!(
            found.starts_with(message) && found.is_empty() == message.is_empty(),
            "{what}: {found}"
        );
        assert!(
            took < crate::model::limits::READ_DEADLINE,
            "{what}: {took:?}"
        );
    }
    let rig = rig(&["*"], &["1"], &["db"]);
    for backend in ["east", "west"] {
        set_manner(&rig, backend, ListManner::Down);
    }
    let pages = walk(&rig, "reader", "/vms").await;
    assert_eq!(pages, [(Vec::new(), false)], "none of two answers");
}

#[tokio::test(start_paused = true)]
async fn a_page_costs_the_same_among_ten_thousand_vms() {
    let many = |count: usize| -> (Vec<String>, Vec<String>) {
        let half = count / 2;
        let ids = |prefix: &str| (0..half).map(|n| format!("{prefix}{n:05}")).collect();
        (ids("web-"), ids("vm-"))
    };
    let late = |count: usize| format!("/vms?limit=50&after=vm-{:05}", count / 2 - 1);
    let rows: [(&str, &[&str]); 4] = [
        ("everything", &["*"]),
        ("a prefix", &["web-*"]),
        (
            "single ids",
            &["vm-00001", "vm-00010", "web-00007", "web-00049"],
        ),
        ("rare ones", &["web-0000*", "vm-0000*"]),
    ];
    for (row, readable) in rows {
        let mut costs = Vec::new();
        for count in [200, 10_000] {
            let (east, west) = many(count);
            let east: Vec<&str> = east.iter().map(String::as_str).collect();
            let west: Vec<&str> = west.iter().map(String::as_str).collect();
            let rig = rig(readable, &east, &west);
            let mut cost = Vec::new();
            for target in ["/vms?limit=50".to_owned(), late(count)] {
                let reply = rig.send(&format!("GET {target}\nas: reader\nv:")).await;
                assert_eq!(status(&reply), 200, "{row}: {reply:?}");
                cost.push(take_work(&rig));
            }
            costs.push(cost);
        }
        for (small, large) in costs[0].iter().zip(&costs[1]) {
            let is_flat = |few: usize, many: usize| many * 10 <= few * 12;
            assert!(
                is_flat(small.0, large.0) && is_flat(small.1, large.1),
                "{row}: (calls, VMs) {small:?} among 200, {large:?} among 10,000"
            );
        }
    }
    // A filter that fits few is bounded, page by page, and finds them all.
    let (east, west) = many(10_000);
    let east: Vec<&str> = east.iter().map(String::as_str).collect();
    let west: Vec<&str> = west.iter().map(String::as_str).collect();
    let rig = rig(&["*"], &east, &west);
    let mut target = "/vms?name=name-web-04999".to_owned();
    let mut found = 0;
    loop {
        let reply = rig.send(&format!("GET {target}\nas: reader\nv:")).await;
        let (_, looked_at) = take_work(&rig);
        assert!(looked_at <= 5_000, "{target}: {looked_at} VMs looked at");
        found += ids(&json(&reply)).len();
        let link = header(&reply, "link");
        let Some((next, _)) = link.strip_prefix('<').and_then(|link| link.split_once('>')) else {
            break;
        };
        assert!(
            next.contains("name=name-web-04999"),
            "keeps the filter: {next}"
        );
        target = next.to_owned();
    }
    assert_eq!(found, 1, "the one VM");
}

#[tokio::test(start_paused = true)]
async fn entries_have_links_state_and_the_last_readable_backup() {
    let mut rig = rig(&["*"], &["1", "web-1"], &["db"]);
    rig.reload(|config| {
        config.grants[1].backups = vec![pattern("a*")];
    });
    let mut newer = backup("a2", "newer");
    newer.created = Timestamp::from_millis(3_000);
    let mut hidden = backup("b1", "hidden");
    hidden.created = Timestamp::from_millis(9_000);
    {
        let mut state = rig.operations.state();
        state.backups.clear();
        for (id, backup) in [("a1", backup("a1", "older")), ("a2", newer), ("b1", hidden)] {
            state.backups.insert(target("web-1", id), backup);
        }
    }
    let reply = rig.send("GET /vms?name=name-w*\nas: reader\nv:").await;
    let expected = json!({"vms": [{
        "id": "web-1",
        "name": "name-web-1",
        "uri": "http://example.com/vms/web-1",
        "backups": "http://example.com/vms/web-1/backups",
        "state": "STARTED",
        "last_backup": {
            "uri": "http://example.com/vms/web-1/backups/a2",
            "created": "1970-01-01T00:00:03Z",
        },
    }], "complete": true});
    assert_eq!(json(&reply), expected, "the caller's view");
    let reply = rig.send("GET /vms?name=name-web-1\nas: ann\nv:").await;
    let page = json(&reply);
    assert_eq!(
        page["vms"][0]["backend"], "east",
        "an operator sees the backend"
    );
    let last = page["vms"][0]["last_backup"]["uri"].as_str().unwrap();
    assert!(last.ends_with("/b1"), "and every backup: {last}");
    let tag = header(&reply, "etag").to_owned();
    let again = format!("GET /vms?name=name-web-1\nas: ann\nv:\nIf-None-Match: {tag}");
    assert_eq!(status(&rig.send(&again).await), 304, "not changed");
}

#[tokio::test(start_paused = true)]
async fn parameters_of_the_list_are_checked() {
    let rig = rig(&["*"], &["1"], &["db"]);
    let strict = "\nPrefer: handling=strict";
    let rows = [
        ("/vms?limit=0", "", "limit"),
        ("/vms?limit=1001", "", "limit"),
        ("/vms?name=a*b", "", "name"),
        ("/vms?name=**", "", "name"),
        ("/vms?cursor=%21", "", "cursor"),
        ("/vms?cursor=Lg", "", "cursor"),
        ("/vms?cursor=ZGI&after=db", "", "after"),
        ("/vms?after=..", "", "after"),
        ("/vms?name=a&name=b", "", "name"),
        ("/vms?sort=name", strict, "sort"),
    ];
    for (target, more, field) in rows {
        let reply = rig
            .send(&format!("GET {target}\nas: reader\nv:{more}"))
            .await;
        assert_eq!(status(&reply), 400, "{target}: {reply:?}");
        let refusal = json(&reply)["message"][0].clone();
        assert_eq!(refusal["code"], "InvalidParameter", "{target}");
        assert_eq!(refusal["field"], field, "{target}");
    }
    let lenient = rig.send("GET /vms?sort=name\nas: reader\nv:").await;
    assert_eq!(status(&lenient), 200, "ignored where it is lenient");
    let rows = [
        ("GET /vms\nas: reader", 400),
        ("GET /vms\nv:", 401),
        ("HEAD /vms\nas: reader\nv:", 200),
        ("POST /vms\nas: reader\nv:", 405),
        ("DELETE /vms\nas: reader\nv:", 405),
        (
            "GET /vms\nas: reader\nv:\nAccept: application/vnd.snapgate.Vms+json",
            200,
        ),
        ("GET /vms\nas: reader\nv:\nAccept: text/html", 406),
    ];
    for (request, expected) in rows {
        assert_eq!(status(&rig.send(request).await), expected, "{request}");
    }
}

#[tokio::test(start_paused = true)]
async fn capabilities_are_those_of_the_adapter() {
    let rig = rig(&["web-*"], &["web-1"], &["db"]);
    let reply = rig
        .send("GET /vms/web-1/capabilities\nas: reader\nv:")
        .await;
    let verb = |options: Value| json!({"supported": true, "cancel": false, "progress": true, "recovery": "replay-safe", "options": options});
    let expected = json!({
        "verbs": {
            "create": verb(json!([])),
            "update": verb(json!([])),
            "delete": verb(json!([])),
            "restore": verb(json!(["mode"])),
        },
        "kinds": ["full"],
        "lists_vms": true,
    });
    assert_eq!(json(&reply), expected, "{reply:?}");
    rig.operations.state().capability = std::sync::Arc::new(Capability {
        create: None,
        ..full_capability()
    });
    let reply = rig
        .send("GET /vms/web-1/capabilities\nas: reader\nv:")
        .await;
    let none = json!({"supported": false, "cancel": false, "progress": false, "options": []});
    assert_eq!(json(&reply)["verbs"]["create"], none, "not supported");
    let rows = [
        ("GET /vms/web-7/capabilities\nas: reader\nv:", 404),
        ("GET /vms/db/capabilities\nas: reader\nv:", 404),
        ("GET /vms/web-1/capabilities\nas: shield\nv:", 404),
        ("GET /vms/web-1/capabilities\nas: reader", 400),
        ("HEAD /vms/web-1/capabilities\nas: reader\nv:", 200),
        ("PUT /vms/web-1/capabilities\nas: reader\nv:", 405),
    ];
    for (request, expected) in rows {
        assert_eq!(status(&rig.send(request).await), expected, "{request}");
    }
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one table")]
async fn permissions_are_the_decisions_of_the_requests_themselves() {
    let mut rig = rig(&["web-*"], &["web-1"], &["db"]);
    rig.reload(|config| {
        let mut temporary = grant("reader", &[Action::Delete], &["web-1"]);
        temporary.backups = vec![pattern("tmp-*")];
        config.grants.push(temporary);
    });
    // query, user, allowed
    let rows: [(&str, &str, &[&str]); 7] = [
        ("", "reader", &["read", "delete"]),
        ("", "stranger", &[]),
        ("?vm=web-1", "reader", &["read", "delete"]),
        ("?vm=web-2", "reader", &["read"]),
        ("?vm=web-1&b=tmp-1", "reader", &["read", "delete"]),
        ("?vm=web-1&b=a", "reader", &["read"]),
        ("?vm=web-1&b=a", "shield", &["restore"]),
    ];
    for (query, user, expected) in rows {
        let reply = rig
            .send(&format!("GET /permissions{query}\nas: {user}"))
            .await;
        assert_eq!(status(&reply), 200, "{query} {user}: {reply:?}");
        let page = json(&reply);
        let actions = page["actions"].as_array().unwrap();
        let words: Vec<&str> = actions
            .iter()
            .map(|one| one["action"].as_str().unwrap())
            .collect();
        assert_eq!(
            words,
            Action::ALL.map(Action::as_str),
            "{query}: every action, in order"
        );
        for action in actions {
            let word = action["action"].as_str().unwrap();
            let is_allowed = expected.contains(&word);
            assert_eq!(action["allowed"], is_allowed, "{query} {user}: {action}");
            let (code, reason) = (action["code"].as_str(), action["reason"].as_str());
            assert_eq!(
                code.is_none() && reason.is_none(),
                is_allowed,
                "{query}: {action}"
            );
            let names_grant = reason.is_none_or(|reason| reason.contains(&format!("`{word}`")));
            assert!(names_grant, "{query}: {action}");
        }
    }
    // The same answer as about what does not exist, byte by byte but for the request.
    let unknown = |reply: &HandledRequest| {
        let mut body = json(reply);
        body["instance"] = Value::Null;
        (status(reply), body)
    };
    let missing = unknown(&rig.send("GET /permissions?vm=nowhere\nas: stranger").await);
    assert_eq!(missing.0, 404, "{missing:?}");
    for request in ["?vm=db", "?vm=db&b=1", "?vm=web-1", "?vm=web-1&b=1"] {
        let reply = rig
            .send(&format!("GET /permissions{request}\nas: stranger"))
            .await;
        assert_eq!(unknown(&reply), missing, "{request}");
    }
    let rows = [
        ("GET /permissions?b=1\nas: reader", 400, "MissingParameter"),
        (
            "GET /permissions?vm=..\nas: reader",
            400,
            "InvalidParameter",
        ),
        ("GET /permissions", 401, "CredentialsRequired"),
        ("POST /permissions\nas: reader", 405, "MethodNotAllowed"),
    ];
    for (request, expected, code) in rows {
        let reply = rig.send(request).await;
        assert_eq!(status(&reply), expected, "{request}");
        if expected != 401 {
            assert_eq!(json(&reply)["message"][0]["code"], code, "{request}");
        }
    }
}

#[tokio::test]
async fn the_document_and_the_page_are_for_everybody() {
    let rig = Rig::new();
    let document = rig.send("GET /openapi.json").await;
    assert_eq!(status(&document), 200, "{document:?}");
    assert_eq!(
        header(&document, "content-type"),
        "application/json",
        "its type"
    );
    let file = std::fs::read("docs/openapi.json").unwrap();
    assert_eq!(
        document.response.body().as_ref(),
        file,
        "as in the documentation"
    );
    let page = rig.send("GET /").await;
    assert_eq!(
        header(&page, "content-type"),
        "text/html; charset=utf-8",
        "the page"
    );
    assert!(
        header(&page, "content-security-policy").starts_with("default-src 'none'"),
        "{page:?}"
    );
    let text = String::from_utf8(page.response.body().to_vec()).unwrap();
    for part in [
        "http://example.com/openapi.json",
        "http://example.com/versions",
        "docs/README.md",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(
        !text.contains("<script") && !text.contains("/ui/"),
        "{text}"
    );
    for (path, reply) in [("/openapi.json", &document), ("/", &page)] {
        let tag = header(reply, "etag");
        let again = rig.send(&format!("GET {path}\nIf-None-Match: {tag}")).await;
        assert_eq!(status(&again), 304, "{path}");
        let head = rig.send(&format!("HEAD {path}")).await;
        assert!(
            head.response.body().is_empty() && status(&head) == 200,
            "{path}"
        );
        let other = rig.send(&format!("GET {path}\nAccept: image/png")).await;
        assert_eq!(status(&other), 406, "{path}");
        let put = rig.send(&format!("PUT {path}")).await;
        assert_eq!(status(&put), 405, "{path}");
    }
}
