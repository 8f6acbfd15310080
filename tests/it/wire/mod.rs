//! Rows of the wire contract against a gateway over a socket.

pub(crate) mod changes;

use serde_json::Value;
use serde_json::json;

use crate::client::Client;
use crate::client::Reply;
use crate::client::basic;
use crate::client::raw;
use crate::harness::Gateway;
use crate::harness::SIM;

pub(crate) const BACKUP: &str = "/vms/1/backups/456";

const BACKUP_TYPE: &str = "application/vnd.com.sun.cloud.Backup+json";

const STATUS_TYPE: &str = "application/vnd.com.sun.cloud.Status+json";

const VERSION: &str = "X-Cloud-Client-Specification-Version";

/// What a refusal must look like whatever it is about.
pub(crate) fn refused(reply: &Reply, status: u16, code: &str, name: &str) {
    assert_eq!(
        (reply.status, reply.code().as_str()),
        (status, code),
        "{name}: {reply:?}"
    );
    let body = reply.json();
    assert_eq!(body["status"], status, "{name}: a problem document");
    assert_eq!(
        body["message"][0]["severity"], "SEVERE",
        "{name}: a Messages document"
    );
    assert!(
        body["message"][0]["text"]
            .as_str()
            .is_some_and(|text| !text.is_empty()),
        "{name}: a sentence"
    );
    assert_eq!(
        body["instance"],
        reply.header("x-request-id"),
        "{name}: the request's id"
    );
}

#[apply(test)]
fn specification_versions() {
    let gateway = Gateway::start(SIM);
    let client = Client::bare(gateway.api).with("Authorization", &basic("alice", "secret"));
    let compute = "X-Compute-Client-Specification-Version";
    let third = "X-Cloud-Specification-Version";
    // (name, headers, what comes back: the version or the code)
    let rows: &[(&str, &[(&str, &str)], Result<&str, &str>)] = &[
        ("first name", &[(VERSION, "0.1")], Ok("0.1")),
        ("second name", &[(compute, "0.2")], Ok("0.2")),
        ("third name", &[(third, "0.8")], Ok("0.8")),
        (
            "name in another case",
            &[("x-CLOUD-client-specification-VERSION", "0.1")],
            Ok("0.1"),
        ),
        (
            "first supported of a list",
            &[(VERSION, "9.9, 0.8 ,0.1")],
            Ok("0.8"),
        ),
        (
            "two names that agree",
            &[(VERSION, "0.1"), (compute, "0.1")],
            Ok("0.1"),
        ),
        (
            "two lines of one name",
            &[(VERSION, "7"), (VERSION, "0.2")],
            Ok("0.2"),
        ),
        (
            "two names that disagree",
            &[(VERSION, "0.1"), (compute, "0.2")],
            Err("ConflictingSpecificationVersion"),
        ),
        ("none", &[], Err("MissingSpecificationVersion")),
        (
            "empty",
            &[(VERSION, "")],
            Err("MalformedSpecificationVersion"),
        ),
        (
            "not a number",
            &[(VERSION, "v1")],
            Err("MalformedSpecificationVersion"),
        ),
        (
            "four parts",
            &[(VERSION, "0.1.2.3")],
            Err("MalformedSpecificationVersion"),
        ),
        (
            "too long",
            &[(
                VERSION,
                "0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4",
            )],
            Err("MalformedSpecificationVersion"),
        ),
        (
            "unsupported",
            &[(VERSION, "1.0")],
            Err("UnsupportedSpecificationVersion"),
        ),
    ];
    for (name, headers, expected) in rows {
        let client = headers.iter().fold(client.clone(), |client, (key, value)| {
            client.with(key, value)
        });
        let reply = client.get(BACKUP);
        match expected {
            Ok(version) => {
                assert_eq!(reply.status, 200, "{name}: {reply:?}");
                assert_eq!(
                    reply.header("x-cloud-specification-version"),
                    *version,
                    "{name}: echoed"
                );
                let vary = reply.header("vary").to_ascii_lowercase();
                for header in [VERSION, compute, third] {
                    assert!(
                        vary.contains(&header.to_ascii_lowercase()),
                        "{name}: Vary names {header}: {vary}"
                    );
                }
            }
            Err(code) => refused(&reply, 400, code, name),
        }
    }
    let assumed = Gateway::start(&format!(
        "{SIM}\n[specification]\non_missing = \"assume-current\"\n"
    ));
    let reply = Client::bare(assumed.api)
        .with("Authorization", &basic("alice", "secret"))
        .get(BACKUP);
    assert_eq!(reply.status, 200, "the permissive reading: {reply:?}");
    assert_eq!(
        reply.header("x-cloud-specification-version"),
        "0.8",
        "the newest"
    );
}

