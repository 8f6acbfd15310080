//! Requests of pages of other sites, and which pages may read the answers.

use crate::gate::tests::rig::Rig;
use crate::gate::tests::rig::header;
use crate::gate::tests::rig::json;
use crate::gate::tests::rig::status;
use crate::gate::*;

const RESTORE: &str = "POST /vms/33333/backups/456/restore\nas: ann\nv";

/// A gate at `http://example.com` that allows three other origins.
fn rig() -> Rig {
    let mut rig = Rig::new();
    rig.reload(|config| {
        config.allowed_origins = [
            "https://console.example",
            "http://localhost:3000",
            "https://[::1]:8443",
        ]
        .map(|text| WebOrigin::parse(text).unwrap())
        .to_vec();
    });
    rig
}

#[tokio::test]
async fn only_pages_of_this_site_and_of_allowed_ones_may_change_anything() {
    let rig = rig();
    // header fields, whether the change is accepted
    let rows = [
        ("", true),
        ("Sec-Fetch-Site: same-origin", true),
        ("Sec-Fetch-Site: none", true),
        ("Sec-Fetch-Site: same-site", false),
        ("Sec-Fetch-Site: cross-site", false),
        ("Sec-Fetch-Site: Same-Origin", false),
        ("Sec-Fetch-Site: same-origin, none", false),
        ("Sec-Fetch-Site: ?1", false),
        ("Sec-Fetch-Site:", false),
        ("Sec-Fetch-Site: \u{ff}", false),
        ("Sec-Fetch-Site: none\nSec-Fetch-Site: none", false),
        ("Sec-Fetch-Site: none\nSec-Fetch-Site: cross-site", false),
        ("Origin: http://example.com", true),
        ("Origin: HTTP://EXAMPLE.com:80", true),
        (
            "Origin: http://example.com\nSec-Fetch-Site: same-origin",
            true,
        ),
        (
            "Origin: http://example.com\nSec-Fetch-Site: cross-site",
            false,
        ),
        ("Origin: http://example.com\nSec-Fetch-Site: x", false),
        ("Origin: https://example.com", false),
        ("Origin: http://example.com:8080", false),
        ("Origin: http://example.com.", false),
        ("Origin: http://example.com/", false),
        ("Origin: http://example.com.evil.example", false),
        ("Origin: http://a.example.com", false),
        ("Origin: http://user@example.com", false),
        ("Origin: example.com", false),
        ("Origin: https://evil.example", false),
        (
            "Origin: https://evil.example\nSec-Fetch-Site: same-origin",
            false,
        ),
        ("Origin: https://evil.example\nSec-Fetch-Site: none", false),
        ("Origin: null", false),
        ("Origin: null\nSec-Fetch-Site: same-origin", false),
        ("Origin:", false),
        ("Origin: *", false),
        ("Origin: \u{ff}", false),
        ("Origin: http://example.com http://example.com", false),
        ("Origin: http://example.com, http://example.com", false),
        (
            "Origin: http://example.com\nOrigin: http://example.com",
            false,
        ),
        (
            "Origin: http://example.com\nOrigin: https://evil.example",
            false,
        ),
        ("Origin: https://console.example", true),
        ("Origin: https://console.example:443", true),
        ("Origin: https://CONSOLE.example", true),
        (
            "Origin: https://console.example\nSec-Fetch-Site: cross-site",
            true,
        ),
        (
            "Origin: https://console.example\nSec-Fetch-Site: same-site",
            true,
        ),
        ("Origin: https://console.example\nSec-Fetch-Site: x", false),
        (
            "Origin: https://console.example\nSec-Fetch-Site: none\nSec-Fetch-Site: none",
            false,
        ),
        (
            "Origin: https://console.example\nOrigin: https://console.example",
            false,
        ),
        ("Origin: http://console.example", false),
        ("Origin: https://console.example.", false),
        ("Origin: https://console.example:8443", false),
        ("Origin: http://localhost:3000", true),
        ("Origin: http://localhost", false),
        ("Origin: https://[::1]:8443", true),
        ("Origin: https://[0:0:0:0:0:0:0:1]:8443", true),
        ("Origin: https://[::1]", false),
        ("Origin: https://[::2]:8443", false),
    ];
    for (fields, accepted) in rows {
        let found = rig
            .send(&format!("{RESTORE}\n{fields}").replace("\n\n", "\n"))
            .await;
        let expected = (!accepted).then_some("CrossSite");
        assert_eq!(found.refusal, expected, "{fields:?}");
        assert_eq!(
            status(&found),
            if accepted { 202 } else { 403 },
            "{fields:?}"
        );
        let audit = found.audit.expect("a line of the audit trail");
        assert_eq!(audit.refusal, expected, "{fields:?}: audited");
        assert_eq!(audit.principal.is_some(), accepted, "{fields:?}: who asked");
    }
}

