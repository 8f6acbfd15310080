//! Who may do what: grants resolved per caller, and the only place where a permit is made.

use crate::gate::config::Grant;
use crate::gate::config::Grantee;
use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::model::Action;
use crate::model::ActionSet;
use crate::model::BackendName;
use crate::model::BackupId;
use crate::model::Pattern;
use crate::model::Permit;
use crate::model::Principal;
use crate::model::Target;
use crate::model::VmId;

/// What one caller may do.
#[derive(Debug, Default)]
pub(super) struct Rights {
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    actions: ActionSet,
    vms: Vec<Pattern>,
    backups: Vec<Pattern>,
}

impl Rule {
    fn is_on_vm(&self, vm: &VmId) -> bool {
        self.vms.iter().any(|it| it.matches(vm.as_str()))
    }
}

impl Rights {
    /// The grants that are for this caller.
    pub(super) fn of(principal: &Principal, grants: &[Grant]) -> Self {
        let is_for = |grantee: &Grantee| match grantee {
            Grantee::User(name) => *name == principal.name,
            Grantee::Group(name) => principal.groups.binary_search(name).is_ok(),
        };
        let rules = grants
            .iter()
            .filter(|grant| grant.to.iter().any(is_for))
            .map(|grant| Rule {
                actions: grant.actions,
                vms: grant.vms.clone(),
                backups: grant.backups.clone(),
            })
            .collect();
        Self { rules }
    }

    /// What may be done to at least one imaginable backup of the VM.
    pub(super) fn on_vm(&self, vm: &VmId) -> ActionSet {
        let rules = self.rules.iter().filter(|it| it.is_on_vm(vm));
        rules.fold(ActionSet::NONE, |all, it| all.union(it.actions))
    }

    /// What may be done to this backup.
    pub(super) fn on_backup(&self, vm: &VmId, backup: &BackupId) -> ActionSet {
        let is_on = |it: &&Rule| it.backups.iter().any(|it| it.matches(backup.as_str()));
        let rules = self.rules.iter().filter(|it| it.is_on_vm(vm)).filter(is_on);
        rules.fold(ActionSet::NONE, |all, it| all.union(it.actions))
    }

    /// Whether any action is allowed anywhere.
    pub(super) fn includes(&self, action: Action) -> bool {
        self.rules.iter().any(|it| it.actions.contains(action))
    }

    /// Whether the action may be done to the VM as such.
    pub(super) fn check_vm(&self, vm: &VmId, needed: Action) -> Result<(), Refusal> {
        let held = self.on_vm(vm);
        if held.contains(needed) {
            Ok(())
        } else if held.contains(Action::Read) {
            Err(Refusal::from(Code::NotPermitted))
        } else {
            Err(Refusal::from(Code::NoSuchVm))
        }
    }

    /// Whether one of the actions may be done to the backup; what they all are.
    pub(super) fn check_backup(
        &self,
        target: &Target,
        needed: &[Action],
    ) -> Result<ActionSet, Refusal> {
        let held = self.on_backup(&target.vm, &target.backup);
        if needed.iter().any(|it| held.contains(*it)) {
            Ok(held)
        } else if held.contains(Action::Read) {
            Err(Refusal::from(Code::NotPermitted))
        } else if self.on_vm(&target.vm).contains(Action::Read) {
            Err(Refusal::from(Code::NoSuchBackup))
        } else {
            // The same for a VM that does not exist, is not placed, or is none of the caller's business.
            Err(Refusal::from(Code::NoSuchVm))
        }
    }

    /// The proof that all of `needed` may be done to the target.
    pub(super) fn permit(
        &self,
        principal: &Principal,
        needed: ActionSet,
        backend: &BackendName,
        target: &Target,
    ) -> Result<Permit, Refusal> {
        let held = self.on_backup(&target.vm, &target.backup);
        if held.contains_all(needed) && !needed.is_empty() {
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
        let pattern = |it: &str| vec![Pattern::new(it).unwrap()];
        let user = vec![Grantee::User(principal.name.clone())];
        let group = vec![Grantee::Group(GroupName::new("ops").unwrap())];
        let other = vec![Grantee::Group(GroupName::new("dev").unwrap())];
        let grant = |to, actions: &[Action], vms, backups| Grant {
            to,
            actions: actions.iter().copied().collect(),
            vms: pattern(vms),
            backups: pattern(backups),
        };
        let grants = [
            grant(user, &[Action::Read], "web*", "*"),
            grant(group, &[Action::Delete], "web1", "tmp-*"),
            grant(other, &Action::ALL, "*", "*"),
        ];
        let rights = Rights::of(&principal, &grants);
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
                found.map(|it| it.code()),
                expected,
                "{vm} {backup} {action:?}"
            );
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
            let found = rights.permit(&principal, needed, &backend, &target).is_ok();
            assert_eq!(found, expected, "{actions:?}");
        }
    }
}
