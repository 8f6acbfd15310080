//! Finished requests and operations as spans of distributed traces, and their encoding for a collector.

mod otlp;
mod queue;
mod span;

pub use otlp::encode_spans;
pub use queue::EndedOperation;
pub use queue::TakenSpans;
pub use queue::is_tracing_exported;
pub use queue::record_operation_span;
pub use queue::record_request_span;
pub use queue::start_recording_spans;
pub use queue::take_spans;
pub use span::FinishedSpan;
