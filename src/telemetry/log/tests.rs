//! Tests of log lines: their form, their context, and their level.

use parking_lot::Mutex;
use std::io::Write;

use super::*;
use crate::model::OperationSeq;
use crate::model::RequestId;
use crate::model::SpanId;
use crate::model::Timestamp;
use crate::model::TraceContext;
use crate::model::TraceId;
use crate::runtime::work_context;
use crate::runtime::work_context::WorkContext;

#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// While there is one dispatcher, tracing asks that of the current thread whether a callsite is of interest to anyone. The thread of
/// another test has none, and would answer for all of them. So there is always another one.
pub(super) fn keep_a_dispatcher() {
    static OTHER: OnceLock<tracing::Dispatch> = OnceLock::new();
    OTHER.get_or_init(|| tracing::Dispatch::new(tracing::subscriber::NoSubscriber::new()));
}

fn config(format: LineFormat, level: &str, access: bool) -> LogConfig {
    keep_a_dispatcher();
    LogConfig {
        format,
        journal: false,
        level: level.to_owned(),
        quiet: "noisy=off",
        access,
        queued: false,
        audit: None,
        audit_required: false,
    }
}

/// What a log in JSON says of events.
fn json(events: impl FnOnce()) -> serde_json::Value {
    let kept = Kept::default();
    let writer = kept.clone();
    let made = subscriber(&config(LineFormat::Json, "info", true), move || {
        writer.clone()
    });
    tracing::subscriber::with_default(made.unwrap().0, events);
    let bytes = kept.0.lock().clone();
    serde_json::from_slice(&bytes).unwrap()
}

#[test]
fn values_are_written_as_what_they_are() {
    let name = "web\"01";
    let value = json(|| {
        tracing::warn!(
            target: "snapgate::x",
            text = name,
            displayed = %name,
            debugged = ?name,
            debugged_field = tracing::field::debug(name),
            small = 7_u64,
            exact = 9_007_199_254_740_991_u64,
            large = 118_529_990_416_400_384_u64,
            negative = -9_007_199_254_740_992_i64,
            took_ms = Duration::from_millis(12).as_millis(),
            wide = u128::MAX,
            yes = true,
            half = 0.5,
            absent = None::<&str>,
            list = ?[1, 2],
            "message"
        );
    });
    for member in ["text", "displayed", "debugged", "debugged_field"] {
        assert_eq!(value[member], name, "{member}: without quotes of its own");
    }
    let expected = serde_json::json!({
        "level": "WARN", "target": "snapgate::x", "message": "message", "small": 7, "took_ms": 12, "yes": true,
        "half": 0.5, "list": "[1, 2]", "exact": 9_007_199_254_740_991_u64, "large": "118529990416400384",
        "negative": "-9007199254740992", "wide": u128::MAX.to_string(),
    });
    for (member, expected) in expected.as_object().unwrap() {
        assert_eq!(&value[member], expected, "{member}");
    }
    assert_eq!(value.get("absent"), None, "what is absent is left out");
    let time = value["timestamp"].as_str().unwrap();
    assert!(humantime::parse_rfc3339(time).is_ok(), "{time}");
}

fn logged(format: LineFormat, access_log: bool, hostile: &str) -> String {
    let kept = Kept::default();
    let writer = kept.clone();
    let made = subscriber(&config(format, "info", access_log), move || writer.clone());
    let (made, _switch) = made.unwrap();
    tracing::subscriber::with_default(made, || {
        log_access(&AccessRecord {
            time: Timestamp::from_millis(1_764_486_000_123),
            request: "r-1",
            trace: None,
            peer: Some([127, 0, 0, 1].into()),
            client: Some([198, 51, 100, 1].into()),
            method: "GET",
            route: "backup",
            status: 200,
            bytes: 12,
            took: Duration::from_micros(34),
            principal: Some("alice"),
            target: hostile,
            user_agent: Some(hostile),
            operation: Some(118_529_990_416_400_384),
            passthrough: None,
            upstream: None,
        });
    });
    let bytes = kept.0.lock().clone();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn hostile_text_stays_in_its_field_in_both_forms() {
    let hostile = "/x\" principal=\"root\"\r\n{\"a\":1}\u{1b}[31m\u{0}\u{7f}\u{85}\u{9b}31m\u{202e}\u{2066}\u{2028}\u{2029}";
    for format in [LineFormat::Text, LineFormat::Json] {
        let text = logged(format, true, hostile);
        assert_eq!(text.lines().count(), 1, "{format:?}: one line: {text:?}");
        let raw = |character: char| {
            character.is_control() || "\u{202e}\u{2066}\u{2028}\u{2029}".contains(character)
        };
        assert!(
            !text.trim_end().contains(raw),
            "{format:?}: escaped: {text:?}"
        );
        assert!(
            !text.contains(" principal=\"root\""),
            "{format:?}: {text:?}"
        );
    }
    let text = logged(LineFormat::Json, true, hostile);
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["path"], hostile, "nothing is lost");
    assert_eq!(value["principal"], "alice", "nothing is forged");
    assert_eq!(
        value["operation"], "118529990416400384",
        "to the last digit"
    );
    assert_eq!(
        logged(LineFormat::Text, false, "/"),
        "",
        "no access log when it is off"
    );
}

