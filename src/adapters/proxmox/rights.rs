//! What the token may do, compared with what callers of the gateway may do: `snapgate check --probe`.
//!
//! Proxmox VE answers for each path which rights apply there, inherited ones included. The table of what is needed follows
//! the permissions in the vendor's schema; `docs/adapters/proxmox.md` has the roles.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use crate::adapters::adapter::AdapterError;
use crate::adapters::proxmox::client::Guest;
use crate::adapters::proxmox::cluster::Proxmox;
use crate::adapters::proxmox::config::Config;
use crate::adapters::proxmox::config::ConfigError;
use crate::adapters::proxmox::error::NativeError;
use crate::adapters::proxmox::wire;
use crate::adapters::rights::RightsQuestion;
use crate::adapters::rights::RightsReport;
use crate::model::Action;
use crate::model::ActionSet;
use crate::model::Deadline;
use crate::model::FaultKind;
use crate::model::VmId;
use crate::public_text;

/// Most guests whose rights are asked for: one call each.
const GUESTS_MAX: usize = 200;
/// Most names in one line.
const NAMES_MAX: usize = 8;
/// The right to put disks and archives on a storage.
const ALLOCATE_SPACE: &str = "Datastore.AllocateSpace";

type Rights = BTreeSet<String>;

/// What is needed on one path, and what is harmless there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Need {
    required: BTreeSet<&'static str>,
    /// One of these is enough.
    one_of: BTreeSet<&'static str>,
    harmless: BTreeSet<&'static str>,
}

impl Need {
    /// On a guest.
    fn of_guest(actions: ActionSet, has_storages: bool) -> Self {
        let may = |all: &[Action]| all.iter().any(|action| actions.contains(*action));
        let mut need = Self {
            required: BTreeSet::from(["VM.Audit"]),
            ..Self::default()
        };
        if may(&[
            Action::Create,
            Action::Update,
            Action::Protect,
            Action::Delete,
        ]) {
            need.required.insert("VM.Snapshot");
            // A part of `VM.Snapshot`, and in the roles of the documentation.
            need.harmless.insert("VM.Snapshot.Rollback");
        }
        if may(&[Action::Restore]) {
            need.one_of.extend(["VM.Snapshot.Rollback", "VM.Snapshot"]);
            need.required.insert("VM.PowerMgmt");
        }
        if has_storages && !actions.is_empty() {
            // Archives of a guest are not even listed without it.
            need.required.insert("VM.Backup");
        }
        need
    }

    /// On a storage with archives.
    fn of_storage() -> Self {
        Self {
            required: BTreeSet::from([ALLOCATE_SPACE]),
            one_of: BTreeSet::new(),
            harmless: BTreeSet::from(["Datastore.Audit"]),
        }
    }

    fn missing(&self, held: &Rights) -> Vec<String> {
        let absent = self.required.iter().filter(|right| !held.contains(**right));
        let mut missing: Vec<String> = absent.map(|right| (*right).to_owned()).collect();
        let has_one = self.one_of.iter().any(|right| held.contains(*right));
        if !has_one
            && !self.one_of.is_empty()
            && !missing.iter().any(|right| right == "VM.Snapshot")
        {
            missing.push("VM.Snapshot.Rollback".to_owned());
        }
        missing
    }

    fn beyond(&self, held: &Rights) -> Vec<String> {
        // Of several that would do, the smallest is the one that is needed.
        let is_needed = |right: &str| {
            self.required.contains(right)
                || self.harmless.contains(right)
                || (right == "VM.Snapshot.Rollback" && self.one_of.contains(right))
        };
        held.iter()
            .filter(|right| !is_needed(right))
            .cloned()
            .collect()
    }
}

/// The guests of one pattern.
#[derive(Default)]
struct PatternAudit {
    /// Everything that callers may do to one of them.
    actions: ActionSet,
    guests: Vec<String>,
    /// By what is missing and what is beyond need: the guests.
    findings: BTreeMap<(Vec<String>, Vec<String>), Vec<String>>,
}

/// Asks for the rights on each guest, each storage and the whole cluster.
pub(super) async fn audit(
    config: &Config,
    question: &RightsQuestion<'_>,
) -> Result<RightsReport, AdapterError> {
    let cluster = Proxmox::new(config.clone()).map_err(unusable)?;
    let mut audit = Audit {
        cluster: &cluster,
        by: question.by,
        report: RightsReport {
            is_sufficient: true,
            lines: Vec::new(),
            excess: Vec::new(),
        },
        disk_storages: BTreeMap::new(),
        bridges: BTreeSet::new(),
    };
    let patterns = audit.audit_guests(question).await?;
    audit.describe_guests(&patterns);
    let may_restore = patterns
        .values()
        .any(|found| found.actions.contains(Action::Restore));
    let is_used = patterns.values().any(|found| !found.actions.is_empty());
    if is_used {
        audit.audit_storages(may_restore).await?;
    }
    audit.audit_root().await?;
    if audit.report.is_sufficient {
        let line = "  rights: nothing that the grants need is missing";
        audit.report.lines.push(line.to_owned());
    }
    Ok(audit.report)
}

