//! A simulated VM manager that outlives the gateway: answers are lost, work starts late, tasks vanish, calls are slow or panic.

use std::time::Duration;

use async_trait::async_trait;

use super::history::Execution;
use super::world::SimulatedWorld;
use crate::adapters::adapter::Adapter;
use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::BeginOutcome;
use crate::adapters::adapter::Capability;
use crate::adapters::adapter::FindOutcome;
use crate::adapters::adapter::Health;
use crate::adapters::adapter::MetadataOwner;
use crate::adapters::adapter::Recovery;
use crate::adapters::adapter::TaskState;
use crate::adapters::adapter::VerbCapability;
use crate::adapters::adapter::lists_no_vms;
use crate::adapters::adapter::operation_number_as_id;
use crate::adapters::backup_listing::query_by_listing;
use crate::adapters::layers::lease_ended;
use crate::model::Backup;
use crate::model::BackupId;
use crate::model::BackupKind;
use crate::model::BackupPage;
use crate::model::BackupQuery;
use crate::model::BackupSelection;
use crate::model::Deadline;
use crate::model::Description;
use crate::model::Evidence;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::Identity;
use crate::model::Intent;
use crate::model::NewBackup;
use crate::model::Page;
use crate::model::Preview;
use crate::model::Progress;
use crate::model::PublicText;
use crate::model::RequestKey;
use crate::model::Target;
use crate::model::TaskRef;
use crate::model::Verb;
use crate::model::Version;
use crate::model::Vm;
use crate::model::VmId;
use crate::model::VmPage;
use crate::model::VmRange;
use crate::operations::testing::backup;
use crate::public_text;
use crate::runtime::lease;

/// How the VM manager behaves, and what its adapter declares. They differ in controls only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BackendBehavior {
    pub recovery: Recovery,
    pub declared_recovery: Recovery,
    /// How late work may start after a call.
    pub start_delay_max: Duration,
    /// The settle time that the adapter declares.
    pub settle: Duration,
    /// Whether calls return when the work is done, instead of starting a task.
    pub is_synchronous: bool,
    /// Whether reads never show a change: a control.
    pub hides_changes: bool,
    /// Whether the lease is looked at right before a call: else a control.
    pub looks_before_sending: bool,
}

/// The adapter of one life.
#[derive(Debug)]
pub(super) struct SimBackend {
    world: SimulatedWorld,
    behavior: BackendBehavior,
    capability: Capability,
}

/// How a call ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CallFate {
    Refused,
    Unavailable,
    LostBefore,
    PanicBefore,
    LostAfter,
    PanicAfter,
    Hangs,
    Well,
}

impl SimBackend {
    pub(super) fn new(world: SimulatedWorld, behavior: BackendBehavior) -> Self {
        let verb = Some(VerbCapability {
            recovery: behavior.declared_recovery,
            settle: behavior.settle,
            cancel: false,
            progress: true,
        });
        Self {
            world,
            behavior,
            capability: Capability {
                kind: "simulated",
                create: verb,
                update: verb,
                delete: verb,
                restore: verb,
                kinds: &[BackupKind::Snapshot],
                restore_options: &[],
                online: true,
                memory: false,
                consistent: true,
                lists_vms: false,
            },
        }
    }

    fn draw_fate(&self) -> CallFate {
        if self.world.state().calm {
            return CallFate::Well;
        }
        match self.world.draw(|world| world.below(100)) {
            0..8 => CallFate::Refused,
            8..12 => CallFate::Unavailable,
            12..18 => CallFate::LostBefore,
            18..20 => CallFate::PanicBefore,
            20..30 => CallFate::LostAfter,
            30..32 => CallFate::PanicAfter,
            32..35 => CallFate::Hangs,
            _ => CallFate::Well,
        }
    }

    /// The request reaches the VM manager, which carries it out whatever happens to the caller.
    /// Returns the index of the execution.
    fn start_execution(&self, intent: &Intent, key: RequestKey) -> usize {
        let now = self.world.time();
        let start_delay_max = self.behavior.start_delay_max;
        let mut state = self.world.state();
        let calm = state.calm;
        if self.behavior.recovery == Recovery::ReplaySafe {
            let is_same =
                |execution: &Execution| execution.seq == key.0 && execution.dropped.is_none();
            if let Some(known) = state.executions.iter().position(is_same) {
                return known;
            }
        }
        let prng = &mut state.prng;
        let late_millis = u64::try_from(start_delay_max.as_millis()).unwrap().max(1);
        let wait = if prng.per_mille(300) && !calm {
            prng.millis(late_millis)
        } else {
            prng.millis(50)
        };
        let begins = now + wait.min(start_delay_max);
        let length = prng.millis(if self.behavior.is_synchronous {
            20_000
        } else {
            60_000
        });
        let safe = self.behavior.recovery == Recovery::ReplaySafe && !self.behavior.is_synchronous;
        let dropped = safe && !calm && prng.per_mille(60);
        let forgotten = !calm && prng.per_mille(100);
        let (succeeds, visible) = (prng.per_mille(900), prng.per_mille(500));
        state.executions.push(Execution {
            seq: key.0,
            vm: intent.target.vm.as_str().to_owned(),
            changes: changed_backup(intent),
            begins,
            ends: begins + length,
            succeeds,
            dropped: dropped.then(|| begins + length / 2),
            forgotten: forgotten.then(|| begins + length.mul_f64(0.7)),
            visible,
        });
        state.executions.len() - 1
    }