#[test]
fn lines_name_what_their_task_works_for_unless_they_say_it_themselves() {
    let context = WorkContext {
        request: RequestId::new("r\"1").ok(),
        trace: Some(TraceContext::root(
            TraceId::from_bits(7),
            SpanId::from_bits(8),
            false,
        )),
        operation: OperationSeq::new(118_529_990_416_400_384),
    };
    for (format, expected) in [
        (
            LineFormat::Text,
            "x name=\"a\" operation=118529990416400384 request_id=\"r\\\"1\" trace_id=00000000000000000000000000000007\n",
        ),
        (
            LineFormat::Json,
            "\"name\":\"a\",\"operation\":\"118529990416400384\",\"request_id\":\"r\\\"1\",\"trace_id\":\"00000000000000000000000000000007\",",
        ),
    ] {
        let kept = Kept::default();
        let writer = kept.clone();
        let made = subscriber(&config(format, "info", true), move || writer.clone());
        let (made, _switch) = made.unwrap();
        let events = || {
            tracing::info!(target: "snapgate::x", name = "a", "x");
            tracing::info!(target: "snapgate::x", operation = 5, "own");
        };
        let within = || work_context::run_within(context.clone(), events);
        tracing::subscriber::with_default(made, within);
        let text = String::from_utf8(kept.0.lock().clone()).unwrap();
        assert!(text.contains(expected), "{format:?}: {text}");
        let own = text.lines().last().unwrap();
        assert!(!own.contains("118529990416400384"), "{format:?}: {own}");
        assert!(own.contains("trace_id"), "{format:?}: {own}");
    }
}

#[test]
fn the_level_can_be_changed_and_restored() {
    let kept = Kept::default();
    let writer = kept.clone();
    let made = subscriber(&config(LineFormat::Text, "warn", true), move || {
        writer.clone()
    });
    let (made, switch) = made.unwrap();
    let say = |word: &'static str| tracing::debug!(target: "snapgate::x", word, "said");
    tracing::subscriber::with_default(made, || {
        say("before");
        let changed = switch.change(Some("snapgate=debug,warn"), None).unwrap();
        assert_eq!(changed.current, "snapgate=debug,warn", "as asked");
        assert_eq!(changed.configured, "warn", "kept");
        say("while");
        assert!(switch.change(Some("x=y=z"), None).is_err(), "malformed");
        say("still");
        switch.change(Some("debug"), None).unwrap();
        let stale = switch.change(None, Some(changed.changes)).unwrap();
        assert_eq!(stale.current, "debug", "a later change is not undone");
        let restored = switch.change(None, Some(stale.changes)).unwrap();
        assert_eq!(restored.current, "warn", "as configured");
        say("after");
    });
    let text = String::from_utf8(kept.0.lock().clone()).unwrap();
    let words = ["before", "while", "still", "after"];
    let said = words.map(|word| text.contains(word));
    assert_eq!(said, [false, true, true, false], "{text}");
}

#[test]
fn a_malformed_level_is_an_error() {
    let made = subscriber(&config(LineFormat::Text, "snapgate=loud", true), io::stderr);
    assert!(
        matches!(made, Err(LogError::Level(_))),
        "an invalid filter is an error"
    );
}
