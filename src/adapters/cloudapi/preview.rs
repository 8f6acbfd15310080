//! What a restore or a delete would do: the gateway's own checks, and the plan of the server where it makes plans.

use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::no_preview;
use crate::adapters::checks::Checks;
use crate::adapters::cloudapi::CloudApi;
use crate::adapters::cloudapi::check_fit;
use crate::adapters::cloudapi::error;
use crate::adapters::cloudapi::map;
use crate::adapters::cloudapi::map::RemoteBackup;
use crate::adapters::cloudapi::wire;
use crate::model::Deadline;
use crate::model::FaultKind;
use crate::model::Intent;
use crate::model::Preview;
use crate::model::PreviewDisk;
use crate::model::PreviewPart;
use crate::model::SpaceNeeds;
use crate::model::Verb;
use crate::model::Vm;
use crate::public_text;

/// Most entries of each list of a server's plan that are passed on.
const ENTRIES_MAX: usize = 1000;

impl CloudApi {
    /// What the change would do. Changes nothing here or there.
    pub(super) async fn preview_change(
        &self,
        intent: &Intent,
        by: Deadline,
    ) -> Result<Preview, AdapterError> {
        match intent.verb() {
            Verb::Restore | Verb::Delete => {}
            Verb::Create | Verb::Update => return Err(no_preview()),
        }
        let vm = &intent.target.vm;
        let reply = self.api.vm(vm, by).await;
        let reply = reply.map_err(|error| error.into_read_error(FaultKind::NoSuchVm))?;
        let (remote, _tag) = self.find_meant(intent, by).await?;
        let all = self.list_remote(vm, by).await?;
        let mut checks = Checks::all();
        checks.record(check_fit(&intent.change, &remote.backup))?;
        let op = map::status_op(intent.verb());
        let planned = self.api.plan(vm, &remote.server_id, op, by).await;
        let planned = planned.map_err(|error| error.into_read_error(FaultKind::NoSuchBackup));
        // A server that refuses to make the plan refuses the change for the same reason.
        let planned = checks.record(planned)?.flatten();
        let vm = map::vm(vm, reply);
        let mut preview = match planned {
            Some(plan) => merge_plan(vm, &remote, plan, &all),
            None => Preview::unknown(vm, remote.backup.clone()),
        };
        let mut refused = checks.into_refused();
        for fault in std::mem::take(&mut preview.refused) {
            // The server makes the gateway's own checks, too.
            if refused.iter().all(|other| other.kind != fault.kind) {
                refused.push(fault);
            }
        }
        preview.refused = refused;
        let complete = all.iter().filter(|remote| !remote.is_incomplete);
        Ok(preview.with_newer(complete.map(|remote| &remote.backup)))
    }
}

/// The preview that a server's plan describes. What makes no sense in it counts as unknown.
fn merge_plan(vm: Vm, remote: &RemoteBackup, plan: wire::Plan, all: &[RemoteBackup]) -> Preview {
    let mut preview = Preview::new(vm, remote.backup.clone());
    let parts = PreviewPart::ALL.into_iter();
    preview.unknown = parts
        .filter(|part| plan.unknown.iter().any(|word| word == part.as_str()))
        .collect();
    preview.overwrites = plan
        .overwrites
        .into_iter()
        .take(ENTRIES_MAX)
        .filter_map(|disk| {
            Some(PreviewDisk {
                disk: error::publishable_message(&disk.disk)?,
                size: disk.size,
            })
        })
        .collect();
    let lost = |other: &&RemoteBackup| {
        let mut named = plan.loses.backups.iter();
        named.any(|backup| backup.id == other.server_id.as_str())
    };
    preview.loses = all
        .iter()
        .filter(lost)
        .map(|other| other.backup.clone())
        .collect();
    preview.leaves = publishable(&plan.leaves);
    preview.after = map::run_state(plan.after.as_deref());
    preview.needs = plan.needs.map(|needs| SpaceNeeds {
        bytes: needs.bytes,
        free: needs.free,
    });
    preview.refused = plan
        .refused
        .into_iter()
        .take(ENTRIES_MAX)
        .map(|refused| error::planned_refusal(&refused.code, &refused.text))
        .collect();
    let warnings = publishable(&plan.warnings);
    preview.warnings = warnings
        .iter()
        .map(|text| public_text!("The server reports: {text}"))
        .collect();
    // Whatever matters over there is in it.
    preview.vm_mark = Some(plan.fingerprint);
    preview
}

/// Those texts of a server that callers may read.
fn publishable(texts: &[String]) -> Vec<String> {
    let texts = texts.iter().take(ENTRIES_MAX);
    texts
        .filter_map(|text| error::publishable_message(text))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::RunState;

    #[test]
    fn a_plan_of_a_server_is_read_leniently_and_its_words_are_checked() {
        let vm = map::vm(
            &crate::model::VmId::new("1").unwrap(),
            serde_json::from_str(r#"{"name":"web","run_status":"STARTED"}"#).unwrap(),
        );
        let backup = |id: &str| {
            let text = format!(
                r#"{{"name":"n","uri":"/vms/1/backups/{id}","created":"2026-11-23T12:00:00Z"}}"#
            );
            let read = serde_json::from_str(&text).unwrap();
            map::remote_backup(crate::model::BackupId::new(id).unwrap(), read).unwrap()
        };
        let all = [backup("a"), backup("b"), backup("c")];
        let plan = r#"{"fingerprint":"f","overwrites":[{"disk":"root","size":7},{"disk":"/etc/x"}],
            "loses":{"since":"2026-11-23T12:00:00Z","backups":[{"id":"c"},{"id":"z"}]},"leaves":["data"],
            "after":"STOPPED","needs":{"free":3},"refused":[{"code":"Busy","text":"It runs."},{"code":"New"}],
            "warnings":["Look out.","<b>"],"unknown":["needs","colour"],"duration":{"seconds":1}}"#;
        let plan: wire::Plan = serde_json::from_str(plan).unwrap();
        let found = merge_plan(vm, &all[0], plan, &all);
        let disks: Vec<&str> = found
            .overwrites
            .iter()
            .map(|disk| disk.disk.as_str())
            .collect();
        assert_eq!(disks, ["root"], "a path is not a name");
        let lost: Vec<&str> = found
            .loses
            .iter()
            .map(|backup| backup.id.as_str())
            .collect();
        assert_eq!(lost, ["c"], "by the ids of the server");
        assert_eq!(found.after, Some(RunState::Stopped), "afterwards");
        let kinds: Vec<FaultKind> = found.refused.iter().map(|fault| fault.kind).collect();
        assert_eq!(
            kinds,
            [FaultKind::Busy, FaultKind::Conflict],
            "by their codes"
        );
        assert_eq!(found.unknown, [PreviewPart::Needs], "known words only");
        assert_eq!(
            found.warnings,
            [public_text!("The server reports: Look out.")],
            "plain ones"
        );
        assert_eq!(
            found.vm_mark.as_deref(),
            Some("f"),
            "the fingerprint over there"
        );
    }
}