    fn execution(&self, at: usize) -> Option<Execution> {
        self.world.state().executions.get(at).cloned()
    }

    /// Waits for the end, but not beyond the deadline.
    async fn wait_for_end(&self, at: usize, by: Deadline) -> Result<BeginOutcome, AdapterError> {
        let Some(execution) = self.execution(at) else {
            return Err(AdapterError::unavailable(no_answer()));
        };
        let end = tokio::time::sleep(execution.ends.saturating_sub(self.world.time()));
        match tokio::time::timeout_at(by.instant().into(), end).await {
            Ok(()) if execution.succeeds => Ok(BeginOutcome::Done),
            Ok(()) => Err(AdapterError::refused(
                FaultKind::StorageFull,
                public_text!("The storage is full."),
            )),
            Err(_) => Err(AdapterError::uncertain(FaultKind::TimedOut, no_answer())),
        }
    }

    /// A call without effect, with the faults that such a call may have.
    async fn simulate_read(&self) -> Result<(), AdapterError> {
        self.world.step().await;
        self.world.delay().await;
        if self.world.fault(20) {
            panic_quietly();
        }
        if self.world.fault(100) {
            return Err(AdapterError::unavailable(no_answer()));
        }
        Ok(())
    }

    fn find_execution(&self, key: RequestKey) -> FindOutcome {
        let now = self.world.time();
        let state = self.world.state();
        let its = state.executions.iter().enumerate();
        let begun: Vec<_> = its
            .filter(|(_, value)| value.seq == key.0 && value.begins <= now)
            .filter(|(_, value)| value.dropped.is_none_or(|at| now < at))
            .collect();
        let Some((at, work)) = begun.first() else {
            return match self.behavior.recovery {
                Recovery::ReplaySafe | Recovery::Listable => FindOutcome::NotBegun,
                Recovery::NoTrace if key.0.number().is_multiple_of(2) => FindOutcome::Unknowable,
                Recovery::NoTrace => FindOutcome::NotYet,
            };
        };
        if self.behavior.recovery == Recovery::NoTrace {
            return match (work.visible, now >= work.ends && work.succeeds) {
                (true, true) => FindOutcome::Done(None),
                (true, false) => FindOutcome::NotYet,
                (false, _) => FindOutcome::Unknowable,
            };
        }
        match (now >= work.ends, work.succeeds) {
            (true, true) => FindOutcome::Done(None),
            (true, false) => FindOutcome::Failed(full()),
            (false, _) if work.forgotten.is_some_and(|forgotten| forgotten <= now) => {
                FindOutcome::NotYet
            }
            (false, _) => FindOutcome::Task(task(*at)),
        }
    }
}

/// The backup whose version changes by this.
fn changed_backup(intent: &Intent) -> Option<String> {
    let backup = intent.target.backup.as_str().to_owned();
    matches!(intent.verb(), Verb::Update | Verb::Delete).then_some(backup)
}

fn full() -> Fault {
    Fault::new(FaultKind::StorageFull, public_text!("The storage is full."))
}

fn task(at: usize) -> TaskRef {
    TaskRef::new(at.to_string()).unwrap()
}

fn no_answer() -> PublicText {
    public_text!("The VM manager does not answer.")
}

/// A panic that prints nothing.
fn panic_quietly() {
    std::panic::resume_unwind(Box::new("simulated"));
}

#[async_trait]
impl Adapter for SimBackend {
    fn capability(&self) -> &Capability {
        &self.capability
    }

    async fn health(&self, _: Deadline) -> Result<Health, AdapterError> {
        Ok(Health {
            product: "simulated".to_owned(),
        })
    }

    async fn read_vm(&self, _: &VmId, _: Deadline) -> Result<Vm, AdapterError> {
        Err(AdapterError::refused(
            FaultKind::NoSuchVm,
            public_text!("There is no such VM."),
        ))
    }

    async fn list_vms(&self, _: &VmRange, _: Deadline) -> Result<VmPage, AdapterError> {
        Err(lists_no_vms())
    }

    async fn list_backups(
        &self,
        _: &VmId,
        _: &Page,
        _: Deadline,
    ) -> Result<BackupPage, AdapterError> {
        Ok(BackupPage {
            backups: Vec::new(),
            more: false,
        })
    }

    async fn query_backups(
        &self,
        vm: &VmId,
        query: &BackupQuery,
        by: Deadline,
    ) -> Result<BackupSelection, AdapterError> {
        query_by_listing(self, vm, query, by).await
    }

