//! The contract between the gateway and one kind of VM manager.
//!
//! An adapter neither retries nor limits time by itself and knows no other adapter: the layers around it do the first two, and
//! nothing needs the third. The gateway may be killed between any two calls, and may drop any future that it got from an adapter.
//! Neither may leave an effect without a trace: [`Adapter::find_outcome`] has to learn about it.
//!
//! One change goes through these calls:
//!
//! 1. [`Adapter::mint_backup_id`] when a create is accepted: the caller learns the id before the backup exists.
//! 2. [`Adapter::baseline`]: what has to be known later to recognise the outcome. It is stored before the next step.
//! 3. [`Adapter::begin`]: the only call that has an effect, with [`Adapter::cancel`]. It is made once.
//! 4. [`Adapter::poll`] until the task has ended, woken by [`Adapter::changed`].
//! 5. [`Adapter::find_outcome`] instead, when the answer of `begin` was lost, the task is gone, or the gateway was restarted.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;

use crate::model::Backup;
use crate::model::BackupId;
use crate::model::BackupKind;
use crate::model::BackupPage;
use crate::model::BackupQuery;
use crate::model::BackupSelection;
use crate::model::Deadline;
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
use crate::model::Vm;
use crate::model::VmId;
use crate::model::VmPage;
use crate::model::VmRange;
use crate::model::limits;
use crate::public_text;

/// How the outcome of a call can be learned when its answer was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// Calling again with the same key has the effect of calling once.
    ReplaySafe,
    /// The VM manager keeps a log in which the call is found, or found missing, after the settle time.
    Listable,
    /// Nothing is kept: the outcome follows from the state of the backup or VM, or remains unknown.
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
    /// How the outcome is learned when the answer was lost.
    pub recovery: Recovery,
    /// After a call whose answer was lost: how long the VM manager may still be about to begin it.
    pub settle: Duration,
    /// Whether a running one can be stopped.
    pub cancel: bool,
    /// Whether the VM manager reports progress.
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
    /// Whether [`Adapter::list_vms`] lists its VMs. Where it does not, VMs that the configuration names exactly are looked up.
    pub lists_vms: bool,
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

    /// A failure that may have had an effect.
    #[must_use]
    pub fn uncertain(kind: FaultKind, text: impl Into<PublicText>) -> Self {
        Self {
            effect: Effect::Possible,
            retry: Retry::Temporary,
            ..Self::refused(kind, text)
        }
    }

    /// The same with the native message of the VM manager or the system, for the log.
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

    /// Whether it answers the request (no such VM, the backup is protected, and the like), as opposed to a failure of the VM manager or
    /// its storage. Operators need not act on it.
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

    /// The native message of the VM manager or the system. For logs only: never for a reply, a Status or a metric.
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

/// The state of a backend that answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// The product and version behind it, for operators, for instance `QEMU 7.2.17`.
    pub product: String,
}

/// How a change was started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BeginOutcome {
    /// It is done.
    Done,
    /// The VM manager is working on it.
    Task(TaskRef),
}

/// The state of a task.
#[derive(Debug)]
pub enum TaskState {
    /// Not finished; the progress is what the VM manager reports, never a guess. `None` while it reports nothing.
    Running(Option<Progress>),
    /// It was done. The text is what the VM manager added, such as warnings: whole sentences that follow the message of the Status.
    Done(Option<PublicText>),
    /// It failed.
    Failed(Fault),
    /// It was cancelled on request.
    Cancelled,
    /// The VM manager no longer knows it: the outcome is learned by [`Adapter::find_outcome`].
    Gone,
}

