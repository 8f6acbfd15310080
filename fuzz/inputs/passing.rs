//! Which requests are passed on to servers of others, and how they leave.

use std::collections::BTreeSet;

use http::HeaderName;
use http::Method;
use snapgate::gate::PassThrough;

use super::invariants;
use super::invariants::Caller;
use super::request::Request;
use super::world::Fate;
use super::world::fate;

/// What a route promises, read apart from the gateway's own reading of the settings.
struct Promise {
    prefix: &'static str,
    methods: &'static [&'static str],
    callers: &'static [Option<Caller>],
    strips: bool,
    keeps_authorization: bool,
}

fn promise(route: &str) -> Promise {
    const ALL: &[&str] = &["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
    let (prefix, methods, callers): (_, _, &[Option<Caller>]) = match route {
        "console" => ("/console", &ALL[..2], &[None]),
        "api" => ("/api/v2", ALL, &[Some(Caller::Ann)]),
        "other" => ("", ALL, &[Some(Caller::Reader)]),
        _ => panic!("a route that is not configured: {route}"),
    };
    Promise {
        prefix,
        methods,
        callers,
        strips: route == "api",
        keeps_authorization: route == "other",
    }
}

/// The bytes as a whole request to a gateway with routes to other servers.
pub(crate) fn passing(data: &[u8]) {
    let Some(request) = Request::parse(data) else {
        return;
    };
    let (one, two) = (fate(&request), fate(&request));
    match (&one, &two) {
        (Fate::Passed(one), Fate::Passed(two)) => {
            assert_eq!(one.target, two.target, "the same request, the same target");
            passed(&request, one);
        }
        (Fate::Answered(one), Fate::Answered(two)) => {
            let refusal = one.exchange.refusal;
            assert_eq!(refusal, two.exchange.refusal, "the same decision");
            invariants::of_an_answer(&request, one);
        }
        _ => panic!("the same request, two fates: {one:?} and {two:?}"),
    }
}

fn passed(request: &Request, pass: &PassThrough) {
    let promise = promise(pass.route.name.as_str());
    let method = request.method.as_str();
    assert!(
        promise.methods.contains(&method),
        "{method} is not passed on"
    );
    assert_ne!(request.method, Method::CONNECT, "never a tunnel");
    let caller = invariants::caller(request);
    if promise.callers == [None] {
        assert!(pass.principal.is_none(), "no caller had to be named");
    } else {
        assert!(promise.callers.contains(&caller), "{caller:?} may not");
        assert!(pass.principal.is_some(), "the caller is named");
    }
    let sent = str::from_utf8(&request.target).unwrap();
    let (path, query) = parts(sent);
    let (leaves, leaves_query) = parts(&pass.target);
    assert_eq!(query, leaves_query, "the query is not touched");
    let below = path.strip_prefix(promise.prefix).unwrap();
    assert!(
        below.is_empty() || below.starts_with('/'),
        "whole segments: {path}"
    );
    let expected = match (promise.strips, below) {
        (true, "") => "/",
        (true, below) => below,
        (false, _) => path,
    };
    assert_eq!(leaves, expected, "the path, no other and not decoded");
    assert!(pass.target.starts_with('/'), "in origin form");
    let visible = pass
        .target
        .bytes()
        .all(|byte| byte.is_ascii_graphic() && byte != b'#');
    assert!(
        visible,
        "nothing that ends a target early: {:?}",
        pass.target
    );
    for path in [path, leaves] {
        for times in 0..=8 {
            assert!(
                !is_ours(path, times),
                "{path} is ours, decoded {times} times"
            );
        }
    }
    fields(request, pass, &promise);
}

/// What the upstream reads of the fields of the client, and what the gateway says itself.
fn fields(request: &Request, pass: &PassThrough, promise: &Promise) {
    let kept: Vec<&HeaderName> = request
        .headers
        .keys()
        .filter(|key| !pass.edit.drops(key))
        .collect();
    for name in &kept {
        let name = name.as_str();
        assert!(!name.contains('_'), "{name}: read as another by some");
        assert!(!name.starts_with("x-forwarded-"), "{name}: a claim");
        let claims = [
            "forwarded",
            "x-real-ip",
            "x-original-url",
            "x-http-method-override",
            "client-cert",
            "remote-user",
            "x-remote-user",
            "x-webauth-user",
        ];
        for begins in [
            "x-auth-request-",
            "x-ssl-",
            "ssl-client-",
            "x-authenticated-",
        ] {
            assert!(!name.starts_with(begins), "{name}: an identity");
        }
        assert!(!claims.contains(&name), "{name}: a claim");
        let hop = ["te", "trailer", "keep-alive", "proxy-authorization"].contains(&name);
        assert!(!hop, "{name}: for the gateway alone");
        if name == "authorization" {
            assert!(promise.keeps_authorization, "credentials stay here");
        }
    }
    let mut names = BTreeSet::new();
    for (name, value) in &pass.edit.set {
        assert!(names.insert(name.as_str()), "{name}: set once");
        let bytes = value.as_bytes();
        let clean = bytes
            .iter()
            .all(|byte| *byte == b' ' || byte.is_ascii_graphic());
        assert!(clean, "{name}: visible ASCII: {value:?}");
    }
    for name in ["x-forwarded-proto", "forwarded", "via", "x-request-id"] {
        assert!(names.contains(name), "{name}: added by the gateway");
    }
    if pass.upgrade {
        assert_eq!(request.method, Method::GET, "an upgrade is a GET");
        assert_eq!(pass.route.name.as_str(), "console", "where it is allowed");
    }
}

/// Path and query of a target in origin form or absolute form.
fn parts(target: &str) -> (&str, &str) {
    let rest = match target.split_once("://") {
        Some((scheme, rest)) if scheme.bytes().all(|byte| byte.is_ascii_alphabetic()) => {
            let at = rest.find(['/', '?']);
            at.and_then(|at| rest.get(at..)).unwrap_or_default()
        }
        _ => target,
    };
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    (if path.is_empty() { "/" } else { path }, query)
}

/// Whether a careless server that decodes so many times would take the path for one of this API's own.
fn is_ours(path: &str, times: usize) -> bool {
    let mut bytes = path.as_bytes().to_vec();
    for _ in 0..times {
        bytes = decoded(&bytes);
    }
    let text = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
    let mut words: Vec<&str> = Vec::new();
    for word in text.split(['/', '\\']) {
        match word.split(';').next().unwrap_or_default() {
            "" | "." => {}
            ".." => drop(words.pop()),
            word => words.push(word),
        }
    }
    match words.as_slice() {
        ["vms", rest @ ..] => rest.len() == 1 || rest.contains(&"backups"),
        [first, ..] => ["statuses", "versions", "version", "back_up", "back-up"].contains(first),
        [] => false,
    }
}

/// Decoded once, leniently: what is no escape stays.
fn decoded(bytes: &[u8]) -> Vec<u8> {
    let (mut out, mut at) = (Vec::new(), 0);
    while let Some(byte) = bytes.get(at) {
        let escape = bytes.get(at + 1..at + 3).filter(|_| *byte == b'%');
        let escape = escape.and_then(|escape| str::from_utf8(escape).ok());
        match escape.and_then(|escape| u8::from_str_radix(escape, 16).ok()) {
            Some(value) => {
                out.push(value);
                at += 3;
            }
            None => {
                out.push(*byte);
                at += 1;
            }
        }
    }
    out
}
