//! Why a command fails.

use std::io;

use crate::config;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// The configuration is invalid.
    #[error("{0}")]
    Configuration(#[from] config::Problems),
    /// The answer is no, and was printed.
    #[error("no")]
    No,
    /// It ended with this status, and everything was printed.
    #[error("exit status {0}")]
    Ended(u8),
    /// Something else, in words for the operator.
    #[error("snapgate: {0}")]
    Other(String),
}

impl From<io::Error> for CliError {
    fn from(error: io::Error) -> Self {
        Self::Other(error.to_string())
    }
}
