//! Who may see and who may stop an operation.

use crate::gate::authn::AuthenticatedCaller;
use crate::model::Action;
use crate::model::Operation;
use crate::model::Verb;

/// Its owner, as far as the scope of the token includes its target, and callers with `observe` on its backup.
pub(super) fn may_see(caller: &AuthenticatedCaller, operation: &Operation) -> bool {
    let target = operation.target();
    let is_own = operation.principal == caller.principal.name;
    (is_own && caller.rights.covers_target(target))
        || caller
            .rights
            .actions_on_backup(&target.vm, &target.backup)
            .contains(Action::Observe)
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
