//! The page at `/ui/`: what its answers carry, and that nothing changes where it is not served.

use crate::gate::tests::rig::Rig;
use crate::gate::tests::rig::header;
use crate::gate::tests::rig::status;
use crate::gate::*;
use crate::model::PassName;

/// As the page promises them, word by word.
const HEADERS: [(&str, &str); 5] = [
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; frame-ancestors 'none'; \
         base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'",
    ),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
];

fn rig() -> Rig {
    let mut rig = Rig::new();
    rig.reload(|config| config.page = true);
    rig
}

fn open_route(name: &str, prefix: &str, hosts: &[&str]) -> PassThroughRoute {
    PassThroughRoute {
        name: PassName::new(name).unwrap(),
        prefix: PathPrefix::new(prefix).unwrap(),
        hosts: hosts.iter().copied().map(str::to_owned).collect(),
        strip: false,
        access: PassThroughAccess::Open,
        methods: PASS_THROUGH_METHODS.to_vec(),
        host: HostRule::Keep,
        authorization: AuthorizationRule::Strip,
        fields: std::sync::Arc::default(),
        upgrade: false,
        body: BodyRule {
            bytes_max: 10,
            pause: std::time::Duration::from_secs(1),
            rate_min: 1,
        },
        pool: PoolId::default(),
    }
}

#[tokio::test]
async fn every_answer_of_the_page_has_its_policy() {
    let rig = rig();
    // request, status, media type, the value of Cache-Control
    let html = "text/html; charset=utf-8";
    let refusal = "application/vnd.com.sun.cloud.common.Messages+json";
    let rows = [
        ("GET /ui/", 200, html, "no-cache"),
        ("HEAD /ui/", 200, html, "no-cache"),
        ("GET /ui/?x=1", 200, html, "no-cache"),
        (
            "GET /ui/page.css",
            200,
            "text/css; charset=utf-8",
            "no-cache",
        ),
        (
            "GET /ui/main.js",
            200,
            "text/javascript; charset=utf-8",
            "no-cache",
        ),
        (
            "GET /ui/icon.svg\nAccept: image/*",
            200,
            "image/svg+xml",
            "no-cache",
        ),
        ("GET /ui", 307, "", "no-cache"),
        ("GET /ui/absent.js", 404, refusal, "no-store"),
        ("GET /ui/index.html", 404, refusal, "no-store"),
        ("GET /ui//", 404, refusal, "no-store"),
        ("GET /ui/../vms", 404, refusal, "no-store"),
        ("GET /ui/%2e%2e/vms", 404, refusal, "no-store"),
        ("POST /ui/\n\nx", 405, refusal, "no-store"),
        ("PUT /ui/page.css\n\nx", 405, refusal, "no-store"),
        ("DELETE /ui/", 405, refusal, "no-store"),
        ("OPTIONS /ui/", 405, refusal, "no-store"),
        ("TRACE /ui/", 405, refusal, "no-store"),
        (
            "GET /ui/\nContent-Length: 1\nTransfer-Encoding: chunked",
            400,
            refusal,
            "no-store",
        ),
        ("GET /ui/\nno-host", 400, refusal, "no-store"),
        ("GET /ui/\nIf-Match: \"x\"", 412, refusal, "no-store"),
    ];
    for (request, expected, media, cache) in rows {
        let answer = rig.send(request).await;
        assert_eq!(status(&answer), expected, "{request}");
        assert_eq!(header(&answer, "content-type"), media, "{request}");
        assert_eq!(header(&answer, "cache-control"), cache, "{request}");
        assert_eq!(answer.route, "page", "{request}");
        assert!(
            answer.audit.is_none(),
            "{request}: no line in the audit trail"
        );
        for (name, value) in HEADERS {
            assert_eq!(header(&answer, name), value, "{request}: {name}");
        }
        if expected == 405 {
            assert_eq!(header(&answer, "allow"), "GET, HEAD", "{request}");
        }
        if expected == 307 {
            assert_eq!(header(&answer, "location"), "ui/", "{request}");
        }
        assert_eq!(header(&answer, "set-cookie"), "", "{request}");
        assert_eq!(header(&answer, "www-authenticate"), "", "{request}");
    }
}

#[tokio::test]
async fn a_file_of_the_page_that_is_known_is_not_sent_again() {
    let rig = rig();
    let first = rig.send("GET /ui/main.js").await;
    assert!(!first.response.body().is_empty(), "the file");
    let tag = header(&first, "etag").to_owned();
    let again = rig
        .send(&format!("GET /ui/main.js\nIf-None-Match: {tag}"))
        .await;
    assert_eq!(status(&again), 304, "known");
    assert!(again.response.body().is_empty(), "no body");
    assert_eq!(header(&again, "etag"), tag, "the same");
    assert_eq!(
        header(&again, "content-security-policy"),
        HEADERS[0].1,
        "its policy"
    );
    let head = rig.send("HEAD /ui/main.js").await;
    assert!(head.response.body().is_empty(), "no body");
    assert_eq!(
        header(&head, "content-length"),
        first.response.body().len().to_string(),
        "the length of the file"
    );
}

#[tokio::test]
async fn without_the_page_nothing_is_different() {
    let mut rig = Rig::new();
    for request in ["GET /ui", "GET /ui/", "GET /ui/page.css", "POST /ui/"] {
        let answer = rig.send(request).await;
        assert_eq!(status(&answer), 404, "{request}");
        assert_eq!(answer.route, "none", "{request}");
        assert_eq!(header(&answer, "content-security-policy"), "", "{request}");
    }
    let root = rig.send("GET /").await;
    let text = String::from_utf8(root.response.body().to_vec()).unwrap();
    assert!(!text.contains("/ui/"), "no link to it: {text}");
    rig.reload(|config| config.passthrough = vec![open_route("all", "/", &[])]);
    let passed = rig.decide("GET /ui/", None).await;
    assert!(
        matches!(passed, GateDecision::PassThrough(_)),
        "passed through: {passed:?}"
    );
}

#[tokio::test]
async fn the_page_wins_over_routes_without_hosts_and_leaves_hosts_of_others_alone() {
    let mut rig = rig();
    let root = rig.send("GET /").await;
    let text = String::from_utf8(root.response.body().to_vec()).unwrap();
    assert!(
        text.contains("href=\"http://example.com/ui/\""),
        "a link to it: {text}"
    );
    rig.reload(|config| {
        config.passthrough = vec![
            open_route("all", "/", &[]),
            open_route("console", "/", &["console.example"]),
            open_route("narrow", "/manager", &["narrow.example"]),
        ];
    });
    // request, the route that gets it; `page` for the page
    let rows = [
        ("GET /ui/", "page"),
        ("GET /ui", "page"),
        ("GET /ui/absent", "page"),
        ("GET /uix", "all"),
        ("GET /UI/", "all"),
        ("GET /x", "all"),
        ("GET /ui/\nno-host\nHost: console.example", "console"),
        ("GET /ui/\nno-host\nHost: CONSOLE.example:8080", "console"),
        ("GET /ui/\nno-host\nHost: narrow.example", "page"),
        ("GET /ui/\nno-host\nHost: other.example", "page"),
    ];
    for (request, expected) in rows {
        let found = match rig.decide(request, None).await {
            GateDecision::PassThrough(pass) => pass.route.name.to_string(),
            GateDecision::Answer(answer) => answer.route.to_owned(),
        };
        assert_eq!(found, expected, "{request}");
    }
    let backup = rig.send("GET /vms/33333/backups/456\nas: ann\nv").await;
    assert_eq!(status(&backup), 200, "the API is as it was");
}
