//! The stored form of an operation: JSON with a format number.

use serde::Deserialize;
use serde::Serialize;

use crate::model::Operation;

/// The format written by this version, which also reads the one before. Format 1 did not count calls.
pub(super) const FORMAT: u16 = 2;
const FORMAT_BEFORE: u16 = 1;

#[derive(Serialize)]
struct Written<'a> {
    format: u16,
    operation: &'a Operation,
}

#[derive(Deserialize)]
struct Head {
    format: u16,
}

#[derive(Deserialize)]
struct Read {
    operation: Operation,
}

/// Why a record cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::operations) enum RecordError {
    /// Written by a newer version.
    #[error("format {0} is not supported by this version")]
    Format(u16),
    /// Not a record.
    #[error("not a record: {0}")]
    Shape(String),
}

/// Encodes the text to store.
///
/// # Errors
/// When it cannot be encoded as JSON: a defect.
pub(super) fn encode(operation: &Operation) -> Result<String, RecordError> {
    let written = Written {
        format: FORMAT,
        operation,
    };
    serde_json::to_string(&written).map_err(|error| RecordError::Shape(error.to_string()))
}

/// Decodes a stored text.
///
/// # Errors
/// [`RecordError`]: the record must be left alone.
pub(super) fn decode(text: &str) -> Result<Operation, RecordError> {
    let shape = |error: serde_json::Error| RecordError::Shape(error.to_string());
    let head: Head = serde_json::from_str(text).map_err(shape)?;
    if head.format != FORMAT && head.format != FORMAT_BEFORE {
        return Err(RecordError::Format(head.format));
    }
    let read: Read = serde_json::from_str(text).map_err(shape)?;
    Ok(read.operation)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Phase;
    use crate::operations::testing::operation;
    use crate::public_text;

    #[test]
    fn a_record_is_read_back_and_anything_else_is_refused() {
        let made = operation(7, "vm", "b");
        let text = encode(&made).unwrap();
        assert_eq!(decode(&text).unwrap(), made, "round trip");
        assert!(
            !text.contains("cancel_asked"),
            "without a cancellation the record is readable by the version before"
        );
        assert!(
            !text.contains("notice"),
            "without a notice the record is readable by the version before"
        );
        let warned = Operation {
            phase: Phase::Succeeded,
            notice: Some(public_text!("The VM manager reported warnings.")),
            ..made.clone()
        };
        let written = encode(&warned).unwrap();
        assert_eq!(decode(&written).unwrap(), warned, "with a notice");
        let newer = text.replace("\"format\":2", "\"format\":3");
        assert_eq!(decode(&newer), Err(RecordError::Format(3)), "newer");
        let older = text.replace("\"format\":2", "\"format\":1");
        let older = older.replace("\"calls\":0,", "");
        assert!(!older.contains("calls"), "format 1 has no calls: {older}");
        assert_eq!(decode(&older).unwrap(), made, "the format before");
        let rows = [
            ("empty", ""),
            ("no head", "{}"),
            ("half", text.split_at(40).0),
        ];
        for (name, text) in rows {
            assert!(
                matches!(decode(text), Err(RecordError::Shape(_))),
                "{name} is not a record"
            );
        }
    }
}
