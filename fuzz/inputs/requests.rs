//! Whole requests, bodies and the look-up of Statuses.

use http::Method;
use serde_json::Value;
use snapgate::model::Change;

use super::invariants::checked;
use super::request::Request;

/// The bytes as a whole request.
pub(crate) fn decision(data: &[u8]) {
    if let Some(request) = Request::parse(data) {
        checked(&request);
    }
}

/// The bytes as the query of a look-up: read by a stranger and by a caller who sees all, and as a request to cancel.
pub(crate) fn status_query(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    let target = format!("/statuses?{text}");
    let seen = checked(&Request::of_ann(Method::GET, &target));
    let mut stranger = Request::of_ann(Method::GET, &target);
    stranger.headers.remove("authorization");
    // reader:secret
    let stranger = stranger.with("authorization", b"Basic cmVhZGVyOnNlY3JldA==");
    let hidden = checked(&stranger.unwrap());
    let hidden_text = String::from_utf8_lossy(hidden.exchange.response.body()).into_owned();
    for uri in ["seq=1\"", "seq=2\""] {
        assert!(
            !hidden_text.contains(uri),
            "an operation of another principal: {hidden_text}"
        );
    }
    let stopped = checked(&Request::of_ann(Method::DELETE, &target));
    if !stopped.cancelled.is_empty() {
        assert!(text.contains("seq"), "never one that was not named");
        let status = seen.exchange.response.status();
        assert_eq!(status, 200, "what is stopped can be seen");
    }
}

/// The first byte chooses the request, the rest is its body.
pub(crate) fn bodies(data: &[u8]) {
    const FORM: &str = "application/x-www-form-urlencoded";
    const JSON: &str = "application/json";
    let Some((choice, body)) = data.split_first() else {
        return;
    };
    let (method, target, media) = match choice % 5 {
        0 => (Method::PUT, "/vms/33333/backups/456", JSON),
        1 => (Method::POST, "/vms/33333/backups", JSON),
        2 => (Method::POST, "/vms/33333/backups/456/restore", JSON),
        3 => (Method::POST, "/vms/33333/backups/456/restore", FORM),
        _ => (Method::POST, "/back_up?vm=33333", JSON),
    };
    let mut request = Request::of_ann(method, target).carrying(media, body);
    let strict = choice & 0x80 != 0;
    if strict {
        request = request.with("prefer", b"handling=strict").unwrap();
    }
    let outcome = checked(&request);
    let Some((_, submission)) = outcome.accepted.first() else {
        return;
    };
    if media == FORM || (body.is_empty() && choice % 5 == 2) {
        return;
    }
    // What was accepted is what another parser reads in the body.
    let read: Value = serde_json::from_slice(body).unwrap();
    let members = read.as_object().unwrap();
    let text = |name: &str| members.get(name).and_then(Value::as_str);
    match &submission.intent.change {
        Change::Create(new) => {
            assert_eq!(text("name"), Some(new.name.as_str()), "name");
            let description = new
                .description
                .as_ref()
                .map(snapgate::model::Description::as_str);
            assert_eq!(text("description"), description, "description");
        }
        Change::Update(patch) => {
            let name = patch.name.as_ref().map(snapgate::model::BackupName::as_str);
            assert_eq!(text("name"), name, "name");
            assert_eq!(
                members.contains_key("description"),
                !patch.description.is_keep(),
                "description"
            );
            assert_eq!(members.contains_key("tags"), !patch.tags.is_keep(), "tags");
        }
        Change::Restore(options) => {
            let note = submission.note.as_ref().map(snapgate::model::Note::as_str);
            assert_eq!(text("note"), note, "note");
            assert!(
                options.0.keys().all(|key| key == "mode"),
                "known options only"
            );
        }
        Change::Delete => panic!("a change that was not requested"),
    }
    if strict {
        let known = [
            "name",
            "description",
            "tags",
            "protected",
            "type",
            "note",
            "mode",
        ];
        let all = members.keys().all(|key| known.contains(&key.as_str()));
        assert!(all, "nothing unknown when strict");
    }
}
