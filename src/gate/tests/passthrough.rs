//! What is passed on, to whom, and how it leaves.

use http::HeaderName;
use http::HeaderValue;

use crate::gate::tests::rig::Rig;
use crate::gate::tests::rig::header;
use crate::gate::tests::rig::status;
use crate::gate::*;
use crate::model::GroupName;
use crate::model::PassName;
use crate::model::PrincipalName;

fn route(name: &str, prefix: &str) -> PassThroughRoute {
    PassThroughRoute {
        name: PassName::new(name).unwrap(),
        prefix: PathPrefix::new(prefix).unwrap(),
        hosts: Vec::new(),
        strip: false,
        access: PassThroughAccess::Allowed(vec![Grantee::User(PrincipalName::new("ann").unwrap())]),
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

fn rig(routes: &[PassThroughRoute]) -> Rig {
    let mut rig = Rig::new();
    rig.reload(|rig| rig.passthrough = routes.to_vec());
    rig
}

/// The name of the route and the target, or the code of the refusal.
async fn decide(rig: &Rig, request: &str) -> Result<(String, String), &'static str> {
    match rig.decide(request, None).await {
        GateDecision::PassThrough(pass) => Ok((pass.route.name.to_string(), pass.target.clone())),
        GateDecision::Answer(exchange) => Err(exchange.refusal.unwrap_or("answered")),
    }
}

#[tokio::test]
async fn routes_are_found_by_host_and_longest_prefix() {
    let mut stripped = route("stripped", "/pve");
    stripped.strip = true;
    let mut hosted = route("hosted", "/");
    hosted.hosts = vec!["console.example.com".to_owned()];
    let rig = rig(&[route("all", "/"), route("api", "/api"), stripped, hosted]);
    let rows = [
        ("GET /", Ok(("all", "/"))),
        ("GET /x?y=z", Ok(("all", "/x?y=z"))),
        ("GET /api/x", Ok(("api", "/api/x"))),
        ("GET /apix", Ok(("all", "/apix"))),
        ("GET http://example.com/api?q", Ok(("api", "/api?q"))),
        ("GET /pve", Ok(("stripped", "/"))),
        ("GET /pve/nodes?x", Ok(("stripped", "/nodes?x"))),
        ("GET /vms/1/console", Ok(("all", "/vms/1/console"))),
        (
            "GET /api\nno-host\nHost: CONSOLE.example.com:8080",
            Ok(("hosted", "/api")),
        ),
        // What is left is one of our paths: an upstream that knows them must not see it.
        ("GET /pve/vms/1/backups/456", Err("NoSuchRoute")),
        ("GET /pve/statuses", Err("NoSuchRoute")),
        ("GET /pve//vms/1/backups", Err("MalformedTarget")),
        // Ours are answered here, whatever the routes say.
        ("GET /versions", Err("answered")),
        ("GET /vms/33333/backups/456\nv", Err("answered")),
        ("POST /vms/33333", Err("MethodNotAllowed")),
        // What can be read in two ways.
        ("GET /api%2Fx", Err("MalformedTarget")),
        ("GET /API/x", Err("MalformedTarget")),
        ("GET /a//b", Err("MalformedTarget")),
        ("GET /a/%2e%2e/b", Err("MalformedTarget")),
        ("GET /a;b", Err("MalformedTarget")),
        ("GET /a\u{7f}", Err("MalformedTarget")),
        // What no route may pass on.
        ("CONNECT /x", Err("MethodNotAllowed")),
        ("TRACE /x", Err("MethodNotAllowed")),
        ("BREW /x", Err("MethodNotAllowed")),
        ("GET *", Err("MalformedTarget")),
    ];
    for (request, expected) in rows {
        let request = format!("{request}\nas: ann");
        let found = decide(&rig, &request).await;
        let found = found
            .as_ref()
            .map(|found| (found.0.as_str(), found.1.as_str()));
        assert_eq!(found.map_err(|error| *error), expected, "{request}");
    }
}

/// Every spelling of our own paths, in front of a route that takes everything and needs no credentials.
#[tokio::test]
async fn our_own_paths_are_never_passed_on() {
    let mut open = route("open", "/");
    open.access = PassThroughAccess::Open;
    let mut strip = route("strip", "/x");
    strip.access = PassThroughAccess::Open;
    strip.strip = true;
    let rig = rig(&[open, strip]);
    let spellings = [
        "/vms/1/backups/456",
        "/vms/1//backups/456",
        "/vms/1/backups/456/restore",
        "/vms/1/%2e%2e/1/backups/456",
        "/%76ms/1/backups/456",
        "/vms%2F1%2Fbackups%2F456",
        "/%2576ms/1/backups/456",
        "/VMS/1/BACKUPS/456",
        "/vms\\1\\backups\\456",
        "/vms;x/1/backups/456",
        "/back_up",
        "/back%5fup",
        "/back-up",
        "/statuses",
        "/statuses/",
        "/./statuses",
        "/versions",
        "/version",
        "/%ff",
    ];
    for path in spellings {
        for method in ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"] {
            for prefix in ["", "/x", "http://example.com", "/x/..", "/y/..", "/x//"] {
                let request = format!("{method} {prefix}{path}");
                let decision = rig.decide(&request, None).await;
                assert!(
                    matches!(decision, GateDecision::Answer(_)),
                    "{request}: {decision:?}"
                );
            }
        }
    }
}

