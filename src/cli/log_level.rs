//! `snapgate log-level`: shows or changes the log level of the running gateway.

use std::time::Duration;

use clap::Args;
use http::Method;
use serde::Deserialize;

use crate::cli::CliError;
use crate::cli::admin_port::AdminPort;
use crate::cli::config_file::ConfigFile;
use crate::cli::output::Output;
use crate::config;

/// Which level, and for how long.
#[derive(Debug, Args)]
pub(super) struct LogLevelArguments {
    #[command(flatten)]
    config: ConfigFile,
    /// The new level, such as debug or snapgate::adapters=trace,info; `reset` for the configured one; shown when absent
    level: Option<String>,
    /// Return to the configured level after this time, such as 15m [default: at the next restart]
    #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration, requires = "level")]
    duration: Option<Duration>,
}

#[derive(Deserialize)]
struct LevelAnswer {
    level: String,
    configured: String,
}

/// Runs the command and prints the level.
pub(super) fn run(arguments: &LogLevelArguments, output: &mut Output<'_>) -> Result<(), CliError> {
    let settings = config::load(&arguments.config.path(), &config::environment)?;
    let gateway = AdminPort::find(&settings, "no gateway runs on this configuration")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let duration = arguments.duration.map(|duration| {
        humantime::format_duration(duration)
            .to_string()
            .replace(' ', "")
    });
    let mut query = Vec::new();
    if let Some(level) = arguments.level.as_deref().filter(|level| *level != "reset") {
        query.push(("level", level));
    }
    if let Some(duration) = &duration {
        query.push(("for", duration));
    }
    let method = if arguments.level.is_some() {
        Method::POST
    } else {
        Method::GET
    };
    let answer: LevelAnswer = runtime.block_on(gateway.ask(method, &["log-level"], &query))?;
    let LevelAnswer { level, configured } = answer;
    let text = if level == configured {
        format!("{level} (as configured)\n")
    } else {
        format!("{level} (configured: {configured})\n")
    };
    Ok(output.print(&text)?)
}
