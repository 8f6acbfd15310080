//! The source's examples, every refusal, the order of checks, and what only shows in the whole walk.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::gate::authn::VERIFIED;
use crate::gate::tests::rig::Rig;
use crate::gate::tests::rig::backup;
use crate::gate::tests::rig::header;
use crate::gate::tests::rig::json;
use crate::gate::tests::rig::status;
use crate::gate::tests::rig::target;
use crate::gate::*;
use crate::model::BackupState;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::operations::AcceptError;
use crate::operations::Capability;
use crate::operations::StoreFault;
use crate::operations::memory_operations::full_capability;

const B: &str = "/vms/33333/backups/456";
const TAGS: &str = "\n\n{\"tags\":[\"foo\",\"bar\"]}";
const POST: &str = "POST /back_up?vm=33333\nas: ann\nv\nContent-Type: application/json";
const PUT: &str = "PUT /vms/33333/backups/456\nas: ann\nv\nContent-Type: application/json";

#[tokio::test]
async fn the_examples_of_the_source_work_as_written() {
    let rig = Rig::new();
    rig.operations.state().ends_when_awaited = true;
    let get = "GET /vms/33333/backups/456\nas: ann\nAccept: application/vnd.com.sun.cloud.Backup+json\nX-Cloud-Client-Specification-Version: 0.1";
    let found = rig.send(get).await;
    assert_eq!(status(&found), 200, "GET");
    assert_eq!(
        header(&found, "content-type"),
        "application/vnd.com.sun.cloud.Backup+json",
        "type"
    );
    let body = json(&found);
    assert_eq!(
        body["uri"], "http://example.com/vms/33333/backups/456",
        "uri"
    );
    assert_eq!(
        body["restore"], "http://example.com/vms/33333/backups/456/restore",
        "restore"
    );
    assert_eq!(
        header(&found, "x-cloud-specification-version"),
        "0.1",
        "echo"
    );

    let put = format!(
        "PUT {B}\nas: ann\nAccept: application/vnd.com.sun.cloud.Backup+json\nContent-Type: application/vnd.com.sun.Backup.VM+json\nX-Cloud-Client-Specification-Version: 0.1{TAGS}"
    );
    let found = rig.send(&put).await;
    assert_eq!(status(&found), 202, "PUT");
    let text = str::from_utf8(found.response.body()).unwrap();
    let start = r#"{"op":"update-Backup","progress":100,"target_uri":"/vms/33333/backups/456","status_uri":"/statuses?op=update-backup&seq=1","seq":"1","status":200,"message":"#;
    assert!(text.starts_with(start), "members in order: {text}");
}

#[tokio::test]
async fn the_other_examples_of_the_source_work_as_written() {
    let rig = Rig::new();
    let delete =
        "DELETE /vms/333333/backups/456\nas: ann\nX-Compute-Client-Specification-Version: 0.1";
    let found = rig.send(delete).await;
    assert_eq!(status(&found), 202, "DELETE");
    let body = json(&found);
    assert_eq!(body["op"], "delete-Backup", "op");
    assert_eq!(body["progress"], 0, "just accepted");
    assert_eq!(
        body["status_uri"], "/statuses?op=delete-Backup&backup=456&seq=1",
        "status_uri"
    );
    assert_eq!(body.get("status"), None, "not before the end");
    assert_eq!(
        header(&found, "location"),
        "/statuses?op=delete-Backup&backup=456&seq=1",
        "Location"
    );
    let again = rig.send(delete).await;
    assert_eq!(
        json(&again)["status_uri"],
        body["status_uri"],
        "joins the first"
    );
    assert_eq!(
        again.audit.unwrap().outcome,
        AuditOutcome::Joined,
        "and says so"
    );

    let restore = format!(
        "POST {B}/restore\nas: ann\nContent-Type: application/json\nX-Compute-Client-Specification-Version: 0.1\n\n{{\"note\" : \"Restore to known state\"}}"
    );
    let found = rig.send(&restore).await;
    assert_eq!(status(&found), 202, "restore");
    assert_eq!(
        json(&found)["status_uri"],
        "/statuses?op=restore-Backup&vm=33333&b=456&seq=2",
        "status_uri"
    );
    let audit = found.audit.unwrap();
    assert_eq!(
        audit.note.unwrap().as_str(),
        "Restore to known state",
        "note"
    );
    assert_eq!(audit.outcome, AuditOutcome::Accepted, "outcome");
    assert_eq!(audit.principal.unwrap().as_str(), "ann", "who");
    assert_eq!(audit.backend.unwrap().as_str(), "hidden-backend", "where");
}

