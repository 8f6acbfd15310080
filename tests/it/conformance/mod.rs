//! One behaviour suite for every adapter, driven through the port.

pub(crate) mod fixtures;
pub(crate) mod kills;
mod listing;
pub(crate) mod lying_adapter;
pub(crate) mod mortal_gateway;
pub(crate) mod plans;
pub(crate) mod suite;
mod texts;

use std::sync::Arc;
use std::time::Duration;

use snapgate::adapters::adapter::*;
use snapgate::model::*;
use snapgate::runtime::{Clock, SystemClock};

use crate::conformance::mortal_gateway::KillMoments;

/// What the suite needs of one adapter beside the `Adapter`. The VM exists and has no backup.
pub(crate) trait AdapterFixture {
    fn name(&self) -> &'static str;
    fn adapter(&self) -> Arc<dyn Adapter>;
    fn vm(&self) -> VmId;
    /// Changes what the VM holds.
    fn write(&self, content: u64);
    /// What the VM holds.
    fn content(&self) -> u64;
    /// An adapter as a gateway that has just started has it, on the VM manager as it is; the one before is gone.
    fn adapter_after_restart(&self) -> Arc<dyn Adapter> {
        self.adapter()
    }
    /// How often the request was carried out, where the VM manager counts.
    fn executions(&self, _key: RequestKey) -> Option<u64> {
        None
    }
    /// Where gateways are killed. Real VM managers are looked at often while they work, each time alike.
    fn kill_moments(&self) -> KillMoments {
        KillMoments::FirstOfEach
    }
    /// What the VM holds; `None` when its disks are of two times, as a gateway that was killed may leave them.
    fn found(&self) -> Option<u64> {
        Some(self.content())
    }
    /// Whether a gateway is to be killed now: a moment that the VM manager alone sees, within a call or a task.
    fn is_kill_due(&self) -> bool {
        false
    }
    /// A gateway was killed. Returns at once, or when the VM manager has noticed.
    fn killed(&self) {}
    /// A settle time other than the adapter's, where the fixture itself makes sure of what that time is waited for.
    fn settle(&self) -> Option<Duration> {
        None
    }
    /// Makes restores fail after they have begun, for as long as what is returned lives; `None` where that cannot be done.
    fn break_restores(&self) -> Option<Box<dyn std::any::Any + Send>> {
        None
    }
    /// Whether its VM manager lists VMs, where the adapter learns that by asking.
    fn lists_vms(&self) -> bool {
        self.adapter().capability().lists_vms
    }
    /// Creates another VM of this id, or removes it. Says whether that can be done here.
    fn set_other_vm(&self, _id: &str, _exists: bool) -> bool {
        false
    }
    /// An adapter of the same kind whose VM manager is not there; `None` where that makes no sense.
    fn unreachable_adapter(&self) -> Option<Arc<dyn Adapter>> {
        None
    }
    /// Pauses or resumes the VM; `false` where its run state cannot be changed.
    fn pause(&self, _paused: bool) -> bool {
        false
    }
    /// How long evidence is looked for, other than the gateway's default, where the VM manager leaves none.
    fn evidence_window(&self) -> Option<Duration> {
        None
    }
}

pub(crate) fn by() -> Deadline {
    SystemClock.deadline(Duration::from_secs(20))
}

pub(crate) fn key(number: u64) -> RequestKey {
    RequestKey(OperationSeq::new(number).unwrap())
}

pub(crate) fn create(adapter: &dyn Adapter, vm: &VmId, name: &str, number: u64) -> Intent {
    let new = NewBackup {
        name: BackupName::new(name).unwrap(),
        description: None,
        kind: None,
        tags: vec![Tag::new("old").unwrap()],
        protected: false,
    };
    let backup = adapter.mint_backup_id(&new, key(number)).unwrap();
    let target = Target {
        vm: vm.clone(),
        backup,
    };
    Intent {
        target,
        identity: None,
        change: Change::Create(new),
    }
}

pub(crate) fn on(backup: &Backup, vm: &VmId, change: Change) -> Intent {
    let target = Target {
        vm: vm.clone(),
        backup: backup.id.clone(),
    };
    Intent {
        target,
        identity: Some(backup.identity.clone()),
        change,
    }
}

