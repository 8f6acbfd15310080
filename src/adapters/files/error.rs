//! What goes wrong with files, and what of it a caller may see.

use std::fmt;

use rustix::io::Errno;

use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::Scope;
use crate::adapters::checks::CheckError;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::PublicText;
use crate::public_text;

/// Why the adapter cannot be made at all.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// The two directories are the same, or one is below the other.
    #[error("`root` and `backups` must be two directories, neither below the other")]
    Nested,
    /// Another process, or another backend of this one, uses the same folder.
    #[error(
        "the directory in `{0}` is in use by another gateway or backend; stop it, or configure separate directories"
    )]
    InUse(&'static str),
    /// The kernel is older than Linux 5.6, or a sandbox forbids the call.
    #[error(
        "the operating system does not support openat2 (Linux 5.6 or later), which keeps paths inside their directories"
    )]
    NoOpenat2,
}

/// Why a piece of work ended without being done.
#[derive(Debug, thiserror::Error)]
pub(super) enum Problem {
    /// It failed, and what it had begun was taken back.
    #[error("{}", fault.text)]
    Refused {
        /// What a caller may see.
        fault: Fault,
        /// What the system said.
        private: String,
        /// What it concerns.
        scope: Scope,
    },
    /// It failed, and half of it is left.
    #[error("{}", fault.text)]
    HalfDone {
        /// What a caller may see.
        fault: Fault,
        /// What the system said.
        private: String,
    },
    /// It was stopped on request.
    #[error("cancelled")]
    Cancelled,
    /// It may or may not be durable: only another look at the disk shows.
    #[error("the outcome could not be determined")]
    Uncertain(String),
}

impl Problem {
    /// A refusal with its sentence.
    pub(super) fn new(kind: FaultKind, text: PublicText) -> Self {
        Self::Refused {
            fault: Fault::new(kind, text),
            private: String::new(),
            scope: Scope::Backend,
        }
    }

    /// Whether it is a refusal of this kind.
    pub(super) fn is_refusal(&self, kind: FaultKind) -> bool {
        match self {
            Self::Refused { fault, .. } => fault.kind == kind,
            Self::HalfDone { .. } | Self::Cancelled | Self::Uncertain(_) => false,
        }
    }

    /// The same, concerning one VM alone.
    pub(super) fn of_one_vm(mut self) -> Self {
        if let Self::Refused { scope, .. } = &mut self {
            *scope = Scope::OneVm;
        }
        self
    }

    /// The same with what the system said.
    pub(super) fn because(self, why: impl fmt::Display) -> Self {
        match self {
            Self::Refused { fault, scope, .. } => Self::Refused {
                fault,
                private: why.to_string(),
                scope,
            },
            Self::HalfDone { fault, .. } => Self::HalfDone {
                fault,
                private: why.to_string(),
            },
            Self::Cancelled | Self::Uncertain(_) => self,
        }
    }

    /// The failure and what the system said, for the log.
    pub(super) fn log_text(&self) -> String {
        match self {
            Self::Refused { fault, private, .. } | Self::HalfDone { fault, private }
                if !private.is_empty() =>
            {
                format!("{}: {private}", fault.text)
            }
            Self::Uncertain(private) => format!("{self}: {private}"),
            Self::Refused { .. } | Self::HalfDone { .. } | Self::Cancelled => self.to_string(),
        }
    }

    /// The same failure after the point from which recovery goes forward only.
    pub(super) fn uncertain(self) -> Self {
        match self {
            Self::Refused { fault, private, .. } => {
                Self::Uncertain(format!("{}: {private}", fault.text))
            }
            Self::Cancelled => Self::Uncertain("cancelled too late".to_owned()),
            Self::HalfDone { .. } | Self::Uncertain(_) => self,
        }
    }

    /// What `begin` answers.
    pub(super) fn into_adapter_error(self) -> AdapterError {
        match self {
            Self::Refused {
                fault,
                private,
                scope,
            } => {
                let mut error = match fault.kind {
                    FaultKind::Unavailable => AdapterError::unavailable(fault.text),
                    kind @ (FaultKind::NoSuchVm
                    | FaultKind::NoSuchBackup
                    | FaultKind::NameTaken
                    | FaultKind::Protected
                    | FaultKind::NotReady
                    | FaultKind::PreconditionFailed
                    | FaultKind::Busy
                    | FaultKind::Conflict
                    | FaultKind::Invalid
                    | FaultKind::Unsupported
                    | FaultKind::Damaged
                    | FaultKind::StorageFull
                    | FaultKind::BackendDenied
                    | FaultKind::TimedOut
                    | FaultKind::BackendFailed
                    | FaultKind::Cancelled
                    | FaultKind::NotExecuted
                    | FaultKind::OutcomeUnknown) => AdapterError::refused(kind, fault.text),
                };
                error.scope = scope;
                error.because(private)
            }
            Self::HalfDone { fault, private } => {
                AdapterError::uncertain(fault.kind, fault.text).because(private)
            }
            Self::Cancelled => AdapterError::refused(
                FaultKind::Cancelled,
                public_text!("The operation was cancelled. Nothing was changed."),
            ),
            Self::Uncertain(private) => AdapterError::uncertain(
                FaultKind::BackendFailed,
                public_text!("The storage failed during the change, and the outcome is being determined. Wait for the final Status."),
            )
            .because(private),
        }
    }
}

impl CheckError for Problem {
    fn refusal(&self) -> Option<Fault> {
        match self {
            // The directories of the whole backend: nothing can be said about one of its VMs then.
            Self::Refused {
                fault,
                scope: Scope::Backend,
                ..
            } if fault.kind == FaultKind::Unavailable => None,
            Self::Refused { fault, .. } | Self::HalfDone { fault, .. } => Some(fault.clone()),
            Self::Cancelled | Self::Uncertain(_) => None,
        }
    }
}

/// Turns what the system said while doing something into a problem.
pub(super) fn io_error(doing: &'static str) -> impl Fn(Errno) -> Problem {
    move |errno| {
        let (kind, text) = if errno == Errno::NOSPC || errno == Errno::DQUOT {
            (
                FaultKind::StorageFull,
                public_text!(
                    "The storage is full, so nothing was changed. Free some space, then try again."
                ),
            )
        } else if errno == Errno::ROFS {
            (
                FaultKind::BackendDenied,
                public_text!(
                    "The storage is mounted read-only. Mount it for writing, then try again."
                ),
            )
        } else if errno == Errno::ACCESS || errno == Errno::PERM {
            (
                FaultKind::BackendDenied,
                public_text!(
                    "The gateway has no permission to change these files, or they are immutable. Give the gateway's user access to them, then try again."
                ),
            )
        } else if errno == Errno::BUSY {
            (
                FaultKind::Conflict,
                public_text!(
                    "A file or directory is a mount point or in use by the system. Unmount or release it, then try again."
                ),
            )
        } else if errno == Errno::NOSYS {
            (
                FaultKind::Unsupported,
                public_text!(
                    "The operating system does not support safe path lookup (openat2). Run the gateway on Linux 5.6 or later."
                ),
            )
        } else {
            (
                FaultKind::BackendFailed,
                public_text!(
                    "The storage failed. Try again; if it fails again, ask the operator to check the storage."
                ),
            )
        };
        Problem::new(kind, text).because(format_args!("{doing}: {errno}"))
    }
}

/// The system's number behind an error of the standard library.
pub(super) fn errno_of(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}