#[tokio::test]
async fn creates_are_taken_on_three_paths_and_found_by_their_status() {
    let rig = Rig::new();
    for (number, path) in [
        "/back_up?vm=33333",
        "/back-up?vm=33333",
        "/vms/33333/backups",
    ]
    .iter()
    .enumerate()
    {
        let request = format!(
            "POST {path}\nas: ann\nv\nContent-Type: application/vnd.com.sun.cloud.Backup+json\n\n{{\"name\":\"n{number}\"}}"
        );
        let found = rig.send(&request).await;
        assert_eq!(status(&found), 202, "{path}");
        let body = json(&found);
        let seq = number + 1;
        assert_eq!(body["op"], "back_up", "{path}");
        assert_eq!(
            body["target_uri"],
            format!("/vms/33333/backups/new-{seq}"),
            "{path}"
        );
        let uri = body["status_uri"].as_str().unwrap();
        let seen = rig.send(&format!("GET {uri}\nas: ann")).await;
        assert_eq!((status(&seen), json(&seen)), (200, body.clone()), "{uri}");
        assert_eq!(header(&seen, "etag"), format!("\"{seq}-1\""), "{uri}");
        let known = rig
            .send(&format!("GET {uri}\nas: ann\nIf-None-Match: \"{seq}-1\""))
            .await;
        assert_eq!(status(&known), 304, "{uri}");
        let other = rig.send(&format!("GET {uri}\nas: stranger")).await;
        assert_eq!(
            other.refusal,
            Some("NoSuchStatus"),
            "none of that caller's business"
        );
    }
    let list = rig.send("GET /statuses?limit=2\nas: ann").await;
    assert_eq!(
        json(&list)["statuses"].as_array().unwrap().len(),
        2,
        "a page"
    );
    let next = header(&list, "link");
    assert!(
        next.starts_with("</statuses?limit=2&cursor="),
        "next: {next}"
    );
    let old = rig.send("GET /statuses?limit=2&before=2\nas: ann").await;
    let next = next.split(['<', '>']).nth(1).unwrap();
    let next = rig.send(&format!("GET {next}\nas: ann")).await;
    assert_eq!(json(&next), json(&old), "the cursor of the first edition");
    assert_eq!(
        json(&old)["statuses"][0]["status_uri"],
        "/statuses?op=back_up&vm=33333&b=new-1&seq=1",
        "behind number 2"
    );
    let bare = rig.send("GET /statuses?op=BACK_UP&b=new-2\nas: ann").await;
    assert_eq!(
        json(&bare)["status_uri"],
        "/statuses?op=back_up&vm=33333&b=new-2&seq=2",
        "without seq"
    );
}

/// Sends one request and returns its code.
async fn code(rig: &Rig, request: &str) -> &'static str {
    let found = rig.send(request).await;
    let Some(code) = found.refusal else {
        panic!("{request} was not refused");
    };
    assert_eq!(json(&found)["message"][0]["code"], code, "{request}");
    assert_eq!(
        json(&found)["instance"],
        found.request.as_str(),
        "{request}"
    );
    let text = str::from_utf8(found.response.body()).unwrap();
    assert!(
        !text.contains("hidden-backend") && !text.contains("/srv"),
        "{text}"
    );
    code
}

