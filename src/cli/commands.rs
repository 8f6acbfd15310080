//! The commands, and which status the program ends with.

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::CommandFactory;
use clap::FromArgMatches;
use clap::Parser;
use clap::Subcommand;
use clap::error::ErrorKind;
use clap_complete::CompleteEnv;

use crate::cli::CliError;
use crate::cli::audit;
use crate::cli::check;
use crate::cli::client;
use crate::cli::cluster;
use crate::cli::config_file::ConfigFile;
use crate::cli::demo;
use crate::cli::doctor;
use crate::cli::explain;
use crate::cli::folders;
use crate::cli::generate;
use crate::cli::generate::COMPLETION_VARIABLE;
use crate::cli::grouped_help::grouped;
use crate::cli::hash_password;
use crate::cli::health;
use crate::cli::init;
use crate::cli::log_level;
use crate::cli::operations;
use crate::cli::output::Output;
use crate::cli::serve;
use crate::cli::store;
use crate::cli::support_bundle;
use crate::cli::token;
use crate::cli::top;
use crate::config;

/// One small, safe backup and restore API in front of VM managers.
#[derive(Debug, Parser)]
#[command(name = "snapgate", version)]
#[command(
    after_help = "Exit status: 0 success, 64 usage error, 78 invalid configuration, 1 any other failure.\n\
        Commands that call a gateway: 1 failed, 2 refused, 3 outcome unknown, 4 still running, 5 unreachable, 130 detached."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Keep the URL and credentials of a gateway in a profile
    Login(client::LoginArguments),
    /// List and show VMs
    Vm(client::VmArguments),
    /// List, show, create, update, delete, restore and plan backups
    Backup(client::BackupArguments),
    /// List, show, wait for, cancel and watch operations
    Status(client::StatusArguments),
    /// Run the gateway
    Serve {
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Run a gateway on a demo folder with two small VMs
    Demo {
        /// The demo folder [default: snapgate-demo]
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
        /// Address and port of the API [default: 127.0.0.1:8080]
        #[arg(long, value_name = "ADDR")]
        listen: Option<SocketAddr>,
        /// Address and port of metrics and health [default: 127.0.0.1:8970]
        #[arg(long, value_name = "ADDR")]
        admin: Option<SocketAddr>,
        /// Recreate the demo folder
        #[arg(long)]
        reset: bool,
    },
    /// Validate a configuration and print a summary
    Check {
        #[command(flatten)]
        config: ConfigFile,
        /// Connect to every backend and issuer, and print capabilities
        #[arg(long)]
        probe: bool,
    },
    /// Explain whether a request is allowed, and by which grant; exit status 1 if denied
    Explain(explain::Question),
    /// Write a start configuration, or prepare the folders of `files` backends
    Init(init::Init),
    /// Assign backups of a renamed VM of a `files` backend to its new id
    AdoptBackups(folders::Adopt),
    /// List, show, cancel and acknowledge operations
    Operations {
        #[command(subcommand)]
        command: operations::OperationsCommand,
    },
    /// Show and change the part of this gateway in its cluster
    Cluster {
        #[command(subcommand)]
        command: cluster::ClusterCommand,
    },
    /// Copy the operation store into another one, or verify it, while no gateway runs
    Store {
        #[command(subcommand)]
        command: store::StoreCommand,
    },
    /// Verify an audit trail
    Audit {
        #[command(subcommand)]
        task: audit::AuditCommand,
    },
    /// Create, list and revoke API tokens
    Token {
        #[command(subcommand)]
        command: token::TokenCommand,
    },
    /// Ask a running gateway whether it is alive; exit status 1 if not
    Health(health::HealthCheck),
    /// Examine an installation and say what to do; exit status 1 if anything is found
    Doctor(doctor::DoctorArguments),
    /// Collect what a support request needs in an archive without secrets
    SupportBundle(support_bundle::BundleArguments),
    /// Print what a configuration file may hold
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Watch operations, rates and backends of the running gateway
    Top(top::TopArguments),
    /// Show or change the log level of the running gateway
    LogLevel(log_level::LogLevelArguments),
    /// Print the hash of a password for the configuration
    HashPassword {
        /// Use bcrypt instead of argon2id
        #[arg(long)]
        bcrypt: bool,
    },
    /// Write man pages and shell completion into a folder
    Generate {
        #[command(subcommand)]
        command: generate::GenerateCommand,
    },
    /// Print the version
    Version,
}