#[tokio::test]
async fn every_change_is_refused_to_other_sites_before_anything_else_is_looked_at() {
    let rig = rig();
    for spec in ROUTES {
        for method in spec.methods() {
            let path = spec.template.replace("{vm}", "33333").replace("{b}", "456");
            let request = format!("{method} {path}\nOrigin: https://evil.example");
            let found = rig.send(&request).await;
            let refused = found.refusal == Some("CrossSite");
            assert_eq!(refused, method != "GET", "{request}: {:?}", found.refusal);
        }
    }
    let evil = "Origin: https://evil.example";
    // The earlier check decides: of route, method, cross-site and credentials.
    let rows = [
        ("POST /nowhere", "NoSuchRoute"),
        ("PATCH /vms/33333/backups/456", "MethodNotAllowed"),
        ("TRACE /vms/33333", "MethodNotAllowed"),
        (
            "DELETE /vms/33333/backups/456\nContent-Length: 65537",
            "BodyTooLarge",
        ),
        ("DELETE /vms/33333/backups/456", "CrossSite"),
        ("DELETE /vms/33333/backups/456\nas: unknown", "CrossSite"),
        ("DELETE /vms/33333/backups/456\nas: ann", "CrossSite"),
        ("DELETE /vms/none/backups/456\nas: stranger\nv", "CrossSite"),
    ];
    for (request, code) in rows {
        let found = rig.send(&format!("{request}\n{evil}")).await;
        assert_eq!(found.refusal, Some(code), "{request}");
    }
    let found = rig.send(&format!("{RESTORE}\n{evil}\n\n{{}}")).await;
    assert_eq!(found.refusal, Some("CrossSite"), "with a body");
    assert!(found.close, "the body is left unread");
    assert_eq!(found.principal, None, "the password is not even verified");
    assert!(
        json(&found)["message"][0]["hint"].is_string(),
        "says what to do"
    );
    assert!(
        rig.operations.state().operations.is_empty(),
        "nothing was accepted"
    );
}

#[tokio::test]
async fn pages_of_other_sites_may_ask_and_only_allowed_ones_may_read_the_answer() {
    let rig = rig();
    // request, status
    let rows = [
        ("GET /versions", 200),
        ("GET /vms/33333/backups/456\nas: ann\nv", 200),
        ("GET /vms/33333/backups/456\nas: ann", 400),
        ("GET /vms/33333/backups/456\nv", 401),
        ("GET /nowhere", 404),
        ("HEAD /vms/33333/backups/456\nas: ann\nv", 200),
        ("GET /statuses\nas: ann", 200),
        ("PATCH /versions", 405),
    ];
    for (request, code) in rows {
        let with = async |origin: &str| rig.send(&format!("{request}\nOrigin: {origin}")).await;
        let found = with("https://console.example").await;
        assert_eq!(status(&found), code, "{request}");
        let allowed = header(&found, "access-control-allow-origin");
        assert_eq!(allowed, "https://console.example", "{request}");
        let exposed = header(&found, "access-control-expose-headers");
        for name in ["Location", "ETag", "Retry-After", "Link", "X-Request-Id"] {
            assert!(exposed.contains(name), "{request}: {name}");
        }
        assert!(header(&found, "vary").contains("Origin"), "{request}: Vary");
        assert_eq!(
            header(&found, "access-control-allow-credentials"),
            "",
            "{request}: scripts send Authorization themselves"
        );
        for origin in ["https://evil.example", "null", "http://example.com", "*"] {
            let found = with(origin).await;
            assert_eq!(status(&found), code, "{request} of {origin}");
            let names = found.response.headers().keys();
            let cors = names.filter(|name| name.as_str().starts_with("access-control"));
            assert_eq!(cors.count(), 0, "{request} of {origin}");
            assert!(
                header(&found, "vary").contains("Origin"),
                "{request}: a cache keeps them apart"
            );
        }
    }
    let alone = Rig::new().send("GET /versions").await;
    assert!(
        !header(&alone, "vary").contains("Origin"),
        "without allowed origins nothing depends on them"
    );
}

