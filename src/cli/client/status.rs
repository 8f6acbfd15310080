//! `snapgate status`: operations, waiting for them, and cancelling them.

use std::fmt::Write as _;
use std::ops::ControlFlow;
use std::time::Duration;

use clap::Args;
use clap::Subcommand;
use serde_json::json;

use crate::cli::CliError;
use crate::cli::client::connection::ConnectionArguments;
use crate::cli::client::ending::Ending;
use crate::cli::client::report::Report;
use crate::cli::client::report::step_line;
use crate::cli::client::run::CommandResult;
use crate::cli::client::run::Context;
use crate::cli::client::run::WAIT_FOREVER;
use crate::cli::client::run::WaitFor;
use crate::cli::client::run::parse_wait;
use crate::cli::client::run::run_client;
use crate::cli::client::text::printable;
use crate::cli::client::text::table;
use crate::cli::output::Output;
use crate::client::ClientError;
use crate::client::Observer;
use crate::client::Outcome;
use crate::client::Status;
use crate::client::Watcher;
use crate::client::path_of;
use crate::client::watch;
use crate::client::with_query;

/// `snapgate status`.
#[derive(Args, Debug)]
pub(in crate::cli) struct StatusArguments {
    #[command(flatten)]
    connection: ConnectionArguments,
    #[command(subcommand)]
    command: StatusCommand,
}

#[derive(Debug, Subcommand)]
enum StatusCommand {
    /// List the operations that you may see, newest first
    List {
        #[command(flatten)]
        filter: StatusFilter,
        /// Only operations in this state, for instance RUNNING
        #[arg(long, value_name = "STATE")]
        state: Option<String>,
        /// At most this many
        #[arg(long, value_name = "N", default_value_t = 50)]
        limit: usize,
    },
    /// Show one operation
    Show {
        /// Number or status_uri of the operation
        status: String,
    },
    /// Wait for the end of an operation; the exit status is its outcome
    Wait {
        /// Number or status_uri of the operation
        status: String,
        /// Wait no longer than this
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
        timeout: Option<Duration>,
    },
    /// Cancel an operation
    Cancel {
        /// Number or status_uri of the operation
        status: String,
        /// Wait for the end, at most for this duration if there is one
        #[arg(long, value_name = "DURATION", num_args = 0..=1, require_equals = true, default_missing_value = WAIT_FOREVER, value_parser = parse_wait)]
        wait: Option<WaitFor>,
    },
    /// Follow every operation that you may see, until Ctrl-C
    Watch {
        #[command(flatten)]
        filter: StatusFilter,
        /// End after this many changes
        #[arg(long, value_name = "N")]
        limit: Option<u64>,
    },
}

/// Which operations are meant.
#[derive(Args, Debug)]
struct StatusFilter {
    /// Only operations on this VM (id)
    #[arg(long, value_name = "ID")]
    vm: Option<String>,
    /// Only this kind: back_up, update-Backup, delete-Backup or restore-Backup
    #[arg(long, value_name = "KIND")]
    op: Option<String>,
    /// Only operations of this caller; `me` for your own
    #[arg(long, value_name = "NAME")]
    principal: Option<String>,
}

impl StatusFilter {
    fn pairs(&self) -> Vec<(&str, &str)> {
        let all = [
            ("vm", self.vm.as_deref()),
            ("op", self.op.as_deref()),
            ("principal", self.principal.as_deref()),
        ];
        all.into_iter()
            .filter_map(|(name, value)| Some((name, value?)))
            .collect()
    }
}

/// Runs `snapgate status`.
pub(in crate::cli) fn run_status(
    arguments: StatusArguments,
    output: &mut Output<'_>,
) -> Result<(), CliError> {
    let StatusArguments {
        connection,
        command,
    } = arguments;
    run_client(&connection, output, move |context| {
        Box::pin(execute(command, context))
    })
}

async fn execute(command: StatusCommand, context: &mut Context<'_, '_>) -> CommandResult {
    match command {
        StatusCommand::List {
            filter,
            state,
            limit,
        } => list(context, &filter, state.as_deref(), limit).await,
        StatusCommand::Show { status } => show(context, &status).await,
        StatusCommand::Wait { status, timeout } => {
            let wait = timeout.map_or(WaitFor::End, WaitFor::Time);
            wait_for_end(context, &status, wait).await
        }
        StatusCommand::Cancel { status, wait } => cancel(context, &status, wait).await,
        StatusCommand::Watch { filter, limit } => {
            let target = with_query(path_of(&["statuses"])?, &filter.pairs());
            let mut printer = Printer {
                report: &mut context.report,
                left: limit,
            };
            watch(&context.gateway, target, &mut printer).await?;
            Ok(Ending::Done)
        }
    }
}

/// The path and query of a Status, from its number or its link.
fn target_of(context: &Context<'_, '_>, text: &str) -> Result<String, ClientError> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(with_query(path_of(&["statuses"])?, &[("seq", text)]));
    }
    Ok(context.gateway.url().link_target(text)?)
}

