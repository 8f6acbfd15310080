//! `snapgate demo`.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::cli::CliError;

/// What can be chosen about the demo.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Where its files are kept; a temporary folder when absent.
    pub(crate) dir: Option<PathBuf>,
    /// The API port.
    pub(crate) listen: Option<SocketAddr>,
    /// The admin port.
    pub(crate) admin: Option<SocketAddr>,
}

/// Runs a gateway with simulated VMs until it is told to stop.
pub(super) fn run(options: Options) -> Result<(), CliError> {
    let Options { dir, listen, admin } = options;
    Err(CliError::Other(format!(
        "this build has no demo: demo is not wired (dir {dir:?}, listen {listen:?}, admin {admin:?})"
    )))
}
