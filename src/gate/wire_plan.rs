//! The JSON of a plan, members in the documented order.

use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;

use crate::gate::links;
use crate::gate::wire;
use crate::gate::wire::AsText;
use crate::model::Backup;
use crate::model::IgnoredMembers;
use crate::model::PreviewPart;
use crate::model::PublicText;
use crate::model::RunState;
use crate::model::Target;
use crate::model::Timestamp;
use crate::model::Verb;
use crate::model::Vm;
use crate::operations::ExpectedDuration;

/// The largest number that every reader of JSON reads exactly (RFC 8259 section 6). A larger size is left out.
const NUMBER_MAX: u64 = (1 << 53) - 1;

/// What a plan says, as far as its caller may see.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    pub(super) verb: Verb,
    pub(super) target: &'a Target,
    pub(super) vm: &'a Vm,
    pub(super) backup: &'a Backup,
    pub(super) overwrites: Vec<(&'a str, Option<u64>)>,
    pub(super) loses: Vec<&'a Backup>,
    pub(super) leaves: &'a [String],
    pub(super) after: Option<RunState>,
    pub(super) needs: Option<(Option<u64>, Option<u64>)>,
    pub(super) duration: Option<ExpectedDuration>,
    pub(super) refused: Vec<(&'static str, &'a PublicText)>,
    pub(super) warnings: &'a [PublicText],
    pub(super) unknown: &'a [PreviewPart],
    pub(super) ignored: &'a IgnoredMembers,
    pub(super) fingerprint: String,
    pub(super) expires: Timestamp,
}

#[derive(Serialize)]
struct VmShape<'a> {
    id: &'a str,
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<&'static str>,
}

#[derive(Serialize)]
struct BackupShape<'a> {
    id: &'a str,
    name: &'a str,
    created: AsText<Timestamp>,
}

#[derive(Serialize)]
struct DiskShape<'a> {
    disk: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
}

#[derive(Serialize)]
struct LossShape<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<AsText<Timestamp>>,
    backups: Vec<BackupShape<'a>>,
}

#[derive(Serialize)]
struct NeedsShape {
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    free: Option<u64>,
}

#[derive(Serialize)]
struct DurationShape {
    seconds: u64,
    basis: &'static str,
}

#[derive(Serialize)]
struct RefusalShape<'a> {
    code: &'static str,
    text: &'a str,
}

/// Deviation D28: the source has no plans.
#[derive(Serialize)]
struct PlanShape<'a> {
    op: &'static str,
    target_uri: String,
    vm: VmShape<'a>,
    backup: BackupShape<'a>,
    overwrites: Vec<DiskShape<'a>>,
    loses: LossShape<'a>,
    leaves: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    needs: Option<NeedsShape>,
    #[serde(skip_serializing_if = "Option::is_none")]
    duration: Option<DurationShape>,
    refused: Vec<RefusalShape<'a>>,
    warnings: Vec<&'a str>,
    unknown: Vec<&'static str>,
    #[serde(skip_serializing_if = "IgnoredMembers::is_empty")]
    ignored: &'a IgnoredMembers,
    fingerprint: &'a str,
    expires: AsText<Timestamp>,
}

fn backup_shape(backup: &Backup) -> BackupShape<'_> {
    BackupShape {
        id: backup.id.as_str(),
        name: backup.name.as_str(),
        created: AsText(backup.created),
    }
}

/// A second that is begun counts: nothing takes no time.
fn whole_seconds(time: Duration) -> u64 {
    let more = u64::from(time.subsec_nanos() > 0);
    time.as_secs().saturating_add(more).max(1)
}

fn exact(number: Option<u64>) -> Option<u64> {
    number.filter(|number| *number <= NUMBER_MAX)
}

/// One plan.
pub(super) fn plan(plan: &Plan<'_>) -> Bytes {
    let target = plan.target;
    // What changed on the disks cannot be listed; since when it is lost can be said.
    let since = (plan.verb == Verb::Restore).then_some(AsText(plan.backup.created));
    let disks = plan.overwrites.iter();
    let refused = plan.refused.iter();
    wire::bytes(&PlanShape {
        op: links::op(plan.verb),
        target_uri: links::backup("", &target.vm, &target.backup),
        vm: VmShape {
            id: plan.vm.id.as_str(),
            name: &plan.vm.name,
            state: plan.vm.run_state.map(RunState::as_str),
        },
        backup: backup_shape(plan.backup),
        overwrites: disks
            .map(|(disk, size)| DiskShape {
                disk,
                size: exact(*size),
            })
            .collect(),
        loses: LossShape {
            since,
            backups: plan.loses.iter().map(|lost| backup_shape(lost)).collect(),
        },
        leaves: plan.leaves,
        after: plan.after.map(RunState::as_str),
        needs: plan.needs.map(|(bytes, free)| NeedsShape {
            bytes: exact(bytes),
            free: exact(free),
        }),
        duration: plan.duration.map(|expected| DurationShape {
            seconds: whole_seconds(expected.time),
            basis: expected.basis.as_str(),
        }),
        refused: refused
            .map(|(code, text)| RefusalShape { code, text })
            .collect(),
        warnings: plan.warnings.iter().map(|text| text.as_str()).collect(),
        unknown: plan.unknown.iter().map(|part| part.as_str()).collect(),
        ignored: plan.ignored,
        fingerprint: &plan.fingerprint,
        expires: AsText(plan.expires),
    })
}