/// Requests and the codes they are refused with; of two errors in one request the earlier check decides.
const REFUSED: &[(&str, &str)] = &[
    (
        "POST /vms/33333/backups/456/restore\nas: ann\nv\nAccept: text/html\nContent-Length: 2\n\n{}",
        "UnsupportedMediaType",
    ),
    (
        "POST /vms/33333/backups/456/restore\nas: ann\nv\n\n{}",
        "UnsupportedMediaType",
    ),
    ("GET /vms/33333?a={}", "MalformedTarget"),
    ("GET /x\nno-host", "MalformedHost"),
    ("GET /x\nHost: a", "MalformedHost"),
    ("GET /x\nno-host\nHost: a b", "MalformedHost"),
    (
        "GET /x\nContent-Length: 1\nContent-Length: 1",
        "MalformedRequest",
    ),
    (
        "GET /x\nContent-Length: 1\nTransfer-Encoding: chunked",
        "MalformedRequest",
    ),
    ("GET /x\nContent-Length: +1", "MalformedRequest"),
    ("GET /x\nContent-Length: 65537", "BodyTooLarge"),
    ("GET /%zz", "MalformedTarget"),
    ("GET *", "MalformedTarget"),
    ("PATCH /nowhere", "NoSuchRoute"),
    ("PATCH /vms/1/backups/2", "MethodNotAllowed"),
    ("TRACE /nowhere", "MethodNotAllowed"),
    ("CONNECT h:1", "MethodNotAllowed"),
    (
        "DELETE /vms/33333/backups/456\nOrigin: https://evil.example",
        "CrossSite",
    ),
    (
        "GET /vms/1/backups/2\nX-Cloud-Specification-Version: x",
        "Unauthenticated",
    ),
    (
        "GET /vms/1/backups/2\nas: ann\nas: ann\nv",
        "Unauthenticated",
    ),
    (
        "GET /vms/none/backups/2\nas: stranger",
        "MissingSpecificationVersion",
    ),
    (
        "GET /vms/1/backups/2\nas: stranger\nX-Cloud-Specification-Version: x",
        "MalformedSpecificationVersion",
    ),
    (
        "GET /vms/1/backups/2\nas: ann\nv\nX-Cloud-Specification-Version: 0.2",
        "ConflictingSpecificationVersion",
    ),
    (
        "GET /vms/1/backups/2\nas: ann\nX-Cloud-Specification-Version: 7",
        "UnsupportedSpecificationVersion",
    ),
    (
        "GET /statuses?seq=1\nas: ann\nX-Cloud-Specification-Version: 7",
        "UnsupportedSpecificationVersion",
    ),
    (
        "GET /vms/77/backups/2\nas: ann\nv\nAccept: text/html",
        "NoSuchVm",
    ),
    (
        "GET /vms/33333/backups/2\nas: stranger\nv\nAccept: text/html",
        "NoSuchVm",
    ),
    (
        "DELETE /vms/33333/backups/nope\nas: reader\nv\nAccept: text/html",
        "NotPermitted",
    ),
    (
        "PUT /vms/33333/backups/456\nas: ann\nv\nAccept: text/html\nContent-Type: text/plain",
        "UnsupportedMediaType",
    ),
    (
        "PUT /vms/33333/backups/456\nas: ann\nv\nAccept: text/html",
        "LengthRequired",
    ),
    (
        "PUT /vms/33333/backups/456\nas: ann\nv\n\n{",
        "UnsupportedMediaType",
    ),
    (
        "GET /vms/33333/backups/nope\nas: ann\nv\nAccept: text/html",
        "NotAcceptable",
    ),
    (
        "GET /vms/33333/backups/nope\nas: ann\nv\nAccept: html",
        "MalformedAccept",
    ),
    ("GET /vms/33333/backups/nope\nas: ann\nv", "NoSuchBackup"),
    ("$PUT\nAccept: text/html\n\n{", "NotAcceptable"),
    ("$PUT\nIf-Match: \"x\"\n\n{", "MalformedJson"),
    ("$PUT\nIf-Match: \"x\"\n\n{}", "NothingToUpdate"),
    ("$PUT\nIf-Match: \"x\"\n\n{\"tags\":1}", "InvalidMember"),
    (
        "$PUT\nPrefer: handling=strict\n\n{\"uri\":1}",
        "UnknownMember",
    ),
    ("$PUT\nIf-Match: \"x\"$TAGS", "PreconditionFailed"),
    (
        "DELETE /vms/33333/backups/456\nas: ann\nv\nIf-Plan: \"00\"",
        "PlanStale",
    ),
    (
        "$PUT\nContent-Encoding: gzip\nAccept: text/html$TAGS",
        "UnsupportedMediaType",
    ),
    (
        "$PUT\nContent-Range: bytes 0-1/9\nAccept: text/html$TAGS",
        "PartialContent",
    ),
    ("$PUT\nIdempotency-Key: a b$TAGS", "MalformedIdempotencyKey"),
    ("$PUT\nPrefer: wait=abc$TAGS", "MalformedPrefer"),
    (
        "GET /statuses?seq=1\nas: ann\nAccept: text/event-stream\nLast-Event-ID: x",
        "MalformedLastEventId",
    ),
    (
        "$PUT\nAccept: application/vnd.com.sun.cloud.Backup+json\nPrefer: handling=strict$TAGS",
        "NotAcceptable",
    ),
    ("POST /back_up\nas: ann\nv", "MissingParameter"),
    ("POST /back_up?vm=..\nas: ann\nv", "InvalidParameter"),
    ("$POST\n\n{}", "MissingMember"),
    ("$POST\n\n{\"name\":\"web01_YYYYMMDD\"}", "NameTaken"),
    (
        "$POST\n\n{\"name\":\"x\",\"type\":\"snapshot\"}",
        "Unsupported",
    ),
    (
        "POST /vms/33333/backups/456/restore\nas: ann\nv\nContent-Type: application/x-www-form-urlencoded\n\na=%ff",
        "MalformedForm",
    ),
    (
        "GET /vms/33333/backups?limit=0\nas: ann\nv",
        "InvalidParameter",
    ),
    ("GET /statuses?seq=x\nas: ann", "InvalidParameter"),
    ("GET /statuses?seq=99\nas: ann", "NoSuchStatus"),
];

