//! What the gate may ask for: reads through the adapters, and operations.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::adapters::adapter::Capability;
use crate::model::BackendName;
use crate::model::Backup;
use crate::model::BackupId;
use crate::model::BackupQuery;
use crate::model::BackupSelection;
use crate::model::Deadline;
use crate::model::Fault;
use crate::model::Fingerprint;
use crate::model::Idempotency;
use crate::model::IdempotencyKey;
use crate::model::IgnoredMembers;
use crate::model::Intent;
use crate::model::KeyScope;
use crate::model::NewBackup;
use crate::model::Note;
use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::Permit;
use crate::model::Precondition;
use crate::model::Preview;
use crate::model::PrincipalName;
use crate::model::RequestId;
use crate::model::Revision;
use crate::model::Target;
use crate::model::TokenName;
use crate::model::Verb;
use crate::model::Vm;
use crate::model::VmId;
use crate::model::VmPage;
use crate::model::VmRange;
use crate::operations::change_feed::ChangeFeed;
use crate::operations::change_feed::ChangeNumber;
use crate::operations::change_feed::DurableChange;
use crate::operations::list_query::ListPage;
use crate::operations::list_query::ListQuery;
use crate::runtime::TaskToken;

/// Why the operation store did not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreFault {
    /// It may work again soon: busy, or its disk is full.
    #[error("operation store unavailable")]
    Unavailable,
    /// The disk or the file failed. What was written last cannot be relied on, so the process ends.
    #[error("operation store failed")]
    Failed,
}

/// Which changes of a VM were known at one moment.
///
/// Taken before a precondition is checked, it shows at the acceptance whether another change came in between.
#[derive(Clone, Debug, Default)]
pub struct KnownChanges {
    /// The unfinished operations of the VM that were visible to callers.
    pub(crate) unfinished: Vec<OperationSeq>,
    /// How many operations of the gateway had ended by then.
    pub(crate) ended: u64,
}

/// An intent with everything that is stored beside it.
#[derive(Clone, Debug)]
pub struct Submission {
    /// The number taken by [`OperationsApi::reserve`].
    pub seq: OperationSeq,
    /// What is to be done.
    pub intent: Intent,
    /// What must hold right before the VM manager is called, as it held when the request was checked.
    pub preconditions: Vec<Precondition>,
    /// Which changes were known when the preconditions were checked. Ignored without preconditions.
    pub known_changes: KnownChanges,
    /// The request.
    pub request: RequestId,
    /// A note of the caller for the log.
    pub note: Option<Note>,
    /// The caller's own key.
    pub idempotency: Option<Idempotency>,
    /// Members of the request body that were ignored.
    pub ignored: IgnoredMembers,
    /// Where the request came from, for the audit trail.
    pub origin: Origin,
}

/// Where a request came from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The API token that authenticated it, if one did.
    pub token: Option<TokenName>,
    /// The address of the client.
    pub client: Option<IpAddr>,
}

/// A durable operation.
#[derive(Clone, Debug)]
pub enum Accepted {
    /// It is new.
    New(Arc<Operation>),
    /// It existed: the same idempotency key and request, or a repeated delete of the same backup.
    Existing(Arc<Operation>),
}

impl Accepted {
    /// The operation, new or not.
    #[must_use]
    pub const fn operation(&self) -> &Arc<Operation> {
        match self {
            Self::New(operation) | Self::Existing(operation) => operation,
        }
    }
}

/// Why an intent was not accepted. Nothing was changed or stored.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AcceptError {
    /// The permit is for something else: a defect of the caller.
    #[error("the permit does not cover the intent")]
    NotPermitted,
    /// The configuration has no such backend (any more).
    #[error("no such backend")]
    NoSuchBackend,
    /// The key was used with another request.
    #[error("the idempotency key was used for another request")]
    KeyReused(OperationSeq),
    /// Another operation of the VM is unfinished, and operations are not queued.
    #[error("the VM has an unfinished operation")]
    Busy(Arc<Operation>),
    /// Another change came after the preconditions were checked.
    #[error("a precondition no longer holds")]
    PreconditionFailed,
    /// Too many operations wait for this VM.
    #[error("too many operations wait for this VM")]
    VmQueueFull,
    /// Too many operations are unfinished in all.
    #[error("too many operations are unfinished")]
    QueueFull,
    /// The backend does not support this at all, or is known to be unavailable.
    #[error("the backend does not accept the operation")]
    Backend(Fault),
    /// The gateway is stopping.
    #[error("the gateway is stopping")]
    Stopping,
    /// The audit trail is required and cannot be written.
    #[error("cannot write the audit trail")]
    NotRecorded,
    /// It could not be made durable, and will not run. The one exception is a store that failed for good at that moment
    /// ([`StoreFault::Failed`]): what it had written may run after the restart, and an idempotency key finds it.
    #[error(transparent)]
    Store(#[from] StoreFault),
}

