//! Runs one command of the client to its end, a signal or the end of the wait.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use crate::cli::CliError;
use crate::cli::client::connection::ConnectionArguments;
use crate::cli::client::connection::Format;
use crate::cli::client::connection::find_connection;
use crate::cli::client::ending::Ending;
use crate::cli::client::report::Report;
use crate::cli::output::Output;
use crate::client::ChangeRequest;
use crate::client::ClientError;
use crate::client::Connection;
use crate::client::Follower;
use crate::client::Gateway;
use crate::client::Outcome;
use crate::client::Status;
use crate::client::new_idempotency_key;
use crate::config;
use crate::runtime::Signals;

/// How a command ends, or why it gets no further.
pub(super) type CommandResult = Result<Ending, ClientError>;

/// A command that is running.
pub(super) type CommandFuture<'r> = Pin<Box<dyn Future<Output = CommandResult> + 'r>>;

/// What a command works with.
pub(super) struct Context<'o, 'w> {
    /// The gateway.
    pub(super) gateway: Gateway,
    /// What is printed.
    pub(super) report: Report<'o, 'w>,
}

/// How long the end of an operation is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum WaitFor {
    /// Until it has ended.
    End,
    /// That long.
    Time(Duration),
}

/// What `--wait` without a value stands for.
pub(super) const WAIT_FOREVER: &str = "forever";

/// Reads the value of `--wait`.
pub(super) fn parse_wait(text: &str) -> Result<WaitFor, String> {
    if text == WAIT_FOREVER {
        return Ok(WaitFor::End);
    }
    let time = humantime::parse_duration(text);
    time.map(WaitFor::Time)
        .map_err(|error| format!("expected a duration such as 90s or 10m: {error}"))
}

/// Runs the command against the gateway that the options name, and prints how it ended.
///
/// # Errors
/// [`CliError::Ended`] with the exit status when that is not zero; everything was printed.
pub(super) fn run_client(
    arguments: &ConnectionArguments,
    output: &mut Output<'_>,
    command: impl for<'r> FnOnce(&'r mut Context<'_, '_>) -> CommandFuture<'r>,
) -> Result<(), CliError> {
    let connection = find_connection(arguments, &config::environment);
    run_on(connection, arguments.output, output, command)
}

/// The same with a connection that was found.
///
/// # Errors
/// As [`run_client`].
pub(super) fn run_on(
    connection: Result<Connection, ClientError>,
    format: Format,
    output: &mut Output<'_>,
    command: impl for<'r> FnOnce(&'r mut Context<'_, '_>) -> CommandFuture<'r>,
) -> Result<(), CliError> {
    let report = Report::new(output, format);
    let mut context = match connection.and_then(Gateway::new) {
        Ok(gateway) => Context { gateway, report },
        Err(error) => return finish(report, &Ending::Failed(error)),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let ended = runtime.block_on(async {
        let mut signals = Signals::new()?;
        let running = command(&mut context);
        Ok::<_, CliError>(tokio::select! {
            biased;
            ended = running => Some(ended),
            // Whichever it is: the terminal is gone, or the person wants to be. The operation goes on.
            _signal = signals.next() => None,
        })
    })?;
    // A question that was not answered still holds a thread.
    runtime.shutdown_background();
    let Context { report, .. } = context;
    let ending = match ended {
        Some(Ok(ending)) => ending,
        Some(Err(error)) => Ending::Failed(error),
        None => Ending::Detached(report.last.clone()),
    };
    finish(report, &ending)
}

/// Prints how a command ended.
///
/// # Errors
/// [`CliError::Ended`] with the exit status when that is not zero.
pub(super) fn finish(mut report: Report<'_, '_>, ending: &Ending) -> Result<(), CliError> {
    report.end(ending);
    match ending.exit() {
        0 => Ok(()),
        status => Err(CliError::Ended(status)),
    }
}

impl Context<'_, '_> {
    /// Sends a change, and waits for its end if that is asked for.
    pub(super) async fn carry_out(
        &mut self,
        change: ChangeRequest,
        key: &str,
        wait: Option<WaitFor>,
    ) -> CommandResult {
        self.report.idempotency_key = Some(key.to_owned());
        self.report.waits = wait.is_some();
        let begun = tokio::time::Instant::now();
        let status = self.gateway.submit(&change, &mut self.report).await?;
        self.report.accepted(&status);
        if status.outcome() != Outcome::Unfinished {
            return Ok(Ending::Ended(status));
        }
        Ok(match wait {
            None => Ending::Accepted(status),
            Some(WaitFor::End) => self.follow(status, None).await,
            Some(WaitFor::Time(time)) => self.follow(status, begun.checked_add(time)).await,
        })
    }

    /// Waits for the end of an operation that was accepted.
    pub(super) async fn follow(
        &mut self,
        status: Status,
        until: Option<tokio::time::Instant>,
    ) -> Ending {
        self.report.waits = true;
        let mut follower = match Follower::of_status(&self.gateway, status.clone()) {
            Ok(follower) => follower,
            Err(error) => return Ending::Lost(Some(status), error),
        };
        let ended = match until {
            Some(until) => {
                let running = follower.run(&mut self.report);
                tokio::time::timeout_at(until, running).await.ok()
            }
            None => Some(follower.run(&mut self.report).await),
        };
        let last = follower.last().cloned().unwrap_or(status);
        match ended {
            Some(Ok(status)) => Ending::Ended(status),
            Some(Err(error)) => Ending::Lost(Some(last), error),
            None => Ending::StillRunning(last),
        }
    }

    /// Adds to a refusal for want of a right what to ask for.
    pub(super) async fn explain_refusal(
        &mut self,
        error: ClientError,
        actions: &[&str],
        vm: &str,
        backup: Option<&str>,
    ) -> ClientError {
        let ClientError::Refused(mut refusal) = error else {
            return error;
        };
        if refusal.code == "NotPermitted" && refusal.hint.is_none() {
            let found = self
                .gateway
                .read_permissions(Some(vm), backup, &mut self.report);
            // A server that does not say leaves the refusal as it is.
            let missing = found.await.ok().and_then(|permissions| {
                let mut missing = permissions.into_iter().filter(|permission| {
                    !permission.allowed && actions.contains(&permission.action.as_str())
                });
                missing.next()
            });
            refusal.hint = missing.and_then(|permission| permission.reason);
        }
        ClientError::Refused(refusal)
    }
}

/// The key that was given, or a new one.
pub(super) fn idempotency_key(given: Option<&str>) -> Result<String, ClientError> {
    given.map_or_else(new_idempotency_key, |key| Ok(key.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_durations_or_last_for_ever() {
        let rows = [
            (WAIT_FOREVER, Ok(WaitFor::End)),
            ("90s", Ok(WaitFor::Time(Duration::from_secs(90)))),
            ("1h 30m", Ok(WaitFor::Time(Duration::from_secs(5400)))),
        ];
        for (text, expected) in rows {
            assert_eq!(parse_wait(text), expected, "{text}");
        }
        assert!(parse_wait("90").is_err(), "no unit");
    }
}