/// What can be found out about a request whose answer was lost.
#[derive(Debug)]
pub enum FindOutcome {
    /// It provably never began, or was undone without a trace, and nothing more will come of it. Where the verb is
    /// replay-safe it is begun again, a bounded number of times; elsewhere the operation ends as not executed.
    NotBegun,
    /// It began, was broken off half-way, and nothing more will come of it. Where the verb is replay-safe calling again
    /// carries it to its end; elsewhere, or when it was called too often, it failed with this fault.
    HalfDone(Fault),
    /// It provably never began, or was undone without a trace, and the VM's disks are no longer those that
    /// [`Adapter::baseline`] saw. Calling again would overwrite what was done to the VM since, so the operation ends as not
    /// executed, replay-safe or not.
    VmChanged,
    /// This is its task.
    Task(TaskRef),
    /// It was done, with what the VM manager added, as in [`TaskState::Done`].
    Done(Option<PublicText>),
    /// It failed.
    Failed(Fault),
    /// Not known yet: ask again later.
    NotYet,
    /// The outcome will never be known. The Status then says UNKNOWN, which is better than a wrong answer.
    Unknowable,
}

/// One kind of VM manager, configured for one backend.
///
/// No method has a default: a method that is added here is a decision for every adapter, and a wrapper that does not forward it does
/// not compile.
///
/// # Example
///
/// An adapter with read access only: what its capability leaves out is refused before it is called.
///
/// ```
/// use async_trait::async_trait;
/// use snapgate::adapters::adapter::*;
/// use snapgate::adapters::backup_listing::query_by_listing;
/// use snapgate::model::*;
/// use snapgate::public_text;
///
/// #[derive(Debug)]
/// struct ReadOnly(Capability);
///
/// fn no_such_vm() -> AdapterError {
///     let text = public_text!("The VM does not exist. Check its id.");
///     AdapterError::refused(FaultKind::NoSuchVm, text)
/// }
///
/// fn no_changes() -> AdapterError {
///     let text = public_text!("This backend is read-only, so nothing was changed. Use another backend.");
///     AdapterError::refused(FaultKind::Unsupported, text)
/// }
///
/// #[async_trait]
/// impl Adapter for ReadOnly {
///     fn capability(&self) -> &Capability {
///         &self.0
///     }
///
///     fn metadata_owner(&self) -> MetadataOwner {
///         MetadataOwner::Native
///     }
///
///     fn is_identity_of(&self, stored: &Identity, backup: &Backup) -> bool {
///         *stored == backup.identity
///     }
///
///     fn mint_backup_id(&self, _new: &NewBackup, key: RequestKey) -> Result<BackupId, AdapterError> {
///         operation_number_as_id(key)
///     }
///
///     async fn health(&self, _by: Deadline) -> Result<Health, AdapterError> {
///         Ok(Health { product: "example".to_owned() })
///     }
///
///     async fn read_vm(&self, vm: &VmId, _by: Deadline) -> Result<Vm, AdapterError> {
///         if vm.as_str() != "vm1" {
///             return Err(no_such_vm());
///         }
///         Ok(Vm { id: vm.clone(), name: "web".to_owned(), description: None, run_state: None })
///     }
///
///     async fn list_vms(&self, range: &VmRange, by: Deadline) -> Result<VmPage, AdapterError> {
///         let all = [self.read_vm(&VmId::new("vm1").expect("a valid id"), by).await?];
///         Ok(range.page_of(range.rest_of(&all, |vm| &vm.id).iter().cloned()))
///     }
///
///     async fn list_backups(&self, vm: &VmId, _page: &Page, by: Deadline) -> Result<BackupPage, AdapterError> {
///         self.read_vm(vm, by).await?;
///         Ok(BackupPage::default())
///     }
///
///     async fn query_backups(&self, vm: &VmId, query: &BackupQuery, by: Deadline) -> Result<BackupSelection, AdapterError> {
///         query_by_listing(self, vm, query, by).await
///     }
///
///     async fn read_backup(&self, target: &Target, by: Deadline) -> Result<Backup, AdapterError> {
///         self.read_vm(&target.vm, by).await?;
///         let text = public_text!("The backup does not exist. List the VM's backups.");
///         Err(AdapterError::refused(FaultKind::NoSuchBackup, text))
///     }
///
///     async fn preview(&self, intent: &Intent, by: Deadline) -> Result<Preview, AdapterError> {
///         preview_from_reads(self, intent, by).await
///     }
///
///     fn needs_baseline(&self, _intent: &Intent) -> bool {
///         false
///     }
///
///     async fn baseline(&self, _: &Intent, _: RequestKey, _: Deadline) -> Result<Option<Evidence>, AdapterError> {
///         Ok(None)
///     }
///
///     async fn begin(&self, _: &Intent, _: RequestKey, _: Option<&Evidence>, _: Deadline) -> Result<BeginOutcome, AdapterError> {
///         Err(no_changes())
///     }
///
///     async fn poll(&self, _task: &TaskRef, _by: Deadline) -> Result<TaskState, AdapterError> {
///         Ok(TaskState::Gone)
///     }
///
///     async fn changed(&self, _task: &TaskRef) {
///         std::future::pending::<()>().await;
///     }
///
///     async fn find_outcome(&self, _: &Intent, _: RequestKey, _: Option<&Evidence>, _: Deadline) -> Result<FindOutcome, AdapterError> {
///         // Nothing is ever begun here, and that is a proof.
///         Ok(FindOutcome::NotBegun)
///     }
///
///     async fn cancel(&self, _task: &TaskRef, _by: Deadline) -> Result<(), AdapterError> {
///         Err(no_changes())
///     }
/// }
///
/// let adapter = ReadOnly(Capability {
///     kind: "example",
///     create: None,
///     update: None,
///     delete: None,
///     restore: None,
///     kinds: &[],
///     restore_options: &[],
///     online: false,
///     memory: false,
///     consistent: false,
///     lists_vms: true,
/// });
/// assert!(adapter.capability().verb(Verb::Restore).is_none(), "refused before it is called");
/// assert_eq!(adapter.metadata_owner(), MetadataOwner::Native, "the VM manager");
/// ```
#[async_trait]
pub trait Adapter: fmt::Debug + Send + Sync {
    /// What it can do. Constant: it is read at the start, for the documentation, and before every change.
    fn capability(&self) -> &Capability;

