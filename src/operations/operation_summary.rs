//! An operation as operators see it: offline, through the operator API, and printed as JSON.

use serde::Deserialize;
use serde::Deserializer;
use serde::Serialize;
use serde::Serializer;
use serde_json::Map;
use serde_json::Value;

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

/// One operation with everything that is stored of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationDetails {
    /// What lists show too.
    #[serde(flatten)]
    pub summary: OperationSummary,
    /// The rest by its name: the id of the request, what was asked for, conditions, progress, the task of the VM manager, and when
    /// the record expires. Empty when an older gateway answers.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// Members of the record that the summary has in a form of its own, or that say nothing to an operator.
const SUMMARIZED: [&str; 11] = [
    "seq",
    "phase",
    "principal",
    "backend",
    "created",
    "started",
    "completed",
    "cancel_asked",
    "acknowledged",
    "fault",
    "notice",
];

impl From<&Operation> for OperationDetails {
    fn from(operation: &Operation) -> Self {
        let record = serde_json::to_value(operation).unwrap_or_default();
        let mut more = match record {
            Value::Object(members) => members,
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Array(_) => Map::new(),
        };
        more.retain(|name, _| !SUMMARIZED.contains(&name.as_str()));
        if let Some(request) = more.remove("request") {
            more.insert("request_id".to_owned(), request);
        }
        // The fingerprint of the request is of no use to a person.
        if let Some(idempotency) = &operation.idempotency {
            more.remove("idempotency");
            let key = Value::from(idempotency.key.as_str());
            more.insert("idempotency_key".to_owned(), key);
        }
        for (name, time) in [
            ("uncertain_since", operation.uncertain_since),
            ("expires", operation.expires),
        ] {
            if let Some(time) = time {
                more.insert(name.to_owned(), Value::from(time.to_string()));
            }
        }
        Self {
            summary: OperationSummary::from(operation),
            more,
        }
    }
}
