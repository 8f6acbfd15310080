//! `snapgate top`: operations, rates and backends of the running gateway, on a terminal.

mod frame;
mod sample;
mod screen;

use std::time::Duration;
use std::time::Instant;

use clap::Args;
use http::Method;
use serde::Deserialize;

use crate::cli::CliError;
use crate::cli::admin_port::AdminPort;
use crate::cli::config_file::ConfigFile;
use crate::cli::output::Output;
use crate::cli::top::frame::View;
use crate::cli::top::sample::Sample;
use crate::cli::top::screen::Screen;
use crate::config;
use crate::operations::OperationSummary;
use crate::runtime::Clock;
use crate::runtime::SystemClock;

/// Operations that are shown at most.
const OPERATIONS: &str = "50";

/// What to show.
#[derive(Debug, Args)]
pub(super) struct TopArguments {
    #[command(flatten)]
    config: ConfigFile,
    /// Print one frame and end
    #[arg(long)]
    once: bool,
    /// Time between two frames
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = humantime::parse_duration)]
    interval: Duration,
}

#[derive(Deserialize)]
struct OperationList {
    operations: Vec<OperationSummary>,
}

/// What the gateway says at one moment.
struct Look {
    sample: Sample,
    at: Instant,
    ready: String,
    operations: Vec<OperationSummary>,
}

/// Shows frames until a key ends it; one frame where there is no terminal.
pub(super) fn run(arguments: &TopArguments, output: &mut Output<'_>) -> Result<(), CliError> {
    let settings = config::load(&arguments.config.path(), &config::environment)?;
    let gateway = AdminPort::find(&settings, "no gateway runs on this configuration")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    // Faster would show the noise of single requests.
    let interval = arguments.interval.max(Duration::from_millis(100));
    let look = || runtime.block_on(look_at(&gateway));
    let mut before = look()?;
    if arguments.once || !screen::is_terminal() {
        runtime.block_on(async { tokio::time::sleep(interval).await });
        let lines = frame_lines(&before, &look()?);
        return Ok(output.print(&format!("{}\n", lines.join("\n")))?);
    }
    let screen = Screen::enter(output)?;
    let shown = loop {
        match screen.wait_for_end(interval) {
            Ok(true) => break Ok(()),
            Ok(false) => {}
            Err(error) => break Err(error.into()),
        }
        let now = match look() {
            Ok(now) => now,
            Err(error) => break Err(error),
        };
        if let Err(error) = screen.draw(&frame_lines(&before, &now), output) {
            break Err(error.into());
        }
        before = now;
    };
    screen.leave(output)?;
    shown
}

async fn look_at(gateway: &AdminPort) -> Result<Look, CliError> {
    let metrics = gateway.read_page("metrics").await?;
    let at = SystemClock.instant();
    // A gateway that is not ready answers 503 with the reason.
    let ready = match gateway.read_page("readyz").await {
        Ok(text) => text,
        Err(_) => "not ready".to_owned(),
    };
    let query = [("state", "unfinished"), ("limit", OPERATIONS)];
    let list: OperationList = gateway.ask(Method::GET, &["operations"], &query).await?;
    Ok(Look {
        sample: Sample::parse(&metrics),
        at,
        ready,
        operations: list.operations,
    })
}

fn frame_lines(before: &Look, now: &Look) -> Vec<String> {
    let unix = Duration::from_millis(SystemClock.now().as_millis());
    let view = View {
        before: &before.sample,
        now: &now.sample,
        between: now.at.saturating_duration_since(before.at),
        unix_seconds: unix.as_secs_f64(),
        ready: &now.ready,
        operations: &now.operations,
    };
    view.lines()
}
