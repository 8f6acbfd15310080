//! What the operations room offers to the gate: reads through the adapters, and operations.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;

use crate::adapters::adapter::Capability;
use crate::model::BackendName;
use crate::model::Backup;
use crate::model::BackupId;
use crate::model::BackupPage;
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
use crate::model::Page;
use crate::model::Permit;
use crate::model::Precondition;
use crate::model::PrincipalName;
use crate::model::RequestId;
use crate::model::Revision;
use crate::model::Target;
use crate::model::TokenName;
use crate::model::Verb;
use crate::model::Vm;
use crate::model::VmId;

/// The store cannot answer or take anything just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreFault {
    /// It may work again soon: busy, disk full, not yet open.
    #[error("the store of operations is unavailable")]
    Unavailable,
    /// The process is about to end because the store failed in a way that must not be papered over.
    #[error("the store of operations has failed")]
    Failed,
}

/// Which changes of a VM were known at one moment. Taken before a precondition is judged, it tells at the acceptance whether
/// another change came in between.
#[derive(Clone, Debug, Default)]
pub struct KnownChanges {
    /// The unfinished operations of the VM that callers could see.
    pub(crate) unfinished: Vec<OperationSeq>,
    /// How many operations had ended by then.
    pub(crate) ended: u64,
}

/// An intent with all that is kept beside it.
#[derive(Clone, Debug)]
pub struct Submission {
    /// The number taken by [`OperationsApi::reserve`].
    pub seq: OperationSeq,
    /// What is to be done.
    pub intent: Intent,
    /// What must hold right before the VM manager is called, as it held when the request was judged.
    pub preconditions: Vec<Precondition>,
    /// What was going on when the preconditions were judged. Without preconditions it means nothing.
    pub seen: KnownChanges,
    /// The request that asks.
    pub request: RequestId,
    /// What the caller wants to read in the log.
    pub note: Option<Note>,
    /// The caller's own key.
    pub idempotency: Option<Idempotency>,
    /// What the request said that means nothing here.
    pub ignored: IgnoredMembers,
    /// What the audit trail says of where the request came from.
    pub origin: Origin,
}

/// Where a request came from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The API token with which it came, if it was one.
    pub token: Option<TokenName>,
    /// The address of the client.
    pub client: Option<IpAddr>,
}

/// The operation, durable.
#[derive(Clone, Debug)]
pub enum Accepted {
    /// It is new.
    New(Arc<Operation>),
    /// It was there: the same idempotency key and request, or a repeated delete of the same backup.
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

/// Why an intent was not accepted. Nothing was changed or kept.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AcceptError {
    /// The permit is for something else: a defect of the caller.
    #[error("the permit does not cover the intent")]
    NotPermitted,
    /// The configuration has no such backend (any more).
    #[error("there is no such backend")]
    NoSuchBackend,
    /// The key was used with another request.
    #[error("the idempotency key was used for another request")]
    KeyReused(OperationSeq),
    /// Another operation of the VM is unfinished, and operations are not queued.
    #[error("another operation of the VM is unfinished")]
    Busy(Arc<Operation>),
    /// Another change came after the preconditions were judged.
    #[error("a precondition no longer holds")]
    PreconditionFailed,
    /// Too many operations wait for this VM.
    #[error("too many operations wait for this VM")]
    VmQueueFull,
    /// Too many operations are unfinished in all.
    #[error("too many operations are unfinished")]
    QueueFull,
    /// The backend cannot do this at all, or is known to be down.
    #[error("the backend cannot take the operation")]
    Backend(Fault),
    /// The gateway is stopping.
    #[error("the gateway is stopping")]
    Stopping,
    /// The audit trail is required and cannot be written.
    #[error("the audit trail cannot be written")]
    NotRecorded,
    /// It could not be made durable, and will not run. The one exception is a store that failed for good in that very
    /// moment ([`StoreFault::Failed`]): what it had written may run after the restart; an idempotency key finds it.
    #[error(transparent)]
    Store(#[from] StoreFault),
}

/// Why an operation is not stopped.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CancelError {
    /// There is none of that number.
    #[error("there is no such operation")]
    NoSuchOperation,
    /// It is final, or its VM manager cannot stop it once it has begun.
    #[error("the operation cannot be stopped")]
    NotCancellable,
    /// It is no longer at the revision that the caller named.
    #[error("the operation changed")]
    Changed,
    /// The wish could not be made durable, and nothing was asked of the VM manager.
    #[error(transparent)]
    Store(#[from] StoreFault),
}

/// What is known of an idempotency key.
#[derive(Clone, Debug)]
pub enum Replay {
    /// Never used by this principal for this method and target, or so long ago that it was dropped.
    Unused,
    /// Used with the same request: this is its operation.
    Same(Arc<Operation>),
    /// Used with another request.
    Other(OperationSeq),
}

/// Which operations are meant by a request that does not name one by its number.
#[derive(Clone, Debug, Default)]
pub struct Selector {
    /// Only of this verb.
    pub verb: Option<Verb>,
    /// Only on this VM.
    pub vm: Option<VmId>,
    /// Only on the backup of this id.
    pub backup: Option<BackupId>,
}

/// Which operations to list, newest first.
#[derive(Clone, Debug, Default)]
pub struct ListQuery {
    /// Only those asked for by this principal.
    pub principal: Option<PrincipalName>,
    /// Only those that fit.
    pub selector: Selector,
    /// Only older ones than this.
    pub before: Option<OperationSeq>,
    /// Only unfinished (`Some(true)`) or finished (`Some(false)`) ones.
    pub unfinished: Option<bool>,
    /// At most so many, 1..=[`crate::model::limits::PAGE_MAX`].
    pub limit: u16,
}

/// What a request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitFor {
    /// The operation to become final.
    End,
    /// Any change after this revision.
    ChangeAfter(Revision),
}