    /// Who keeps the name, description, tags and protection of backups; [`MetadataOwner::Native`] for most.
    ///
    /// It must keep them through a restore as well; where it does not, answer [`MetadataOwner::Gateway`], and the adapter gets no
    /// updates at all.
    fn metadata_owner(&self) -> MetadataOwner;

    /// Whether an identity that was stored earlier belongs to this backup. Pure.
    ///
    /// Most compare for equality. Adapters whose identities took another form in an earlier version, or lose parts while a backup is
    /// being deleted, accept these forms too, so that names and protection which the gateway keeps stay bound to the backup.
    fn is_identity_of(&self, stored: &Identity, backup: &Backup) -> bool;

    /// The id that a new backup will have, fixed when the create is accepted.
    ///
    /// Pure: the same name and key give the same id, so that a create that is begun again after a crash makes the same backup.
    /// [`operation_number_as_id`] is unique where the VM manager accepts any id.
    ///
    /// # Errors
    /// When the id cannot be made from that name.
    fn mint_backup_id(&self, new: &NewBackup, key: RequestKey) -> Result<BackupId, AdapterError>;

    /// Whether the VM manager answers, and its product and version. No effect.
    ///
    /// # Errors
    /// When it does not answer.
    async fn health(&self, by: Deadline) -> Result<Health, AdapterError>;

    /// One VM. No effect.
    ///
    /// # Errors
    /// [`FaultKind::NoSuchVm`] only when the VM manager says so: a VM manager that does not answer is
    /// [`FaultKind::Unavailable`], or callers would take a network failure for a deleted VM.
    async fn read_vm(&self, vm: &VmId, by: Deadline) -> Result<Vm, AdapterError>;

    /// One page of its VMs in the order of their ids, with name and run state where the VM manager reports them cheaply. No effect.
    ///
    /// The work is bounded by the page: a VM manager that only lists everything at once is asked once for several pages
    /// (`vm_list_cache.rs`). Pages continue after an id, so that a VM which is created or removed meanwhile leaves no gap and shows
    /// no other VM twice. What cannot be read about one VM is left out; the VM is not.
    ///
    /// # Errors
    /// [`FaultKind::Unsupported`] where the VM manager cannot list; a VM manager that does not answer is never an empty list.
    async fn list_vms(&self, range: &VmRange, by: Deadline) -> Result<VmPage, AdapterError>;

