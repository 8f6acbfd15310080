//! Who may do what: grants resolved per caller, and the only place where a permit is made.

use std::sync::Arc;

use crate::gate::grant::Grant;
use crate::gate::grant::Grantee;
use crate::gate::grant::Scope;
use crate::gate::id_cover::IdCover;
use crate::gate::pattern_index::PatternIndex;
use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::gate::route::RequiredAccess;
use crate::gate::route::Route;
use crate::model::Action;
use crate::model::ActionSet;
use crate::model::BackendName;
use crate::model::BackupId;
use crate::model::Pattern;
use crate::model::Permit;
use crate::model::Principal;
use crate::model::Target;
use crate::model::VmId;

/// The rights of one caller: what its grants allow, narrowed to the scope of its token.
#[derive(Clone, Debug, Default)]
pub(super) struct Rights {
    rules: Arc<Rules>,
    scope: Option<Scope>,
}

/// The grants of one caller.
#[derive(Debug, Default)]
struct Rules {
    all: Vec<Rule>,
    by_vm: PatternIndex,
}

/// Whether one grant covers a VM or a backup.
#[derive(Clone, Copy, Debug)]
pub(super) struct GrantMatch {
    /// Which of the configured grants.
    pub(super) grant: usize,
    pub(super) covers_vm: bool,
    pub(super) covers_backup: bool,
}

#[derive(Debug)]
struct Rule {
    /// Which of the configured grants this is.
    grant: usize,
    actions: ActionSet,
    vms: Vec<Pattern>,
    backups: Vec<Pattern>,
}

impl Rule {
    fn covers_vm(&self, vm: &VmId) -> bool {
        fits(&self.vms, vm.as_str())
    }

    fn covers_backup(&self, backup: &BackupId) -> bool {
        fits(&self.backups, backup.as_str())
    }
}

fn fits(patterns: &[Pattern], text: &str) -> bool {
    patterns.iter().any(|pattern| pattern.matches(text))
}

impl Rights {
    /// The grants that are for this caller.
    pub(super) fn for_principal(principal: &Principal, grants: &[Grant]) -> Self {
        let is_for = |grantee: &Grantee| match grantee {
            Grantee::User(name) => *name == principal.name,
            Grantee::Group(name) => principal.groups.binary_search(name).is_ok(),
        };
        let all: Vec<Rule> = grants
            .iter()
            .enumerate()
            .filter(|(_, grant)| grant.to.iter().any(is_for))
            .map(|(index, grant)| Rule {
                grant: index,
                actions: grant.actions,
                vms: grant.vms.clone(),
                backups: grant.backups.clone(),
            })
            .collect();
        let by_vm = PatternIndex::new(all.iter().map(|rule| rule.vms.as_slice()));
        let rules = Arc::new(Rules { all, by_vm });
        Self { rules, scope: None }
    }

    /// The same rights narrowed to a scope.
    pub(super) fn narrowed_to(&self, scope: &Scope) -> Self {
        Self {
            rules: Arc::clone(&self.rules),
            scope: Some(scope.clone()),
        }
    }

    /// Whether no scope narrows what the grants allow.
    pub(super) fn is_unrestricted(&self) -> bool {
        self.scope.as_ref().is_none_or(Scope::is_unrestricted)
    }

    /// What the scope includes of actions on a VM, or on one of its backups.
    pub(super) fn scope_actions(&self, vm: &VmId, backup: Option<&BackupId>) -> ActionSet {
        let Some(scope) = &self.scope else {
            return ActionSet::ALL;
        };
        let is_on = fits(&scope.vms, vm.as_str())
            && backup.is_none_or(|backup| fits(&scope.backups, backup.as_str()));
        if is_on {
            scope.actions
        } else {
            ActionSet::NONE
        }
    }