/// What the operations room offers to the gate.
#[async_trait]
pub trait OperationsApi: fmt::Debug + Send + Sync {
    /// What the backend can do; `None` when there is none of that name.
    fn capability(&self, backend: &BackendName) -> Option<Arc<Capability>>;

    /// One VM, as its backend tells.
    ///
    /// # Errors
    /// The fault a caller may see.
    async fn vm(&self, backend: &BackendName, vm: &VmId, by: Deadline) -> Result<Vm, Fault>;

    /// Backups of a VM in order of their ids, each with the state that unfinished operations give it.
    /// Backups that are being created are among them.
    ///
    /// # Errors
    /// The fault a caller may see.
    async fn backups(
        &self,
        backend: &BackendName,
        vm: &VmId,
        page: &Page,
        by: Deadline,
    ) -> Result<BackupPage, Fault>;

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

    /// Which changes of the VM are known now; to be taken before what a precondition is about is read.
    fn known_changes(&self, backend: &BackendName, vm: &VmId) -> KnownChanges {
        let _ = (backend, vm);
        KnownChanges::default()
    }

    /// Takes the number of an operation that may be accepted next. Numbers that are not used are lost.
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

    /// Makes the operation durable and hands it to the runner. Once this returned `Ok` the operation is never lost
    /// and never run twice, whatever happens to the caller or the process.
    ///
    /// # Errors
    /// [`AcceptError`]; nothing was changed or kept.
    async fn accept(&self, permit: Permit, submission: Submission)
    -> Result<Accepted, AcceptError>;

    /// One operation by its number.
    ///
    /// # Errors
    /// When the store cannot answer.
    async fn operation(&self, seq: OperationSeq) -> Result<Option<Arc<Operation>>, StoreFault>;

    /// Operations, newest first.
    ///
    /// # Errors
    /// When the store cannot answer.
    async fn list(&self, query: &ListQuery) -> Result<Vec<Arc<Operation>>, StoreFault>;

    /// Waits for the operation and returns it as it is then, or as it is at the deadline. `None` when there is none.
    ///
    /// Woken by the write, not by polling. Safe to drop.
    ///
    /// # Errors
    /// When the store cannot answer.
    async fn wait(
        &self,
        seq: OperationSeq,
        until: WaitFor,
        by: Deadline,
    ) -> Result<Option<Arc<Operation>>, StoreFault>;

    /// Asks that an operation be stopped. One that is queued ends at once, with nothing called; one that runs is
    /// asked to stop by its VM manager, and its Status tells what came of it. The wish survives a restart.
    ///
    /// Whether the caller may ask for it is decided before. With `only_at` it is asked only while the operation is at that
    /// revision.
    ///
    /// # Errors
    /// [`CancelError`]; nothing was asked or kept.
    async fn cancel(
        &self,
        seq: OperationSeq,
        only_at: Option<Revision>,
    ) -> Result<Arc<Operation>, CancelError>;

    /// Whether new operations can be accepted: the store takes writes and the gateway is not stopping.
    fn is_ready(&self) -> bool;
}
