//! What goes wrong with files, and what a caller is told of it.

use std::io;

use crate::adapters::port::AdapterError;
use crate::model::Fault;
use crate::model::FaultKind;

/// A failure within this adapter.
#[derive(Debug)]
pub(super) enum Failure {
    /// Known and told in words.
    Fault(Fault),
    /// The file system refused, while doing this.
    Io(&'static str, io::Error),
    /// The caller asked to stop, and everything is as it was.
    Cancelled,
    /// The process is simulated to have ended here: nothing may be tidied up.
    #[cfg(test)]
    Killed,
}

pub(super) type Outcome<T> = Result<T, Failure>;

/// Says what was being done when the file system refused.
pub(super) trait While<T> {
    /// Names what was being done.
    fn during(self, what: &'static str) -> Outcome<T>;
}

impl<T> While<T> for io::Result<T> {
    fn during(self, what: &'static str) -> Outcome<T> {
        self.map_err(|error| Failure::Io(what, error))
    }
}

/// A refusal in words.
pub(super) fn refuse<T>(kind: FaultKind, text: &str) -> Outcome<T> {
    Err(Failure::Fault(Fault::new(kind, text)))
}

impl Failure {
    /// What a caller is told.
    pub(super) fn fault(&self) -> Fault {
        match self {
            Self::Fault(fault) => fault.clone(),
            Self::Io(_, error) => io_fault(error),
            Self::Cancelled => Fault::new(FaultKind::Cancelled, "cancelled; nothing was changed"),
            #[cfg(test)]
            Self::Killed => Fault::new(FaultKind::BackendFailed, "killed"),
        }
    }

    /// What the log is told beside that.
    pub(super) fn private(&self) -> String {
        match self {
            Self::Fault(_) | Self::Cancelled => String::new(),
            Self::Io(what, error) => format!("{what}: {error}"),
            #[cfg(test)]
            Self::Killed => String::new(),
        }
    }
}

/// Every failure of this adapter is one before which or after which nothing visible happened.
impl From<Failure> for AdapterError {
    fn from(failure: Failure) -> Self {
        let fault = failure.fault();
        let made = if fault.kind == FaultKind::Unavailable {
            Self::unavailable(fault.text)
        } else {
            Self::refused(fault.kind, fault.text)
        };
        made.because(failure.private())
    }
}

fn io_fault(error: &io::Error) -> Fault {
    use io::ErrorKind;
    let told = error.kind();
    let (kind, text) = if [
        ErrorKind::StorageFull,
        ErrorKind::QuotaExceeded,
        ErrorKind::FileTooLarge,
    ]
    .contains(&told)
    {
        (
            FaultKind::StorageFull,
            "no room is left on the storage; free some and try again",
        )
    } else if [ErrorKind::PermissionDenied, ErrorKind::ReadOnlyFilesystem].contains(&told) {
        (
            FaultKind::BackendDenied,
            "the gateway may not access the storage; its operator must grant that",
        )
    } else if told == ErrorKind::NotFound {
        (
            FaultKind::Unavailable,
            "the storage is not there at present",
        )
    } else {
        (
            FaultKind::BackendFailed,
            "the storage failed; its operator finds the reason in the log",
        )
    };
    Fault::new(kind, text)
}