#[tokio::test]
async fn only_callers_that_a_route_names_may_use_it() {
    let mut open = route("open", "/open");
    open.access = PassThroughAccess::Open;
    let mut group = route("group", "/group");
    group.access = PassThroughAccess::Allowed(vec![Grantee::Group(GroupName::new("ops").unwrap())]);
    let mut closed = route("closed", "/closed");
    closed.access = PassThroughAccess::Allowed(Vec::new());
    let mut rig = rig(&[open, group, closed, route("ann", "/ann")]);
    rig.reload(|rig| {
        let reader = PrincipalName::new("reader").unwrap();
        let user = rig.credentials.users.get_mut(&reader).unwrap();
        user.groups = vec![GroupName::new("ops").unwrap()];
    });
    let rows = [
        ("/open", "", Ok("open")),
        ("/open", "as: unknown_user", Ok("open")),
        ("/ann", "", Err("Unauthenticated")),
        ("/ann", "as: unknown_user", Err("Unauthenticated")),
        ("/ann", "as: ann", Ok("ann")),
        ("/ann", "as: reader", Err("NotPermitted")),
        ("/group", "as: reader", Ok("group")),
        ("/group", "as: ann", Err("NotPermitted")),
        ("/closed", "as: ann", Err("NotPermitted")),
    ];
    for (path, caller, expected) in rows {
        let found = decide(&rig, &format!("GET {path}\n{caller}")).await;
        let found = found.as_ref().map(|found| found.0.as_str());
        assert_eq!(found.map_err(|error| *error), expected, "{path} {caller}");
    }
    let refused = rig.send("DELETE /ann").await;
    assert!(
        header(&refused, "www-authenticate").starts_with("Basic"),
        "a challenge: {refused:?}"
    );
}

#[tokio::test]
async fn bodies_and_methods_keep_to_the_route() {
    let mut small = route("small", "/");
    small.methods = vec!["GET", "POST"];
    let rig = rig(&[small]);
    let rows = [
        ("POST /\nContent-Length: 10", Ok("small")),
        ("POST /\nContent-Length: 11", Err("BodyTooLarge")),
        ("POST /\nTransfer-Encoding: chunked", Ok("small")),
        (
            "POST /\nTransfer-Encoding: chunked\nContent-Length: 1",
            Err("MalformedRequest"),
        ),
        ("PUT /", Err("MethodNotAllowed")),
        ("HEAD /", Err("MethodNotAllowed")),
    ];
    for (request, expected) in rows {
        let found = decide(&rig, &format!("{request}\nas: ann")).await;
        let found = found.as_ref().map(|found| found.0.as_str());
        assert_eq!(found.map_err(|error| *error), expected, "{request}");
    }
    let refused = rig.send("PUT /\nas: ann").await;
    assert_eq!(header(&refused, "allow"), "GET, POST", "says which");
    assert_eq!(refused.route, "passthrough", "counted as such");
}

async fn pass(rig: &Rig, request: &str) -> Box<PassThrough> {
    match rig.decide(request, None).await {
        GateDecision::PassThrough(pass) => pass,
        GateDecision::Answer(exchange) => panic!("{request}: {exchange:?}"),
    }
}

#[tokio::test]
async fn header_fields_are_cleaned_and_set() {
    let rig = rig(&[route("strip", "/strip")]);
    let strip = pass(
        &rig,
        "GET /strip\nas: ann\nVia: 1.1 front\nX-Forwarded-For: 6.6.6.6",
    )
    .await;
    for name in [
        "authorization",
        "x-forwarded-for",
        "x-forwarded-anything",
        "forwarded",
        "x-real-ip",
        "x_real_ip",
        "x-original-url",
        "x-http-method-override",
        "remote-user",
        "x-webauth-user",
        "x-auth-request-email",
        "x-ssl-client-cert",
        "client-cert",
        "te",
        "proxy-authorization",
        "keep-alive",
    ] {
        assert!(drops(&strip, name), "{name} is left out");
    }
    for name in [
        "accept",
        "cookie",
        "content-type",
        "expect",
        "if-none-match",
    ] {
        assert!(!drops(&strip, name), "{name} is passed on");
    }
    let rows = [
        ("x-forwarded-for", vec![]),
        ("x-forwarded-proto", vec!["http"]),
        ("x-forwarded-host", vec!["example.com"]),
        (
            "forwarded",
            vec!["for=unknown;host=\"example.com\";proto=http"],
        ),
        ("via", vec!["1.1 front, 1.1 snapgate"]),
        ("x-request-id", vec![strip.request.as_str()]),
        ("authorization", vec![]),
    ];
    for (name, expected) in rows {
        assert_eq!(set(&strip, name), expected, "{name}");
    }
}