#[apply(test)]
fn accept_and_content_types() {
    let gateway = Gateway::start(SIM);
    let alice = gateway.client("alice");
    // (Accept, type of the answer; none when it is 406)
    let gets: &[(Option<&str>, Option<&str>)] = &[
        (None, Some(BACKUP_TYPE)),
        (Some("*/*"), Some(BACKUP_TYPE)),
        (Some("application/*"), Some(BACKUP_TYPE)),
        (
            Some("APPLICATION/VND.COM.SUN.CLOUD.BACKUP+JSON"),
            Some(BACKUP_TYPE),
        ),
        (
            Some("application/vnd.com.sun.cloud.VM+json"),
            Some(BACKUP_TYPE),
        ),
        (Some("application/json"), Some("application/json")),
        (
            Some("application/json;q=0.5, application/vnd.com.sun.cloud.Backup+json;q=0.4"),
            Some("application/json"),
        ),
        (Some("application/json;q=0, */*"), Some(BACKUP_TYPE)),
        (
            Some("text/html, application/json;q=0.1"),
            Some("application/json"),
        ),
        (Some("text/html"), None),
        (Some("application/vnd.com.sun.cloud.Backup+json;q=0"), None),
    ];
    for (accept, expected) in gets {
        let client = accept.map_or(alice.clone(), |value| alice.with("Accept", value));
        let reply = client.get(BACKUP);
        match expected {
            Some(media) => {
                assert_eq!(reply.status, 200, "{accept:?}: {reply:?}");
                assert_eq!(reply.header("content-type"), *media, "{accept:?}");
            }
            None => refused(&reply, 406, "NotAcceptable", &format!("{accept:?}")),
        }
    }
    refused(
        &alice.with("Accept", "application/json;q=2").get(BACKUP),
        400,
        "MalformedAccept",
        "q above 1",
    );

    // (Content-Type, body, status)
    let puts: &[(Option<&str>, u16)] = &[
        (Some(BACKUP_TYPE), 202),
        (Some("application/vnd.com.sun.Backup.VM+json"), 202),
        (Some("application/json"), 202),
        (Some("application/json; charset=utf-8"), 202),
        (Some("Application/JSON; Charset=\"UTF-8\""), 202),
        (Some("application/json; charset=latin1"), 415),
        (Some("text/plain"), 415),
        (None, 415),
    ];
    for (media, status) in puts {
        let client = media.map_or(alice.clone(), |value| alice.with("Content-Type", value));
        let reply = client.send("PUT", BACKUP, Some(br#"{"description": "d"}"#));
        assert_eq!(reply.status, *status, "{media:?}: {reply:?}");
        if *status == 415 {
            assert!(
                reply.header("accept").contains("json"),
                "{media:?}: names what is taken"
            );
        }
    }
    let strict = alice
        .with("Prefer", "handling=strict")
        .with("Content-Type", "application/vnd.com.sun.Backup.VM+json");
    let reply = strict.send("PUT", BACKUP, Some(br#"{"description": "d"}"#));
    refused(
        &reply,
        415,
        "UnsupportedMediaType",
        "the slip is not taken when strict",
    );
}

#[apply(test)]
fn bodies() {
    let gateway = Gateway::start(SIM);
    let alice = gateway.client("alice");
    let strict = alice.with("Prefer", "handling=strict");
    let deep = format!("{{\"tags\": {}{}}}", "[".repeat(40), "]".repeat(40));
    let long = format!("{{\"description\": \"{}\"}}", "x".repeat(5000));
    let many = format!("{{\"tags\": [{}]}}", vec!["\"t\""; 65].join(","));
    let large = format!("{{\"description\": \"{}\"}}", "x".repeat(70_000));
    let rows: &[(&str, &str, u16, &str)] = &[
        ("empty object", "{}", 400, "NothingToUpdate"),
        (
            "read-only members only",
            r#"{"uri": "x", "state": "ERROR"}"#,
            400,
            "NothingToUpdate",
        ),
        ("not JSON", "tags", 400, "MalformedJson"),
        ("not an object", "[]", 400, "MalformedJson"),
        ("trailing data", r#"{"tags": []} x"#, 400, "MalformedJson"),
        (
            "duplicate key",
            r#"{"tags": [], "tags": ["a"]}"#,
            400,
            "MalformedJson",
        ),
        ("too deep", &deep, 400, "MalformedJson"),
        ("name null", r#"{"name": null}"#, 400, "InvalidMember"),
        ("name empty", r#"{"name": ""}"#, 400, "InvalidMember"),
        (
            "name of another type",
            r#"{"name": 1}"#,
            400,
            "InvalidMember",
        ),
        ("tags not strings", r#"{"tags": [1]}"#, 400, "InvalidMember"),
        ("too many tags", &many, 400, "InvalidMember"),
        ("description too long", &long, 400, "InvalidMember"),
        ("too large", &large, 413, "BodyTooLarge"),
    ];
    for (name, body, status, code) in rows {
        refused(&alice.put(BACKUP, body), *status, code, name);
    }
    let before = alice.get(BACKUP).json();
    let mut edited = before.clone();
    edited["description"] = json!("edited");
    edited["tags"] = json!(["a"]);
    let reply = alice.put(BACKUP, &edited.to_string());
    assert_eq!(reply.status, 202, "GET, edit, PUT works: {reply:?}");
    let after = alice.get(BACKUP).json();
    assert_eq!(after["description"], "edited", "{after}");
    refused(
        &strict.put(BACKUP, &edited.to_string()),
        400,
        "UnknownMember",
        "read-only when strict",
    );
    refused(
        &strict.put(BACKUP, r#"{"colour": 1}"#),
        400,
        "UnknownMember",
        "unknown when strict",
    );
    let reply = strict.put(BACKUP, r#"{"tags": null, "description": null}"#);
    assert_eq!(reply.status, 202, "{reply:?}");
    assert!(
        reply
            .header("preference-applied")
            .contains("handling=strict"),
        "{reply:?}"
    );
    let cleared = alice.get(BACKUP).json();
    assert_eq!(cleared["name"], before["name"], "kept");
    assert!(
        cleared["tags"].as_array().is_none_or(Vec::is_empty),
        "cleared: {cleared}"
    );
    let unsized_put = format!(
        "PUT {BACKUP} HTTP/1.1\r\nHost: x\r\nAuthorization: {}\r\n{VERSION}: 0.1\r\nContent-Type: application/json\r\n\r\n",
        basic("alice", "secret")
    );
    refused(
        &raw(gateway.api, unsized_put.as_bytes(), false),
        411,
        "LengthRequired",
        "no length",
    );
    refused(
        &alice.post(&format!("{BACKUP}/restore"), r#"{"note": 1}"#),
        400,
        "InvalidMember",
        "a note is text",
    );
    let form = alice.with("Content-Type", "application/x-www-form-urlencoded");
    let reply = form.send(
        "POST",
        &format!("{BACKUP}/restore"),
        Some(b"note=as+a%20form"),
    );
    assert_eq!(reply.status, 202, "a form: {reply:?}");
    let reply = alice.send("POST", &format!("{BACKUP}/restore"), Some(b""));
    assert_eq!(reply.status, 202, "an empty body needs no type: {reply:?}");
}

#[apply(test)]
fn statuses() {
    let gateway = Gateway::start(SIM);
    let alice = gateway.client("alice");
    let reply = alice.post(&format!("{BACKUP}/restore"), "");
    assert_eq!(reply.header("content-type"), STATUS_TYPE, "its type");
    let first = reply.json();
    assert_eq!(first["progress"], 0, "{first}");
    assert!(
        first.get("status").is_none() && first.get("message").is_none(),
        "not before 100: {first}"
    );
    assert_eq!(
        reply.header("content-location"),
        first["status_uri"].as_str().unwrap(),
        "where it is"
    );
    assert_eq!(reply.header("cache-control"), "no-store", "{reply:?}");
    assert!(!reply.header("retry-after").is_empty(), "{reply:?}");
    let uri = reply.status_uri();
    let last = alice.finished(&uri);
    assert_eq!(last["state"], "SUCCESS", "{last}");
    assert_eq!(last["status"], 200, "{last}");
    for member in ["created", "started", "completed", "expires", "message"] {
        assert!(
            last[member].as_str().is_some_and(|text| !text.is_empty()),
            "{member}: {last}"
        );
    }
    let again = alice.get(&uri);
    let tag = again.header("etag").to_owned();
    assert!(
        again.header("retry-after").is_empty(),
        "finished: {again:?}"
    );
    let same = alice.with("If-None-Match", &tag).get(&uri);
    assert_eq!(same.status, 304, "unchanged: {same:?}");
    assert_eq!(same.header("etag"), tag, "a 304 carries the tag");

    // The number decides, and what is said beside it must agree.
    let seq = uri.split("seq=").nth(1).unwrap();
    assert_eq!(
        alice.get(&format!("/statuses?seq={seq}")).json(),
        last,
        "by number alone"
    );
    let disagree = alice.get(&format!("/statuses?op=delete-Backup&seq={seq}"));
    assert_eq!(disagree.status, 404, "{disagree:?}");
    assert_eq!(alice.get("/statuses?seq=1").status, 404, "never issued");
    assert_eq!(alice.get("/statuses?seq=x").status, 400, "not a number");
    alice.post("/vms/2/backups/456/restore", "").status_uri();
    let ambiguous = alice.get("/statuses?op=RESTORE-backup&b=456");
    refused(&ambiguous, 400, "AmbiguousStatus", "two VMs");
    let newest = alice.get("/statuses?op=RESTORE-backup&b=456&vm=1").json();
    assert_eq!(newest["status_uri"], last["status_uri"], "in any case");

    // A list of the caller's own, newest first, in pages.
    for number in 0..5 {
        let reply = alice.put(BACKUP, &format!("{{\"tags\": [\"{number}\"]}}"));
        assert_eq!(reply.json()["progress"], 100, "{reply:?}");
    }
    let mut seen: Vec<Value> = Vec::new();
    let mut path = "/statuses?limit=3".to_owned();
    loop {
        let page = alice.get(&path);
        assert_eq!(page.status, 200, "{page:?}");
        seen.extend(page.json()["statuses"].as_array().unwrap().clone());
        let Some(next) = page.header("link").split(['<', '>']).nth(1) else {
            break;
        };
        path = next.to_owned();
    }
    assert_eq!(seen.len(), 7, "each once: {seen:?}");
    let carol = gateway.client("carol").get("/statuses").json();
    assert_eq!(carol["statuses"], json!([]), "her own: none");
    for bad in [
        "/statuses?limit=0",
        "/statuses?limit=x",
        "/statuses?before=x",
    ] {
        assert_eq!(alice.get(bad).status, 400, "{bad}");
    }
}

#[apply(test)]
fn paths_are_never_normalised() {
    let gateway = Gateway::start(SIM);
    let alice = gateway.client("alice");
    let rows = [
        ("//vms/1", 404),
        ("/vms/1/", 404),
        ("/vms/./1", 404),
        ("/vms/1/../1", 404),
        ("/vms/%2e%2e/backups/456", 404),
        ("/vms/1%2Fbackups%2F456", 404),
        ("/vms/1/backups/45%36", 200),
        ("/vms/1/backups/%zz", 400),
        ("/vms/1/backups/%00", 404),
        ("/vms/1/backups/%ff", 400),
        ("/VMS/1", 404),
    ];
    for (path, status) in rows {
        let reply = alice.get(path);
        assert_eq!(reply.status, status, "{path}: {reply:?}");
    }
    let long = format!("/vms/{}", "x".repeat(300));
    assert!(
        [400, 404].contains(&alice.get(&long).status),
        "an id that cannot be"
    );
    assert_eq!(
        alice.get(&format!("/vms/1?{}", "x".repeat(9000))).status,
        414,
        "a target that long"
    );
    assert_eq!(
        alice.with("X-Long", &"x".repeat(40_000)).get(BACKUP).status,
        431,
        "a head that large"
    );
}

#[apply(test)]
fn the_other_resources() {
    let gateway = Gateway::start(SIM);
    let alice = gateway.client("alice");
    let vm = alice.get("/vms/1").json();
    assert_eq!(vm["uri"], format!("http://{}/vms/1", gateway.api), "{vm}");
    assert!(vm["back_up"].as_str().unwrap().contains("back_up"), "{vm}");
    assert_eq!(vm["backups"].as_array().unwrap().len(), 1, "nested: {vm}");
    let list = alice.get("/vms/1/backups").json();
    assert_eq!(list["backups"], vm["backups"], "the same backups");
    for path in ["/versions", "/version"] {
        let reply = gateway.bare().get(path);
        assert_eq!(reply.status, 200, "needs nothing: {reply:?}");
        assert_eq!(
            reply.header("content-type"),
            "application/vnd.com.sun.cloud.common.Version+json",
            "{path}"
        );
        assert_eq!(
            reply.json()["implementation_version"],
            env!("CARGO_PKG_VERSION"),
            "{path}"
        );
    }
    let head = alice.send("HEAD", BACKUP, None);
    let get = alice.get(BACKUP);
    assert_eq!(
        head.header("content-length"),
        get.header("content-length"),
        "HEAD is GET"
    );
    assert_eq!(head.header("etag"), get.header("etag"), "HEAD is GET");
}
