//! What holds for every answer to every request.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use http::StatusCode;
use http::header;
use serde_json::Value;
use snapgate::gate::AuditOutcome;
use snapgate::gate::Code;
use snapgate::operations::memory_operations::PRIVATE_PATH;

use super::issuer;
use super::request::Request;
use super::request::TOKEN;
use super::settings::BACKEND;
use super::world::Outcome;
use super::world::answer;

/// Answers the request and checks everything that must hold for every request.
pub(crate) fn checked(request: &Request) -> Outcome {
    let outcome = answer(request);
    of_an_answer(request, &outcome);
    let again = answer(request);
    assert_eq!(
        visible_parts(&outcome),
        visible_parts(&again),
        "the same request, the same decision"
    );
    if request.method == Method::HEAD {
        let get = answer(&Request {
            method: Method::GET,
            ..request.clone()
        });
        let (head, get) = (&outcome.exchange.response, &get.exchange.response);
        assert_eq!(head.status(), get.status(), "HEAD is GET");
        assert_eq!(head.headers(), get.headers(), "HEAD is GET without a body");
    }
    outcome
}

/// Checks what must hold for every answer.
pub(crate) fn of_an_answer(request: &Request, outcome: &Outcome) {
    code_is_known(outcome);
    framing_is_exact(request, outcome);
    nothing_without_a_permit(request, outcome);
    bodies_are_read_once_and_bounded(request, outcome);
    nothing_private_is_disclosed(request, outcome);
}

/// Everything a client sees of an answer.
fn visible_parts(outcome: &Outcome) -> (StatusCode, http::HeaderMap, Vec<u8>) {
    let response = &outcome.exchange.response;
    let headers = response.headers().clone();
    (response.status(), headers, response.body().to_vec())
}

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    Ann,
    /// A token of `ann` that may read one VM.
    Token,
    Reader,
    /// The principal that a token of the issuer names.
    Issued(String),
}

impl Caller {
    fn name(&self) -> &str {
        match self {
            Self::Ann | Self::Token => "ann",
            Self::Reader => "reader",
            Self::Issued(name) => name,
        }
    }
}

/// The caller according to the header; read without the gateway's own code.
pub(crate) fn caller(request: &Request) -> Option<Caller> {
    let mut values = request.headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return None;
    };
    let (scheme, rest) = value.as_bytes().split_at_checked(6)?;
    if scheme.eq_ignore_ascii_case(b"bearer") {
        let text = str::from_utf8(rest.trim_ascii()).ok()?;
        if text == TOKEN {
            return Some(Caller::Token);
        }
        return issuer::holder(text).map(Caller::Issued);
    }
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return None;
    }
    match STANDARD.decode(rest.trim_ascii()).ok()?.as_slice() {
        b"ann:secret" => Some(Caller::Ann),
        b"reader:secret" => Some(Caller::Reader),
        pair => {
            let named = ["ann", "token"].map(|name| format!("{name}:{TOKEN}").into_bytes());
            named
                .iter()
                .any(|named| named == pair)
                .then_some(Caller::Token)
        }
    }
}

fn code_is_known(outcome: &Outcome) {
    let response = &outcome.exchange.response;
    let status = response.status();
    let Some(word) = outcome.exchange.refusal else {
        let good = [200, 202, 204, 304].contains(&status.as_u16());
        assert!(good, "an answer that is no refusal: {status}");
        return;
    };
    let code = Code::ALL.iter().find(|code| code.as_str() == word);
    let code = code.unwrap_or_else(|| panic!("a code that is not documented: {word}"));
    assert_eq!(status, code.status(), "{word}: its own status");
    assert!(
        !status.is_server_error() || word == "Unsupported",
        "{word}: nothing was wrong with the gateway"
    );
    if outcome.exchange.method == "HEAD" {
        return;
    }
    let body: Value = serde_json::from_slice(response.body()).unwrap();
    assert_eq!(body["message"][0]["code"], word, "the code in the body");
    assert_eq!(body["status"], status.as_u16(), "the status in the body");
    assert_eq!(
        body["instance"],
        outcome.exchange.request.as_str(),
        "the request in the body"
    );
}

