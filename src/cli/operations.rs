//! `snapgate operations`: what is stored of operations, for an operator, while no gateway runs on the store.

use std::fmt::Write as _;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use clap::Subcommand;
use clap::ValueEnum;

use crate::cli::CliError;
use crate::cli::output::Output;
use crate::config;
use crate::config::Settings;
use crate::listener;
use crate::model::Operation;
use crate::model::OperationSeq;
use crate::operations::Desk;
use crate::operations::DeskError;
use crate::operations::Showing;
use crate::runtime::Clock;
use crate::runtime::SystemClock;
use crate::telemetry;
use crate::telemetry::AuditRecord;
use crate::telemetry::Metrics;

/// What to do with operations.
#[derive(Debug, Subcommand)]
pub(super) enum Wish {
    /// List operations, newest first
    List {
        #[command(flatten)]
        place: Place,
        /// Which ones
        #[arg(long, value_enum, default_value = "all")]
        state: State,
        /// At most so many
        #[arg(long, value_name = "N", default_value_t = 50)]
        limit: usize,
    },
    /// Show one operation
    Show {
        #[command(flatten)]
        place: Place,
        /// Its number
        seq: u64,
    },
    /// Tell that the unknown outcome of an operation was looked into; its record may expire then
    Acknowledge {
        #[command(flatten)]
        place: Place,
        /// Its number
        seq: u64,
    },
}

/// Where the store is, and how to print.
#[derive(Debug, Args)]
pub(super) struct Place {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Which operations to list.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum State {
    /// Unknown outcomes that nobody acknowledged
    Unknown,
    /// Not final
    Unfinished,
    /// Every one
    All,
}

fn other(error: impl std::fmt::Display) -> CliError {
    CliError::Other(error.to_string())
}

/// Does it and prints what came of it.
pub(super) fn run(wish: &Wish, output: &mut Output<'_>) -> Result<(), CliError> {
    let place = match wish {
        Wish::List { place, .. } | Wish::Show { place, .. } | Wish::Acknowledge { place, .. } => {
            place
        }
    };
    let json = place.json;
    let settings = settings(&place.config)?;
    let metrics = Arc::new(Metrics::new().map_err(other)?);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let found = runtime.block_on(async {
        let clock = SystemClock::shared();
        let desk = Desk::open(
            &settings.operations,
            Arc::clone(&clock),
            Metrics::clone(&metrics),
        )
        .await?;
        let done = serve(&desk, wish).await;
        desk.close().await;
        Ok::<_, DeskError>((done?, clock))
    });
    let (found, clock) = found.map_err(other)?;
    if matches!(wish, Wish::Acknowledge { .. }) {
        trail(&settings, &metrics, &*clock, &found)?;
    }
    let mut text = String::new();
    for it in &found {
        if json {
            writeln!(text, "{}", shape(it)).map_err(other)?;
        } else {
            text.push_str(&line(it));
            text.push('\n');
        }
    }
    Ok(output.print(&text)?)
}

fn settings(file: &Path) -> Result<Settings, CliError> {
    Ok(config::load(file, &config::environment)?)
}

async fn serve(desk: &Desk, wish: &Wish) -> Result<Vec<Arc<Operation>>, DeskError> {
    let number = |seq: u64| {
        let none = || DeskError::Store(format!("{seq} is not a number of an operation"));
        OperationSeq::new(seq).ok_or_else(none)
    };
    match wish {
        Wish::List { state, limit, .. } => {
            let showing = match state {
                State::Unknown => Showing::Unknown,
                State::Unfinished => Showing::Unfinished,
                State::All => Showing::All,
            };
            desk.list(showing, *limit).await
        }
        Wish::Show { seq, .. } => Ok(vec![desk.show(number(*seq)?).await?]),
        Wish::Acknowledge { seq, .. } => Ok(vec![desk.acknowledge(number(*seq)?).await?]),
    }
}

/// Writes the acknowledgement to the audit trail.
fn trail(
    settings: &Settings,
    metrics: &Arc<Metrics>,
    clock: &dyn Clock,
    found: &[Arc<Operation>],
) -> Result<(), CliError> {
    telemetry::init(
        telemetry::Format::Text,
        "warn",
        listener::QUIET,
        false,
        settings.logging.audit.clone(),
        Arc::clone(metrics),
    )
    .map_err(other)?;
    for it in found {
        telemetry::audit(&AuditRecord {
            time: clock.now(),
            principal: None,
            token: None,
            client: None,
            action: "acknowledge",
            backend: Some(it.backend.as_str()),
            vm: it.target().vm.as_str(),
            backup: Some(it.target().backup.as_str()),
            note: None,
            outcome: "accepted",
            code: None,
            operation: Some(it.seq.number()),
            request: "",
        });
    }
    Ok(())
}

/// What clients chose is shown escaped.
fn line(it: &Operation) -> String {
    let target = it.target();
    let mut line = format!(
        "{} {} {} backend={} vm={:?} backup={:?} by={} created={}",
        it.seq,
        it.phase.as_str(),
        it.verb().as_str(),
        it.backend,
        target.vm.as_str(),
        target.backup.as_str(),
        it.principal,
        it.created
    );
    if let Some(time) = it.acknowledged {
        line = format!("{line} acknowledged={time}");
    }
    if let Some(fault) = &it.fault {
        line = format!("{line} {}: {}", fault.kind.as_str(), fault.text);
    }
    line
}

fn shape(it: &Operation) -> serde_json::Value {
    let time = |it: crate::model::Timestamp| it.to_string();
    serde_json::json!({
        "seq": it.seq.number(),
        "phase": it.phase.as_str(),
        "verb": it.verb().as_str(),
        "backend": it.backend.as_str(),
        "vm": it.target().vm.as_str(),
        "backup": it.target().backup.as_str(),
        "principal": it.principal.as_str(),
        "created": time(it.created),
        "started": it.started.map(time),
        "completed": it.completed.map(time),
        "cancel_asked": it.cancel_asked.map(time),
        "acknowledged": it.acknowledged.map(time),
        "fault": it.fault.as_ref().map(|it| it.kind.as_str()),
        "message": it.fault.as_ref().map(|it| it.text.as_str()),
    })
}
