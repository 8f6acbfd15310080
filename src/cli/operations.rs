//! `snapgate operations`: what is stored of operations, for an operator, whether or not a gateway runs on the store.

use std::fmt::Write as _;
use std::sync::Arc;

use clap::Args;
use clap::Subcommand;
use clap::builder::PossibleValuesParser;
use http::Method;
use serde::Deserialize;

use crate::app::Decision;
use crate::app::OperatorAction;
use crate::app::OperatorName;
use crate::cli::CliError;
use crate::cli::admin_port::AdminPort;
use crate::cli::config_file::ConfigFile;
use crate::cli::output::Output;
use crate::config;
use crate::config::Settings;
use crate::listener;
use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::OperatorQuery;
use crate::model::Showing;
use crate::model::limits;
use crate::operations::OfflineStore;
use crate::operations::OfflineStoreError;
use crate::operations::OpenError;
use crate::operations::OperationDetails;
use crate::operations::OperationSummary;
use crate::runtime::Clock;
use crate::runtime::SystemClock;
use crate::telemetry;
use crate::telemetry::LogConfig;
use crate::telemetry::Metrics;

/// What to do with operations.
#[derive(Debug, Subcommand)]
pub(super) enum OperationsCommand {
    /// List operations, newest first
    List {
        #[command(flatten)]
        arguments: StoreArguments,
        #[command(flatten)]
        filters: Filters,
    },
    /// Show one operation with everything that is stored of it
    Show {
        #[command(flatten)]
        arguments: StoreArguments,
        /// Number of the operation
        #[arg(value_parser = seq)]
        seq: u64,
    },
    /// Cancel an operation: a queued one immediately, a running one if its VM manager supports it
    Cancel {
        #[command(flatten)]
        arguments: StoreArguments,
        /// Number of the operation
        #[arg(value_parser = seq)]
        seq: u64,
    },
    /// Acknowledge an operation with an unknown outcome, so that its record may expire
    Acknowledge {
        #[command(flatten)]
        arguments: StoreArguments,
        /// Number of the operation
        #[arg(value_parser = seq)]
        seq: u64,
    },
}

/// A number as it is printed, within quotes too: JSON has it as text.
fn seq(text: &str) -> Result<u64, std::num::ParseIntError> {
    let quoted = text
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'));
    quoted.unwrap_or(text).parse()
}