fn unusable(error: ConfigError) -> AdapterError {
    let text = public_text!("The backend cannot be used as it is configured.");
    AdapterError::refused(FaultKind::Invalid, text).because(error)
}

struct Audit<'a> {
    cluster: &'a Proxmox,
    by: Deadline,
    report: RightsReport,
    /// The storages that hold disks of guests that may be restored from archives, each with one such guest.
    disk_storages: BTreeMap<String, String>,
    /// The bridges of their network cards.
    bridges: BTreeSet<String>,
}

impl Audit<'_> {
    async fn rights_on(&self, path: &str) -> Result<Rights, AdapterError> {
        let rights = self.cluster.api.permissions(path, self.by).await;
        rights.map_err(NativeError::into_read_error)
    }

    /// The guests that the token sees, by the pattern that makes them this backend's.
    async fn audit_guests(
        &mut self,
        question: &RightsQuestion<'_>,
    ) -> Result<BTreeMap<String, PatternAudit>, AdapterError> {
        let guests = self.cluster.api.guests(self.by).await;
        let mut guests = guests.map_err(NativeError::into_read_error)?;
        guests.sort_by_key(|guest| guest.vmid);
        let has_storages = !self.cluster.config.storages.is_empty();
        let mut patterns = BTreeMap::<String, PatternAudit>::new();
        let mut asked = 0_usize;
        for resource in guests {
            let Ok(vm) = VmId::new(&resource.vmid.to_string()) else {
                continue;
            };
            let Some(pattern) = (question.pattern_of)(&vm) else {
                continue;
            };
            let found = patterns.entry(pattern.as_str().to_owned()).or_default();
            found.guests.push(vm.as_str().to_owned());
            asked = asked.saturating_add(1);
            if asked > GUESTS_MAX {
                continue;
            }
            let actions = (question.actions_on)(&vm);
            found.actions = found.actions.union(actions);
            let held = self.rights_on(&format!("/vms/{vm}")).await?;
            let need = Need::of_guest(actions, has_storages);
            let finding = (need.missing(&held), need.beyond(&held));
            let vms = found.findings.entry(finding).or_default();
            vms.push(vm.as_str().to_owned());
            if has_storages && actions.contains(Action::Restore) {
                self.note_hardware(&vm).await?;
            }
        }
        if asked > GUESTS_MAX {
            let line = format!(
                "  rights: only those on the first {GUESTS_MAX} of {asked} VMs were checked"
            );
            self.report.lines.push(line);
        }
        Ok(patterns)
    }

    /// What a restore from an archive makes anew: disks on their storages, network cards on their bridges.
    async fn note_hardware(&mut self, vm: &VmId) -> Result<(), AdapterError> {
        let guest: Guest = self.cluster.locate_guest(vm, self.by).await?;
        let config = self.cluster.api.config(&guest, self.by).await;
        let config: wire::GuestConfig = config.map_err(NativeError::into_read_error)?;
        for storage in config.disk_storages() {
            self.disk_storages
                .entry(storage.to_owned())
                .or_insert_with(|| vm.as_str().to_owned());
        }
        self.bridges.extend(config.bridges().map(str::to_owned));
        Ok(())
    }

    fn describe_guests(&mut self, patterns: &BTreeMap<String, PatternAudit>) {
        for (pattern, found) in patterns {
            let actions: Vec<&str> = found.actions.iter().map(Action::as_str).collect();
            let actions = if actions.is_empty() {
                "no grant covers them".to_owned()
            } else {
                format!("granted: {}", actions.join(", "))
            };
            self.report.lines.push(format!(
                "  VMs {pattern:?}: {} found ({}), {actions}",
                found.guests.len(),
                shortened(&found.guests)
            ));
            for ((missing, beyond), vms) in &found.findings {
                let on = shortened(vms);
                self.describe(&format!("VMs {on} (/vms/NUMBER)"), missing, beyond);
            }
        }
    }

    fn describe(&mut self, place: &str, missing: &[String], beyond: &[String]) {
        if !missing.is_empty() {
            self.report.is_sufficient = false;
            let line = format!("    {place}: missing {}", missing.join(", "));
            self.report.lines.push(line);
        }
        if !beyond.is_empty() {
            let line = format!("    {place}: more than needed {}", shortened(beyond));
            self.report.excess.push(line.trim_start().to_owned());
            self.report.lines.push(line);
        }
    }

    async fn audit_storages(&mut self, may_restore: bool) -> Result<(), AdapterError> {
        for storage in self.cluster.config.storages.clone() {
            let held = self.rights_on(&format!("/storage/{storage}")).await?;
            let need = Need::of_storage();
            let place = format!("storage {storage} (/storage/{storage})");
            self.describe(&place, &need.missing(&held), &need.beyond(&held));
        }
        if self.cluster.config.storages.is_empty() || !may_restore {
            return Ok(());
        }
        for (storage, vm) in std::mem::take(&mut self.disk_storages) {
            let held = self.rights_on(&format!("/storage/{storage}")).await?;
            if !self.cluster.config.storages.contains(&storage) && !held.contains(ALLOCATE_SPACE) {
                let place = format!(
                    "storage {storage} (/storage/{storage}) with disks of VM {vm}, for restores of full backups"
                );
                self.describe(&place, &[ALLOCATE_SPACE.to_owned()], &[]);
            }
        }
        for bridge in std::mem::take(&mut self.bridges) {
            let path = format!("/sdn/zones/localnetwork/{bridge}");
            if !self.rights_on(&path).await?.contains("SDN.Use") {
                // Not a failure: before version 8 there is no such right, and a virtual network is in another zone.
                self.report.lines.push(format!(
                    "    bridge {bridge} ({path}): SDN.Use is not held; from version 8 on restores of full backups need it"
                ));
            }
        }
        Ok(())
    }

    /// Rights on the whole cluster reach every guest that is made later.
    async fn audit_root(&mut self) -> Result<(), AdapterError> {
        let held: Vec<String> = self.rights_on("/").await?.into_iter().collect();
        if !held.is_empty() {
            let line = format!(
                "whole cluster (/): more than needed {}; grant roles on /vms/NUMBER and /storage/NAME instead",
                shortened(&held)
            );
            self.report.lines.push(format!("    {line}"));
            self.report.excess.push(line);
        }
        Ok(())
    }
}