/// Why an operation was not cancelled.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CancelError {
    /// There is none of that number.
    #[error("no such operation")]
    NoSuchOperation,
    /// It is final, or its VM manager cannot cancel it once it has started.
    #[error("the operation cannot be cancelled")]
    NotCancellable,
    /// It is no longer at the revision that the caller named.
    #[error("the operation changed")]
    Changed,
    /// The request could not be made durable, and the VM manager was not asked.
    #[error(transparent)]
    Store(#[from] StoreFault),
}

/// What is known of an idempotency key.
#[derive(Clone, Debug)]
pub enum Replay {
    /// Never used by this principal for this method and target, or so long ago that it was removed.
    Unused,
    /// Used with the same request: this is its operation.
    Same(Arc<Operation>),
    /// Used with another request.
    Other(OperationSeq),
}

/// What a restore or a delete would do if it were requested now.
#[derive(Clone, Debug)]
pub struct Forecast {
    /// What the VM manager says.
    pub preview: Preview,
    /// The unfinished operations of the VM, in the order of its queue. It would wait for all of them.
    pub pending: Vec<Arc<Operation>>,
    /// Why it would not be accepted now, whatever the VM manager says.
    pub refused: Option<AcceptError>,
    /// How long it would take; `None` when nothing is known to conclude it from.
    pub duration: Option<ExpectedDuration>,
}

/// How long an operation is expected to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpectedDuration {
    /// From its start to its end.
    pub time: Duration,
    /// What it was concluded from.
    pub basis: DurationBasis,
}

/// What an expected duration was concluded from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DurationBasis {
    /// Finished restores of the same VM.
    History,
    /// The bytes to write, and how fast restores of other VMs of the backend were.
    Size,
}

impl DurationBasis {
    /// The word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::History => "history",
            Self::Size => "size",
        }
    }
}

/// Which stored operations, by their last change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangePart {
    /// Unfinished ones, in the order of their numbers, above this one.
    Unfinished {
        /// Only with a higher number.
        after: Option<OperationSeq>,
    },
    /// Finished ones, in the order of their last changes.
    Finished,
}

/// Which stored operations changed last within a range, as far as they are wanted.
#[derive(Clone, Debug)]
pub struct ChangeQuery {
    /// Unfinished or finished ones.
    pub part: ChangePart,
    /// Only those whose last change has a higher number; all that are older when `None`.
    pub after: Option<ChangeNumber>,
    /// Only those whose last change has at most this number.
    pub up_to: ChangeNumber,
    /// Only those of this principal.
    pub principal: Option<PrincipalName>,
    /// Only of this verb.
    pub verb: Option<Verb>,
    /// Only on this VM.
    pub vm: Option<VmId>,
    /// At most this many, 1..=[`crate::model::limits::PAGE_MAX`].
    pub limit: u16,
}

/// Stored operations with their last changes.
#[derive(Debug, Default)]
pub struct ChangePage {
    /// Those that can be read.
    pub changes: Vec<DurableChange>,
    /// The last one when there may be more: go on after it.
    pub full_at: Option<(ChangeNumber, OperationSeq)>,
}

/// What a request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitFor {
    /// The operation to become final.
    End,
    /// Any change after this revision.
    ChangeAfter(Revision),
}

