//! The command line: what can be asked for, and which status it ends with.

mod audit;
mod check;
mod demo;
mod effect;
mod explain;
mod folders;
mod hash_password;
mod operations;
mod output;
mod serve;
mod token;

use std::ffi::OsString;
use std::io;
use std::io::Read;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use clap::Subcommand;
use clap::error::ErrorKind;

use crate::cli::output::Output;
use crate::config;

/// One small, safe backup and restore API in front of VM managers.
#[derive(Debug, Parser)]
#[command(name = "snapgate", version)]
#[command(
    after_help = "Status: 0 done, 64 bad usage, 78 mistakes in the configuration, 1 anything else."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway
    Serve {
        /// The configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Make or open again a folder with two small VMs, and run a gateway for them
    Demo {
        /// Where its files are kept; snapgate-demo unless given
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
        /// The address and port of the API; 127.0.0.1:8080 unless given
        #[arg(long, value_name = "ADDR")]
        listen: Option<SocketAddr>,
        /// The address and port of metrics and health; 127.0.0.1:8970 unless given
        #[arg(long, value_name = "ADDR")]
        admin: Option<SocketAddr>,
        /// Discard what the demo made in the folder, and make it anew
        #[arg(long)]
        reset: bool,
    },
    /// Tell every mistake of a configuration, or what it amounts to
    Check {
        /// The configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Connect to every backend too, and tell what it can and cannot do there
        #[arg(long)]
        probe: bool,
    },
    /// Tell which grant allows a request, or why none does; the status is 1 when it is denied
    Explain(explain::Question),
    /// Take the folders of every backend of kind `files` as new: make that of the backups, and mark both
    Init(folders::Init),
    /// Give a VM of a backend of kind `files` the backups that it had under another name
    AdoptBackups(folders::Adopt),
    /// Look at stored operations, and acknowledge unknown outcomes, of a gateway that runs or not
    Operations {
        #[command(subcommand)]
        wish: operations::Wish,
    },
    /// Check an audit trail
    Audit {
        #[command(subcommand)]
        task: audit::Task,
    },
    /// Make, list and revoke API tokens
    Token {
        #[command(subcommand)]
        wish: token::Wish,
    },
    /// Read a password and print its hash for the configuration
    HashPassword {
        /// Make a bcrypt hash instead of an argon2id one
        #[arg(long)]
        bcrypt: bool,
    },
    /// Print the version
    Version,
}

/// Why a command did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// The configuration has mistakes.
    #[error("{0}")]
    Configuration(#[from] config::Problems),
    /// The answer is no, and was printed.
    #[error("no")]
    No,
    /// Something else, in words for the operator.
    #[error("snapgate: {0}")]
    Other(String),
}

impl From<io::Error> for CliError {
    fn from(error: io::Error) -> Self {
        Self::Other(error.to_string())
    }
}

/// The status for bad usage: `EX_USAGE` of sysexits.h.
const USAGE: u8 = 64;
/// The status for mistakes in the configuration: `EX_CONFIG` of sysexits.h.
const CONFIGURATION: u8 = 78;

/// Runs the program with the arguments, streams and environment of the process.
#[must_use]
pub fn main() -> ExitCode {
    let (mut out, mut err) = (io::stdout(), io::stderr());
    let mut output = Output::new(&mut out, &mut err);
    run(std::env::args_os(), &mut output)
}

fn run(arguments: impl Iterator<Item = OsString>, output: &mut Output<'_>) -> ExitCode {
    match Arguments::try_parse_from(arguments) {
        Ok(it) => finish(execute(it.command, output), output),
        Err(it)
            if matches!(
                it.kind(),
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
            ) =>
        {
            finish(
                output.print(&it.to_string()).map_err(CliError::from),
                output,
            )
        }
        Err(it) => {
            // A standard error that cannot be written to leaves the status as the only answer.
            drop(output.complain(it.to_string().trim_end()));
            ExitCode::from(USAGE)
        }
    }
}

fn execute(command: Command, output: &mut Output<'_>) -> Result<(), CliError> {
    match command {
        Command::Explain(question) => match explain::run(&question, output)? {
            true => Ok(()),
            false => Err(CliError::No),
        },
        Command::Serve { config } => serve::run(&config, output),
        Command::Demo {
            dir,
            listen,
            admin,
            reset,
        } => demo::run(
            demo::Options {
                dir,
                listen,
                admin,
                reset,
            },
            output,
        ),
        Command::Check { config, probe } => check::run(&config, probe, output),
        Command::Audit { task } => audit::run(&task, output),
        Command::Init(wanted) => folders::init(&wanted, output),
        Command::AdoptBackups(wanted) => folders::adopt(&wanted, output),
        Command::Operations { wish } => operations::run(&wish, output),
        Command::Token { wish } => token::run(wish, output),
        Command::HashPassword { bcrypt } => hash_password::run(bcrypt, output),
        Command::Version => {
            Ok(output.print(concat!("snapgate ", env!("CARGO_PKG_VERSION"), "\n"))?)
        }
    }
}

fn finish(result: Result<(), CliError>, output: &mut Output<'_>) -> ExitCode {
    let Err(error) = result else {
        return ExitCode::SUCCESS;
    };
    if !matches!(error, CliError::No) {
        // A standard error that cannot be written to leaves the status as the only answer.
        drop(output.complain(&error.to_string()));
    }
    match error {
        CliError::Configuration(_) => ExitCode::from(CONFIGURATION),
        CliError::Other(_) | CliError::No => ExitCode::FAILURE,
    }
}

/// At most so many bytes of standard input.
fn input(most: u64) -> io::Result<String> {
    let mut text = String::new();
    io::stdin().lock().take(most).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_declaration_is_sound() {
        Arguments::command().debug_assert();
    }
}