fn drops(pass: &PassThrough, name: &str) -> bool {
    pass.edit.drops(&HeaderName::try_from(name).unwrap())
}

/// The values that a field is set to.
fn set(pass: &PassThrough, name: &str) -> Vec<String> {
    let all = pass.edit.set.iter().filter(|field| field.0 == name);
    all.map(|field| field.1.to_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn credentials_go_where_the_route_says() {
    let mut keep = route("keep", "/keep");
    keep.authorization = AuthorizationRule::Keep;
    let mut own = route("own", "/own");
    let mut secret = HeaderValue::from_static("Bearer hunter2");
    secret.set_sensitive(true);
    own.authorization = AuthorizationRule::Set(secret);
    let rig = rig(&[keep, own]);
    let keep = pass(&rig, "GET /keep\nas: ann").await;
    assert!(
        !drops(&keep, "authorization"),
        "kept where the route says so"
    );
    let own = pass(&rig, "GET /own\nas: ann").await;
    assert!(drops(&own, "authorization"), "the caller's is left out");
    assert_eq!(
        set(&own, "authorization"),
        ["Bearer hunter2"],
        "ours is set"
    );
    assert!(
        !format!("{own:?}").contains("hunter2"),
        "and does not print"
    );
}

#[tokio::test]
async fn upgrades_are_passed_on_only_where_allowed() {
    let mut console = route("console", "/console");
    console.upgrade = true;
    let rig = rig(&[console, route("plain", "/plain")]);
    let rows = [
        (
            "GET /console\nConnection: keep-alive, Upgrade\nUpgrade: websocket",
            true,
        ),
        (
            "GET /console\nConnection: UPGRADE\nUpgrade: WebSocket",
            true,
        ),
        (
            "GET /console\nConnection: Upgrade\nUpgrade: websocket\nContent-Length: 0",
            true,
        ),
        (
            "GET /console\nConnection: Upgrade\nUpgrade: websocket\nContent-Length: 3",
            false,
        ),
        (
            "GET /console\nConnection: Upgrade\nUpgrade: websocket\nTransfer-Encoding: chunked",
            false,
        ),
        ("GET /console\nUpgrade: websocket", false),
        (
            "GET /console\nConnection: Upgrade\nUpgrade: h2c, websocket",
            false,
        ),
        ("GET /console\nUpgrade: h2c", false),
        (
            "POST /console\nConnection: keep-alive, Upgrade\nUpgrade: websocket",
            false,
        ),
        ("GET /console", false),
        (
            "GET /plain\nConnection: keep-alive, Upgrade\nUpgrade: websocket",
            false,
        ),
    ];
    for (request, expected) in rows {
        let found = pass(&rig, &format!("{request}\nas: ann")).await;
        assert_eq!(found.upgrade, expected, "{request}");
    }
    let refused = decide(
        &rig,
        "GET /console\nConnection: keep-alive, Upgrade\nUpgrade: websocket",
    )
    .await;
    assert_eq!(refused, Err("Unauthenticated"), "not before credentials");
}

#[tokio::test]
async fn failures_are_answered_in_the_format_of_this_api() {
    let rig = rig(&[route("r", "/")]);
    let rows = [
        (Code::BadGateway, 502),
        (Code::NoUpstream, 503),
        (Code::GatewayTimeout, 504),
        (Code::BodyTooLarge, 413),
        (Code::BodyTooSlow, 408),
    ];
    for (code, expected) in rows {
        for method in ["GET", "HEAD"] {
            let pass = pass(&rig, &format!("{method} /\nas: ann")).await;
            let answer = pass_through_failure(&pass, code);
            assert_eq!(status(&answer), expected, "{code:?}");
            assert_eq!(answer.refusal, Some(code.as_str()), "{code:?}");
            assert_eq!(
                header(&answer, "x-request-id"),
                pass.request.as_str(),
                "{code:?}"
            );
            let body = String::from_utf8(answer.response.body().to_vec()).unwrap();
            assert_eq!(body.contains(code.as_str()), method == "GET", "{body}");
        }
    }
}
