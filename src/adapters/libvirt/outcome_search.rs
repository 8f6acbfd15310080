//! Looks for the outcome of a call that this process knows nothing of. `recover.rs` decides what the findings mean.

use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::FindOutcome;
use crate::adapters::libvirt::native::Domain;
use crate::adapters::libvirt::recover;
use crate::adapters::libvirt::recover::VmEvidence;
use crate::adapters::libvirt::snapshot_xml::SnapshotXml;
use crate::adapters::libvirt::vm_reader::VmReader;
use crate::model::Change;
use crate::model::Deadline;
use crate::model::Fault;
use crate::model::Intent;

/// Looks at a VM after a call whose answer was lost.
#[derive(Debug)]
pub(super) struct OutcomeSearch<'a> {
    pub(super) reader: &'a VmReader,
}

impl OutcomeSearch<'_> {
    /// What became of a call that this process knows nothing of.
    pub(super) async fn find_outcome(
        &self,
        intent: &Intent,
        before: Option<&VmEvidence>,
        by: Deadline,
    ) -> Result<FindOutcome, AdapterError> {
        let domain = self.reader.domain(&intent.target.vm, by).await?;
        if self.reader.is_busy(&domain, by).await? {
            return Ok(FindOutcome::NotYet);
        }
        // Its number may have changed while that waited.
        let domain = self.reader.domain(&intent.target.vm, by).await?;
        let now = self.reader.observe(&domain, by).await?;
        if self.reader.is_busy(&domain, by).await? {
            return Ok(FindOutcome::NotYet);
        }
        let name = intent.target.backup.as_str();
        if let Change::Create(_) = &intent.change {
            let is_there = self.reader.is_listed(&domain, name, by).await?;
            let found = recover::outcome_of_create(before, &now, is_there);
            if matches!(found, FindOutcome::NotBegun) && !is_there {
                let left = self
                    .reader
                    .inspector()
                    .disks_tagged(&domain, name, by)
                    .await?;
                if !left.is_empty() {
                    return Ok(recover::create_left_parts(&left));
                }
            }
            return Ok(found);
        }
        let loaded = self.reader.load(&domain, &intent.target.backup, by).await?;
        let ours =
            loaded.filter(|loaded| intent.identity.as_ref() == Some(&loaded.backup.identity));
        Ok(match (&intent.change, ours) {
            (Change::Delete, None) => self.outcome_of_delete(&domain, name, by).await?,
            (Change::Delete, Some(_)) => FindOutcome::NotBegun,
            (Change::Update(patch), Some(loaded)) => {
                if patch.applied_to(loaded.backup.clone()) == loaded.backup {
                    FindOutcome::Done(None)
                } else {
                    FindOutcome::NotBegun
                }
            }
            (Change::Restore(_), Some(loaded)) => {
                self.outcome_of_restore(&domain, before, now, &loaded.xml, by)
                    .await
            }
            (Change::Update(_) | Change::Restore(_) | Change::Create(_), None)
            | (Change::Create(_), Some(_)) => FindOutcome::Unknowable,
        })
    }

    /// What became of a delete whose snapshot is not listed any more.
    async fn outcome_of_delete(
        &self,
        domain: &Domain,
        name: &str,
        by: Deadline,
    ) -> Result<FindOutcome, AdapterError> {
        // Another snapshot of this name holds a part of its own.
        if self.reader.is_listed(domain, name, by).await? {
            return Ok(FindOutcome::Done(None));
        }
        let left = self
            .reader
            .inspector()
            .disks_tagged(domain, name, by)
            .await?;
        Ok(recover::outcome_of_delete(&left))
    }

    /// What became of a restore.
    async fn outcome_of_restore(
        &self,
        domain: &Domain,
        before: Option<&VmEvidence>,
        mut now: VmEvidence,
        saved: &SnapshotXml,
        by: Deadline,
    ) -> FindOutcome {
        let inspector = self.reader.inspector();
        now.disks = inspector.fingerprint(domain, by).await;
        let match_snapshot = inspector.match_snapshot(saved, domain, by).await;
        // A restore that works on the disks meanwhile would have been seen half-way.
        if !matches!(inspector.is_busy(domain, by).await, Ok(false)) {
            return FindOutcome::NotYet;
        }
        let found = recover::outcome_of_restore(
            before,
            &now,
            &saved.name,
            saved.disks.len(),
            match_snapshot,
        );
        let (FindOutcome::Failed(fault), Some(before)) = (&found, before) else {
            return found;
        };
        let after = inspector
            .describe_after_failure(saved, domain, before.id, by)
            .await;
        FindOutcome::Failed(Fault::new(fault.kind, fault.text.followed_by(&after.text)))
    }
}
