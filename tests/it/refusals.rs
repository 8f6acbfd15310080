//! Every route with everything that can be wrong about a request. A route without a row fails.

use std::collections::BTreeSet;

use snapgate::gate::ROUTES;

use crate::client::Client;
use crate::harness::Gateway;
use crate::harness::SIM;

/// What a route asks of a request, by the wire contract.
struct Row {
    /// The name in the route table.
    route: &'static str,
    /// A path that exists.
    path: &'static str,
    /// The same for a VM that is nowhere; empty where the route names none.
    missing: &'static str,
    /// Whether credentials are needed.
    credentials: bool,
    /// Whether the version header is needed.
    version: bool,
    /// The allowed methods, as `Allow` says them.
    allow: &'static str,
}

const ROWS: &[Row] = &[
    Row {
        route: "backup",
        path: "/vms/1/backups/456",
        missing: "/vms/9/backups/456",
        credentials: true,
        version: true,
        allow: "GET, HEAD, PUT, DELETE, OPTIONS",
    },
    Row {
        route: "restore",
        path: "/vms/1/backups/456/restore",
        missing: "/vms/9/backups/456/restore",
        credentials: true,
        version: true,
        allow: "POST, OPTIONS",
    },
    Row {
        route: "backups",
        path: "/vms/1/backups",
        missing: "/vms/9/backups",
        credentials: true,
        version: true,
        allow: "GET, HEAD, POST, OPTIONS",
    },
    Row {
        route: "back_up",
        path: "/back_up?vm=1",
        missing: "/back-up?vm=9",
        credentials: true,
        version: true,
        allow: "POST, OPTIONS",
    },
    Row {
        route: "vms",
        path: "/vms",
        missing: "",
        credentials: true,
        version: true,
        allow: "GET, HEAD, OPTIONS",
    },
    Row {
        route: "plan",
        path: "/vms/1/backups/456/plan",
        missing: "/vms/9/backups/456/plan",
        credentials: true,
        version: true,
        allow: "POST, OPTIONS",
    },
    Row {
        route: "capabilities",
        path: "/vms/1/capabilities",
        missing: "/vms/9/capabilities",
        credentials: true,
        version: true,
        allow: "GET, HEAD, OPTIONS",
    },
    Row {
        route: "permissions",
        path: "/permissions?vm=1",
        missing: "/permissions?vm=9",
        credentials: true,
        version: false,
        allow: "GET, HEAD, OPTIONS",
    },
    Row {
        route: "document",
        path: "/openapi.json",
        missing: "",
        credentials: false,
        version: false,
        allow: "GET, HEAD, OPTIONS",
    },
    Row {
        route: "root",
        path: "/",
        missing: "",
        credentials: false,
        version: false,
        allow: "GET, HEAD, OPTIONS",
    },
    Row {
        route: "vm",
        path: "/vms/1",
        missing: "/vms/9",
        credentials: true,
        version: true,
        allow: "GET, HEAD, OPTIONS",
    },
    Row {
        route: "statuses",
        path: "/statuses",
        missing: "",
        credentials: true,
        version: false,
        allow: "GET, HEAD, DELETE, OPTIONS",
    },
    Row {
        route: "versions",
        path: "/versions",
        missing: "",
        credentials: false,
        version: false,
        allow: "GET, HEAD, OPTIONS",
    },
];

