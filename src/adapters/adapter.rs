//! The port: what every adapter is to the rest of the gateway.
//!
//! An adapter neither retries nor times out by itself and knows no other adapter: the layers around it
//! do the first, and nothing needs the second. Dropping a future returned by any of its methods must
//! leave nothing half-known: work that goes on is found again by [`Adapter::find`].

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;

use crate::model::Backup;
use crate::model::BackupId;
use crate::model::BackupKind;
use crate::model::BackupPage;
use crate::model::Deadline;
use crate::model::Evidence;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::Identity;
use crate::model::Intent;
use crate::model::NewBackup;
use crate::model::Page;
use crate::model::Progress;
use crate::model::PublicText;
use crate::model::RequestKey;
use crate::model::Target;
use crate::model::TaskRef;
use crate::model::Verb;
use crate::model::Vm;
use crate::model::VmId;

/// How the outcome of a call can be learned when its answer was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// Calling again with the same key has the effect of calling once.
    ReplaySafe,
    /// The VM manager keeps a log in which the call is found, or found missing, after the settle time.
    Listable,
    /// Nothing is kept; the state of the backup or VM may tell, or else nobody can.
    NoTrace,
}

impl Recovery {
    /// The words used in the configuration.
    pub const WORDS: &'static [&'static str] = &["replay-safe", "listable", "no-trace"];

    /// The one of this word of the configuration; `None` when there is none.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        match word {
            "replay-safe" => Some(Self::ReplaySafe),
            "listable" => Some(Self::Listable),
            "no-trace" => Some(Self::NoTrace),
            _ => None,
        }
    }

    /// The word used in the documentation.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ReplaySafe => "replay-safe",
            Self::Listable => "listable",
            Self::NoTrace => "no trace",
        }
    }
}

/// What an adapter can do with one verb.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerbCapability {
    /// How a lost answer is made good.
    pub recovery: Recovery,
    /// After a call whose answer was lost: how long the VM manager may still be about to begin it.
    pub settle: Duration,
    /// Whether a running one can be stopped.
    pub cancel: bool,
    /// Whether the VM manager says how far it is.
    pub progress: bool,
}

/// What an adapter can do, as data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capability {
    /// The `kind` of the configuration, for instance `files`.
    pub kind: &'static str,
    /// Making backups.
    pub create: Option<VerbCapability>,
    /// Changing name, description, tags and protection.
    pub update: Option<VerbCapability>,
    /// Removing backups.
    pub delete: Option<VerbCapability>,
    /// Restoring VMs.
    pub restore: Option<VerbCapability>,
    /// The kinds of backup it can make; the first is its default. Empty when it makes none.
    pub kinds: &'static [BackupKind],
    /// Names of restore options it understands, each with a sentence for the documentation.
    pub restore_options: &'static [(&'static str, &'static str)],
    /// Whether a running VM can be backed up.
    pub online: bool,
    /// Whether a backup holds the VM's memory.
    pub memory: bool,
    /// Whether all disks of a VM are backed up and restored together, all or none.
    pub consistent: bool,
}

impl Capability {
    /// What it can do with this verb; `None` when it cannot.
    #[must_use]
    pub const fn verb(&self, verb: Verb) -> Option<&VerbCapability> {
        match verb {
            Verb::Create => self.create.as_ref(),
            Verb::Update => self.update.as_ref(),
            Verb::Delete => self.delete.as_ref(),
            Verb::Restore => self.restore.as_ref(),
        }
    }
}

/// Who keeps the name, description, tags and protection of backups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetadataOwner {
    /// The VM manager, through a restore too.
    Native,
    /// The gateway: [`crate::adapters::layers::Annotate`] must be around the adapter.
    Gateway,
}

/// Whether a call that failed may have had an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Provably none: refused before anything was done, or never sent.
    None,
    /// It may have been begun: bytes were sent and no clear answer came.
    Possible,
}

/// Whether calling again may help. Layers repeat reads only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The same call will fail the same way.
    Permanent,
    /// The same call may succeed soon.
    Temporary,
    /// It was repeated as often as allowed.
    Exhausted,
}

/// What a failure concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The backend as a whole, as far as is known. Several in a row open its circuit breaker.
    Backend,
    /// One VM or its storage. Other VMs of the backend are not affected, and its circuit breaker is not either.
    OneVm,
}

/// What went wrong in a call to an adapter.
///
/// `fault` may be shown to callers. The native message is kept apart, has no `Display` and reaches the log only.
pub struct AdapterError {
    /// What a caller may see.
    pub fault: Fault,
    /// Whether the call may have had an effect.
    pub effect: Effect,
    /// Whether calling again may help.
    pub retry: Retry,
    /// What it concerns.
    pub scope: Scope,
    private: String,
}

