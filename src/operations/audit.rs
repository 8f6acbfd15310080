//! The records of an operation in the audit trail: requested, accepted, ended.

use crate::model::Operation;
use crate::operations::api::Origin;
use crate::runtime::work_context;
use crate::telemetry;
use crate::telemetry::AuditClient;
use crate::telemetry::AuditRecord;
use crate::telemetry::AuditWriteError;

/// The members that all records of an operation have.
fn common_record<'a>(operation: &'a Operation, outcome: &'a str) -> AuditRecord<'a> {
    let target = operation.target();
    AuditRecord {
        principal: Some(operation.principal.as_str()),
        backend: Some(operation.backend.as_str()),
        vm: Some(target.vm.as_str()),
        backup: Some(target.backup.as_str()),
        operation: Some(operation.seq.number()),
        request: Some(operation.request.as_str()),
        trace_id: work_context::current_trace().map(|context| context.trace),
        ..AuditRecord::new(operation.created, operation.verb().as_str(), outcome)
    }
}

/// A record with the origin of the request.
fn request_record<'a>(
    operation: &'a Operation,
    origin: &'a Origin,
    outcome: &'a str,
) -> AuditRecord<'a> {
    AuditRecord {
        token: origin.token.as_ref().map(|token| token.as_str()),
        client: origin.client.map(AuditClient::Address),
        note: operation.note.as_ref().map(|note| note.as_str()),
        ..common_record(operation, outcome)
    }
}

/// Written before anything is durable, where changes need the audit trail: without the record there is no change.
pub(super) fn record_request(
    operation: &Operation,
    origin: &Origin,
) -> Result<(), AuditWriteError> {
    telemetry::record_audit_before_change(&request_record(operation, origin, "asked"))
}

/// Written once the operation is durable and before any task works on it, so that its end always comes later.
pub(super) fn record_acceptance(operation: &Operation, origin: &Origin) {
    telemetry::record_audit(&request_record(operation, origin, "accepted"));
}

/// Written once the end is durable: `succeeded`, `failed`, `cancelled`, `not-executed` or `unknown`.
pub(super) fn record_end(operation: &Operation) {
    let Some(completed) = operation.completed else {
        return;
    };
    telemetry::record_audit(&AuditRecord {
        time: completed,
        reason: operation.fault.as_ref().map(|fault| fault.kind.as_str()),
        ..common_record(operation, operation.phase.as_str())
    });
}
