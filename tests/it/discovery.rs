//! Finding things through a whole gateway: VMs over two backends of which one hangs, permissions, capabilities, and the pages for
//! everybody.

use std::io::Read as _;
use std::net::TcpListener;
use std::time::Duration;
use std::time::Instant;

use snapgate::model::limits;

use crate::client::Client;
use crate::client::Reply;
use crate::harness::Gateway;
use crate::harness::SIM;

/// VMs `a1` to `a3` on a simulator, `h*` on a server that takes connections and never answers.
fn settings(hanging: &TcpListener) -> String {
    let port = hanging.local_addr().unwrap().port();
    format!(
        r#"
[operations]
store = "operations.db"

[[backend]]
name = "lab"
kind = "sim"
vms = ["a*", "ghost"]
[backend.sim]
simulated_vms = ["a1", "a2", "a3", "h7"]
duration = "50ms"

[[backend]]
name = "far"
kind = "cloudapi"
vms = ["h*"]
[backend.cloudapi]
url = "http://127.0.0.1:{port}"
username = "gate"
password = "file:password"
server_recovery = "replay-safe"

[[user]]
name = "alice"
password_hash = "SECRET_HASH"

[[user]]
name = "carol"
password_hash = "SECRET_HASH"

[[user]]
name = "stranger"
password_hash = "SECRET_HASH"

[[grant]]
to = ["user:alice"]
actions = ["read", "create", "update", "protect", "delete", "restore", "observe"]
vms = ["*"]
backups = ["*"]

[[grant]]
to = ["user:carol"]
actions = ["read", "restore"]
vms = ["a2", "ghost"]
backups = ["*"]
"#
    )
}

/// Takes connections and answers none.
fn hang() -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.try_clone().unwrap();
    std::thread::spawn(move || {
        let mut open = Vec::new();
        while let Ok((mut stream, _)) = taken.accept() {
            let mut some = [0; 1];
            drop(stream.read(&mut some));
            open.push(stream);
        }
    });
    listener
}

fn start() -> Gateway {
    let hanging = hang();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("password"), "secret").unwrap();
    Gateway::start_in(folder, &settings(&hanging))
}

fn ids(reply: &Reply) -> Vec<String> {
    let page = reply.json();
    let all = page["vms"].as_array().unwrap().iter();
    all.map(|vm| vm["id"].as_str().unwrap().to_owned())
        .collect()
}

/// Follows the links to next pages.
fn walk(client: &Client, target: &str) -> Vec<String> {
    let (mut all, mut next) = (Vec::new(), Some(target.to_owned()));
    while let Some(target) = next.take() {
        let reply = client.get(&target);
        assert_eq!(reply.status, 200, "{target}: {reply:?}");
        all.extend(ids(&reply));
        let link = reply.header("link");
        let target = link.strip_prefix('<').and_then(|link| link.split_once('>'));
        next = target.map(|(target, _)| target.to_owned());
    }
    all
}

