//! What is reported of a request in the headers of its response, the access log and the audit trail.
//!
//! The stages write it and nothing decides by it: it is kept beside the request, so that a refusal at any stage reports
//! all that was known by then.

use crate::gate::audit_entry::AuditAction;
use crate::gate::audit_entry::AuditEntry;
use crate::gate::audit_entry::AuditOutcome;
use crate::gate::authn::AuthenticatedCaller;
use crate::gate::authn::ClaimedName;
use crate::gate::authn::CredentialsDenied;
use crate::gate::limiter::Quota;
use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::gate::request_context::ReceivedRequest;
use crate::gate::route::Purpose;
use crate::gate::route::Route;
use crate::gate::version::SpecVersion;
use crate::model::OperationSeq;
use crate::model::PrincipalName;
use crate::model::Timestamp;
use crate::telemetry;

/// What is reported of one request.
#[derive(Debug)]
pub(super) struct RequestReport {
    /// The route as a bounded word.
    pub(super) route: &'static str,
    pub(super) principal: Option<PrincipalName>,
    pub(super) quota: Option<Quota>,
    pub(super) version: Option<SpecVersion>,
    pub(super) operation: Option<OperationSeq>,
    /// The line of the audit trail; `None` for reads of known callers.
    pub(super) audit: Option<AuditEntry>,
}

impl RequestReport {
    pub(super) const fn new() -> Self {
        Self {
            route: "none",
            principal: None,
            quota: None,
            version: None,
            operation: None,
            audit: None,
        }
    }

    /// Begins the line of the audit trail for a request that changes something. It says refused until the change is accepted.
    pub(super) fn begin_audit(
        &mut self,
        received: &ReceivedRequest<'_>,
        purpose: Purpose,
        route: &Route,
    ) {
        let action = match purpose {
            Purpose::Read | Purpose::Plan => return,
            Purpose::Change(verb) => AuditAction::Change(verb),
            Purpose::Cancel => AuditAction::Cancel,
        };
        self.audit = Some(AuditEntry {
            vm: route.vm().cloned(),
            backup: route.backup().cloned(),
            ..new_entry(received, action)
        });
    }

    /// Changes the line of the audit trail, if there is one.
    pub(super) fn note(&mut self, change: impl FnOnce(&mut AuditEntry)) {
        if let Some(entry) = &mut self.audit {
            change(entry);
        }
    }

    pub(super) fn note_caller(&mut self, caller: &AuthenticatedCaller) {
        let name = &caller.principal.name;
        self.note(|entry| {
            entry.principal = Some(name.clone());
            entry.token.clone_from(&caller.token);
        });
        self.principal = Some(name.clone());
    }

    /// Logs denied credentials. The audit trail says so for reads too: `action` is what it calls a request without a line.
    pub(super) fn note_denial(
        &mut self,
        received: &ReceivedRequest<'_>,
        action: AuditAction,
        denied: CredentialsDenied,
    ) {
        tracing::info!(
            target: "snapgate::authentication",
            client = received.client.address.map(tracing::field::display),
            reason = denied.reason.as_str(),
            claimed = denied.claimed.as_ref().map(ClaimedName::as_str),
            token = denied.token.as_ref().map(|name| name.as_str()),
            "credentials refused"
        );
        let entry = self.audit.take();
        self.audit = Some(AuditEntry {
            denial: Some(denied.reason),
            claimed: denied.claimed,
            token: denied.token,
            ..entry.unwrap_or_else(|| new_entry(received, action))
        });
    }

    /// Writes that a change is about to be made, where changes need the audit trail: without the line there is no change.
    pub(super) fn write_audit_before(
        &self,
        operation: OperationSeq,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let Some(entry) = &self.audit else {
            return Ok(());
        };
        let asked = AuditEntry {
            outcome: AuditOutcome::Asked,
            operation: Some(operation),
            ..entry.clone()
        };
        let written = telemetry::record_audit_before_change(&asked.record(now));
        written.map_err(|_not_written| Refusal::from(Code::AuditUnavailable))
    }

    /// Writes what was decided before the response waits for anything: a client that goes away must not lose the line.
    pub(super) fn write_audit(&mut self, now: Timestamp) {
        self.note(|entry| {
            if !std::mem::replace(&mut entry.written, true) {
                telemetry::record_audit(&entry.record(now));
            }
        });
    }
}

fn new_entry(received: &ReceivedRequest<'_>, action: AuditAction) -> AuditEntry {
    AuditEntry {
        request: received.id.clone(),
        trace: received.trace,
        principal: None,
        token: None,
        client: received.client.address,
        action,
        backend: None,
        vm: None,
        backup: None,
        note: None,
        outcome: AuditOutcome::Refused,
        refusal: None,
        operation: None,
        denial: None,
        claimed: None,
        written: false,
    }
}
