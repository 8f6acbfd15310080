//! The fields that every log line has when it is about a request or an operation: `operation`, `request_id` and `trace_id`.

use std::fmt;

use tracing::Event;
use tracing::Metadata;
use tracing::Subscriber;
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::FormatEvent;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::Format;
use tracing_subscriber::fmt::format::Full;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::registry::LookupSpan;

use crate::runtime::work_context;
use crate::runtime::work_context::WorkContext;
use crate::telemetry::log::line_time::LineTime;

const OPERATION: &str = "operation";
const REQUEST_ID: &str = "request_id";
const TRACE_ID: &str = "trace_id";

/// What the running task works for, as fields. Those that the line has itself are left out: they say it better, for instance
/// where one task writes of several operations.
pub(super) fn context_fields(metadata: &Metadata<'_>) -> Vec<(&'static str, String)> {
    let read = |context: &WorkContext| {
        let all = [
            (
                OPERATION,
                context.operation.map(|operation| operation.to_string()),
            ),
            (
                REQUEST_ID,
                context
                    .request
                    .as_ref()
                    .map(|request| request.as_str().to_owned()),
            ),
            (
                TRACE_ID,
                context.trace.map(|context| context.trace.to_string()),
            ),
        ];
        let is_new = |name: &str| metadata.fields().field(name).is_none();
        let all = all.into_iter().filter(|(name, _)| is_new(name));
        all.filter_map(|(name, value)| Some((name, value?)))
            .collect()
    };
    work_context::read(read).unwrap_or_default()
}

/// Lines for people, with the fields of the context at their end.
#[derive(Debug)]
pub(super) struct TextLines(pub(super) Format<Full, LineTime>);

impl<S, N> FormatEvent<S, N> for TextLines
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    N: for<'writer> FormatFields<'writer> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let added = context_fields(event.metadata());
        if added.is_empty() {
            return self.0.format_event(context, writer, event);
        }
        let mut line = String::new();
        self.0
            .format_event(context, Writer::new(&mut line), event)?;
        writer.write_str(line.trim_end_matches('\n'))?;
        for (name, value) in added {
            // Quoted as fields of text are, because a proxy may have chosen the id of the request.
            if name == REQUEST_ID {
                write!(writer, " {name}={value:?}")?;
            } else {
                write!(writer, " {name}={value}")?;
            }
        }
        writer.write_char('\n')
    }
}