impl AdapterError {
    /// A failure that provably had no effect and will happen again.
    #[must_use]
    pub fn refused(kind: FaultKind, text: impl Into<PublicText>) -> Self {
        Self {
            fault: Fault::new(kind, text),
            effect: Effect::None,
            retry: Retry::Permanent,
            scope: Scope::Backend,
            private: String::new(),
        }
    }

    /// A failure that provably had no effect and may pass.
    #[must_use]
    pub fn unavailable(text: impl Into<PublicText>) -> Self {
        Self {
            retry: Retry::Temporary,
            ..Self::refused(FaultKind::Unavailable, text)
        }
    }

    /// A failure after which it is not known whether there was an effect.
    #[must_use]
    pub fn uncertain(kind: FaultKind, text: impl Into<PublicText>) -> Self {
        Self {
            effect: Effect::Possible,
            retry: Retry::Temporary,
            ..Self::refused(kind, text)
        }
    }

    /// The same with what the VM manager or the system said, for the log.
    #[must_use]
    pub fn because(mut self, private: impl fmt::Display) -> Self {
        self.private = private.to_string();
        self
    }

    /// The same, concerning one VM or its storage alone.
    #[must_use]
    pub const fn of_one_vm(mut self) -> Self {
        self.scope = Scope::OneVm;
        self
    }

    /// The same, repeated as often as allowed.
    #[must_use]
    pub const fn exhausted(mut self) -> Self {
        self.retry = Retry::Exhausted;
        self
    }

    /// Whether it is an answer to what was asked, and no failure of the VM manager or of its storage: there is no such VM, the
    /// backup is protected, and the like. Callers see it; operators need not act.
    #[must_use]
    pub const fn is_answer(&self) -> bool {
        match self.fault.kind {
            FaultKind::NoSuchVm
            | FaultKind::NoSuchBackup
            | FaultKind::NameTaken
            | FaultKind::Protected
            | FaultKind::NotReady
            | FaultKind::Busy
            | FaultKind::Conflict
            | FaultKind::Invalid
            | FaultKind::Unsupported
            | FaultKind::PreconditionFailed
            | FaultKind::Cancelled => true,
            FaultKind::Damaged
            | FaultKind::StorageFull
            | FaultKind::BackendDenied
            | FaultKind::TimedOut
            | FaultKind::Unavailable
            | FaultKind::BackendFailed
            | FaultKind::NotExecuted
            | FaultKind::OutcomeUnknown => false,
        }
    }

    /// What the VM manager or the system said. For logs alone: never for a reply, a Status or a metric.
    #[must_use]
    pub fn private(&self) -> &str {
        &self.private
    }
}

impl fmt::Debug for AdapterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdapterError")
            .field("fault", &self.fault)
            .field("effect", &self.effect)
            .field("retry", &self.retry)
            .field("scope", &self.scope)
            .field("private", &self.private)
            .finish()
    }
}

/// How a backend is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// The product and version behind it, for operators, for instance `QEMU 7.2.17`.
    pub product: String,
}

/// What became of a request to begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BeginOutcome {
    /// It is done.
    Done,
    /// The VM manager works on it.
    Task(TaskRef),
}

/// How a task is.
#[derive(Debug)]
pub enum TaskState {
    /// Not finished; the progress is what the VM manager says, `None` while it says nothing.
    Running(Option<Progress>),
    /// It was done.
    Done,
    /// It failed.
    Failed(Fault),
    /// It was stopped on request.
    Cancelled,
    /// The VM manager no longer knows it: its end must be learned by [`Adapter::find`].
    Gone,
}

/// What can be found out about a request whose answer was lost.
#[derive(Debug)]
pub enum FindOutcome {
    /// It provably never began, or was undone without a trace, and nothing more will come of it. Where the verb is
    /// replay-safe it is begun again, a bounded number of times; elsewhere the operation ends as not executed.
    NotBegun,
    /// It began, was broken off half-way, and nothing more will come of it. Where the verb is replay-safe calling again
    /// carries it to its end; elsewhere, or when it was called too often, it failed, and this is what to tell then.
    HalfDone(Fault),
    /// It provably never began, or was undone without a trace, and the VM's disks are no longer those that
    /// [`Adapter::baseline`] saw. Calling again would overwrite what was done to the VM since, so the operation ends as not
    /// executed, replay-safe or not.
    VmChanged,
    /// This is its task.
    Task(TaskRef),
    /// It was done.
    Done,
    /// It failed.
    Failed(Fault),
    /// It cannot be told yet; asking again later may help.
    NotYet,
    /// Nothing will ever tell.
    Unknowable,
}