#[tokio::test]
async fn invalid_requests_are_refused_and_the_earlier_check_wins() {
    let rig = Rig::new();
    let long = format!("GET /{}", "x".repeat(9000));
    let many = format!("GET {B}{}", "\nX-A: b".repeat(101));
    let sized = [
        (long.as_str(), "TargetTooLong"),
        (many.as_str(), "HeadersTooLarge"),
    ];
    let mut seen = BTreeSet::new();
    for (request, expected) in sized.iter().chain(REFUSED) {
        let request = request.replace("$PUT", PUT).replace("$TAGS", TAGS);
        let request = request.replace("$POST", POST);
        assert_eq!(code(&rig, &request).await, *expected, "{request}");
        seen.insert(*expected);
    }
    assert!(
        rig.operations.state().operations.is_empty(),
        "nothing was accepted"
    );
    seen.extend(faults().await);
    seen.extend(states().await);
    // Of what is passed on; see `passthrough.rs`.
    seen.extend(["BadGateway", "NoUpstream", "GatewayTimeout"]);
    // Of what one client may ask for; see `limits.rs`.
    seen.extend([
        "RateLimited",
        "TooManyAtOnce",
        "TooManyAttempts",
        "LoginQueueFull",
    ]);
    // Of issuers; see `bearer.rs`.
    seen.insert("KeysUnavailable");
    // Of clusters; see `tests/it/cluster`.
    seen.extend(["Standby", "ActiveGatewayLost"]);
    // Of HTTP/2; see `tests/it/edge_http2.rs`.
    seen.insert("ExpectationFailed");
    let all: BTreeSet<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
    assert_eq!(seen, all, "left: seen, right: every code");
}

/// Refusals that need the service to be in some state; gives their codes.
async fn faults() -> BTreeSet<&'static str> {
    let mut seen = BTreeSet::new();
    for kind in FaultKind::ALL {
        let rig = Rig::new();
        rig.operations.state().read_fault =
            Some(Fault::new(kind, crate::model::PublicText::default()));
        seen.insert(code(&rig, &format!("GET {B}\nas: ann\nv")).await);
    }
    let accepts = [
        (AcceptError::NotPermitted, "InternalError"),
        (AcceptError::VmQueueFull, "QueueFull"),
        (AcceptError::Stopping, "Stopping"),
        (AcceptError::NotRecorded, "AuditUnavailable"),
        (AcceptError::Store(StoreFault::Failed), "StoreUnavailable"),
    ];
    let delete = format!("DELETE {B}\nas: ann\nv");
    for (error, expected) in accepts {
        let rig = Rig::new();
        rig.operations.state().accept_error = Some(error);
        let found = rig.send(&delete).await;
        assert_eq!(found.refusal, Some(expected), "from accepting");
        assert_eq!(
            found.audit.unwrap().refusal,
            Some(expected),
            "in the audit trail"
        );
        seen.insert(expected);
    }
    for (error, expected) in [
        (BodyError::TooSlow, "BodyTooSlow"),
        (BodyError::Broken, "UnreadableBody"),
    ] {
        let found = Rig::new()
            .send_body(&format!("{PUT}{TAGS}"), Some(error))
            .await;
        assert_eq!((found.refusal, found.close), (Some(expected), true), "body");
        seen.insert(expected);
    }
    seen
}

