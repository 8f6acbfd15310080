//! `snapgate operations`: what is stored of operations, for an operator, whether or not a gateway runs on the store.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use clap::Subcommand;
use clap::ValueEnum;
use http::HeaderValue;
use http::Method;
use http::header;
use serde::Deserialize;

use crate::adapters::transport;
use crate::app::Decision;
use crate::app::OperatorAccess;
use crate::app::OperatorAction;
use crate::app::OperatorName;
use crate::cli::CliError;
use crate::cli::config_file::ConfigFile;
use crate::cli::output::Output;
use crate::config;
use crate::config::Settings;
use crate::listener;
use crate::listener::OPERATOR_NAME;
use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::Secret;
use crate::model::Showing;
use crate::model::limits;
use crate::operations::OfflineStore;
use crate::operations::OfflineStoreError;
use crate::operations::OpenError;
use crate::operations::OperationSummary;
use crate::runtime::Clock;
use crate::runtime::SystemClock;
use crate::telemetry;
use crate::telemetry::LogConfig;
use crate::telemetry::Metrics;

/// How long a running gateway may take for one response.
const PATIENCE: Duration = Duration::from_secs(30);
/// Largest answer: a page of operations whose texts are as long as can be.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What to do with operations.
#[derive(Debug, Subcommand)]
pub(super) enum OperationsCommand {
    /// List operations, newest first
    List {
        #[command(flatten)]
        arguments: StoreArguments,
        /// Only operations in this state
        #[arg(long, value_enum, default_value = "all")]
        state: State,
        /// At most this many
        #[arg(long, value_name = "N", default_value_t = 50)]
        limit: usize,
    },
    /// Show one operation
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
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum State {
    /// Unknown outcomes that are not acknowledged
    Unknown,
    /// Not final
    Unfinished,
    /// Every one
    All,
}

impl From<State> for Showing {
    fn from(state: State) -> Self {
        match state {
            State::Unknown => Self::Unknown,
            State::Unfinished => Self::Unfinished,
            State::All => Self::All,
        }
    }
}

/// The request of a command, with its arguments checked.
#[derive(Clone, Copy)]
enum OperatorRequest {
    List(Showing, usize),
    Show(OperationSeq),
    Acknowledge(OperationSeq),
    Cancel(OperationSeq),
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
        OperationsCommand::List {
            arguments,
            state,
            limit,
        } => (arguments, OperatorRequest::List((*state).into(), *limit)),
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
    let found = runtime.block_on(async {
        match offline(&settings, request).await {
            // A running gateway has the store open: it does what the command asks for.
            Err(Refused::InUse(why)) => online(&settings, request, &why).await,
            Err(Refused::Other(error)) => Err(error),
            Ok(found) => Ok(found),
        }
    })?;
    let mut text = String::new();
    for operation in &found {
        if arguments.json {
            writeln!(text, "{}", serde_json::json!(operation)).map_err(other)?;
        } else {
            text.push_str(&line(operation));
            text.push('\n');
        }
    }
    Ok(output.print(&text)?)
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

async fn offline(
    settings: &Settings,
    request: OperatorRequest,
) -> Result<Vec<OperationSummary>, Refused> {
    let metrics = Arc::new(Metrics::new().map_err(|error| Refused::Other(other(error)))?);
    let clock = SystemClock::shared();
    let its_metrics = Metrics::clone(&metrics);
    let desk = OfflineStore::open(&settings.operations, Arc::clone(&clock), its_metrics).await?;
    let done = match request {
        OperatorRequest::List(showing, most) => desk.list(showing, None, most).await,
        OperatorRequest::Show(seq) => desk.show(seq).await.map(|operation| vec![operation]),
        OperatorRequest::Acknowledge(seq) => {
            let action = OperatorAction::Acknowledge;
            decide(settings, metrics, &*clock, &desk, action, seq).await
        }
        OperatorRequest::Cancel(seq) => {
            let action = OperatorAction::Cancel;
            decide(settings, metrics, &*clock, &desk, action, seq).await
        }
    };
    desk.close().await;
    Ok(done?
        .iter()
        .map(|operation| OperationSummary::from(&**operation))
        .collect())
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
        level: "warn".to_owned(),
        quiet: listener::QUIET,
        access: false,
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
    request: OperatorRequest,
    why: &str,
) -> Result<Vec<OperationSummary>, CliError> {
    let file = settings.operations.operator_file();
    let access = OperatorAccess::read(&file).map_err(|error| {
        other(format!(
            "{why}, or try again: it cannot be spoken to without {}: {error}",
            file.display()
        ))
    })?;
    let gateway = Gateway::new(&access)?;
    match request {
        OperatorRequest::List(showing, most) => gateway.list(showing, most).await,
        OperatorRequest::Show(seq) => {
            let seq = seq.to_string();
            Ok(vec![gateway.ask(Method::GET, &[&seq], &[]).await?])
        }
        OperatorRequest::Acknowledge(seq) => Ok(vec![gateway.decide(seq, "acknowledge").await?]),
        OperatorRequest::Cancel(seq) => Ok(vec![gateway.decide(seq, "cancel").await?]),
    }
}

/// The admin port of the running gateway.
struct Gateway<'a> {
    client: transport::Client,
    access: &'a OperatorAccess,
}

#[derive(Deserialize)]
struct OperationList {
    operations: Vec<OperationSummary>,
}

#[derive(Deserialize)]
struct ErrorBody {
    error: String,
}

impl<'a> Gateway<'a> {
    fn new(access: &'a OperatorAccess) -> Result<Self, CliError> {
        let client = transport::Client::new(transport::ClientSettings {
            endpoint: transport::Endpoint::Http(access.address),
            connect_timeout: PATIENCE,
            body_bytes_max: ANSWER_BYTES_MAX,
        });
        let client = client.map_err(other)?;
        Ok(Self { client, access })
    }

