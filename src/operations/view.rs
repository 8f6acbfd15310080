//! A stored operation as operators see it: offline, through the admin port, and printed as JSON.

use serde::Deserialize;
use serde::Serialize;

use crate::model::Operation;
use crate::model::Timestamp;

/// One operation, for operators. Times are RFC 3339. Text is as clients and VM managers chose it: escape it before a
/// terminal sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// Its number.
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

impl From<&Operation> for View {
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
            fault: it.fault.as_ref().map(|it| it.kind.as_str().to_owned()),
            message: it.fault.as_ref().map(|it| it.text.clone()),
        }
    }
}
