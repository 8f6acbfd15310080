//! `snapgate store`: copies a store into another one, and verifies a store, while no gateway uses it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use clap::Subcommand;

use crate::cli::CliError;
use crate::cli::config_file::ConfigFile;
use crate::cli::output::Output;
use crate::config;
use crate::config::Settings;
use crate::operations::StoreCopyError;
use crate::operations::StoreLocation;
use crate::operations::StoreOpener;
use crate::runtime::Clock;
use crate::runtime::SystemClock;
use crate::telemetry::Metrics;

/// What `--from`, `--to` and `--store` say instead of a path.
const ETCD: &str = "etcd";
/// Time between two lines about the progress.
const REPORT_EVERY: Duration = Duration::from_secs(2);

/// What to do with a store.
#[derive(Debug, Subcommand)]
pub(super) enum StoreCommand {
    /// Copy all operations and annotations into an empty store, and compare; an interrupted copy goes on when it is run again
    Copy {
        #[command(flatten)]
        config: ConfigFile,
        /// The source, which is left as it is: a file, or etcd for the cluster of the configuration
        #[arg(long, value_name = "STORE")]
        from: String,
        /// The target: a file that does not exist, or etcd
        #[arg(long, value_name = "STORE")]
        to: String,
    },
    /// Read everything, decode every record and compare the indexes with the records; exit status 1 if anything is wrong
    Verify(VerifyArguments),
}

/// Which store to verify.
#[derive(Debug, Args)]
pub(super) struct VerifyArguments {
    #[command(flatten)]
    config: ConfigFile,
    /// A file, or etcd for the cluster of the configuration [default: the store of the configuration]
    #[arg(long, value_name = "STORE")]
    store: Option<String>,
}

impl From<StoreCopyError> for CliError {
    fn from(error: StoreCopyError) -> Self {
        Self::Other(error.to_string())
    }
}

/// Runs one of the commands.
///
/// # Errors
/// [`CliError`]; `No` when a store is not as it should be, which was printed.
pub(super) fn run(command: &StoreCommand, output: &mut Output<'_>) -> Result<(), CliError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let metrics = Metrics::new().map_err(|error| CliError::Other(error.to_string()))?;
    let opener = StoreOpener {
        clock: SystemClock::shared(),
        metrics,
    };
    match command {
        StoreCommand::Copy { config, from, to } => {
            let settings = load(config)?;
            let (from, to) = (located(&settings, from)?, located(&settings, to)?);
            runtime.block_on(copy(&opener, &from, &to, output))
        }
        StoreCommand::Verify(arguments) => {
            let settings = load(&arguments.config)?;
            let location = match &arguments.store {
                Some(store) => located(&settings, store)?,
                None => settings.operations.store,
            };
            runtime.block_on(verify(&opener, &location, output))
        }
    }
}

fn load(file: &ConfigFile) -> Result<Settings, CliError> {
    Ok(config::load(&file.path(), &config::environment)?)
}

/// The store of this name: `etcd` is that of the configuration, everything else a file.
fn located(settings: &Settings, name: &str) -> Result<StoreLocation, CliError> {
    if name != ETCD {
        return Ok(StoreLocation::File(PathBuf::from(name)));
    }
    match &settings.operations.store {
        StoreLocation::Etcd(config) => Ok(StoreLocation::Etcd(Arc::clone(config))),
        StoreLocation::File(_) => Err(CliError::Other(
            "the configuration has no etcd cluster: write store = \"etcd\" in [operations], and [etcd]".to_owned(),
        )),
    }
}

async fn copy(
    opener: &StoreOpener,
    from: &StoreLocation,
    to: &StoreLocation,
    output: &mut Output<'_>,
) -> Result<(), CliError> {
    let mut reported = SystemClock.instant();
    let mut progress = |records: u64| {
        let now = SystemClock.instant();
        if now.saturating_duration_since(reported) >= REPORT_EVERY {
            reported = now;
            // A report that cannot be written does not end the copy.
            drop(output.complain(&format!("{records} records copied")));
        }
    };
    let summary = opener.copy(from, to, &mut progress).await?;
    output.print(&format!(
        "copied and compared: {summary}\nfrom {from}\nto {to}\n"
    ))?;
    Ok(())
}

async fn verify(
    opener: &StoreOpener,
    location: &StoreLocation,
    output: &mut Output<'_>,
) -> Result<(), CliError> {
    let verdict = opener.verify(location).await?;
    let mut text = format!("{location}: {}\n", verdict.summary);
    if verdict.unreadable > 0 {
        let unreadable = verdict.unreadable;
        let line = format!("{unreadable} records are of a format that this version cannot read\n");
        text.push_str(&line);
    }
    for finding in &verdict.findings {
        text.push_str(finding);
        text.push('\n');
    }
    if verdict.findings.is_empty() {
        text.push_str("no damage found\n");
    }
    output.print(&text)?;
    if verdict.findings.is_empty() {
        Ok(())
    } else {
        Err(CliError::No)
    }
}