/// One kind of VM manager, configured for one backend.
#[async_trait]
pub trait Adapter: fmt::Debug + Send + Sync {
    /// What it can do.
    fn capability(&self) -> &Capability;

    /// Who keeps the name, description, tags and protection of backups.
    fn metadata_owner(&self) -> MetadataOwner {
        MetadataOwner::Native
    }

    /// Whether an identity that was stored earlier belongs to this backup. Pure.
    ///
    /// Adapters whose identities took another form in an earlier version, or lose parts while a backup is being deleted,
    /// override this, so that names and protection which the gateway keeps stay bound to the backup.
    fn is_identity_of(&self, stored: &Identity, backup: &Backup) -> bool {
        *stored == backup.identity
    }

    /// The id that a new backup will have, fixed when the create is accepted.
    ///
    /// Pure: the same name and key give the same id. By default the number of the operation.
    ///
    /// # Errors
    /// When the id cannot be made from that name.
    fn mint_backup_id(&self, new: &NewBackup, key: RequestKey) -> Result<BackupId, AdapterError> {
        let _ = new;
        BackupId::new(&key.0.to_string()).map_err(|error| {
            AdapterError::refused(FaultKind::Invalid, "the name cannot be used").because(error)
        })
    }

    /// Whether the VM manager answers.
    ///
    /// # Errors
    /// When it does not.
    async fn health(&self, by: Deadline) -> Result<Health, AdapterError>;

    /// One VM.
    ///
    /// # Errors
    /// [`FaultKind::NoSuchVm`], or whatever keeps it from answering.
    async fn vm(&self, vm: &VmId, by: Deadline) -> Result<Vm, AdapterError>;

    /// The backups of a VM in order of their ids. Never one that is half made.
    ///
    /// # Errors
    /// [`FaultKind::NoSuchVm`], or whatever keeps it from answering.
    async fn list(&self, vm: &VmId, page: &Page, by: Deadline) -> Result<BackupPage, AdapterError>;

    /// One backup. Never one that is half made.
    ///
    /// # Errors
    /// [`FaultKind::NoSuchVm`], [`FaultKind::NoSuchBackup`], or whatever keeps it from answering.
    async fn read(&self, target: &Target, by: Deadline) -> Result<Backup, AdapterError>;

    /// Whether [`Adapter::baseline`] has anything to look at before this intent. Pure.
    ///
    /// Where it says no, an update may be accepted and begun in one durable write.
    fn needs_baseline(&self, intent: &Intent) -> bool {
        let _ = intent;
        true
    }

    /// What must be remembered before [`Adapter::begin`], so that [`Adapter::find`] can tell later.
    ///
    /// Changes neither the VM nor its backups; a mark by which the VM manager is recognised later may be left.
    ///
    /// # Errors
    /// Whatever keeps it from looking; the operation then is provably not begun.
    async fn baseline(
        &self,
        intent: &Intent,
        key: RequestKey,
        by: Deadline,
    ) -> Result<Option<Evidence>, AdapterError> {
        let _ = (intent, key, by);
        Ok(None)
    }

    /// Does it, or has it begun. Checks again that the backup is the one of `intent.identity`, whole, and of that VM.
    ///
    /// Long work must become a task: return within seconds.
    ///
    /// # Errors
    /// [`AdapterError::effect`] tells whether it may have begun.
    async fn begin(
        &self,
        intent: &Intent,
        key: RequestKey,
        baseline: Option<&Evidence>,
        by: Deadline,
    ) -> Result<BeginOutcome, AdapterError>;

    /// How the task is. No effect.
    ///
    /// # Errors
    /// Whatever keeps it from answering; says nothing about the task.
    async fn poll(&self, task: &TaskRef, by: Deadline) -> Result<TaskState, AdapterError>;

    /// Returns when asking [`Adapter::poll`] again is worth while, or never; a hint only.
    ///
    /// Adapters that are told of changes override this, so that the end of a task is seen at once.
    async fn changed(&self, task: &TaskRef) {
        let _ = task;
        std::future::pending::<()>().await;
    }

    /// What became of a request whose answer was lost, or whose task is gone. Changes neither the VM nor its backups.
    ///
    /// # Errors
    /// Whatever keeps it from looking; says nothing about the request.
    async fn find(
        &self,
        intent: &Intent,
        key: RequestKey,
        baseline: Option<&Evidence>,
        by: Deadline,
    ) -> Result<FindOutcome, AdapterError>;

    /// Asks the task to stop; [`Adapter::poll`] tells whether it did.
    ///
    /// # Errors
    /// [`FaultKind::Unsupported`] where [`VerbCapability::cancel`] is false.
    async fn cancel(&self, task: &TaskRef, by: Deadline) -> Result<(), AdapterError>;
}
