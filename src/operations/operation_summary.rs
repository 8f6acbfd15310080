//! An operation as operators see it: offline, through the operator API, and printed as JSON.

use serde::Deserialize;
use serde::Deserializer;
use serde::Serialize;
use serde::Serializer;

use crate::model::Operation;
use crate::model::Timestamp;

/// One operation, for operators. Times are RFC 3339. Clients and VM managers chose the texts: escape them before printing
/// them to a terminal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationSummary {
    /// Its number; text in JSON, because JSON numbers lose digits beyond 2^53.
    #[serde(serialize_with = "as_text", deserialize_with = "from_text")]
    pub seq: u64,
    /// Its phase.
    pub phase: String,
    /// What it does.
    pub verb: String,
    /// The backend.
    pub backend: String,
    /// The VM.
    pub vm: String,
    /// The backup.
    pub backup: String,
    /// Who requested operation.
    pub principal: String,
    /// When it was accepted.
    pub created: String,
    /// When it left its queue.
    pub started: Option<String>,
    /// When it became final.
    pub completed: Option<String>,
    /// When its cancellation was requested.
    pub cancel_asked: Option<String>,
    /// When an operator acknowledged its unknown outcome.
    pub acknowledged: Option<String>,
    /// The kind of fault.
    pub fault: Option<String>,
    /// The text of the fault; for an unknown outcome, what to check; for a success, what the VM manager added.
    pub message: Option<String>,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands in a reference"
)]
fn as_text<S: Serializer>(number: &u64, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(number)
}

/// Accepts the JSON number that a gateway of an older version sends, too.
fn from_text<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Number {
        Text(String),
        Number(u64),
    }
    match Number::deserialize(from)? {
        Number::Text(text) => text.parse().map_err(serde::de::Error::custom),
        Number::Number(number) => Ok(number),
    }
}

impl From<&Operation> for OperationSummary {
    fn from(operation: &Operation) -> Self {
        let format_time = |time: Timestamp| time.to_string();
        let target = operation.target();
        Self {
            seq: operation.seq.number(),
            phase: operation.phase.as_str().to_owned(),
            verb: operation.verb().as_str().to_owned(),
            backend: operation.backend.as_str().to_owned(),
            vm: target.vm.as_str().to_owned(),
            backup: target.backup.as_str().to_owned(),
            principal: operation.principal.as_str().to_owned(),
            created: format_time(operation.created),
            started: operation.started.map(format_time),
            completed: operation.completed.map(format_time),
            cancel_asked: operation.cancel_asked.map(format_time),
            acknowledged: operation.acknowledged.map(format_time),
            fault: operation
                .fault
                .as_ref()
                .map(|fault| fault.kind.as_str().to_owned()),
            message: operation
                .fault
                .as_ref()
                .map(|fault| &fault.text)
                .or(operation.notice.as_ref())
                .map(ToString::to_string),
        }
    }
}
