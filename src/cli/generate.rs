//! `snapgate generate`: man pages and files for the completion of shells, as a package installs them.

use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;

use clap::Command;
use clap::Subcommand;
use clap_complete::env::Bash;
use clap_complete::env::EnvCompleter;
use clap_complete::env::Fish;
use clap_complete::env::Zsh;

use crate::cli::CliError;
use crate::cli::output::Output;

/// The variable by which the files for completion ask this program for candidates.
pub(super) const COMPLETION_VARIABLE: &str = "COMPLETE";
/// The name of the program, in man pages and completion.
const PROGRAM: &str = "snapgate";

/// zsh finds completion by the name of its file.
const ZSH_FILE: &str = "_snapgate";
/// zsh loads the file as the body of a function at the first completion, which has to offer something, too.
const ZSH_FIRST_TIME: &str =
    "\nif [[ ${funcstack[1]} == _snapgate ]]; then\n    _clap_dynamic_completer_snapgate\nfi\n";

/// What is generated.
#[derive(Debug, Subcommand)]
pub(super) enum GenerateCommand {
    /// Write man pages, one for each command, into a folder
    Man {
        /// The folder; it is made where it is absent
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
    /// Write completion for bash (snapgate.bash), zsh (_snapgate) and fish (snapgate.fish) into a folder
    Completions {
        /// The folder; it is made where it is absent
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
}

/// Writes the files.
pub(super) fn run(
    command: &GenerateCommand,
    program: Command,
    output: &mut Output<'_>,
) -> Result<(), CliError> {
    let (dir, written) = match command {
        GenerateCommand::Man { dir } => (dir, write_man_pages(program, dir)),
        GenerateCommand::Completions { dir } => (dir, write_completions(dir)),
    };
    let count = written.map_err(|error| {
        CliError::Other(format!("cannot write into {}: {error}", dir.display()))
    })?;
    let text = format!("{count} files written into {}\n", dir.display());
    Ok(output.print(&text)?)
}

fn write_man_pages(program: Command, dir: &Path) -> io::Result<usize> {
    fs::create_dir_all(dir)?;
    let before = count_files(dir)?;
    // A page of `help` for every command would say the same again and again.
    clap_mangen::generate_to(program.disable_help_subcommand(true), dir)?;
    Ok(count_files(dir)?.saturating_sub(before))
}

fn count_files(dir: &Path) -> io::Result<usize> {
    Ok(fs::read_dir(dir)?.count())
}

fn write_completions(dir: &Path) -> io::Result<usize> {
    fs::create_dir_all(dir)?;
    let shells: [(&str, &dyn EnvCompleter); 3] = [
        ("snapgate.bash", &Bash),
        (ZSH_FILE, &Zsh),
        ("snapgate.fish", &Fish),
    ];
    for (name, shell) in shells {
        let mut text = Vec::new();
        shell.write_registration(COMPLETION_VARIABLE, PROGRAM, PROGRAM, PROGRAM, &mut text)?;
        if name == ZSH_FILE {
            text.extend_from_slice(ZSH_FIRST_TIME.as_bytes());
        }
        fs::write(dir.join(name), text)?;
    }
    Ok(shells.len())
}