    async fn list(&self, showing: Showing, most: usize) -> Result<Vec<OperationSummary>, CliError> {
        let mut found = Vec::<OperationSummary>::new();
        loop {
            let left = most.saturating_sub(found.len());
            let limit = left.min(usize::from(limits::PAGE_MAX));
            if limit == 0 {
                return Ok(found);
            }
            let (text, before) = (
                limit.to_string(),
                found.last().map(|operation| operation.seq.to_string()),
            );
            let mut query = vec![("state", showing.as_str()), ("limit", &text)];
            if let Some(before) = &before {
                query.push(("before", before));
            }
            let page: OperationList = self.ask(Method::GET, &[], &query).await?;
            let is_last = page.operations.len() < limit;
            found.extend(page.operations);
            if is_last {
                return Ok(found);
            }
        }
    }

    /// What an operator decides about one operation.
    async fn decide(&self, seq: OperationSeq, action: &str) -> Result<OperationSummary, CliError> {
        let seq = seq.to_string();
        self.ask(Method::POST, &[seq.as_str(), action], &[]).await
    }

    /// One request below `/operations`.
    async fn ask<T: for<'de> Deserialize<'de>>(
        &self,
        method: Method,
        below: &[&str],
        query: &[(&str, &str)],
    ) -> Result<T, CliError> {
        let address = self.access.address;
        let mut path = vec!["operations"];
        path.extend(below);
        let token = Secret::new(format!("Bearer {}", self.access.token.reveal()));
        let call = transport::Call::new(method, &path)
            .query(query)
            .secret_header(header::AUTHORIZATION, &token)
            .map_err(other)?;
        let call = match HeaderValue::from_str(OperatorName::of_this_process().as_str()) {
            Ok(name) => call.header(OPERATOR_NAME, name),
            // An account whose name is no header: the gateway writes `operator`.
            Err(_) => call,
        };
        let by = SystemClock.deadline(PATIENCE);
        let reply = self.client.call(call, by).await.map_err(|error| {
            other(format!(
                "the gateway's admin port {address} does not answer: {error}"
            ))
        })?;
        if reply.status.is_success() {
            return serde_json::from_slice(&reply.body).map_err(|error| unlike(&error));
        }
        Err(other(error_message(&reply.body).unwrap_or_else(|| {
            format!(
                "the gateway's admin port {address} answers {}",
                reply.status
            )
        })))
    }
}

fn error_message(body: &Bytes) -> Option<String> {
    let body: ErrorBody = serde_json::from_slice(body).ok()?;
    Some(body.error)
}

fn unlike(error: &serde_json::Error) -> CliError {
    other(format!(
        "the gateway is of another version and answers in another way: {error}"
    ))
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
