//! The 202 of an accepted operation.

use std::sync::Arc;
use std::time::Duration;

use crate::gate::audit_entry::AuditOutcome;
use crate::gate::handlers::waiting::wait_for_operation;
use crate::gate::header_names::PREFERENCE_APPLIED;
use crate::gate::links;
use crate::gate::request_context::AuthenticatedRequest;
use crate::gate::request_report::RequestReport;
use crate::gate::response_draft::ResponseDraft;
use crate::gate::services::Services;
use crate::model::Operation;
use crate::model::Verb;
use crate::model::limits;
use crate::operations::WaitFor;

/// Answers with an operation that existed before.
pub(super) async fn respond_joined(
    services: &Services,
    request: &AuthenticatedRequest<'_>,
    media: &'static str,
    operation: Arc<Operation>,
    report: &mut RequestReport,
) -> ResponseDraft {
    report.note(|entry| entry.outcome = AuditOutcome::Joined);
    respond_accepted(services, request, media, operation, report).await
}

/// Answers with an operation that was accepted, new or not. Everything is reported before the wait: a client that goes away
/// meanwhile drops this future.
pub(super) async fn respond_accepted(
    services: &Services,
    request: &AuthenticatedRequest<'_>,
    media: &'static str,
    operation: Arc<Operation>,
    report: &mut RequestReport,
) -> ResponseDraft {
    report.operation = Some(operation.seq);
    report.note(|entry| {
        entry.operation = Some(operation.seq);
        entry.backup = Some(operation.target().backup.clone());
    });
    report.write_audit(services.clock.now());
    let usual = match operation.verb() {
        // Updates usually end within milliseconds, so their callers save a second request.
        Verb::Update => limits::UPDATE_WAIT,
        Verb::Create | Verb::Delete | Verb::Restore => Duration::ZERO,
    };
    hold_response(services, request, media, operation, usual).await
}

/// The 202, held back as the caller prefers; for `usual` where it states no preference. Whatever fails while waiting, the
/// operation is accepted, so this never refuses.
pub(super) async fn hold_response(
    services: &Services,
    request: &AuthenticatedRequest<'_>,
    media: &'static str,
    operation: Arc<Operation>,
    usual: Duration,
) -> ResponseDraft {
    let preferences = &request.received.preferences;
    let time = preferences.hold_time(usual, services.config.limits.wait);
    let (operation, waited) = if operation.phase.is_final() {
        (operation, None)
    } else {
        let current = Arc::clone(&operation);
        let found = wait_for_operation(services, request, operation, WaitFor::End, time).await;
        found.unwrap_or((current, None))
    };
    let mut draft = ResponseDraft::accepted(media, &operation, &links::status(&operation));
    // A wait that the caller did not ask for is not a preference that was applied.
    let waited = waited.filter(|_| preferences.wait.is_some());
    if let Some(applied) = preferences.applied_field(waited) {
        draft.set(PREFERENCE_APPLIED, &applied);
    }
    draft
}
