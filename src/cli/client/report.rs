//! What a command of the client prints: text and a progress bar for people, one record a line for programs.
//!
//! A standard output that cannot be written to changes nothing about the operation: the exit status remains the answer.

use std::io;
use std::time::Duration;

use rustix::termios::isatty;
use serde_json::Value;
use serde_json::json;

use crate::cli::client::connection::Format;
use crate::cli::client::ending::Ending;
use crate::cli::client::progress::Bar;
use crate::cli::client::progress::Estimate;
use crate::cli::client::text::printable;
use crate::cli::output::Output;
use crate::client::ClientError;
use crate::client::Observer;
use crate::client::Outcome;
use crate::client::Status;

/// Prints what happens.
pub(super) struct Report<'o, 'w> {
    output: &'o mut Output<'w>,
    format: Format,
    bar: Option<Bar>,
    /// What is known beforehand about the operation.
    pub(super) estimate: Estimate,
    /// Whether the end of the operation is waited for: then each step is shown.
    pub(super) waits: bool,
    /// The Status that was seen last.
    pub(super) last: Option<Status>,
    /// The key of the change, for a repetition by hand.
    pub(super) idempotency_key: Option<String>,
    /// Whether an interruption was reported that is not over.
    is_interrupted: bool,
}

impl<'o, 'w> Report<'o, 'w> {
    pub(super) fn new(output: &'o mut Output<'w>, format: Format) -> Self {
        Self {
            output,
            format,
            bar: None,
            estimate: Estimate::default(),
            waits: false,
            last: None,
            idempotency_key: None,
            is_interrupted: false,
        }
    }

    /// Prints text for people.
    pub(super) fn text(&mut self, text: &str) {
        if self.format == Format::Text {
            drop(self.output.print(text));
        }
    }

    /// Prints a message for people beside what was asked for.
    pub(super) fn note(&mut self, text: &str) {
        if self.format == Format::Text {
            drop(self.output.complain(text));
        }
    }

    /// Asks a question that waits for an answer on its line.
    pub(super) fn ask(&mut self, text: &str) {
        drop(self.output.ask(text));
    }

    /// Prints a record for programs.
    pub(super) fn record(&mut self, record: &Value) {
        if self.format == Format::Json {
            drop(self.output.print(&format!("{record}\n")));
        }
    }

    /// The change was accepted.
    pub(super) fn accepted(&mut self, status: &Status) {
        let record = json!({
            "record": "accepted", "status": status.json, "idempotency_key": self.idempotency_key,
        });
        self.record(&record);
        self.last = Some(status.clone());
        if self.waits && status.outcome() == Outcome::Unfinished {
            self.show_step(status);
        }
    }

    /// One step of an operation that is waited for.
    fn show_step(&mut self, status: &Status) {
        let is_terminal = isatty(io::stderr());
        match &self.bar {
            Some(bar) => bar.show(status),
            None if self.format == Format::Text && is_terminal => {
                self.bar = Some(Bar::begin(&self.estimate, status));
            }
            None => {
                let line = step_line(status);
                self.note(&line);
            }
        }
    }

    /// Prints how the command ended.
    pub(super) fn end(&mut self, ending: &Ending) {
        if let Some(bar) = self.bar.take() {
            bar.end();
        }
        let record = ending.record(self.idempotency_key.as_deref());
        self.record(&record);
        match ending {
            Ending::Done => {}
            Ending::Accepted(status) => {
                let uri = printable(&status.status_uri);
                self.text(&format!(
                    "accepted: {}\nfollow it with: snapgate status wait '{uri}'\n",
                    step_line(status)
                ));
            }
            Ending::Ended(status) => {
                let message = status.message.as_deref().unwrap_or("It has ended.");
                let line = format!("{}: {}", step_line(status), printable(message));
                match status.outcome() {
                    Outcome::Succeeded => self.text(&format!("{line}\n")),
                    Outcome::Failed | Outcome::Unknown | Outcome::Unfinished => self.note(&line),
                }
            }
            Ending::StillRunning(status) => {
                self.note(&format!("still running: {}", step_line(status)));
                self.say_how_to_go_on(Some(status));
            }
            Ending::Lost(status, error) => {
                self.note(&format!("snapgate: {}", printable(&error.to_string())));
                self.note("the operation was accepted, and its outcome is not known here");
                self.say_how_to_go_on(status.as_ref());
            }
            Ending::Detached(status) => {
                self.note("detached: nothing was cancelled");
                self.say_how_to_go_on(status.as_ref());
            }
            Ending::Declined(why) => self.note(&format!("snapgate: {}", printable(why))),
            Ending::Failed(error) => {
                self.note(&format!("snapgate: {}", printable(&error.to_string())));
                if let ClientError::Unreachable { was_sent: true, .. } = error {
                    self.say_how_to_go_on(None);
                }
            }
        }
    }

    /// How a person gets back to an operation that goes on, or to one that may have been accepted.
    fn say_how_to_go_on(&mut self, status: Option<&Status>) {
        match (status, self.idempotency_key.clone()) {
            (Some(status), _) => {
                let uri = printable(&status.status_uri);
                self.note(&format!(
                    "status_uri: {uri}\nfollow it with: snapgate status wait '{uri}'"
                ));
            }
            (None, Some(key)) => self.note(&format!(
                "the change may have been accepted; the same command with --idempotency-key {key} finds it, and does nothing twice"
            )),
            (None, None) => {}
        }
    }
}

impl Observer for Report<'_, '_> {
    fn on_interruption(&mut self, why: &str, pause: Duration) {
        let pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        self.record(&json!({ "record": "retry", "reason": why, "pause_ms": pause_ms }));
        match &self.bar {
            Some(bar) => bar.interrupt(why),
            // Once for each time that the gateway is away: the tries in between are nothing new.
            None if !self.is_interrupted => {
                self.note(&format!(
                    "connection lost, trying again: {}",
                    printable(why)
                ));
            }
            None => {}
        }
        self.is_interrupted = true;
    }

    fn on_status(&mut self, status: &Status) {
        self.is_interrupted = false;
        self.record(&json!({ "record": "progress", "status": status.json }));
        self.last = Some(status.clone());
        if status.outcome() == Outcome::Unfinished {
            self.show_step(status);
        }
    }
}

/// One line about an operation.
pub(super) fn step_line(status: &Status) -> String {
    let what = match status.target() {
        Some((vm, backup)) => format!("VM {vm:?}, backup {backup:?}"),
        None => printable(&status.target_uri),
    };
    let state = status.state.as_deref().unwrap_or("RUNNING");
    let (op, state) = (printable(&status.op), printable(state));
    format!("{op} of {what}: {state} {} %", status.progress)
}
