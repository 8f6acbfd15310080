//! `snapgate init --config` and `snapgate adopt-backups`: what an operator does to the folders of backends of kind `files`.

use std::path::Path;

use clap::Args;

use crate::adapters::files;
use crate::adapters::files::FolderError;
use crate::adapters::files::UnmarkedFolders;
use crate::cli::CliError;
use crate::cli::config_file::ConfigFile;
use crate::cli::output::Output;
use crate::config;
use crate::config::BackendConfig;
use crate::config::Settings;
use crate::model::BackendName;
use crate::model::VmId;

/// Which folders `init` prepares.
#[derive(Debug, Args)]
pub(super) struct PrepareFolders {
    /// Only this backend [default: every backend of kind files]
    #[arg(long, value_name = "NAME", requires = "config")]
    backend: Option<String>,
    /// Accept folders that contain other files
    #[arg(long, requires = "config")]
    accept_contents: bool,
}

/// What `adopt-backups` is asked for.
#[derive(Debug, Args)]
pub(super) struct Adopt {
    #[command(flatten)]
    config: ConfigFile,
    /// The backend, of kind `files`
    #[arg(long, value_name = "NAME")]
    backend: String,
    /// The id that the VM had when the backups were made
    #[arg(long, value_name = "VM")]
    from: String,
    /// The id that the VM has now
    #[arg(long, value_name = "VM")]
    to: String,
}

fn other(error: impl std::fmt::Display) -> CliError {
    CliError::Other(error.to_string())
}

/// The backends of kind `files`, or the one of that name.
fn chosen<'a>(
    settings: &'a Settings,
    name: Option<&str>,
) -> Result<Vec<(&'a BackendName, &'a files::Config)>, CliError> {
    let backends = settings.backends.iter().filter_map(|backend| {
        let BackendConfig::Files(config) = &backend.config else {
            return None;
        };
        let is_meant = name.is_none_or(|name| backend.name.as_str() == name);
        is_meant.then_some((&backend.name, config))
    });
    let chosen: Vec<_> = backends.collect();
    match (name, chosen.is_empty()) {
        (Some(name), true) => Err(other(format!(
            "no backend {name} of kind \"files\" is configured"
        ))),
        (None, true) => Err(other("no backend of kind \"files\" is configured")),
        (Some(_) | None, false) => Ok(chosen),
    }
}

fn failed(name: &BackendName, error: &FolderError) -> CliError {
    other(format!("backend {name}: {error}"))
}

/// Marks the folders.
pub(super) fn prepare(
    file: &Path,
    wanted: &PrepareFolders,
    output: &mut Output<'_>,
) -> Result<(), CliError> {
    let settings = config::load(file, &config::environment)?;
    let take = if wanted.accept_contents {
        UnmarkedFolders::Any
    } else {
        UnmarkedFolders::Empty
    };
    for (name, folders) in chosen(&settings, wanted.backend.as_deref())? {
        files::prepare_folders(folders, take).map_err(|error| failed(name, &error))?;
        output.print(&format!(
            "backend {name}: {} and {} are ready\n",
            folders.root.display(),
            folders.backups.display()
        ))?;
    }
    Ok(())
}

/// Gives the backups of a renamed VM its new name.
pub(super) fn adopt(wanted: &Adopt, output: &mut Output<'_>) -> Result<(), CliError> {
    let settings = config::load(&wanted.config.path(), &config::environment)?;
    let id = |text: &str| VmId::new(text).map_err(|error| other(format!("{text}: {error}")));
    let (from, to) = (id(&wanted.from)?, id(&wanted.to)?);
    for (name, folders) in chosen(&settings, Some(&wanted.backend))? {
        let adopted =
            files::adopt_backups(folders, &from, &to).map_err(|error| failed(name, &error))?;
        output.print(&format!(
            "{} backups of {from} now belong to {to}; {} already did\n",
            adopted.changed, adopted.kept
        ))?;
    }
    Ok(())
}