#[tokio::test]
async fn accepted_changes_refused_ones_and_streams_can_be_read_by_allowed_pages() {
    let rig = rig();
    rig.operations.state().waits_for_changes = true;
    let from = "Origin: https://console.example\nSec-Fetch-Site: cross-site";
    let rows = [
        (format!("{RESTORE}\n{from}"), 202),
        (
            format!("GET /statuses?seq=1\nas: ann\nAccept: text/event-stream\n{from}"),
            200,
        ),
        (
            format!("{RESTORE}\nOrigin: https://console.example\nSec-Fetch-Site: x"),
            403,
        ),
    ];
    for (request, code) in rows {
        let found = rig.send(&request).await;
        assert_eq!(status(&found), code, "{request}");
        assert_eq!(
            header(&found, "access-control-allow-origin"),
            "https://console.example",
            "{request}"
        );
    }
}

#[tokio::test]
async fn preflights_are_answered_for_allowed_origins_alone() {
    let rig = rig();
    let ask =
        "Access-Control-Request-Method: DELETE\nAccess-Control-Request-Headers: authorization";
    for spec in ROUTES {
        let path = spec.template.replace("{vm}", "33333").replace("{b}", "456");
        let request = format!("OPTIONS {path}\n{ask}\nOrigin: https://console.example");
        let found = rig.send(&request).await;
        assert_eq!(status(&found), 204, "{path}");
        let methods = header(&found, "access-control-allow-methods");
        assert_eq!(methods, spec.allow, "{path}: methods");
        let headers = header(&found, "access-control-allow-headers");
        for name in [
            "Authorization",
            "Content-Type",
            "If-Match",
            "If-None-Match",
            "If-Plan",
            "Idempotency-Key",
            "Prefer",
            "Accept",
            "Last-Event-ID",
            "X-Cloud-Client-Specification-Version",
            "X-Compute-Client-Specification-Version",
            "X-Cloud-Specification-Version",
            "X-Request-Id",
        ] {
            assert!(
                headers.split(", ").any(|known| known == name),
                "{path}: {name}"
            );
        }
        assert_eq!(header(&found, "access-control-max-age"), "600", "{path}");
        assert!(header(&found, "vary").starts_with("Origin"), "{path}: Vary");
    }
    let rows = [
        ("of another site", "Origin: https://evil.example", true),
        ("without an origin", "", true),
        ("not a preflight", "Origin: https://console.example", false),
    ];
    for (name, origin, is_preflight) in rows {
        let ask = if is_preflight { ask } else { "" };
        let request = format!("OPTIONS /vms/33333/backups/456\n{ask}\n{origin}");
        let found = rig.send(request.replace("\n\n", "\n").trim_end()).await;
        assert_eq!(status(&found), 204, "{name}: OPTIONS is never refused");
        assert_eq!(header(&found, "access-control-allow-methods"), "", "{name}");
        assert!(!header(&found, "allow").is_empty(), "{name}: Allow");
    }
}

#[test]
fn the_origin_of_the_public_url_is_that_of_its_pages() {
    let rows = [
        ("https://gw.example", "https://gw.example"),
        ("https://GW.example:443/backups", "https://gw.example"),
        ("http://127.0.0.1:8080/", "http://127.0.0.1:8080"),
        ("http://[::1]:8080", "http://[::1]:8080"),
    ];
    for (url, expected) in rows {
        let origin = PublicUrl::new(url).unwrap().origin();
        assert_eq!(origin.unwrap().to_string(), expected, "{url}");
    }
}