fn shortened(names: &[String]) -> String {
    let shown: Vec<&str> = names.iter().take(NAMES_MAX).map(String::as_str).collect();
    let rest = names.len().saturating_sub(NAMES_MAX);
    if rest == 0 {
        shown.join(", ")
    } else {
        format!("{} and {rest} more", shown.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn actions(words: &str) -> ActionSet {
        let all = Action::ALL.into_iter();
        all.filter(|action| words.split(' ').any(|word| word == action.as_str()))
            .collect()
    }

    fn rights(words: &str) -> Rights {
        let words = words.split(' ').filter(|word| !word.is_empty());
        words.map(str::to_owned).collect()
    }

    /// The roles of the documentation.
    const RESTORE: &str = "VM.Audit VM.Snapshot.Rollback VM.PowerMgmt";
    const SNAPSHOT: &str = "VM.Audit VM.Snapshot VM.Snapshot.Rollback VM.PowerMgmt";
    const FULL: &str = "VM.Audit VM.Snapshot VM.Snapshot.Rollback VM.PowerMgmt VM.Backup";

    #[test]
    fn each_role_of_the_documentation_is_enough_for_its_use_and_no_more() {
        let everything = "read create update protect delete restore observe";
        let rows: [(&str, &str, bool, &str, &str, &str); 10] = [
            ("restore", "read restore", false, RESTORE, "", ""),
            ("snapshots", everything, false, SNAPSHOT, "", ""),
            ("full", everything, true, FULL, "", ""),
            (
                "restore, full",
                "read restore",
                true,
                "VM.Audit VM.Snapshot.Rollback VM.PowerMgmt VM.Backup",
                "",
                "",
            ),
            (
                "restore with the role for snapshots",
                "read restore",
                false,
                SNAPSHOT,
                "",
                "VM.Snapshot",
            ),
            (
                "snapshots with the role for restores",
                everything,
                false,
                RESTORE,
                "VM.Snapshot",
                "",
            ),
            (
                "full with the role for snapshots",
                everything,
                true,
                SNAPSHOT,
                "VM.Backup",
                "",
            ),
            (
                "snapshots with the role for full",
                everything,
                false,
                FULL,
                "",
                "VM.Backup",
            ),
            (
                "restore with nothing",
                "read restore",
                false,
                "",
                "VM.Audit VM.PowerMgmt VM.Snapshot.Rollback",
                "",
            ),
            (
                "read alone with everything",
                "read",
                false,
                "VM.Allocate VM.Audit",
                "",
                "VM.Allocate",
            ),
        ];
        for (name, granted, has_storages, held, missing, beyond) in rows {
            let need = Need::of_guest(actions(granted), has_storages);
            let held = rights(held);
            assert_eq!(need.missing(&held).join(" "), missing, "{name}: missing");
            assert_eq!(need.beyond(&held).join(" "), beyond, "{name}: beyond");
        }
    }
}
