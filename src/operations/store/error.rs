//! Why an access to the store, or its opening, failed.

use crate::model::OperationSeq;
use crate::operations::api::StoreFault;

/// Why an access to the store failed. The text inside is for the log only.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StoreError {
    /// Not applied: the record is not at the revision the change was made from.
    #[error("the record changed meanwhile")]
    Conflict,
    /// Not applied: this principal used the idempotency key for another request with the same method and target.
    #[error("the idempotency key was used for another request")]
    KeyReused(OperationSeq),
    /// Not applied, and it may work later: busy, disk full, a record that this version cannot read.
    #[error("store unavailable: {0}")]
    Unavailable(String),
    /// It may or may not have been applied: read it back before anything else.
    #[error("outcome of the write unknown: {0}")]
    Indeterminate(String),
    /// Not applied, and never to be tried again by this process: another gateway may have taken over.
    #[error("this gateway may not write any more: {0}")]
    Fenced(String),
    /// The disk or the file failed. Everything is refused from now on; the process must end.
    #[error("store failed: {0}")]
    Fatal(String),
}

impl StoreError {
    /// The word used in metrics.
    pub(crate) const fn as_str(&self) -> &'static str {
        match self {
            Self::Conflict => "conflict",
            Self::KeyReused(_) => "key-reused",
            Self::Unavailable(_) => "unavailable",
            Self::Indeterminate(_) => "indeterminate",
            Self::Fenced(_) => "fenced",
            Self::Fatal(_) => "fatal",
        }
    }

    /// The fault for a caller.
    pub(crate) const fn public_fault(&self) -> StoreFault {
        match self {
            Self::Fatal(_) => StoreFault::Failed,
            Self::Conflict
            | Self::KeyReused(_)
            | Self::Unavailable(_)
            | Self::Indeterminate(_)
            | Self::Fenced(_) => StoreFault::Unavailable,
        }
    }
}

/// Why the operation store cannot be opened. The sentence is for the operator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("{0} is in use by another snapgate process; stop that process first")]
    InUse(String),
    /// It was written by a version with a newer format.
    #[error(
        "{file} has format {found}, but this version reads formats up to {known}; start the newer version"
    )]
    Newer {
        /// The file.
        file: String,
        /// The format it has.
        found: i64,
        /// The newest format this version reads.
        known: i64,
    },
    /// It is something else, or damaged. It was left as it is.
    #[error("{file} cannot be used as the operation store and was left as it is: {why}")]
    Damaged {
        /// The file.
        file: String,
        /// What was found.
        why: String,
    },
    /// The file system refused.
    #[error("cannot open {file}: {why}")]
    File {
        /// The file.
        file: String,
        /// What the system said.
        why: String,
    },
}