/// Likewise, by what the service has.
async fn states() -> BTreeSet<&'static str> {
    let delete = format!("DELETE {B}\nas: ann\nv");
    let rig = Rig::new();
    let change = |work: &dyn Fn(&mut crate::model::Backup)| {
        let mut all = rig.operations.state();
        work(all.backups.get_mut(&target("33333", "456")).unwrap());
    };
    change(&|backup| backup.protected = true);
    assert_eq!(code(&rig, &delete).await, "BackupProtected", "protected");
    change(&|backup| backup.state = BackupState::Creating);
    assert_eq!(
        code(&rig, &format!("POST {B}/restore\nas: ann\nv")).await,
        "NotReady",
        "half made"
    );
    assert_eq!(code(&rig, &delete).await, "NotReady", "still being made");
    let put = format!("{PUT}{TAGS}");
    assert_eq!(code(&rig, &put).await, "NotReady", "still being made");
    change(&|backup| backup.state = BackupState::Error);
    let keyed = format!("{PUT}\nIdempotency-Key: \"k\"");
    let first = rig.send(&format!("{keyed}{TAGS}")).await;
    let second = rig.send(&format!("{keyed}{TAGS}")).await;
    assert_eq!(
        (status(&second), second.operation),
        (202, first.operation),
        "replayed"
    );
    let third = code(&rig, &format!("{keyed}\n\n{{\"tags\":[]}}")).await;
    assert_eq!(third, "IdempotencyKeyReused", "another body");
    rig.operations.state().is_ready = false;
    assert_eq!(
        code(&rig, &format!("{PUT}{TAGS}")).await,
        "StoreUnavailable",
        "not ready"
    );
    rig.operations.state().capability = Arc::new(Capability {
        update: None,
        ..full_capability()
    });
    assert_eq!(
        code(&rig, &format!("{PUT}{TAGS}")).await,
        "Unsupported",
        "earlier than not ready"
    );
    let rig = Rig::new();
    rig.send(&format!("DELETE {B}\nas: ann\nv")).await;
    rig.send("DELETE /vms/333333/backups/456\nas: ann\nv").await;
    let form = "GET /statuses?op=delete-Backup&backup=456\nas: ann";
    assert_eq!(code(&rig, form).await, "AmbiguousStatus", "two VMs");
    rig.send("DELETE /statuses?seq=1\nas: ann").await;
    let over = code(&rig, "DELETE /statuses?seq=1\nas: ann").await;
    assert_eq!(over, "NotCancellable", "it is over");
    BTreeSet::from([
        "NotCancellable",
        "BackupProtected",
        "NotReady",
        "IdempotencyKeyReused",
        "AmbiguousStatus",
    ])
}

#[tokio::test]
async fn hidden_resources_are_indistinguishable_from_missing_ones() {
    let rig = Rig::new();
    let mut bodies = BTreeSet::new();
    for path in [
        "33333/backups/456",
        "33333/backups/no",
        "3/backups/456",
        "77/backups/1",
    ] {
        for method in ["GET", "DELETE"] {
            let found = rig
                .send(&format!("{method} /vms/{path}\nas: stranger\nv"))
                .await;
            let mut body = json(&found);
            body["instance"] = "".into();
            bodies.insert(body.to_string());
        }
    }
    assert_eq!(bodies.len(), 1, "{bodies:?}");
}

#[tokio::test]
async fn protection_has_a_permission_of_its_own() {
    let rig = Rig::new();
    let rows = [
        ("shield", "{\"protected\":true}", 202),
        ("shield", "{\"tags\":[]}", 403),
        ("shield", "{\"protected\":true,\"tags\":[]}", 403),
        ("reader", "{\"protected\":true}", 403),
        ("ann", "{\"protected\":true,\"tags\":[]}", 202),
    ];
    for (user, body, expected) in rows {
        let request = format!("PUT {B}\nas: {user}\nv\nContent-Type: application/json\n\n{body}");
        assert_eq!(status(&rig.send(&request).await), expected, "{user} {body}");
    }
}