    /// One page of the backups of a VM in the order of their ids. No effect. Never a backup that is incomplete because it is still
    /// being made.
    ///
    /// # Errors
    /// As for [`Adapter::read_vm`].
    async fn list_backups(
        &self,
        vm: &VmId,
        page: &Page,
        by: Deadline,
    ) -> Result<BackupPage, AdapterError>;

    /// The backups of a VM that a query selects: filtered, sorted, one page, perhaps counted. No effect. What `list_backups` does
    /// not list is not among them.
    ///
    /// An adapter whose VM manager can filter or that keeps an index answers from these; all others read everything once, by
    /// [`crate::adapters::backup_listing::query_by_listing`].
    ///
    /// # Errors
    /// As for [`Adapter::list_backups`].
    async fn query_backups(
        &self,
        vm: &VmId,
        query: &BackupQuery,
        by: Deadline,
    ) -> Result<BackupSelection, AdapterError>;

    /// One backup. No effect. Never a backup that is incomplete because it is still being made.
    ///
    /// # Errors
    /// As for [`Adapter::read_vm`], and [`FaultKind::NoSuchBackup`] only when the VM manager says so.
    async fn read_backup(&self, target: &Target, by: Deadline) -> Result<Backup, AdapterError>;

    /// What a restore or a delete would do now, and everything that would refuse it. No effect.
    ///
    /// What would refuse it comes from the checks of [`Adapter::begin`] themselves (see [`crate::adapters::checks`]), in their
    /// order: while nothing changes in between, a change without refusals is not refused, and one with refusals is refused with
    /// the first of them. What the VM manager cannot say is named in `unknown`.
    ///
    /// Two previews of the same change have the same [`Preview::fingerprint`] until something changes that matters to it. The marks that
    /// [`Adapter::baseline`] leaves do not matter: the fingerprint is looked at before and after it.
    ///
    /// # Errors
    /// As for [`Adapter::read_backup`], also where the backup is another one than that of `intent.identity`.
    /// [`FaultKind::Unsupported`] for a create or an update.
    async fn preview(&self, intent: &Intent, by: Deadline) -> Result<Preview, AdapterError>;

    /// Whether [`Adapter::baseline`] has to be called before this change. Pure.
    ///
    /// Where it has not, a replay-safe update is accepted and started in one durable write instead of two. `true` is always right.
    fn needs_baseline(&self, intent: &Intent) -> bool;

    /// What [`Adapter::find_outcome`] will need, as seen before [`Adapter::begin`]: the length of a log, the state of the disks.
    ///
    /// It is stored durably before `begin` is called, so it is known after a crash at any point. Changes neither the VM nor its
    /// backups; a mark by which the VM manager recognises something later may be left.
    /// `None` where nothing has to be seen before.
    ///
    /// # Errors
    /// Any failure to look; the operation is then provably not started.
    async fn baseline(
        &self,
        intent: &Intent,
        key: RequestKey,
        by: Deadline,
    ) -> Result<Option<Evidence>, AdapterError>;

    /// Starts the change, or carries it out at once.
    ///
    /// Checks again that the backup is the one of `intent.identity`, complete, and of that VM: it may have been replaced by another one
    /// with the same id since the change was accepted. Returns within seconds: long work becomes a task. Dropping the future must
    /// not matter: the gateway calls [`Adapter::find_outcome`] then. Where the verb is [`Recovery::ReplaySafe`], the same key again has
    /// no second effect.
    ///
    /// # Errors
    /// [`AdapterError::effect`] decides between FAILED and a search for evidence. [`Effect::None`] needs a proof, such as a refused
    /// connection or a clear refusal; in doubt it is [`Effect::Possible`].
    async fn begin(
        &self,
        intent: &Intent,
        key: RequestKey,
        baseline: Option<&Evidence>,
        by: Deadline,
    ) -> Result<BeginOutcome, AdapterError>;

    /// The state of the task. No effect.
    ///
    /// # Errors
    /// Any failure to learn it; says nothing about the task.
    async fn poll(&self, task: &TaskRef, by: Deadline) -> Result<TaskState, AdapterError>;

