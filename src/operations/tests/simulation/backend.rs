//! A VM manager that outlives the gateway: answers are lost, work begins late, tasks vanish, calls are slow or panic.

use std::time::Duration;

use async_trait::async_trait;

use super::history::Execution;
use super::world::World;
use crate::adapters::adapter::Adapter;
use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::BeginOutcome;
use crate::adapters::adapter::Capability;
use crate::adapters::adapter::FindOutcome;
use crate::adapters::adapter::Health;
use crate::adapters::adapter::Recovery;
use crate::adapters::adapter::TaskState;
use crate::adapters::adapter::VerbCapability;
use crate::model::Backup;
use crate::model::BackupKind;
use crate::model::BackupPage;
use crate::model::Deadline;
use crate::model::Description;
use crate::model::Evidence;
use crate::model::FaultKind;
use crate::model::Intent;
use crate::model::Page;
use crate::model::Progress;
use crate::model::RequestKey;
use crate::model::Target;
use crate::model::TaskRef;
use crate::model::Verb;
use crate::model::Vm;
use crate::model::VmId;
use crate::operations::testing::backup;

/// What the VM manager is, and what its adapter says that it is. They differ in controls only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Nature {
    pub recovery: Recovery,
    pub declared: Recovery,
    /// How late work may begin after a call.
    pub late: Duration,
    /// The settle time that the adapter declares.
    pub settle: Duration,
    /// Whether calls return when the work is done, instead of making a task.
    pub waits: bool,
    /// Whether reads never show a change: a control.
    pub blind: bool,
}

/// The adapter of one life.
#[derive(Debug)]
pub(super) struct SimBackend {
    world: World,
    nature: Nature,
    capability: Capability,
}

/// How a call goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
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
    pub(super) fn new(world: World, nature: Nature) -> Self {
        let verb = Some(VerbCapability {
            recovery: nature.declared,
            settle: nature.settle,
            cancel: false,
            progress: true,
        });
        Self {
            world,
            nature,
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
            },
        }
    }

    fn way(&self) -> Way {
        if self.world.things().calm {
            return Way::Well;
        }
        match self.world.chance(|world| world.below(100)) {
            0..8 => Way::Refused,
            8..12 => Way::Unavailable,
            12..18 => Way::LostBefore,
            18..20 => Way::PanicBefore,
            20..30 => Way::LostAfter,
            30..32 => Way::PanicAfter,
            32..35 => Way::Hangs,
            _ => Way::Well,
        }
    }

    /// The request reaches the VM manager: what it makes of it will happen whatever becomes of the caller.
    /// Returns where the execution is among all.
    fn arrives(&self, intent: &Intent, key: RequestKey) -> usize {
        let now = self.world.time();
        let late = self.nature.late;
        let mut things = self.world.things();
        let calm = things.calm;
        if self.nature.recovery == Recovery::ReplaySafe {
            let known = |it: &Execution| it.seq == key.0 && it.dropped.is_none();
            if let Some(known) = things.executions.iter().position(known) {
                return known;
            }
        }
        let chance = &mut things.chance;
        let late_millis = u64::try_from(late.as_millis()).unwrap().max(1);
        let wait = if chance.per_mille(300) && !calm {
            chance.millis(late_millis)
        } else {
            chance.millis(50)
        };
        let begins = now + wait.min(late);
        let length = chance.millis(if self.nature.waits { 20_000 } else { 60_000 });
        let safe = self.nature.recovery == Recovery::ReplaySafe && !self.nature.waits;
        let dropped = safe && !calm && chance.per_mille(60);
        let forgotten = !calm && chance.per_mille(100);
        let (succeeds, visible) = (chance.per_mille(900), chance.per_mille(500));
        things.executions.push(Execution {
            seq: key.0,
            vm: intent.target.vm.as_str().to_owned(),
            changes: changes(intent),
            begins,
            ends: begins + length,
            succeeds,
            dropped: dropped.then(|| begins + length / 2),
            forgotten: forgotten.then(|| begins + length.mul_f64(0.7)),
            visible,
        });
        things.executions.len() - 1
    }

    fn execution(&self, at: usize) -> Option<Execution> {
        self.world.things().executions.get(at).cloned()
    }

    /// Waits for the end, but not beyond the deadline.
    async fn finished(&self, at: usize, by: Deadline) -> Result<BeginOutcome, AdapterError> {
        let Some(it) = self.execution(at) else {
            return Err(AdapterError::unavailable("no such work"));
        };
        let end = tokio::time::sleep(it.ends.saturating_sub(self.world.time()));
        match tokio::time::timeout_at(by.instant().into(), end).await {
            Ok(()) if it.succeeds => Ok(BeginOutcome::Done),
            Ok(()) => Err(AdapterError::refused(FaultKind::StorageFull, "full")),
            Err(_) => Err(AdapterError::uncertain(FaultKind::TimedOut, "no answer")),
        }
    }

    /// A call that only looks, with what may go wrong with one.
    async fn look(&self) -> Result<(), AdapterError> {
        self.world.step().await;
        self.world.delay().await;
        if self.world.fault(20) {
            panic_quietly();
        }
        if self.world.fault(100) {
            return Err(AdapterError::unavailable("not now"));
        }
        Ok(())
    }

    fn found(&self, key: RequestKey) -> FindOutcome {
        let now = self.world.time();
        let things = self.world.things();
        let its = things.executions.iter().enumerate();
        let begun: Vec<_> = its
            .filter(|(_, it)| it.seq == key.0 && it.begins <= now)
            .filter(|(_, it)| it.dropped.is_none_or(|at| now < at))
            .collect();
        let Some((at, it)) = begun.first() else {
            return match self.nature.recovery {
                Recovery::ReplaySafe | Recovery::Listable => FindOutcome::NotBegun,
                Recovery::NoTrace if key.0.number().is_multiple_of(2) => FindOutcome::Unknowable,
                Recovery::NoTrace => FindOutcome::NotYet,
            };
        };
        if self.nature.recovery == Recovery::NoTrace {
            return match (it.visible, now >= it.ends && it.succeeds) {
                (true, true) => FindOutcome::Done,
                (true, false) => FindOutcome::NotYet,
                (false, _) => FindOutcome::Unknowable,
            };
        }
        match (now >= it.ends, it.succeeds) {
            (true, true) => FindOutcome::Done,
            (true, false) => FindOutcome::Failed(full()),
            (false, _) if it.forgotten.is_some_and(|forgotten| forgotten <= now) => {
                FindOutcome::NotYet
            }
            (false, _) => FindOutcome::Task(task(*at)),
        }
    }
}