fn framing_is_exact(request: &Request, outcome: &Outcome) {
    let response = &outcome.exchange.response;
    let headers = response.headers();
    let status = response.status();
    let bodiless = status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED;
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    assert!(
        !headers.contains_key(header::TRANSFER_ENCODING),
        "one framing"
    );
    if outcome.exchange.pieces.is_some() {
        assert_eq!(status, 200, "only an answer comes in pieces");
        assert!(lengths.next().is_none(), "its length is unknown");
        assert!(response.body().is_empty(), "the body is in the pieces");
        let media = &headers[header::CONTENT_TYPE];
        assert_eq!(media, "text/event-stream", "only events come in pieces");
    } else if bodiless {
        assert!(lengths.next().is_none(), "{status} has no length");
        assert!(response.body().is_empty(), "{status} has no body");
    } else {
        let length: usize = lengths.next().unwrap().to_str().unwrap().parse().unwrap();
        assert!(lengths.next().is_none(), "one length");
        if request.method == Method::HEAD {
            assert!(response.body().is_empty(), "no body for HEAD");
        } else {
            assert_eq!(length, response.body().len(), "the length of the body");
            let media = headers[header::CONTENT_TYPE].to_str().unwrap();
            if outcome.exchange.route == "root" && status == 200 {
                assert_eq!(media, "text/html; charset=utf-8", "the page");
            } else {
                serde_json::from_slice::<Value>(response.body()).unwrap();
                assert!(media.ends_with("json"), "a type for the body: {media}");
            }
        }
    }
    let ids: Vec<_> = headers.get_all("x-request-id").iter().collect();
    assert_eq!(
        ids,
        [outcome.exchange.request.as_str()],
        "one id of the request"
    );
    for (name, value) in headers {
        let bytes = value.as_bytes();
        let clean = bytes
            .iter()
            .all(|byte| *byte == b' ' || byte.is_ascii_graphic());
        assert!(clean, "{name}: visible ASCII");
    }
}

fn nothing_without_a_permit(request: &Request, outcome: &Outcome) {
    let exchange = &outcome.exchange;
    // A plan is asked for by POST, and changes nothing.
    let changes = [Method::PUT, Method::POST, Method::DELETE].contains(&request.method)
        && exchange.route != "plan";
    let effects = outcome.accepted.len() + outcome.cancelled.len();
    assert!(effects <= 1, "one request, one effect at most");
    let caller = caller(request);
    assert_eq!(
        exchange
            .principal
            .as_ref()
            .map(snapgate::model::PrincipalName::as_str),
        exchange
            .principal
            .as_ref()
            .and(caller.as_ref())
            .map(Caller::name),
        "who called is who gave the credentials"
    );
    if effects == 1 {
        assert!(changes, "only changes have effects");
        assert_eq!(exchange.response.status(), 202, "an effect is announced");
        assert_eq!(caller, Some(Caller::Ann), "only ann may change anything");
        assert!(exchange.operation.is_some(), "and named");
        let audit = exchange.audit.as_ref().unwrap();
        assert_eq!(audit.outcome, AuditOutcome::Accepted, "and in the trail");
    } else if changes && exchange.refusal.is_none() && request.method != Method::OPTIONS {
        let outcome = exchange.audit.as_ref().map(|audit| audit.outcome);
        assert_eq!(outcome, Some(AuditOutcome::Joined), "no effect, no 202");
    }
    for (permit, submission) in &outcome.accepted {
        assert!(permit.covers(&submission.intent), "the permit covers it");
        assert_eq!(
            Some(permit.principal().name.as_str()),
            caller.as_ref().map(Caller::name),
            "for the caller"
        );
        assert_eq!(permit.backend().as_str(), BACKEND, "where the VM is placed");
        assert!(
            submission.intent.target.vm.as_str().starts_with('3'),
            "on a VM that is placed"
        );
        let location = exchange.response.headers()[header::LOCATION].to_str();
        assert!(
            location.unwrap().starts_with("/statuses?op="),
            "with a Status"
        );
    }
}

fn bodies_are_read_once_and_bounded(request: &Request, outcome: &Outcome) {
    let reads = &outcome.reads;
    assert!(reads.len() <= 1, "a body is read once");
    assert!(
        reads.iter().all(|read| *read == 64 * 1024),
        "within its limit: {reads:?}"
    );
    if request.body.is_some() && reads.is_empty() {
        assert!(outcome.exchange.close, "an unread body ends the connection");
    }
}

fn nothing_private_is_disclosed(request: &Request, outcome: &Outcome) {
    let response = &outcome.exchange.response;
    let mut text = String::from_utf8_lossy(response.body()).into_owned();
    for (_, value) in response.headers() {
        text.push_str(&String::from_utf8_lossy(value.as_bytes()));
    }
    let asked = String::from_utf8_lossy(&request.target).into_owned()
        + &String::from_utf8_lossy(request.body.as_deref().unwrap_or_default());
    for secret in [PRIVATE_PATH, BACKEND, "c2VjcmV0", "argon2", TOKEN] {
        let is_disclosed = text.contains(secret) && !asked.contains(secret);
        assert!(!is_disclosed, "{secret:?} is disclosed: {text}");
    }
}