    async fn read_backup(&self, target: &Target, _: Deadline) -> Result<Backup, AdapterError> {
        self.world.delay().await;
        let now = self.world.time();
        let id = target.backup.as_str();
        let mut backup = backup(id);
        if self.behavior.hides_changes {
            return Ok(backup);
        }
        let state = self.world.state();
        let made = state.executions.iter().filter(|execution| {
            execution.has_effect()
                && execution.ends <= now
                && execution.vm == target.vm.as_str()
                && execution.changes.as_deref() == Some(id)
        });
        if let Some(last) = made.max_by_key(|execution| execution.ends) {
            let text = format!("changed by {}", last.seq);
            backup.description = Description::new(&text).ok();
        }
        Ok(backup)
    }

    async fn preview(&self, intent: &Intent, by: Deadline) -> Result<Preview, AdapterError> {
        let vm = Vm {
            id: intent.target.vm.clone(),
            name: intent.target.vm.as_str().to_owned(),
            description: None,
            run_state: None,
        };
        let backup = self.read_backup(&intent.target, by).await?;
        // The backup's version stands for whatever of the VM a plan covers.
        let mark = Version::of_backup(&backup).to_string();
        Ok(Preview {
            vm_mark: Some(mark),
            ..Preview::new(vm, backup)
        })
    }

    fn needs_baseline(&self, intent: &Intent) -> bool {
        intent.verb() != Verb::Update || self.behavior.declared_recovery != Recovery::ReplaySafe
    }

    async fn baseline(
        &self,
        _: &Intent,
        key: RequestKey,
        _: Deadline,
    ) -> Result<Option<Evidence>, AdapterError> {
        self.simulate_read().await?;
        Ok(Evidence::new(key.to_string()))
    }

    async fn begin(
        &self,
        intent: &Intent,
        key: RequestKey,
        _: Option<&Evidence>,
        by: Deadline,
    ) -> Result<BeginOutcome, AdapterError> {
        self.world.before_call().await;
        // What sends the bytes looks at the lease once more, right before it does.
        if self.behavior.looks_before_sending {
            lease::check_current().map_err(lease_ended)?;
        }
        let fate = self.draw_fate();
        let lost = || AdapterError::uncertain(FaultKind::TimedOut, no_answer());
        match fate {
            CallFate::Refused => {
                return Err(AdapterError::refused(
                    FaultKind::Busy,
                    public_text!("The VM is busy."),
                ));
            }
            CallFate::Unavailable => return Err(AdapterError::unavailable(no_answer())),
            CallFate::LostBefore => return Err(lost()),
            CallFate::PanicBefore => panic_quietly(),
            CallFate::LostAfter | CallFate::PanicAfter | CallFate::Hangs | CallFate::Well => {}
        }
        let at = self.start_execution(intent, key);
        self.world.step().await;
        self.world.delay().await;
        match fate {
            CallFate::LostAfter => return Err(lost()),
            CallFate::PanicAfter => panic_quietly(),
            CallFate::Hangs => {
                tokio::time::sleep_until(by.instant().into()).await;
                return Err(lost());
            }
            CallFate::Refused
            | CallFate::Unavailable
            | CallFate::LostBefore
            | CallFate::PanicBefore
            | CallFate::Well => {}
        }
        let begun = if self.behavior.is_synchronous {
            self.wait_for_end(at, by).await
        } else {
            Ok(BeginOutcome::Task(task(at)))
        };
        self.world.step().await;
        begun
    }

    async fn poll(&self, task: &TaskRef, _: Deadline) -> Result<TaskState, AdapterError> {
        self.simulate_read().await?;
        let now = self.world.time();
        let at = task.as_str().parse().unwrap();
        let Some(work) = self.execution(at) else {
            return Ok(TaskState::Gone);
        };
        let gone = |since: Option<Duration>| since.is_some_and(|since| since <= now);
        let state = if gone(work.forgotten) || gone(work.dropped) {
            TaskState::Gone
        } else if now < work.ends {
            // The reported progress goes back and forth.
            let percent = self.world.draw(|world| world.below(120));
            let percent = u8::try_from(percent).unwrap();
            TaskState::Running((percent <= 100).then(|| Progress::unfinished(percent)))
        } else if work.succeeds {
            TaskState::Done(None)
        } else {
            TaskState::Failed(full())
        };
        self.world.step().await;
        Ok(state)
    }

    async fn find_outcome(
        &self,
        _: &Intent,
        key: RequestKey,
        _: Option<&Evidence>,
        _: Deadline,
    ) -> Result<FindOutcome, AdapterError> {
        self.simulate_read().await?;
        let found = self.find_execution(key);
        self.world.step().await;
        Ok(found)
    }

    async fn cancel(&self, _: &TaskRef, _: Deadline) -> Result<(), AdapterError> {
        Err(AdapterError::refused(
            FaultKind::Unsupported,
            public_text!("The operation cannot be cancelled."),
        ))
    }

    fn metadata_owner(&self) -> MetadataOwner {
        MetadataOwner::Native
    }

    fn is_identity_of(&self, stored: &Identity, backup: &Backup) -> bool {
        *stored == backup.identity
    }

    fn mint_backup_id(&self, _new: &NewBackup, key: RequestKey) -> Result<BackupId, AdapterError> {
        operation_number_as_id(key)
    }

    async fn changed(&self, _task: &TaskRef) {
        std::future::pending::<()>().await;
    }
}