/// Arguments that every command on operations has.
#[derive(Debug, Args)]
pub(super) struct StoreArguments {
    #[command(flatten)]
    config: ConfigFile,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Which operations to list.
#[derive(Debug, Args)]
pub(super) struct Filters {
    /// Only operations in this state; `held` ones wait for a backend that is not configured
    #[arg(long, value_name = "STATE", default_value = "all", value_parser = PossibleValuesParser::new(Showing::ALL.map(Showing::as_str)))]
    state: String,
    /// Only operations on this VM
    #[arg(long, value_name = "ID")]
    vm: Option<String>,
    /// Only operations on this backup
    #[arg(long, value_name = "ID")]
    backup: Option<String>,
    /// Only operations on this backend
    #[arg(long, value_name = "NAME")]
    backend: Option<String>,
    /// Only operations of this kind: create, update, delete or restore
    #[arg(long, value_name = "VERB")]
    verb: Option<String>,
    /// Only operations of this caller
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    /// Only operations accepted at this time or later: 2026-01-31T12:00:00Z, or 2h for two hours ago
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only operations accepted before this time
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// At most this many
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: usize,
}

impl Filters {
    fn query(&self) -> Result<OperatorQuery, CliError> {
        let mut query = OperatorQuery {
            limit: self.limit,
            ..OperatorQuery::default()
        };
        query.set("state", &self.state).map_err(other)?;
        for (name, value) in [
            ("vm", &self.vm),
            ("backup", &self.backup),
            ("backend", &self.backend),
            ("verb", &self.verb),
            ("principal", &self.by),
        ] {
            if let Some(value) = value {
                query.set(name, value).map_err(other)?;
            }
        }
        for (name, value) in [("since", &self.since), ("until", &self.until)] {
            if let Some(value) = value {
                query.set(name, &time_text(value)).map_err(other)?;
            }
        }
        Ok(query)
    }
}

/// The time that a text means: itself, or so long ago.
fn time_text(text: &str) -> String {
    humantime::parse_duration(text).map_or_else(
        |_not_a_duration| text.to_owned(),
        |ago| SystemClock.now().minus(ago).to_string(),
    )
}

/// The request of a command, with its arguments checked.
enum OperatorRequest {
    List(OperatorQuery),
    Show(OperationSeq),
    Acknowledge(OperationSeq),
    Cancel(OperationSeq),
}

/// What a command prints.
enum Shown {
    Lines(Vec<OperationSummary>),
    Details(Box<OperationDetails>),
}

fn other(error: impl std::fmt::Display) -> CliError {
    CliError::Other(error.to_string())
}

/// Runs the command and prints the result.
pub(super) fn run(command: &OperationsCommand, output: &mut Output<'_>) -> Result<(), CliError> {
    let number = |seq: u64| {
        let none = || other(format!("{seq} is not an operation number"));
        OperationSeq::new(seq).ok_or_else(none)
    };
    let (arguments, request) = match command {
        OperationsCommand::List { arguments, filters } => {
            (arguments, OperatorRequest::List(filters.query()?))
        }
        OperationsCommand::Show { arguments, seq } => {
            (arguments, OperatorRequest::Show(number(*seq)?))
        }
        OperationsCommand::Acknowledge { arguments, seq } => {
            (arguments, OperatorRequest::Acknowledge(number(*seq)?))
        }
        OperationsCommand::Cancel { arguments, seq } => {
            (arguments, OperatorRequest::Cancel(number(*seq)?))
        }
    };
    let settings = config::load(&arguments.config.path(), &config::environment)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let shown = runtime.block_on(async {
        match offline(&settings, &request).await {
            // A running gateway has the store open: it does what the command asks for.
            Err(Refused::InUse(why)) => online(&settings, &request, &why).await,
            Err(Refused::Other(error)) => Err(error),
            Ok(found) => Ok(found),
        }
    })?;
    Ok(output.print(&print(&shown, arguments.json)?)?)
}

/// One line for each operation, or all about one of them.
fn print(shown: &Shown, json: bool) -> Result<String, CliError> {
    let mut text = String::new();
    match shown {
        Shown::Lines(operations) => {
            for operation in operations {
                if json {
                    writeln!(text, "{}", serde_json::json!(operation)).map_err(other)?;
                } else {
                    text.push_str(&line(operation));
                    text.push('\n');
                }
            }
        }
        Shown::Details(details) if json => {
            writeln!(text, "{}", serde_json::json!(details)).map_err(other)?;
        }
        Shown::Details(details) => {
            text.push_str(&line(&details.summary));
            text.push('\n');
            for (name, value) in times(&details.summary) {
                writeln!(text, "  {name}: {value}").map_err(other)?;
            }
            // JSON escapes what clients and VM managers chose.
            for (name, value) in &details.more {
                writeln!(text, "  {name}: {value}").map_err(other)?;
            }
        }
    }
    Ok(text)
}

/// The times that a line leaves out.
fn times(operation: &OperationSummary) -> impl Iterator<Item = (&'static str, &str)> {
    let all = [
        ("started", &operation.started),
        ("completed", &operation.completed),
    ];
    all.into_iter()
        .filter_map(|(name, time)| Some((name, time.as_deref()?)))
}

/// Why the store was not opened.
enum Refused {
    /// Another process has it.
    InUse(String),
    Other(CliError),
}

impl From<OfflineStoreError> for Refused {
    fn from(error: OfflineStoreError) -> Self {
        match error {
            OfflineStoreError::Open(OpenError::InUse(_)) => Self::InUse(error.to_string()),
            error @ (OfflineStoreError::Absent(_)
            | OfflineStoreError::Open(_)
            | OfflineStoreError::Store(_)
            | OfflineStoreError::NoSuchOperation(_)
            | OfflineStoreError::NotUnknown(..)
            | OfflineStoreError::NotCancellable(..)) => Self::Other(other(error)),
        }
    }
}

async fn offline(settings: &Settings, request: &OperatorRequest) -> Result<Shown, Refused> {
    let metrics = Arc::new(Metrics::new().map_err(|error| Refused::Other(other(error)))?);
    let clock = SystemClock::shared();
    let its_metrics = Metrics::clone(&metrics);
    let desk = OfflineStore::open(&settings.operations, Arc::clone(&clock), its_metrics).await?;
    let lines = |operations: Vec<Arc<Operation>>| {
        let summaries = operations.iter().map(|operation| (&**operation).into());
        Shown::Lines(summaries.collect())
    };
    let done = match request {
        OperatorRequest::List(query) => {
            let backends = settings.backends.iter();
            let backends = backends.map(|backend| backend.name.clone()).collect();
            desk.list(query, &backends).await.map(lines)
        }
        OperatorRequest::Show(seq) => desk
            .show(*seq)
            .await
            .map(|operation| Shown::Details(Box::new((&*operation).into()))),
        OperatorRequest::Acknowledge(seq) => {
            let action = OperatorAction::Acknowledge;
            let decided = decide(settings, metrics, &*clock, &desk, action, *seq).await;
            decided.map(lines)
        }
        OperatorRequest::Cancel(seq) => {
            let action = OperatorAction::Cancel;
            let decided = decide(settings, metrics, &*clock, &desk, action, *seq).await;
            decided.map(lines)
        }
    };
    desk.close().await;
    Ok(done?)
}

/// Carries out what an operator decides in the store itself, with the audit trail before and after it.
async fn decide(
    settings: &Settings,
    metrics: Arc<Metrics>,
    clock: &dyn Clock,
    desk: &OfflineStore,
    action: OperatorAction,
    seq: OperationSeq,
) -> Result<Vec<Arc<Operation>>, OfflineStoreError> {
    // Opened first: what cannot be written is not done.
    let log = LogConfig {
        format: telemetry::LineFormat::Text,
        journal: false,
        level: "warn".to_owned(),
        quiet: listener::QUIET,
        access: false,
        queued: false,
        audit: settings.logging.audit.clone(),
        audit_required: settings.logging.audit_required,
    };
    telemetry::init_logging(log, metrics)
        .map_err(|error| OfflineStoreError::Store(error.to_string()))?;
    let by = OperatorName::of_this_process();
    let decision = Decision::local(action, &by);
    let before = desk.show(seq).await?;
    decision
        .record_before(clock, &before)
        .map_err(|error| OfflineStoreError::Store(format!("{error}: nothing was changed")))?;
    let decided = match action {
        OperatorAction::Acknowledge => desk.acknowledge(seq).await?,
        OperatorAction::Cancel => desk.cancel(seq).await?,
    };
    if decided.is_new {
        decision.record(clock, &decided.operation);
    }
    Ok(vec![decided.operation])
}

/// Asks the gateway that has the store, through its admin port.
async fn online(
    settings: &Settings,
    request: &OperatorRequest,
    why: &str,
) -> Result<Shown, CliError> {
    let gateway = AdminPort::find(settings, &format!("{why}, or try again"))?;
    match request {
        OperatorRequest::List(query) => list_online(&gateway, query).await.map(Shown::Lines),
        OperatorRequest::Show(seq) => {
            let seq = seq.to_string();
            let path = ["operations", seq.as_str()];
            Ok(Shown::Details(gateway.ask(Method::GET, &path, &[]).await?))
        }
        OperatorRequest::Acknowledge(seq) => decide_online(&gateway, *seq, "acknowledge").await,
        OperatorRequest::Cancel(seq) => decide_online(&gateway, *seq, "cancel").await,
    }
}

/// What an operator decides about one operation.
async fn decide_online(
    gateway: &AdminPort,
    seq: OperationSeq,
    action: &str,
) -> Result<Shown, CliError> {
    let seq = seq.to_string();
    let path = ["operations", seq.as_str(), action];
    let decided = gateway.ask(Method::POST, &path, &[]).await?;
    Ok(Shown::Lines(vec![decided]))
}

#[derive(Deserialize)]
struct OperationList {
    operations: Vec<OperationSummary>,
}

/// The operations that the running gateway lists, page by page.
async fn list_online(
    gateway: &AdminPort,
    wanted: &OperatorQuery,
) -> Result<Vec<OperationSummary>, CliError> {
    let mut found = Vec::<OperationSummary>::new();
    loop {
        let left = wanted.limit.saturating_sub(found.len());
        let limit = left.min(usize::from(limits::PAGE_MAX));
        if limit == 0 {
            return Ok(found);
        }
        let older_than = found.last().map(|operation| operation.seq);
        let query = OperatorQuery {
            older_than: older_than.and_then(OperationSeq::new),
            limit,
            ..wanted.clone()
        };
        let query = query.parameters();
        let query: Vec<(&str, &str)> = query
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        let page: OperationList = gateway.ask(Method::GET, &["operations"], &query).await?;
        let is_last = page.operations.len() < limit;
        found.extend(page.operations);
        if is_last {
            return Ok(found);
        }
    }
}

/// What clients chose is shown escaped.
fn line(operation: &OperationSummary) -> String {
    let mut line = format!(
        "{} {} {} backend={} vm={:?} backup={:?} by={} created={}",
        operation.seq,
        operation.phase,
        operation.verb,
        operation.backend,
        operation.vm,
        operation.backup,
        operation.principal,
        operation.created
    );
    if let Some(time) = &operation.cancel_asked {
        line = format!("{line} cancel_requested={time}");
    }
    if let Some(time) = &operation.acknowledged {
        line = format!("{line} acknowledged={time}");
    }
    match (&operation.fault, &operation.message) {
        (Some(kind), Some(text)) => line = format!("{line} {kind}: {text}"),
        (None, Some(text)) => line = format!("{line} {text}"),
        (Some(_) | None, None) => {}
    }
    line
}