/// Begins a request that was never begun before. What becomes of it must be what the plan made right before says: a plan
/// without refusals is not refused, and one with refusals is refused with the first of them.
pub(crate) async fn begin_as_planned(
    adapter: &dyn Adapter,
    intent: &Intent,
    key: RequestKey,
    baseline: Option<&Evidence>,
    by: Deadline,
) -> Result<BeginOutcome, AdapterError> {
    let plan = match intent.verb() {
        Verb::Restore | Verb::Delete => Some(adapter.preview(intent, by).await),
        Verb::Create | Verb::Update => None,
    };
    let begun = adapter.begin(intent, key, baseline, by).await;
    if let Some(plan) = plan {
        plans::judge(intent, &plan, &begun);
    }
    begun
}

/// Begins and follows to the end; the progress must not go back.
pub(crate) async fn run(
    adapter: &dyn Adapter,
    intent: &Intent,
    number: u64,
) -> Result<(), FaultKind> {
    let baseline = adapter.baseline(intent, key(number), by()).await.unwrap();
    let begun = begin_as_planned(adapter, intent, key(number), baseline.as_ref(), by()).await;
    let ended = follow(adapter, intent, number, baseline.as_ref(), begun).await;
    ended.map_err(|fault| fault.kind)
}

/// The same while other clients change the VM: what a plan says is out of date at once.
pub(crate) async fn run_among_others(
    adapter: &dyn Adapter,
    intent: &Intent,
    number: u64,
) -> Result<(), FaultKind> {
    let baseline = adapter.baseline(intent, key(number), by()).await.unwrap();
    run_from(adapter, intent, number, baseline.as_ref()).await
}

/// The same, from what was seen before: with the same number and baseline it is the same request again.
pub(crate) async fn run_from(
    adapter: &dyn Adapter,
    intent: &Intent,
    number: u64,
    baseline: Option<&Evidence>,
) -> Result<(), FaultKind> {
    let ended = fault_of(adapter, intent, number, baseline).await;
    ended.map_err(|fault| fault.kind)
}

/// The same, with what a caller reads.
pub(crate) async fn fault_of(
    adapter: &dyn Adapter,
    intent: &Intent,
    number: u64,
    baseline: Option<&Evidence>,
) -> Result<(), Fault> {
    let begun = adapter.begin(intent, key(number), baseline, by()).await;
    follow(adapter, intent, number, baseline, begun).await
}

async fn follow(
    adapter: &dyn Adapter,
    intent: &Intent,
    number: u64,
    baseline: Option<&Evidence>,
    begun: Result<BeginOutcome, AdapterError>,
) -> Result<(), Fault> {
    let task = match begun.map_err(|error| {
        assert_eq!(
            error.effect,
            Effect::None,
            "{number}: a refusal has no effect: {error:?}"
        );
        error.fault
    })? {
        BeginOutcome::Done => return Ok(()),
        BeginOutcome::Task(task) => task,
    };
    let (mut last, end) = (Progress::NONE, by());
    while SystemClock.instant() < end.instant() {
        match adapter.poll(&task, by()).await.unwrap() {
            TaskState::Running(progress) => {
                let now = progress.unwrap_or(last);
                assert!(now >= last, "{number}: progress went back");
                last = now;
            }
            TaskState::Done(_) => return Ok(()),
            TaskState::Failed(fault) => return Err(fault),
            TaskState::Cancelled => {
                return Err(Fault::new(FaultKind::Cancelled, PublicText::default()));
            }
            // What the gateway does then.
            TaskState::Gone => return found(adapter, intent, number, baseline).await,
        }
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    panic!("{number}: the task does not end")
}

/// What became of a request whose task is gone.
pub(crate) async fn found(
    adapter: &dyn Adapter,
    intent: &Intent,
    number: u64,
    baseline: Option<&Evidence>,
) -> Result<(), Fault> {
    let only = |kind| Err(Fault::new(kind, PublicText::default()));
    let settle = adapter.capability().verb(intent.verb()).unwrap().settle;
    let end = SystemClock.deadline(settle + Duration::from_secs(20));
    while SystemClock.instant() < end.instant() {
        match adapter
            .find_outcome(intent, key(number), baseline, by())
            .await
        {
            Ok(FindOutcome::Done(_)) => return Ok(()),
            Ok(FindOutcome::Failed(fault) | FindOutcome::HalfDone(fault)) => return Err(fault),
            Ok(FindOutcome::NotBegun | FindOutcome::VmChanged) => {
                return only(FaultKind::NotExecuted);
            }
            Ok(FindOutcome::Unknowable) => return only(FaultKind::OutcomeUnknown),
            Ok(FindOutcome::NotYet | FindOutcome::Task(_)) | Err(_) => {}
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{number}: nothing is ever found out")
}
