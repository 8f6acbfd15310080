//! Deviation D20: DELETE on a `status_uri` requests that the operation be cancelled.

use std::time::Duration;

use crate::gate::audit_entry::AuditOutcome;
use crate::gate::conditional;
use crate::gate::conditional::RequiredState;
use crate::gate::handlers::accepted::hold_response;
use crate::gate::handlers::operation_access::may_cancel;
use crate::gate::handlers::operation_access::may_see;
use crate::gate::handlers::status_query::StatusQuery;
use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::gate::request_body::IncomingBody;
use crate::gate::request_context::AuthenticatedRequest;
use crate::gate::request_report::RequestReport;
use crate::gate::response_draft::ResponseDraft;
use crate::gate::services::Services;

pub(in crate::gate) async fn cancel_operation(
    services: &Services,
    request: &AuthenticatedRequest<'_>,
    body: &mut IncomingBody<'_>,
    report: &mut RequestReport,
) -> Result<ResponseDraft, Refusal> {
    let query = StatusQuery::parse(request.query)?;
    let media = request.media_type()?;
    // Only by number: the newest operation that matches may be another one by now.
    let seq = query
        .seq
        .ok_or_else(|| Refusal::from(Code::MissingParameter).on("seq"))?;
    body.skip().await?;
    let caller = request.caller;
    let found = services.operations.operation(seq).await?;
    let found = found
        .filter(|operation| query.matches(operation))
        .filter(|operation| may_see(caller, operation) || may_cancel(caller, operation))
        .ok_or_else(|| Refusal::from(Code::NoSuchStatus))?;
    report.operation = Some(seq);
    report.note(|entry| {
        entry.operation = Some(seq);
        entry.backend = Some(found.backend.clone());
        entry.vm = Some(found.target().vm.clone());
        entry.backup = Some(found.target().backup.clone());
    });
    if !may_cancel(caller, &found) {
        return Err(Refusal::from(Code::NotPermitted));
    }
    let tag = || conditional::status_tag(&found);
    let only_at = match conditional::check_preconditions(request.headers(), tag)? {
        RequiredState::Any | RequiredState::Presence => None,
        RequiredState::Unchanged => Some(found.revision),
    };
    report.write_audit_before(seq, services.clock.now())?;
    let operation = services.operations.cancel(seq, only_at).await?;
    report.note(|entry| entry.outcome = AuditOutcome::Accepted);
    report.write_audit(services.clock.now());
    Ok(hold_response(services, request, media, operation, Duration::ZERO).await)
}
