//! What the audit trail says of operations: that one was accepted, and how it ended.

use crate::model::Operation;
use crate::operations::api::Origin;
use crate::telemetry;
use crate::telemetry::AuditClient;
use crate::telemetry::AuditRecord;
use crate::telemetry::AuditWriteError;

/// What both records have in common.
fn record<'a>(of: &'a Operation, outcome: &'a str) -> AuditRecord<'a> {
    let target = of.target();
    AuditRecord {
        principal: Some(of.principal.as_str()),
        backend: Some(of.backend.as_str()),
        vm: Some(target.vm.as_str()),
        backup: Some(target.backup.as_str()),
        operation: Some(of.seq.number()),
        request: Some(of.request.as_str()),
        ..AuditRecord::new(of.created, of.verb().as_str(), outcome)
    }
}

fn request<'a>(of: &'a Operation, origin: &'a Origin, outcome: &'a str) -> AuditRecord<'a> {
    AuditRecord {
        token: origin.token.as_ref().map(|token| token.as_str()),
        client: origin.client.map(AuditClient::Address),
        note: of.note.as_ref().map(|note| note.as_str()),
        ..record(of, outcome)
    }
}

/// Written before anything is durable, where changes need the audit trail.
pub(super) fn asked(operation: &Operation, origin: &Origin) -> Result<(), AuditWriteError> {
    telemetry::record_audit_before_change(&request(operation, origin, "asked"))
}

/// Written once the operation is durable and before anybody works on it, so that its end always comes later.
pub(super) fn accepted(operation: &Operation, origin: &Origin) {
    telemetry::record_audit(&request(operation, origin, "accepted"));
}

/// Written once the end is durable: `succeeded`, `failed`, `cancelled`, `not-executed` or `unknown`.
pub(super) fn ended(operation: &Operation) {
    let Some(completed) = operation.completed else {
        return;
    };
    telemetry::record_audit(&AuditRecord {
        time: completed,
        reason: operation.fault.as_ref().map(|fault| fault.kind.as_str()),
        ..record(operation, operation.phase.as_str())
    });
}
