//! Who may see and who may stop an operation.

use crate::gate::authn::AuthenticatedCaller;
use crate::gate::authz::Rights;
use crate::model::Action;
use crate::model::Operation;
use crate::model::Target;
use crate::model::Verb;
use crate::operations::OperationVisibility;

/// Its owner, as far as the scope of the token includes its target, and callers with `observe` on its backup.
pub(super) fn may_see(caller: &AuthenticatedCaller, operation: &Operation) -> bool {
    let is_own = operation.principal == caller.principal.name;
    sees_target(&caller.rights, is_own, operation.target())
}

fn sees_target(rights: &Rights, is_own: bool, target: &Target) -> bool {
    (is_own && rights.covers_target(target))
        || rights
            .actions_on_backup(&target.vm, &target.backup)
            .contains(Action::Observe)
}

/// The same as a filter of lists; `None` where the caller sees all of the list. `is_own` is of a list of the caller's own
/// operations alone.
pub(super) fn visibility_for(
    caller: &AuthenticatedCaller,
    is_own: bool,
) -> Option<OperationVisibility> {
    let rights = &caller.rights;
    let sees_all = rights.allows_everywhere(Action::Observe) || (is_own && rights.is_unscoped());
    let (rights, own) = (rights.clone(), caller.principal.name.clone());
    (!sees_all).then(|| {
        OperationVisibility::new(move |principal, target| {
            sees_target(&rights, *principal == own, target)
        })
    })
}

/// Its owner, and callers who may request the same operation.
pub(super) fn may_cancel(caller: &AuthenticatedCaller, operation: &Operation) -> bool {
    let target = operation.target();
    let needed = match operation.verb() {
        Verb::Create => Action::Create,
        Verb::Update => Action::Update,
        Verb::Delete => Action::Delete,
        Verb::Restore => Action::Restore,
    };
    let rights = &caller.rights;
    let allowed = rights.actions_on_backup(&target.vm, &target.backup);
    // The owner may stop what it no longer has a grant for; a token whose scope leaves the action out may not, though its
    // owner may.
    let is_own = operation.principal == caller.principal.name;
    let in_scope = rights.scope_actions(&target.vm, Some(&target.backup));
    (is_own && in_scope.contains(needed)) || allowed.contains(needed)
}