#[tokio::test]
async fn head_options_and_allow() {
    let rig = Rig::new();
    for path in [
        B,
        "/vms/33333",
        "/vms/33333/backups",
        "/statuses",
        "/versions",
        "/version",
    ] {
        let get = rig.send(&format!("GET {path}\nas: ann\nv")).await;
        let head = rig.send(&format!("HEAD {path}\nas: ann\nv")).await;
        assert_eq!(status(&get), 200, "{path}");
        assert_eq!(status(&head), 200, "{path}");
        assert_eq!(
            header(&head, "content-length"),
            header(&get, "content-length"),
            "{path}"
        );
        assert_eq!(
            header(&get, "content-length"),
            get.response.body().len().to_string(),
            "{path}"
        );
        assert!(
            head.response.body().is_empty() && header(&head, "vary").contains("Accept"),
            "{path}"
        );
        assert_eq!(get.audit, None, "reads are not audited");
    }
    for spec in ROUTES {
        let path = spec.template.replace("{vm}", "1").replace("{b}", "2");
        let options = rig.send(&format!("OPTIONS {path}")).await;
        assert_eq!(
            (status(&options), header(&options, "allow")),
            (204, spec.allow),
            "{path}"
        );
        let patch = rig.send(&format!("PATCH {path}")).await;
        assert_eq!(
            (status(&patch), header(&patch, "allow")),
            (405, spec.allow),
            "{path}"
        );
    }
    let refused = rig.send(&format!("HEAD {B}")).await;
    assert!(refused.response.body().is_empty(), "no body for HEAD");
    assert_eq!(status(&refused), 401, "refused all the same");
}

#[tokio::test]
async fn passwords_are_verified_once_and_unknown_names_cost_as_much() {
    let mut rig = Rig::new();
    let password_checks = || VERIFIED.with(|count| count.replace(0));
    password_checks();
    for (name, user, expected, cost) in [
        ("first", "ann", 200, 1),
        ("again", "ann", 200, 0),
        ("unknown", "ghost", 401, 1),
        ("unknown again", "ghost", 401, 1),
    ] {
        let found = rig.send(&format!("GET {B}\nas: {user}\nv")).await;
        assert_eq!(
            (status(&found), password_checks()),
            (expected, cost),
            "{name}"
        );
    }
    rig.clock.advance(Duration::from_secs(61));
    rig.send(&format!("GET {B}\nas: ann\nv")).await;
    assert_eq!(password_checks(), 1, "forgotten after a while");
    rig.reload(|_| {});
    rig.send(&format!("GET {B}\nas: ann\nv")).await;
    assert_eq!(password_checks(), 0, "a reload keeps the memory");
    rig.reload(|rig| {
        for user in rig.credentials.users.values_mut() {
            user.password = PasswordHash::new(bcrypt::hash("new", 4).unwrap()).unwrap();
        }
    });
    let found = rig.send(&format!("GET {B}\nas: ann\nv")).await;
    assert_eq!(
        (status(&found), password_checks()),
        (401, 1),
        "but not of another password"
    );
    let mut bodies = BTreeSet::new();
    for auth in [
        "",
        "\nas: ghost",
        "\nas: ann",
        "\nAuthorization: Basic xxxxxxxxxxxxxxxxxxx",
    ] {
        let found = rig.send(&format!("GET {B}{auth}\nv")).await;
        let mut body = json(&found);
        body["instance"] = "".into();
        bodies.insert(body.to_string());
        assert_eq!(
            header(&found, "www-authenticate"),
            "Basic realm=\"snapgate\", charset=\"UTF-8\"",
            "{auth}"
        );
    }
    assert_eq!(bodies.len(), 1, "one body for all of them");
}

#[tokio::test]
async fn lists_show_only_what_may_be_read_and_never_name_the_rest() {
    let mut rig = Rig::new();
    for id in ["a1", "b1", "a2", "b2", "a3"] {
        rig.operations
            .state()
            .backups
            .insert(target("33333", id), backup(id, id));
    }
    rig.reload(|rig| {
        rig.grants[1].backups = vec![crate::model::Pattern::new("a*").unwrap()];
    });
    let first = rig
        .send("GET /vms/33333/backups?limit=2\nas: reader\nv")
        .await;
    let next = header(&first, "link");
    let next = next
        .strip_prefix('<')
        .and_then(|next| next.split('>').next());
    let next = next.unwrap_or_default();
    for path in [next, "/vms/33333/backups?limit=2&after=a2"] {
        let rest = rig.send(&format!("GET {path}\nas: reader\nv")).await;
        let rest_ids = json(&rest)["backups"].as_array().unwrap().len();
        assert_eq!(rest_ids, 1, "only a3: {path}");
        assert_eq!(header(&rest, "link"), "", "and no more: {path}");
    }
    let counted = rig
        .send("GET /vms/33333/backups?limit=2&count=true\nas: reader\nv")
        .await;
    assert_eq!(
        json(&counted)["count"],
        3,
        "what cannot be seen is not counted"
    );
}