/// The backup that is another one after this.
fn changes(intent: &Intent) -> Option<String> {
    let backup = intent.target.backup.as_str().to_owned();
    matches!(intent.verb(), Verb::Update | Verb::Delete).then_some(backup)
}

fn full() -> crate::model::Fault {
    AdapterError::refused(FaultKind::StorageFull, "full").fault
}

fn task(at: usize) -> TaskRef {
    TaskRef::new(at.to_string()).unwrap()
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
        Err(AdapterError::refused(FaultKind::NoSuchVm, "no such VM"))
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

    async fn read_backup(&self, target: &Target, _: Deadline) -> Result<Backup, AdapterError> {
        self.world.delay().await;
        let now = self.world.time();
        let id = target.backup.as_str();
        let mut backup = backup(id);
        if self.nature.blind {
            return Ok(backup);
        }
        let things = self.world.things();
        let made = things.executions.iter().filter(|execution| {
            execution.has_effect()
                && execution.ends <= now
                && execution.vm == target.vm.as_str()
                && execution.changes.as_deref() == Some(id)
        });
        if let Some(last) = made.max_by_key(|it| it.ends) {
            let text = format!("changed by {}", last.seq);
            backup.description = Description::new(&text).ok();
        }
        Ok(backup)
    }

    fn needs_baseline(&self, intent: &Intent) -> bool {
        intent.verb() != Verb::Update || self.nature.declared != Recovery::ReplaySafe
    }

    async fn baseline(
        &self,
        _: &Intent,
        key: RequestKey,
        _: Deadline,
    ) -> Result<Option<Evidence>, AdapterError> {
        self.look().await?;
        Ok(Evidence::new(key.to_string()))
    }

    async fn begin(
        &self,
        intent: &Intent,
        key: RequestKey,
        _: Option<&Evidence>,
        by: Deadline,
    ) -> Result<BeginOutcome, AdapterError> {
        self.world.step().await;
        let way = self.way();
        let lost = || AdapterError::uncertain(FaultKind::TimedOut, "no answer");
        match way {
            Way::Refused => return Err(AdapterError::refused(FaultKind::Busy, "busy")),
            Way::Unavailable => return Err(AdapterError::unavailable("down")),
            Way::LostBefore => return Err(lost()),
            Way::PanicBefore => panic_quietly(),
            Way::LostAfter | Way::PanicAfter | Way::Hangs | Way::Well => {}
        }
        let at = self.arrives(intent, key);
        self.world.step().await;
        self.world.delay().await;
        match way {
            Way::LostAfter => return Err(lost()),
            Way::PanicAfter => panic_quietly(),
            Way::Hangs => {
                tokio::time::sleep_until(by.instant().into()).await;
                return Err(lost());
            }
            Way::Refused | Way::Unavailable | Way::LostBefore | Way::PanicBefore | Way::Well => {}
        }
        let begun = if self.nature.waits {
            self.finished(at, by).await
        } else {
            Ok(BeginOutcome::Task(task(at)))
        };
        self.world.step().await;
        begun
    }

    async fn poll(&self, task: &TaskRef, _: Deadline) -> Result<TaskState, AdapterError> {
        self.look().await?;
        let now = self.world.time();
        let at = task.as_str().parse().unwrap();
        let Some(it) = self.execution(at) else {
            return Ok(TaskState::Gone);
        };
        let gone = |since: Option<Duration>| since.is_some_and(|since| since <= now);
        let state = if gone(it.forgotten) || gone(it.dropped) {
            TaskState::Gone
        } else if now < it.ends {
            // What it says about how far it is goes back and forth.
            let said = self.world.chance(|world| world.below(120));
            let said = u8::try_from(said).unwrap();
            TaskState::Running((said <= 100).then(|| Progress::unfinished(said)))
        } else if it.succeeds {
            TaskState::Done
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
        self.look().await?;
        let found = self.found(key);
        self.world.step().await;
        Ok(found)
    }

    async fn cancel(&self, _: &TaskRef, _: Deadline) -> Result<(), AdapterError> {
        Err(AdapterError::refused(FaultKind::Unsupported, "cannot"))
    }
}
