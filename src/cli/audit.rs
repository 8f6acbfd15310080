//! `snapgate audit`: checks an audit trail offline.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Subcommand;

use crate::cli::CliError;
use crate::cli::output::Output;
use crate::telemetry;

/// What to do with an audit trail.
#[derive(Debug, Subcommand)]
pub(super) enum AuditCommand {
    /// Find changed, missing or reordered records; exit status 1 if there are any
    Verify {
        /// The files, oldest first
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
}

/// Runs the command and prints the result.
pub(super) fn run(task: &AuditCommand, output: &mut Output<'_>) -> Result<(), CliError> {
    let AuditCommand::Verify { files } = task;
    let found = telemetry::verify(files).map_err(|error| CliError::Other(error.to_string()))?;
    let mut text = String::new();
    let mut say = |line: std::fmt::Arguments<'_>| {
        writeln!(text, "{line}").map_err(|error| CliError::Other(error.to_string()))
    };
    for problem in &found.problems {
        say(format_args!("problem: {problem}"))?;
    }
    for remark in &found.remarks {
        say(format_args!("remark: {remark}"))?;
    }
    say(format_args!("records: {}", found.records))?;
    if let Some(last) = &found.last {
        say(format_args!("sha256 of the last record: {last}"))?;
    }
    output.print(&text)?;
    if found.problems.is_empty() {
        Ok(())
    } else {
        Err(CliError::No)
    }
}