    /// The rules on a VM, or on one of its backups; some perhaps more than once.
    fn rules_on<'a>(
        &'a self,
        vm: &'a VmId,
        backup: Option<&'a BackupId>,
    ) -> impl Iterator<Item = &'a Rule> {
        let is_on = move |rule: &&Rule| {
            rule.covers_vm(vm) && backup.is_none_or(|backup| rule.covers_backup(backup))
        };
        let candidates = self.rules.by_vm.candidates(vm.as_str());
        let rules = candidates.filter_map(|candidate| self.rules.all.get(candidate));
        rules.filter(is_on)
    }

    /// Which of the caller's grants with this action cover a VM, or one of its backups.
    pub(super) fn grant_matches<'a>(
        &'a self,
        vm: &'a VmId,
        backup: Option<&'a BackupId>,
        action: Action,
    ) -> impl Iterator<Item = GrantMatch> {
        let rules = self.rules.all.iter();
        let rules = rules.filter(move |rule| rule.actions.contains(action));
        rules.map(move |rule| GrantMatch {
            grant: rule.grant,
            covers_vm: rule.covers_vm(vm),
            covers_backup: backup.is_none_or(|backup| rule.covers_backup(backup)),
        })
    }

    /// What may be done to at least one imaginable backup of the VM.
    pub(super) fn actions_on_vm(&self, vm: &VmId) -> ActionSet {
        let rules = self.rules_on(vm, None);
        let granted = rules.fold(ActionSet::NONE, |all, rule| all.union(rule.actions));
        granted.common(self.scope_actions(vm, None))
    }

    /// What may be done to this backup.
    pub(super) fn actions_on_backup(&self, vm: &VmId, backup: &BackupId) -> ActionSet {
        let rules = self.rules_on(vm, Some(backup));
        let granted = rules.fold(ActionSet::NONE, |all, rule| all.union(rule.actions));
        granted.common(self.scope_actions(vm, Some(backup)))
    }

    /// Whether any action is allowed anywhere.
    pub(super) fn allows_anywhere(&self, action: Action) -> bool {
        let scope = self.scope.as_ref();
        scope.is_none_or(|scope| scope.actions.contains(action))
            && self
                .rules
                .all
                .iter()
                .any(|rule| rule.actions.contains(action))
    }

    /// Where VMs that the caller may read can be. Costs a look at every grant of the caller.
    pub(super) fn readable_vms(&self) -> IdCover {
        let is_read = |rule: &&Rule| rule.actions.contains(Action::Read);
        let rules = self.rules.all.iter().filter(is_read);
        let granted = IdCover::new(rules.flat_map(|rule| &rule.vms));
        match &self.scope {
            Some(scope) => granted.common(&IdCover::new(&scope.vms)),
            None => granted,
        }
    }

    /// Whether the caller may watch every operation: the mark of an operator among callers.
    pub(super) fn observes_everything(&self) -> bool {
        self.is_unrestricted() && self.allows_everywhere(Action::Observe)
    }

    /// What the grants alone allow.
    pub(super) fn without_scope(&self) -> Self {
        Self {
            rules: Arc::clone(&self.rules),
            scope: None,
        }
    }

    /// Whether one grant allows the action on every VM and every backup, and no scope takes it away. `false` says only that it is
    /// not plain to see: several grants may allow it together.
    pub(super) fn allows_everywhere(&self, action: Action) -> bool {
        let is_any = |patterns: &[Pattern]| patterns.iter().any(Pattern::is_any);
        let in_scope = self.scope.as_ref().is_none_or(|scope| {
            scope.actions.contains(action) && is_any(&scope.vms) && is_any(&scope.backups)
        });
        let mut rules = self.rules.all.iter();
        in_scope
            && rules.any(|rule| {
                rule.actions.contains(action) && is_any(&rule.vms) && is_any(&rule.backups)
            })
    }

    /// Likewise on every backup of the VM.
    pub(super) fn allows_on_all_backups(&self, vm: &VmId, action: Action) -> bool {
        let is_any = |patterns: &[Pattern]| patterns.iter().any(Pattern::is_any);
        let in_scope = self.scope.as_ref().is_none_or(|scope| {
            scope.actions.contains(action)
                && fits(&scope.vms, vm.as_str())
                && is_any(&scope.backups)
        });
        in_scope
            && self
                .rules_on(vm, None)
                .any(|rule| rule.actions.contains(action) && is_any(&rule.backups))
    }

    /// Whether the caller has no scope at all.
    pub(super) const fn is_unscoped(&self) -> bool {
        self.scope.is_none()
    }

    /// Whether the scope covers the target at all: a token does not see the operations of its owner on other targets.
    pub(super) fn covers_target(&self, target: &Target) -> bool {
        !self
            .scope_actions(&target.vm, Some(&target.backup))
            .is_empty()
    }

    /// Whether the caller may make a request that needs this access to the resource. Operations are decided once found.
    pub(super) fn check_access(
        &self,
        access: RequiredAccess,
        route: &Route,
    ) -> Result<(), Refusal> {
        match (access, route) {
            (RequiredAccess::Nothing | RequiredAccess::Caller | RequiredAccess::Operation, _) => {
                Ok(())
            }
            (
                RequiredAccess::Vm(action),
                Route::Vm(vm) | Route::Backups(vm) | Route::Capabilities(vm),
            ) => self.check_vm(vm, action),
            (
                RequiredAccess::Backup(any),
                Route::Backup(target) | Route::Restore(target) | Route::Plan(target),
            ) => self.check_backup(target, any),
            // The table of routes has no such pair; a test walks it.
            (RequiredAccess::Vm(_) | RequiredAccess::Backup(_), _) => {
                Err(Refusal::from(Code::NoSuchRoute))
            }
        }
    }

    /// Whether the action may be done to the VM as such.
    pub(super) fn check_vm(&self, vm: &VmId, needed: Action) -> Result<(), Refusal> {
        let allowed = self.actions_on_vm(vm);
        if allowed.contains(needed) {
            Ok(())
        } else if allowed.contains(Action::Read) {
            Err(Refusal::from(Code::NotPermitted))
        } else {
            Err(Refusal::from(Code::NoSuchVm))
        }
    }

    /// Whether one of the actions may be done to the backup.
    pub(super) fn check_backup(&self, target: &Target, needed: &[Action]) -> Result<(), Refusal> {
        let allowed = self.actions_on_backup(&target.vm, &target.backup);
        if needed.iter().any(|action| allowed.contains(*action)) {
            Ok(())
        } else if allowed.contains(Action::Read) {
            Err(Refusal::from(Code::NotPermitted))
        } else if self.actions_on_vm(&target.vm).contains(Action::Read) {
            Err(Refusal::from(Code::NoSuchBackup))
        } else {
            // The same refusal for a VM that does not exist, is not placed, or may not be seen: it must not reveal which.
            Err(Refusal::from(Code::NoSuchVm))
        }
    }

    /// The proof that all of `needed` may be done to the target.
    pub(super) fn issue_permit(
        &self,
        principal: &Principal,
        needed: ActionSet,
        backend: &BackendName,
        target: &Target,
    ) -> Result<Permit, Refusal> {
        let allowed = self.actions_on_backup(&target.vm, &target.backup);
        if allowed.contains_all(needed) && !needed.is_empty() {
            let (principal, backend) = (principal.clone(), backend.clone());
            Ok(Permit::issue(principal, needed, backend, target.clone()))
        } else {
            Err(Refusal::from(Code::NotPermitted))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::GroupName;
    use crate::model::PrincipalName;

    fn rights() -> (Principal, Rights) {
        let principal = Principal {
            name: PrincipalName::new("ann").unwrap(),
            groups: vec![GroupName::new("ops").unwrap()],
        };
        let pattern = |text: &str| vec![Pattern::new(text).unwrap()];
        let user = vec![Grantee::User(principal.name.clone())];
        let group = vec![Grantee::Group(GroupName::new("ops").unwrap())];
        let other = vec![Grantee::Group(GroupName::new("dev").unwrap())];
        let grant = |to, actions: &[Action], vms, backups| Grant {
            to,
            actions: actions.iter().copied().collect(),
            vms: pattern(vms),
            backups: pattern(backups),
            line: 0,
        };
        let grants = [
            grant(user, &[Action::Read], "web*", "*"),
            grant(group, &[Action::Delete], "web1", "tmp-*"),
            grant(other, &Action::ALL, "*", "*"),
        ];
        let rights = Rights::for_principal(&principal, &grants);
        (principal, rights)
    }

    #[test]
    fn grants_add_up_and_what_is_invisible_does_not_exist() {
        let (_, rights) = rights();
        let rows = [
            ("web1", "tmp-1", Action::Delete, None),
            ("web1", "a", Action::Read, None),
            ("web1", "a", Action::Delete, Some(Code::NotPermitted)),
            ("web2", "tmp-1", Action::Delete, Some(Code::NotPermitted)),
            ("db", "a", Action::Read, Some(Code::NoSuchVm)),
        ];
        for (vm, backup, action, expected) in rows {
            let target = Target {
                vm: VmId::new(vm).unwrap(),
                backup: BackupId::new(backup).unwrap(),
            };
            let found = rights.check_backup(&target, &[action]).err();
            assert_eq!(
                found.map(|error| error.code()),
                expected,
                "{vm} {backup} {action:?}"
            );
        }
    }

    #[test]
    fn what_is_allowed_everywhere_needs_no_look_at_each() {
        let (principal, rights) = rights();
        let any = || vec![Pattern::new("*").unwrap()];
        let all = Grant {
            to: vec![Grantee::User(principal.name.clone())],
            actions: [Action::Read].into_iter().collect(),
            vms: any(),
            backups: any(),
            line: 0,
        };
        let unlimited = Rights::for_principal(&principal, &[all]);
        let scope = |actions: &[Action], vms: &str| Scope {
            actions: actions.iter().copied().collect(),
            vms: vec![Pattern::new(vms).unwrap()],
            backups: any(),
        };
        let read = Action::Read;
        let web_only = unlimited.narrowed_to(&scope(&[read], "web*"));
        let no_reads = unlimited.narrowed_to(&scope(&[Action::Delete], "*"));
        let same = unlimited.narrowed_to(&scope(&[read], "*"));
        // Rights, action, VM, allowed everywhere, allowed on all backups of the VM.
        let rows = [
            ("some VMs", &rights, read, "web1", false, true),
            ("another VM", &rights, read, "db", false, false),
            (
                "some backups",
                &rights,
                Action::Delete,
                "web1",
                false,
                false,
            ),
            ("all", &unlimited, read, "db", true, true),
            (
                "another action",
                &unlimited,
                Action::Delete,
                "db",
                false,
                false,
            ),
            ("a scope of VMs", &web_only, read, "web1", false, true),
            ("outside the scope", &web_only, read, "db", false, false),
            ("a scope without it", &no_reads, read, "web1", false, false),
            ("a scope of all", &same, read, "db", true, true),
        ];
        for (name, rights, action, vm, everywhere, on_vm) in rows {
            let vm = VmId::new(vm).unwrap();
            assert_eq!(rights.allows_everywhere(action), everywhere, "{name}");
            assert_eq!(rights.allows_on_all_backups(&vm, action), on_vm, "{name}");
        }
    }

    #[test]
    fn a_permit_needs_every_action() {
        let (principal, rights) = rights();
        let target = Target {
            vm: VmId::new("web1").unwrap(),
            backup: BackupId::new("tmp-1").unwrap(),
        };
        let backend = BackendName::new("b").unwrap();
        let rows: [(&[Action], bool); 4] = [
            (&[Action::Delete], true),
            (&[Action::Delete, Action::Read], true),
            (&[Action::Delete, Action::Restore], false),
            (&[], false),
        ];
        for (actions, expected) in rows {
            let needed = actions.iter().copied().collect();
            let found = rights
                .issue_permit(&principal, needed, &backend, &target)
                .is_ok();
            assert_eq!(found, expected, "{actions:?}");
        }
    }

    #[test]
    #[expect(clippy::too_many_lines, reason = "it is a table")]
    fn a_scope_takes_away_and_never_adds() {
        let (_, rights) = rights();
        let pattern = |text: &str| vec![Pattern::new(text).unwrap()];
        let scope = |actions: &[Action], vms, backups| Scope {
            actions: actions.iter().copied().collect(),
            vms: pattern(vms),
            backups: pattern(backups),
        };
        let all = scope(&Action::ALL, "*", "*");
        let one_vm = scope(&Action::ALL, "web1", "*");
        let one_action = scope(&[Action::Delete, Action::Restore], "*", "tmp-*");
        let rows = [
            ("all, allowed", &all, "web1", "tmp-1", Action::Delete, true),
            (
                "all, not allowed",
                &all,
                "web1",
                "tmp-1",
                Action::Restore,
                false,
            ),
            ("all, elsewhere", &all, "db", "a", Action::Read, false),
            ("one VM, that", &one_vm, "web1", "a", Action::Read, true),
            ("one VM, another", &one_vm, "web2", "a", Action::Read, false),
            (
                "one action, that",
                &one_action,
                "web1",
                "tmp-1",
                Action::Delete,
                true,
            ),
            (
                "one action, another",
                &one_action,
                "web1",
                "tmp-1",
                Action::Read,
                false,
            ),
            (
                "not granted though in scope",
                &one_action,
                "web1",
                "tmp-1",
                Action::Restore,
                false,
            ),
            (
                "another backup",
                &one_action,
                "web1",
                "a",
                Action::Delete,
                false,
            ),
        ];
        for (name, scope, vm, backup, action, expected) in rows {
            let rights = rights.narrowed_to(scope);
            let (vm, backup) = (VmId::new(vm).unwrap(), BackupId::new(backup).unwrap());
            let allowed = rights.actions_on_backup(&vm, &backup);
            assert_eq!(allowed.contains(action), expected, "{name}: backup");
            assert!(
                rights.actions_on_vm(&vm).contains_all(allowed),
                "{name}: VM"
            );
            let target = Target { vm, backup };
            let needed = ActionSet::NONE.with(action);
            let (principal, _) = self::rights();
            let backend = BackendName::new("b").unwrap();
            let permit = rights.issue_permit(&principal, needed, &backend, &target);
            assert_eq!(permit.is_ok(), expected, "{name}: permit");
        }
        assert!(
            rights.narrowed_to(&all).is_unrestricted(),
            "everything is whole"
        );
        assert!(
            !rights.narrowed_to(&one_vm).is_unrestricted(),
            "one VM is not"
        );
    }
}
