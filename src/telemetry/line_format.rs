//! The format of log lines.

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineFormat {
    /// Human-readable text.
    Text,
    /// One JSON object a line.
    Json,
}