/// A body that the method takes on that route.
fn body(method: &str) -> Option<&'static [u8]> {
    match method {
        "PUT" => Some(br#"{"tags": []}"#),
        "POST" => Some(br#"{"name": "n"}"#),
        _ => None,
    }
}

fn send(client: &Client, method: &str, path: &str) -> crate::client::Reply {
    let client = if body(method).is_some() {
        client.with("Content-Type", "application/json")
    } else {
        client.clone()
    };
    client.send(method, path, body(method))
}

#[apply(test)]
fn every_route_has_a_row() {
    let listed: BTreeSet<&str> = ROWS.iter().map(|row| row.route).collect();
    let served: BTreeSet<&str> = ROUTES.iter().map(|route| route.name).collect();
    assert_eq!(
        listed, served,
        "left: rows of this test, right: routes of the gate"
    );
}

#[apply(test)]
fn every_route_refuses_what_it_must() {
    let gateway = Gateway::start(SIM);
    let alice = gateway.client("alice");
    for row in ROWS {
        let methods = row.allow.split(", ").filter(|part| *part != "OPTIONS");
        for method in methods {
            let what = format!("{method} {}", row.path);
            // HEAD has no body to read a code from; its status is that of GET.
            let code = |reply: &crate::client::Reply| match method {
                "HEAD" => String::new(),
                _ => reply.code(),
            };
            let expect = |reply: crate::client::Reply, status: u16, expected: &str, why: &str| {
                assert_eq!(reply.status, status, "{what}, {why}: {reply:?}");
                if method != "HEAD" {
                    assert_eq!(code(&reply), expected, "{what}, {why}");
                }
                assert!(
                    !reply.header("x-request-id").is_empty(),
                    "{what}, {why}: request id"
                );
            };
            if row.credentials {
                let bare = gateway
                    .bare()
                    .with("X-Cloud-Client-Specification-Version", "0.1");
                expect(
                    send(&bare, method, row.path),
                    401,
                    "Unauthenticated",
                    "no credentials",
                );
                let wrong = Client::new(gateway.api, "alice", "wrong");
                expect(
                    send(&wrong, method, row.path),
                    401,
                    "Unauthenticated",
                    "wrong password",
                );
                let placeholder = bare.with("Authorization", "Basic xxxxxxxxxxxxxxxxxxx");
                expect(
                    send(&placeholder, method, row.path),
                    401,
                    "Unauthenticated",
                    "placeholder",
                );
                let unknown = Client::new(gateway.api, "mallory", "secret");
                expect(
                    send(&unknown, method, row.path),
                    401,
                    "Unauthenticated",
                    "unknown user",
                );
            }
            if row.version {
                let none = alice.without("X-Cloud-Client-Specification-Version");
                expect(
                    send(&none, method, row.path),
                    400,
                    "MissingSpecificationVersion",
                    "no version",
                );
                let bad = none.with("X-Cloud-Client-Specification-Version", "one");
                expect(
                    send(&bad, method, row.path),
                    400,
                    "MalformedSpecificationVersion",
                    "malformed version",
                );
                let other = none.with("X-Compute-Client-Specification-Version", "9.9");
                expect(
                    send(&other, method, row.path),
                    400,
                    "UnsupportedSpecificationVersion",
                    "unsupported version",
                );
            }
            let picky = alice.with("Accept", "image/png");
            expect(
                send(&picky, method, row.path),
                406,
                "NotAcceptable",
                "Accept",
            );
            if !row.missing.is_empty() {
                let reply = send(&alice, method, row.missing);
                assert_eq!(reply.status, 404, "{what}, no such VM: {reply:?}");
                let stranger = send(&gateway.client("stranger"), method, row.path);
                assert_eq!(stranger.status, 404, "{what}, no grant: {stranger:?}");
                if method != "HEAD" {
                    assert_eq!(
                        stranger.code(),
                        reply.code(),
                        "{what}: missing and hidden look alike"
                    );
                }
            }
        }
        let wrong = alice.send("PATCH", row.path, None);
        assert_eq!(wrong.status, 405, "PATCH {}", row.path);
        assert_eq!(wrong.header("allow"), row.allow, "PATCH {}", row.path);
        let options = gateway.bare().send("OPTIONS", row.path, None);
        assert_eq!(options.status, 204, "OPTIONS {}: {options:?}", row.path);
        assert_eq!(options.header("allow"), row.allow, "OPTIONS {}", row.path);
        let trace = alice.send("TRACE", row.path, None);
        assert_eq!(trace.status, 405, "TRACE {}", row.path);
    }
    let nothing = alice.get("/nothing/here");
    assert_eq!(nothing.status, 404, "{nothing:?}");
}

#[apply(test)]
fn who_may_restore_may_not_delete() {
    let gateway = Gateway::start(SIM);
    let carol = gateway.client("carol");
    let path = "/vms/1/backups/456";
    assert_eq!(carol.get(path).status, 200, "may read");
    let refused = [
        carol.delete(path),
        carol.put(path, r#"{"tags": []}"#),
        carol.put(path, r#"{"protected": true}"#),
        carol.post("/vms/1/backups", r#"{"name": "n"}"#),
    ];
    for reply in refused {
        assert_eq!(reply.status, 403, "sees it and may not: {reply:?}");
    }
    assert_eq!(
        carol.get("/vms/2/backups/456").status,
        404,
        "another VM is not even there"
    );
    let restored = carol.post(&format!("{path}/restore"), "");
    assert_eq!(
        carol.finished(&restored.status_uri())["status"],
        200,
        "may restore"
    );
    let alice = gateway.client("alice").get(&restored.status_uri());
    assert_eq!(alice.status, 200, "an observer sees it");
    let stranger = gateway.client("stranger").get(&restored.status_uri());
    assert_eq!(stranger.status, 404, "others do not");
}
