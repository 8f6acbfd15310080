//! Deviation D20: DELETE on a `status_uri` asks that the operation be stopped.

use std::time::Duration;

use crate::gate::authn::AuthenticatedCaller;
use crate::gate::conditional;
use crate::gate::conditional::RequiredState;
use crate::gate::handlers::statuses::Wanted;
use crate::gate::handlers::statuses::may_see;
use crate::gate::negotiate;
use crate::gate::pipeline::Call;
use crate::gate::pipeline::Gate;
use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::gate::reply::Reply;
use crate::gate::request::AuditOutcome;
use crate::gate::request::Body;
use crate::model::Action;
use crate::model::Operation;
use crate::model::Verb;
use crate::operations::CancelError;

/// The owner, and whoever may ask for the same operation.
fn may_cancel(caller: &AuthenticatedCaller, operation: &Operation) -> bool {
    let target = operation.target();
    let needed = match operation.verb() {
        Verb::Create => Action::Create,
        Verb::Update => Action::Update,
        Verb::Delete => Action::Delete,
        Verb::Restore => Action::Restore,
    };
    let held = caller.rights.actions_on_backup(&target.vm, &target.backup);
    // A token without the right that began the operation does not end it, though its owner may.
    let is_own = operation.principal == caller.principal.name;
    let scope_actions = caller
        .rights
        .scope_actions(&target.vm, Some(&target.backup));
    (is_own && scope_actions.contains(needed)) || held.contains(needed)
}

impl From<CancelError> for Refusal {
    fn from(error: CancelError) -> Self {
        match error {
            CancelError::NoSuchOperation => Self::from(Code::NoSuchStatus),
            CancelError::NotCancellable => Self::from(Code::NotCancellable),
            CancelError::Changed => Self::from(Code::PreconditionFailed),
            CancelError::Store(fault) => Self::from(fault),
        }
    }
}

impl Gate {
    pub(in crate::gate) async fn cancel(
        &self,
        call: &mut Call<'_>,
        caller: &AuthenticatedCaller,
        body: &mut dyn Body,
    ) -> Result<Reply, Refusal> {
        let wanted = Wanted::of(call.query)?;
        let media = self.own_type(call, negotiate::STATUS)?;
        // Never the newest one that fits: another could have come in between.
        let seq = wanted
            .seq
            .ok_or_else(|| Refusal::from(Code::MissingParameter).on("seq"))?;
        self.skip_body(call, body).await?;
        let found = self.service.operation(seq).await?;
        let found = found
            .filter(|it| wanted.agrees(it))
            .filter(|it| may_see(caller, it) || may_cancel(caller, it))
            .ok_or_else(|| Refusal::from(Code::NoSuchStatus))?;
        call.operation = Some(seq);
        call.note(|call| {
            call.operation = Some(seq);
            call.backend = Some(found.backend.clone());
            call.vm = Some(found.target().vm.clone());
            call.backup = Some(found.target().backup.clone());
        });
        if !may_cancel(caller, &found) {
            return Err(Refusal::from(Code::NotPermitted));
        }
        let tag = || conditional::status_tag(&found);
        let only_at = match conditional::check_preconditions(call.head.headers, tag)? {
            RequiredState::Any | RequiredState::Presence => None,
            RequiredState::Unchanged => Some(found.revision),
        };
        self.trail_before(call, seq)?;
        let operation = self.service.cancel(seq, only_at).await?;
        call.note(|call| call.outcome = AuditOutcome::Accepted);
        self.trail_now(call);
        Ok(self.accepted(call, media, operation, Duration::ZERO).await)
    }
}