/// What to print about configuration files.
#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// The JSON Schema, by which editors complete and check a file
    Schema,
}

/// The exit status for a usage error: `EX_USAGE` of sysexits.h.
const USAGE: u8 = 64;
/// The exit status for an invalid configuration: `EX_CONFIG` of sysexits.h.
const CONFIGURATION: u8 = 78;

/// Runs the program with the arguments, streams and environment of the process.
#[must_use]
pub fn main() -> ExitCode {
    let (mut out, mut err) = (io::stdout(), io::stderr());
    let mut output = Output::new(&mut out, &mut err);
    if config::environment(COMPLETION_VARIABLE).is_some() {
        return complete();
    }
    run(std::env::args_os(), &mut output)
}

/// The declaration of all commands.
fn program() -> clap::Command {
    grouped(Arguments::command())
}

/// Answers a shell that completes a command line.
fn complete() -> ExitCode {
    let completion = CompleteEnv::with_factory(program).var(COMPLETION_VARIABLE);
    let folder = std::env::current_dir().ok();
    match completion.try_complete(std::env::args_os(), folder.as_deref()) {
        Ok(_) => ExitCode::SUCCESS,
        // The shell completes nothing then, and a message would stand in the middle of its line.
        Err(_) => ExitCode::FAILURE,
    }
}

fn run(arguments: impl Iterator<Item = OsString>, output: &mut Output<'_>) -> ExitCode {
    let parsed = program().try_get_matches_from(arguments);
    match parsed.and_then(|matches| Arguments::from_arg_matches(&matches)) {
        Ok(done) => finish(execute(done.command, output), output),
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
            ) =>
        {
            finish(
                output.print(&error.to_string()).map_err(CliError::from),
                output,
            )
        }
        Err(error) => {
            // A standard error that cannot be written to leaves the status as the only answer.
            drop(output.complain(error.to_string().trim_end()));
            ExitCode::from(USAGE)
        }
    }
}

fn execute(command: Command, output: &mut Output<'_>) -> Result<(), CliError> {
    match command {
        Command::Login(arguments) => client::run_login(&arguments, output),
        Command::Vm(arguments) => client::run_vm(arguments, output),
        Command::Backup(arguments) => client::run_backup(arguments, output),
        Command::Status(arguments) => client::run_status(arguments, output),
        Command::Generate { command } => generate::run(&command, program(), output),
        Command::Explain(question) => match explain::run(&question, output)? {
            true => Ok(()),
            false => Err(CliError::No),
        },
        Command::Serve { config } => serve::run(&config.path(), output),
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
        Command::Check { config, probe } => check::run(&config.path(), probe, output),
        Command::Audit { task } => audit::run(&task, output),
        Command::Init(wanted) => init::run(&wanted, output),
        Command::AdoptBackups(wanted) => folders::adopt(&wanted, output),
        Command::Operations { command } => operations::run(&command, output),
        Command::Cluster { command } => cluster::run(&command, output),
        Command::Store { command } => store::run(&command, output),
        Command::Doctor(arguments) => match doctor::run(&arguments, output)? {
            true => Ok(()),
            false => Err(CliError::No),
        },
        Command::SupportBundle(arguments) => support_bundle::run(&arguments, output),
        Command::Config { command } => match command {
            ConfigCommand::Schema => Ok(output.print(&config::keys_as_json_schema())?),
        },
        Command::Top(arguments) => top::run(&arguments, output),
        Command::LogLevel(arguments) => log_level::run(&arguments, output),
        Command::Token { command } => token::run(command, output),
        Command::Health(check) => health::run(&check, output),
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
    if !matches!(error, CliError::No | CliError::Ended(_)) {
        // A standard error that cannot be written to leaves the status as the only answer.
        drop(output.complain(&error.to_string()));
    }
    match error {
        CliError::Configuration(_) => ExitCode::from(CONFIGURATION),
        CliError::Ended(status) => ExitCode::from(status),
        CliError::Other(_) | CliError::No => ExitCode::FAILURE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_declaration_is_sound() {
        program().debug_assert();
    }
}
