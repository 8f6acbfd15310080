//! Records of the access log: their copies in the queue, and their lines.

use std::net::IpAddr;
use std::time::Duration;

use crate::model::Timestamp;
use crate::model::TraceContext;
use crate::telemetry::log::line_time::LineTime;

/// One completed request. Text from clients is escaped in both formats.
#[derive(Clone, Copy, Debug)]
pub struct AccessRecord<'a> {
    /// When the response ended.
    pub time: Timestamp,
    /// The id of the request.
    pub request: &'a str,
    /// The trace that the request is a part of.
    pub trace: Option<TraceContext>,
    /// The address the connection came from.
    pub peer: Option<IpAddr>,
    /// The address of the client: the peer, or the one that a trusted proxy forwarded.
    pub client: Option<IpAddr>,
    /// The method, a bounded word.
    pub method: &'static str,
    /// The route, a bounded word.
    pub route: &'static str,
    /// The status code of the response.
    pub status: u16,
    /// Bytes of the response body.
    pub bytes: u64,
    /// From receiving the request head to sending the last byte of the response.
    pub took: Duration,
    /// The authenticated caller, if there is one.
    pub principal: Option<&'a str>,
    /// The request target, as sent.
    pub target: &'a str,
    /// The `User-Agent` of the client.
    pub user_agent: Option<&'a str>,
    /// The operation that was accepted or joined.
    pub operation: Option<u64>,
    /// The configured name of the pass-through route.
    pub passthrough: Option<&'a str>,
    /// The upstream that received the request, as the configured host and port.
    pub upstream: Option<&'a str>,
}

/// How many texts a record has.
const TEXTS: usize = 6;

impl<'a> AccessRecord<'a> {
    const fn texts(&self) -> [Option<&'a str>; TEXTS] {
        [
            Some(self.request),
            Some(self.target),
            self.principal,
            self.user_agent,
            self.passthrough,
            self.upstream,
        ]
    }

    /// Bytes of all texts.
    pub(super) fn text_length(&self) -> usize {
        self.texts().iter().flatten().map(|text| text.len()).sum()
    }
}

/// A copy of an [`AccessRecord`] whose texts are elsewhere, one after another.
#[derive(Debug)]
pub(super) struct AccessCopy {
    /// The length of each text; `None` for texts that are absent.
    lengths: [Option<usize>; TEXTS],
    /// Everything else. Its texts are empty.
    rest: AccessRecord<'static>,
}

impl AccessCopy {
    /// Appends the texts of a record to others.
    pub(super) fn of(record: &AccessRecord<'_>, copied: &mut String) -> Self {
        let texts = record.texts();
        for text in texts.iter().flatten() {
            copied.push_str(text);
        }
        let rest = AccessRecord {
            request: "",
            target: "",
            principal: None,
            user_agent: None,
            passthrough: None,
            upstream: None,
            time: record.time,
            trace: record.trace,
            peer: record.peer,
            client: record.client,
            method: record.method,
            route: record.route,
            status: record.status,
            bytes: record.bytes,
            took: record.took,
            operation: record.operation,
        };
        Self {
            lengths: texts.map(|text| text.map(str::len)),
            rest,
        }
    }

    /// The record whose texts begin `copied`, which begins with the next ones then.
    pub(super) fn record<'t>(&self, copied: &mut &'t str) -> AccessRecord<'t> {
        let [
            request,
            target,
            principal,
            user_agent,
            passthrough,
            upstream,
        ] = self.lengths.map(|length| {
            let (text, after) = copied.split_at_checked(length?)?;
            *copied = after;
            Some(text)
        });
        AccessRecord {
            request: request.unwrap_or_default(),
            target: target.unwrap_or_default(),
            principal,
            user_agent,
            passthrough,
            upstream,
            ..self.rest
        }
    }
}

/// Formats an access log line and hands it to the writer.
pub(super) fn emit_access(record: &AccessRecord<'_>) {
    let text = |address: Option<IpAddr>| address.map(|address| address.to_string());
    let peer = text(record.peer).unwrap_or_default();
    let client = text(record.client).unwrap_or_default();
    LineTime::within(record.time, || {
        tracing::info!(
            target: "snapgate::access",
            request_id = record.request,
            trace_id = record
                .trace
                .map(|context| tracing::field::display(context.trace)),
            peer,
            client,
            method = record.method,
            route = record.route,
            status = record.status,
            bytes = record.bytes,
            took_us = u64::try_from(record.took.as_micros()).unwrap_or(u64::MAX),
            principal = record.principal,
            path = record.target,
            user_agent = record.user_agent,
            operation = record.operation.map(tracing::field::display),
            passthrough = record.passthrough,
            upstream = record.upstream,
            "request"
        );
    });
}
