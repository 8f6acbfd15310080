//! A stored operation as operators see it: offline, through the admin port, and printed as JSON.

use serde::Deserialize;
use serde::Deserializer;
use serde::Serialize;
use serde::Serializer;

use crate::model::Operation;
use crate::model::Timestamp;

/// One operation, for operators. Times are RFC 3339. Text is as clients and VM managers chose it: escape it before a
/// terminal sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationSummary {
    /// Its number; text in JSON, because JSON numbers lose digits beyond 2^53.
    #[serde(serialize_with = "as_text", deserialize_with = "from_text")]
    pub seq: u64,
    /// Where in its life it is.
    pub phase: String,
    /// What was asked for.
    pub verb: String,
    /// The backend.
    pub backend: String,
    /// The VM.
    pub vm: String,
    /// The backup.
    pub backup: String,
    /// Who asked.
    pub principal: String,
    /// When.
    pub created: String,
    /// When it was begun.
    pub started: Option<String>,
    /// When it became final.
    pub completed: Option<String>,
    /// When somebody asked that it be stopped.
    pub cancel_asked: Option<String>,
    /// When an operator acknowledged its unknown outcome.
    pub acknowledged: Option<String>,
    /// The kind of fault.
    pub fault: Option<String>,
    /// The sentence of the fault; of an unknown outcome, what to check.
    pub message: Option<String>,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands in a reference"
)]
fn as_text<S: Serializer>(number: &u64, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(number)
}

/// Reads the number that a gateway of an older version sends, too.
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
    fn from(it: &Operation) -> Self {
        let time = |it: Timestamp| it.to_string();
        let target = it.target();
        Self {
            seq: it.seq.number(),
            phase: it.phase.as_str().to_owned(),
            verb: it.verb().as_str().to_owned(),
            backend: it.backend.as_str().to_owned(),
            vm: target.vm.as_str().to_owned(),
            backup: target.backup.as_str().to_owned(),
            principal: it.principal.as_str().to_owned(),
            created: time(it.created),
            started: it.started.map(time),
            completed: it.completed.map(time),
            cancel_asked: it.cancel_asked.map(time),
            acknowledged: it.acknowledged.map(time),
            fault: it
                .fault
                .as_ref()
                .map(|fault| fault.kind.as_str().to_owned()),
            message: it.fault.as_ref().map(|fault| fault.text.to_string()),
        }
    }
}
