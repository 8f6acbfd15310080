//! `snapgate serve`.

use std::path::Path;

use crate::cli::CliError;
use crate::config;

/// Runs the gateway until it is told to stop.
pub(super) fn run(file: &Path) -> Result<(), CliError> {
    let settings = config::load(file, &config::environment)?;
    let listen = settings.listener.listen;
    Err(CliError::Other(format!(
        "this build cannot serve on {listen}: serve is not wired"
    )))
}