async fn list(
    context: &mut Context<'_, '_>,
    filter: &StatusFilter,
    state: Option<&str>,
    limit: usize,
) -> CommandResult {
    let mut pairs = filter.pairs();
    pairs.extend(state.map(|state| ("state", state)));
    let found = context
        .gateway
        .list_statuses(&pairs, limit, &mut context.report);
    let mut rows = Vec::new();
    for status in found.await? {
        let record = json!({ "record": "status", "status": status.json });
        context.report.record(&record);
        let (vm, backup) = status.target().unwrap_or_default();
        rows.push(vec![
            status.seq.clone().unwrap_or_else(|| "-".to_owned()),
            status.op.clone(),
            vm,
            backup,
            status.state.clone().unwrap_or_else(|| "-".to_owned()),
            format!("{} %", status.progress),
            status.created.clone().unwrap_or_else(|| "-".to_owned()),
            status.message.clone().unwrap_or_default(),
        ]);
    }
    let heads = [
        "NUMBER",
        "OPERATION",
        "VM",
        "BACKUP",
        "STATE",
        "DONE",
        "ACCEPTED",
        "MESSAGE",
    ];
    context.report.text(&table(&heads, &rows));
    Ok(Ending::Done)
}

async fn show(context: &mut Context<'_, '_>, text: &str) -> CommandResult {
    let target = target_of(context, text)?;
    let status = context.gateway.read_status(&target, &mut context.report);
    let status = status.await?;
    let record = json!({ "record": "status", "status": status.json });
    context.report.record(&record);
    let mut text = String::new();
    // Every member as it came, so that those of later versions are seen too.
    for (name, value) in status.json.as_object().into_iter().flatten() {
        let value = match value.as_str() {
            Some(value) => value.to_owned(),
            None => value.to_string(),
        };
        let _infallible = writeln!(text, "{:<11} {}", printable(name), printable(&value));
    }
    context.report.text(&text);
    Ok(Ending::Done)
}

async fn wait_for_end(context: &mut Context<'_, '_>, text: &str, wait: WaitFor) -> CommandResult {
    let begun = tokio::time::Instant::now();
    let target = target_of(context, text)?;
    let status = context.gateway.read_status(&target, &mut context.report);
    let status = status.await?;
    context.report.waits = true;
    context.report.on_status(&status);
    let until = match wait {
        WaitFor::End => None,
        WaitFor::Time(time) => begun.checked_add(time),
    };
    Ok(context.follow(status, until).await)
}

async fn cancel(context: &mut Context<'_, '_>, text: &str, wait: Option<WaitFor>) -> CommandResult {
    let begun = tokio::time::Instant::now();
    let target = target_of(context, text)?;
    let status = context.gateway.cancel(&target, &mut context.report).await?;
    let until = match wait {
        None if status.outcome() == Outcome::Unfinished => return Ok(Ending::Accepted(status)),
        None => None,
        Some(WaitFor::End) => None,
        Some(WaitFor::Time(time)) => begun.checked_add(time),
    };
    let ending = context.follow(status, until).await;
    let cancelled = ending.status().filter(|status| {
        let is_cancelled = status.state.as_deref() == Some("CANCELLED");
        is_cancelled && status.outcome() == Outcome::Failed
    });
    // What was asked for here is the cancelling, and it took place.
    Ok(match cancelled {
        Some(status) => {
            let text = format!("{}\n", step_line(status));
            context.report.text(&text);
            context
                .report
                .record(&json!({ "record": "status", "status": status.json }));
            Ending::Done
        }
        None => ending,
    })
}

/// Prints each change.
struct Printer<'p, 'o, 'w> {
    report: &'p mut Report<'o, 'w>,
    /// How many changes are printed before the end.
    left: Option<u64>,
}

impl Observer for Printer<'_, '_, '_> {
    fn on_interruption(&mut self, why: &str, pause: Duration) {
        self.report.on_interruption(why, pause);
    }

    fn on_status(&mut self, status: &Status) {
        self.report.on_status(status);
    }
}

impl Watcher for Printer<'_, '_, '_> {
    fn on_change(&mut self, status: &Status) -> ControlFlow<()> {
        let record = json!({ "record": "progress", "status": status.json });
        self.report.record(&record);
        let message = status.message.as_deref().unwrap_or_default();
        let seq = status.seq.as_deref().unwrap_or("-");
        let line = format!(
            "{} {} {}",
            printable(seq),
            step_line(status),
            printable(message)
        );
        self.report.text(&format!("{}\n", line.trim_end()));
        let Some(left) = &mut self.left else {
            return ControlFlow::Continue(());
        };
        *left = left.saturating_sub(1);
        if *left == 0 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }

    fn on_reset(&mut self) {
        self.report.record(&json!({ "record": "reset" }));
        self.report
            .note("snapgate: the stream began anew; what ended in between may be missing");
    }
}