    /// Returns when the task may have changed, so that [`Adapter::poll`] is worth calling now. A hint: the gateway polls at intervals
    /// as well. An adapter without notifications never returns: [`std::future::pending`].
    async fn changed(&self, task: &TaskRef);

    /// The outcome of a change whose answer was lost, or whose task is gone. Changes neither the VM nor its backups.
    ///
    /// Every answer is a proof, not a probability: [`FindOutcome::NotBegun`] lets the gateway start the change again, and
    /// [`FindOutcome::Done`] reports success to the caller. In doubt it is [`FindOutcome::NotYet`] or [`FindOutcome::Unknowable`].
    ///
    /// # Errors
    /// Any failure to look; says nothing about the change.
    async fn find_outcome(
        &self,
        intent: &Intent,
        key: RequestKey,
        baseline: Option<&Evidence>,
        by: Deadline,
    ) -> Result<FindOutcome, AdapterError>;

    /// Requests that the task stop. Whether it did is the answer of [`Adapter::poll`]: it may have ended before.
    ///
    /// # Errors
    /// [`FaultKind::Unsupported`] where [`VerbCapability::cancel`] is false.
    async fn cancel(&self, task: &TaskRef, by: Deadline) -> Result<(), AdapterError>;
}

/// The answer of [`Adapter::list_vms`] where [`Capability::lists_vms`] is false.
#[must_use]
pub fn lists_no_vms() -> AdapterError {
    let text = public_text!("The VM manager does not list its VMs. Read a VM by its id.");
    AdapterError::refused(FaultKind::Unsupported, text)
}

/// The number of the operation as the id of its backup: no other create has it.
///
/// # Errors
/// Never in practice: a number is a valid id.
pub fn operation_number_as_id(key: RequestKey) -> Result<BackupId, AdapterError> {
    BackupId::new(&key.0.to_string()).map_err(|error| {
        let text = public_text!("The name is not usable for a backup. Choose another name.");
        AdapterError::refused(FaultKind::Invalid, text).because(error)
    })
}

/// The refusal of a preview of something that is neither a restore nor a delete.
#[must_use]
pub fn no_preview() -> AdapterError {
    let text = public_text!("Plans are made of restores and deletes only. Nothing was changed.");
    AdapterError::refused(FaultKind::Unsupported, text)
}

/// A preview by reads alone, for a VM manager of which nothing else is known: what it would do is unknown.
///
/// # Errors
/// Those of the reads, and [`FaultKind::NoSuchBackup`] when the backup is another one than that of the intent.
pub async fn preview_from_reads(
    adapter: &dyn Adapter,
    intent: &Intent,
    by: Deadline,
) -> Result<Preview, AdapterError> {
    match intent.verb() {
        Verb::Restore | Verb::Delete => {}
        Verb::Create | Verb::Update => return Err(no_preview()),
    }
    let vm = adapter.read_vm(&intent.target.vm, by).await?;
    let backup = adapter.read_backup(&intent.target, by).await?;
    if let Some(meant) = &intent.identity
        && !adapter.is_identity_of(meant, &backup)
    {
        let text = public_text!(
            "The backup was replaced by another one with the same id. List the VM's backups."
        );
        return Err(AdapterError::refused(FaultKind::NoSuchBackup, text));
    }
    let all = list_all_backups(adapter, &intent.target.vm, by).await?;
    Ok(Preview::unknown(vm, backup).with_newer(&all))
}

/// Every backup of a VM, page by page.
///
/// # Errors
/// Those of [`Adapter::list_backups`].
pub async fn list_all_backups(
    adapter: &dyn Adapter,
    vm: &VmId,
    by: Deadline,
) -> Result<Vec<Backup>, AdapterError> {
    let mut page = Page {
        after: None,
        limit: limits::PAGE_MAX,
    };
    let mut all = Vec::new();
    loop {
        let found = adapter.list_backups(vm, &page, by).await?;
        page.after = found.backups.last().map(|backup| backup.id.clone());
        all.extend(found.backups);
        if !found.more || page.after.is_none() {
            return Ok(all);
        }
    }
}