#[apply(test)]
fn a_hanging_backend_leaves_a_list_of_the_others_within_the_deadline() {
    let gateway = start();
    let alice = gateway.client("alice");
    let begun = Instant::now();
    let reply = alice.get("/vms");
    let took = begun.elapsed();
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(
        ids(&reply),
        ["a1", "a2", "a3"],
        "not h7, which no request reaches there"
    );
    let page = reply.json();
    assert_eq!(page["complete"], false, "{page}");
    assert!(
        page["message"]
            .as_str()
            .is_some_and(|text| text.contains("did not answer")),
        "{page}"
    );
    assert_eq!(page["vms"][0]["backend"], "lab", "alice watches everything");
    assert_eq!(page["vms"][0]["state"], "STARTED", "{page}");
    let last = page["vms"][0]["last_backup"]["uri"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    assert!(
        last.is_empty() || last.ends_with("/vms/a1/backups/456"),
        "{page}"
    );
    assert!(
        took < limits::VMS_DEADLINE + Duration::from_secs(2),
        "{took:?}"
    );
    // Who may read nothing there neither waits nor hears of it.
    let begun = Instant::now();
    let reply = gateway.client("carol").get("/vms");
    assert!(
        begun.elapsed() < limits::VMS_DEADLINE,
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(ids(&reply), ["a2"], "{reply:?}");
    let page = reply.json();
    assert_eq!(page["complete"], true, "{page}");
    assert!(
        page["vms"][0].get("backend").is_none(),
        "not for carol: {page}"
    );
    assert!(
        page["vms"][0]["last_backup"]["uri"]
            .as_str()
            .is_some_and(|uri| uri.ends_with("/vms/a2/backups/456")),
        "{page}"
    );
    let reply = gateway.client("stranger").get("/vms");
    assert_eq!(
        (ids(&reply).len(), &reply.json()["complete"]),
        (0, &true.into()),
        "{reply:?}"
    );
}

#[apply(test)]
fn the_vms_of_a_gateway_are_walked_page_by_page() {
    // VMs that are named exactly are looked up; for a pattern the backend is asked for its list.
    let settings = SIM.replacen("vms = [\"1\", \"2\"]", "vms = [\"*\"]", 1);
    let gateway = Gateway::start(&settings);
    let alice = gateway.client("alice");
    for limit in [1, 2, 3] {
        assert_eq!(
            walk(&alice, &format!("/vms?limit={limit}")),
            ["1", "2"],
            "by {limit}"
        );
    }
    assert_eq!(walk(&alice, "/vms?name=2"), ["2"], "by name");
    let reply = alice.get("/vms");
    let tag = reply.header("etag").to_owned();
    assert_eq!(
        reply.header("content-type"),
        "application/vnd.snapgate.Vms+json",
        "{reply:?}"
    );
    assert_eq!(
        alice.with("If-None-Match", &tag).get("/vms").status,
        304,
        "not changed"
    );
    let text = gateway.metric("snapgate_requests_total{code=\"200\",method=\"GET\",route=\"vms\"}");
    assert!(text > 0.0, "counted under its own name");
    let calls =
        gateway.metric("snapgate_backend_calls_total{backend=\"lab\",call=\"vms\",result=\"ok\"}");
    assert!(calls > 0.0, "the call has a name too");
}

#[apply(test)]
fn permissions_say_what_requests_are_answered() {
    let gateway = Gateway::start(SIM);
    for user in ["carol", "alice", "stranger"] {
        let client = gateway.client(user);
        let reply = client.get("/permissions?vm=1&b=456");
        if user == "stranger" {
            assert_eq!(
                (reply.status, reply.code().as_str()),
                (404, "NoSuchVm"),
                "{reply:?}"
            );
            continue;
        }
        let page = reply.json();
        let decision = |action: &str| {
            let all = page["actions"].as_array().unwrap();
            all.iter()
                .find(|one| one["action"] == action)
                .unwrap()
                .clone()
        };
        let read = client.get("/vms/1/backups/456").status;
        assert_eq!(decision("read")["allowed"], read == 200, "{user}: {page}");
        let deleted = client.delete("/vms/1/backups/456");
        let expected = decision("delete");
        assert_eq!(expected["allowed"], deleted.status == 202, "{user}: {page}");
        if deleted.status != 202 {
            assert_eq!(
                expected["code"],
                deleted.code(),
                "{user}: the same code: {page}"
            );
        }
        if user == "alice" {
            client.finished(&deleted.status_uri());
            client.post("/vms/1/backups", r#"{"name": "again"}"#);
        }
    }
    let reply = gateway.client("carol").get("/vms/1/capabilities");
    assert_eq!(
        reply.json()["verbs"]["restore"]["supported"],
        true,
        "{reply:?}"
    );
    assert_eq!(reply.json()["lists_vms"], true, "{reply:?}");
    assert_eq!(
        gateway.client("carol").get("/vms/2/capabilities").code(),
        "NoSuchVm"
    );
}

#[apply(test)]
fn the_document_and_the_page_need_no_credentials_and_give_way_to_an_upstream() {
    let gateway = Gateway::start(SIM);
    let bare = gateway.bare();
    let document = bare.get("/openapi.json");
    assert_eq!(
        document.body,
        std::fs::read("docs/openapi.json").unwrap(),
        "as documented"
    );
    let page = bare.get("/");
    assert_eq!(page.status, 200, "{page:?}");
    assert!(
        page.header("content-security-policy")
            .contains("default-src 'none'"),
        "{page:?}"
    );
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = upstream.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in upstream.incoming() {
            let mut stream = stream.unwrap();
            let mut head = [0; 4096];
            drop(stream.read(&mut head));
            let answer =
                "HTTP/1.1 200 OK\r\nContent-Length: 8\r\nConnection: close\r\n\r\nupstream";
            drop(std::io::Write::write_all(&mut stream, answer.as_bytes()));
        }
    });
    let all = format!(
        "{SIM}\n[[passthrough]]\nname = \"all\"\npath = \"/\"\nupstreams = [\"http://127.0.0.1:{port}\"]\nauthentication = \"none\"\n"
    );
    let gateway = Gateway::start(&all);
    let bare = gateway.bare();
    for path in ["/", "/openapi.json", "/permissions", "/other"] {
        assert_eq!(bare.get(path).body, b"upstream", "{path} is the upstream's");
    }
    for path in ["/vms", "/versions", "/statuses"] {
        assert_ne!(bare.get(path).body, b"upstream", "{path} is the gateway's");
    }
}
