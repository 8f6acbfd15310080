//! Spans in the JSON encoding of OTLP: an `ExportTraceServiceRequest`, as collectors take it at `/v1/traces`.
//!
//! The encoding is that of Protocol Buffers in JSON, but with ids in hexadecimal (OTLP 1.x, "JSON Protobuf Encoding").

use std::time::Duration;

use serde_json::Value;
use serde_json::json;

use crate::telemetry::spans::span::AttributeValue;
use crate::telemetry::spans::span::FinishedSpan;
use crate::telemetry::spans::span::SpanKind;

/// `STATUS_CODE_ERROR`.
const ERROR: u8 = 2;

/// One request to a collector.
#[must_use]
pub fn encode_spans(spans: &[FinishedSpan]) -> Vec<u8> {
    let (name, version) = (env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
    let resource = [("service.name", name), ("service.version", version)];
    let resource: Vec<Value> = resource
        .into_iter()
        .map(|(key, value)| attribute(key, &AttributeValue::Text(value.to_owned())))
        .collect();
    let spans: Vec<Value> = spans.iter().map(encode_span).collect();
    json!({
        "resourceSpans": [{
            "resource": { "attributes": resource },
            "scopeSpans": [{
                "scope": { "name": name, "version": version },
                "spans": spans,
            }],
        }],
    })
    .to_string()
    .into_bytes()
}

fn encode_span(span: &FinishedSpan) -> Value {
    let attributes: Vec<Value> = span
        .attributes
        .iter()
        .map(|(key, value)| attribute(key, value))
        .collect();
    let ended = Duration::from_millis(span.ended.as_millis());
    let kind = match span.kind {
        SpanKind::Internal => 1,
        SpanKind::Server => 2,
    };
    let mut encoded = json!({
        "traceId": span.context.trace.to_string(),
        "spanId": span.context.span.to_string(),
        "name": span.name,
        "kind": kind,
        // 64-bit numbers are text in this encoding.
        "startTimeUnixNano": ended.saturating_sub(span.took).as_nanos().to_string(),
        "endTimeUnixNano": ended.as_nanos().to_string(),
        "attributes": attributes,
    });
    if let Some(members) = encoded.as_object_mut() {
        if let Some(parent) = span.context.parent {
            members.insert("parentSpanId".to_owned(), Value::from(parent.to_string()));
        }
        if span.is_error {
            members.insert("status".to_owned(), json!({ "code": ERROR }));
        }
    }
    encoded
}

fn attribute(key: &str, value: &AttributeValue) -> Value {
    let value = match value {
        AttributeValue::Text(text) => json!({ "stringValue": text }),
        AttributeValue::Number(number) => json!({ "intValue": number.to_string() }),
    };
    json!({ "key": key, "value": value })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::SpanId;
    use crate::model::Timestamp;
    use crate::model::TraceContext;
    use crate::model::TraceId;

    #[test]
    fn a_span_is_encoded_as_collectors_expect_it() {
        let parent = TraceContext::root(TraceId::from_bits(1), SpanId::from_bits(2), true);
        let span = FinishedSpan {
            context: TraceContext {
                span: SpanId::from_bits(3),
                parent: Some(parent.span),
                ..parent
            },
            name: "GET backup".to_owned(),
            kind: SpanKind::Server,
            ended: Timestamp::from_millis(5_000),
            took: Duration::from_micros(1_500),
            attributes: vec![
                ("http.route", AttributeValue::Text("backup".to_owned())),
                ("http.response.status_code", AttributeValue::Number(503)),
            ],
            is_error: true,
        };
        let encoded: Value = serde_json::from_slice(&encode_spans(&[span])).unwrap();
        let found = &encoded["resourceSpans"][0]["scopeSpans"][0]["spans"][0];
        let expected = json!({
            "traceId": "00000000000000000000000000000001",
            "spanId": "0000000000000003",
            "parentSpanId": "0000000000000002",
            "name": "GET backup",
            "kind": 2,
            "startTimeUnixNano": "4998500000",
            "endTimeUnixNano": "5000000000",
            "attributes": [
                { "key": "http.route", "value": { "stringValue": "backup" } },
                { "key": "http.response.status_code", "value": { "intValue": "503" } },
            ],
            "status": { "code": 2 },
        });
        assert_eq!(*found, expected, "{found}");
        let resource = &encoded["resourceSpans"][0]["resource"]["attributes"][0];
        assert_eq!(resource["value"]["stringValue"], "snapgate", "whose it is");
    }
}
