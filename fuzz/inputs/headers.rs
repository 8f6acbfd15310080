//! Header fields one by one: Accept, the specification version, credentials.

use http::Method;
use http::header;

use super::invariants::Caller;
use super::invariants::caller;
use super::invariants::checked;
use super::request::Request;
use super::world::Outcome;

const BACKUP: &str = "/vms/33333/backups/456";

fn status(outcome: &Outcome) -> u16 {
    outcome.exchange.response.status().as_u16()
}

/// The bytes as the value of Accept, on a GET and on a DELETE.
pub(crate) fn accept(data: &[u8]) {
    for (method, good) in [(Method::GET, 200), (Method::DELETE, 202)] {
        let plain = Request::of_ann(method, BACKUP);
        let Some(request) = plain.clone().with("accept", data) else {
            return;
        };
        let outcome = checked(&request);
        let refusal = outcome.exchange.refusal;
        let known = [None, Some("NotAcceptable"), Some("MalformedAccept")];
        assert!(
            known.contains(&refusal),
            "refused for something else: {refusal:?}"
        );
        if refusal.is_none() {
            assert_eq!(status(&outcome), good, "taken");
        }
        if refusal == Some("MalformedAccept") {
            continue;
        }
        // A well-formed list stays well-formed in capitals, in two fields, and with one more element.
        let capitals = plain.clone().with("accept", &data.to_ascii_uppercase());
        let capitals = checked(&capitals.unwrap());
        assert_eq!(capitals.exchange.refusal, refusal, "in capitals");
        let more = plain.with("accept", b"*/*").unwrap().with("accept", data);
        let more = checked(&more.unwrap());
        assert_ne!(more.exchange.refusal, Some("MalformedAccept"), "one more");
    }
}

/// The bytes as the specification version.
pub(crate) fn version(data: &[u8]) {
    let mut answers = Vec::new();
    for name in [
        "x-cloud-client-specification-version",
        "x-compute-client-specification-version",
        "x-cloud-specification-version",
    ] {
        let mut request = Request::of_ann(Method::GET, BACKUP);
        request
            .headers
            .remove("x-cloud-client-specification-version");
        let Some(request) = request.with(name, data) else {
            return;
        };
        let outcome = checked(&request);
        let refusal = outcome.exchange.refusal;
        let known = [
            None,
            Some("MalformedSpecificationVersion"),
            Some("UnsupportedSpecificationVersion"),
        ];
        assert!(
            known.contains(&refusal),
            "refused for something else: {refusal:?}"
        );
        let chosen = outcome.exchange.response.headers()["x-cloud-specification-version"].clone();
        if refusal.is_none() {
            let text = String::from_utf8(data.to_vec()).unwrap();
            let asked = text.split(',').map(str::trim);
            let first = asked
                .clone()
                .find(|version| ["0.1", "0.2", "0.8"].contains(version))
                .unwrap();
            assert_eq!(
                chosen.to_str().unwrap(),
                first,
                "the first one that is known"
            );
        }
        answers.push((refusal, chosen));
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "three names, one header: {answers:?}");
}

/// The bytes as Authorization.
pub(crate) fn basic(data: &[u8]) {
    let mut request = Request::of_ann(Method::GET, BACKUP);
    request.headers.remove(header::AUTHORIZATION);
    let Some(request) = request.with("authorization", data) else {
        return;
    };
    let outcome = checked(&request);
    if status(&outcome) == 200 {
        assert!(
            caller(&request).is_some(),
            "only right credentials are taken"
        );
        return;
    }
    if matches!(caller(&request), Some(Caller::Issued(_))) && outcome.exchange.principal.is_some() {
        // Known, and without a grant.
        return;
    }
    assert_eq!(
        outcome.exchange.refusal,
        Some("Unauthenticated"),
        "or refused"
    );
    let headers = outcome.exchange.response.headers();
    assert!(
        headers.contains_key(header::WWW_AUTHENTICATE),
        "with a challenge"
    );
}