/// Held while a request is answered, so that a gateway that steps down waits for it.
#[derive(Debug, Default)]
pub struct ActiveGuard(#[expect(dead_code, reason = "it counts by being there")] Option<TaskToken>);

impl ActiveGuard {
    /// Counts among the requests of a term.
    #[must_use]
    pub const fn new(token: TaskToken) -> Self {
        Self(Some(token))
    }
}

/// Reads through the adapters, and the durable operations: all that the gate needs of them.
///
/// A change is accepted once it is durable. The gate then answers 202, and the caller follows the operation by its number:
///
/// ```
/// use std::sync::Arc;
///
/// use snapgate::model::{Deadline, Operation, Permit};
/// use snapgate::operations::{AcceptError, OperationsApi, StoreFault, Submission, WaitFor};
///
/// async fn run_to_its_end(
///     operations: &dyn OperationsApi,
///     permit: Permit,
///     submission: Submission,
///     by: Deadline,
/// ) -> Result<Option<Arc<Operation>>, AcceptError> {
///     let accepted = operations.accept(permit, submission).await?;
///     // From here on the operation is neither lost nor run twice, even when this future is dropped.
///     let seq = accepted.operation().seq;
///     Ok(operations.wait(seq, WaitFor::End, by).await?)
/// }
/// ```
#[async_trait]
pub trait OperationsApi: fmt::Debug + Send + Sync {
    /// What the backend supports; `None` when there is none of that name.
    fn capability(&self, backend: &BackendName) -> Option<Arc<Capability>>;

    /// One VM, as its backend reports it.
    ///
    /// # Errors
    /// The fault a caller may see.
    async fn vm(&self, backend: &BackendName, vm: &VmId, by: Deadline) -> Result<Vm, Fault>;

    /// One page of the VMs of a backend, in order of their ids, as its adapter lists them.
    ///
    /// # Errors
    /// The fault a caller may see; [`FaultKind::Unsupported`](crate::model::FaultKind::Unsupported) where they cannot be listed.
    async fn vms(
        &self,
        backend: &BackendName,
        range: &VmRange,
        by: Deadline,
    ) -> Result<VmPage, Fault>;

    /// One page of the backups of a VM, each with the state that unfinished operations give it. Backups that are being created
    /// are among them.
    ///
    /// # Errors
    /// The fault a caller may see.
    async fn backups(
        &self,
        backend: &BackendName,
        vm: &VmId,
        query: &BackupQuery,
        by: Deadline,
    ) -> Result<BackupSelection, Fault>;

    /// One backup, with the state that unfinished operations give it.
    ///
    /// # Errors
    /// The fault a caller may see.
    async fn backup(
        &self,
        backend: &BackendName,
        target: &Target,
        by: Deadline,
    ) -> Result<Backup, Fault>;

    /// What a restore or a delete would do now. Nothing is changed or stored.
    ///
    /// # Errors
    /// The fault a caller may see: without the VM manager there is no forecast.
    async fn preview(
        &self,
        backend: &BackendName,
        intent: &Intent,
        by: Deadline,
    ) -> Result<Forecast, Fault>;

    /// Which changes of the VM are known now. Take it before reading what a precondition is about.
    fn known_changes(&self, backend: &BackendName, vm: &VmId) -> KnownChanges {
        let _ = (backend, vm);
        KnownChanges::default()
    }

    /// Reserves the number of an operation that may be accepted next. Numbers that are not used are lost.
    fn reserve(&self) -> OperationSeq;

    /// The id that a new backup will have when it is created under this number.
    ///
    /// # Errors
    /// The fault a caller may see: the backend makes no backups, or not under that name.
    fn mint_backup_id(
        &self,
        backend: &BackendName,
        new: &NewBackup,
        seq: OperationSeq,
    ) -> Result<BackupId, Fault>;

    /// What is known of an idempotency key of this principal, for this method and target.
    ///
    /// # Errors
    /// When the store cannot answer.
    async fn replay(
        &self,
        principal: &PrincipalName,
        scope: &KeyScope,
        key: &IdempotencyKey,
        fingerprint: Fingerprint,
    ) -> Result<Replay, StoreFault>;

    /// Makes the operation durable and queues it. Once this returned `Ok` the operation is never lost and never run twice,
    /// whatever happens to the caller or the process.
    ///
    /// # Errors
    /// [`AcceptError`]; nothing was changed or stored.
    async fn accept(&self, permit: Permit, submission: Submission)
    -> Result<Accepted, AcceptError>;

    /// One operation by its number.
    ///
    /// # Errors
    /// When the store cannot answer.
    async fn operation(&self, seq: OperationSeq) -> Result<Option<Arc<Operation>>, StoreFault>;

    /// One page of the operations that match. The work for it is limited: see [`ListPage::next`].
    ///
    /// # Errors
    /// When the store cannot answer.
    async fn list(&self, query: &ListQuery) -> Result<ListPage, StoreFault>;

    /// The unfinished delete of the backup, if there is one.
    fn find_running_delete(&self, backend: &BackendName, target: &Target)
    -> Option<Arc<Operation>>;

    /// Waits for the operation and returns its state then, or its state at the deadline. `None` when there is none.
    ///
    /// The write of a new state wakes it; it does not poll. Cancel-safe.
    ///
    /// # Errors
    /// When the store cannot answer.
    async fn wait(
        &self,
        seq: OperationSeq,
        until: WaitFor,
        by: Deadline,
    ) -> Result<Option<Arc<Operation>>, StoreFault>;

    /// The changes of all operations as they become durable; `None` where they cannot be followed.
    fn change_feed(&self) -> Option<Arc<ChangeFeed>> {
        None
    }

    /// What the store has of changes that the feed no longer has in memory. Cost is bounded by the unfinished operations and by
    /// the range of numbers.
    ///
    /// # Errors
    /// When the store cannot answer.
    async fn stored_changes(&self, query: &ChangeQuery) -> Result<ChangePage, StoreFault> {
        let _ = query;
        Ok(ChangePage::default())
    }

    /// Cancels an operation. A queued one ends at once, and the VM manager is never called. For a running one the VM
    /// manager is asked to cancel its task, and the Status shows the result. The request survives a restart.
    ///
    /// Whether the caller is permitted to cancel is decided before. With `only_at` nothing is done unless the operation is at
    /// that revision.
    ///
    /// # Errors
    /// [`CancelError`]; nothing was stored, and the VM manager was not asked.
    async fn cancel(
        &self,
        seq: OperationSeq,
        only_at: Option<Revision>,
    ) -> Result<Arc<Operation>, CancelError>;

    /// Begins a request. `None` where another gateway of the cluster is the active one: then nothing else here gives more than
    /// a fault.
    fn enter(&self) -> Option<ActiveGuard> {
        Some(ActiveGuard::default())
    }

    /// Whether the backend is used from this gateway. In a cluster some are used from one gateway only.
    fn reaches(&self, backend: &BackendName) -> bool {
        let _ = backend;
        true
    }

    /// Whether new operations can be accepted: the store takes writes and the gateway is not stopping.
    fn is_ready(&self) -> bool;
}
