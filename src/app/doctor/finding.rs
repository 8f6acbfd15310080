//! What an examination finds, and how it is reported.

use std::fmt::Write as _;

use serde::Deserialize;
use serde::Serialize;

/// One thing that is wrong, or about to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The check that found it, a bounded word.
    pub check: String,
    /// What was found.
    pub what: String,
    /// Why it matters.
    pub why: String,
    /// What to do.
    pub remedy: String,
}

impl Finding {
    /// A finding of one check.
    pub(crate) fn new(
        check: &str,
        what: impl Into<String>,
        why: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            check: check.to_owned(),
            what: what.into(),
            why: why.into(),
            remedy: remedy.into(),
        }
    }
}

/// A check that could not be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedCheck {
    /// The check.
    pub check: String,
    /// Why it was not made.
    pub reason: String,
}

/// The result of an examination.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Examination {
    /// The checks that were made, in their order.
    pub checked: Vec<String>,
    /// Those that could not be made.
    pub skipped: Vec<SkippedCheck>,
    /// What was found.
    pub findings: Vec<Finding>,
}

impl Examination {
    /// Notes that a check was made, and what it found.
    pub(crate) fn add(&mut self, check: &str, findings: impl IntoIterator<Item = Finding>) {
        if !self.checked.iter().any(|known| known == check) {
            self.checked.push(check.to_owned());
        }
        for finding in findings {
            if !self.findings.contains(&finding) {
                self.findings.push(finding);
            }
        }
    }

    /// Notes that a check could not be made.
    pub(crate) fn skip(&mut self, check: &str, reason: impl Into<String>) {
        self.skipped.push(SkippedCheck {
            check: check.to_owned(),
            reason: reason.into(),
        });
    }

    /// Adds what another examination found.
    pub fn merge(&mut self, other: Self) {
        for check in other.checked {
            self.add(&check, []);
        }
        self.skipped.extend(other.skipped);
        for finding in other.findings {
            if !self.findings.contains(&finding) {
                self.findings.push(finding);
            }
        }
    }

    /// The report for a person.
    #[must_use]
    pub fn report(&self) -> String {
        let mut text = String::new();
        let mut say = |line: std::fmt::Arguments<'_>| {
            // Writing to a string does not fail.
            writeln!(text, "{line}").unwrap_or_default();
        };
        for finding in &self.findings {
            let Finding {
                check,
                what,
                why,
                remedy,
            } = finding;
            say(format_args!("{check}: {what}"));
            say(format_args!("  why: {why}"));
            say(format_args!("  do:  {remedy}"));
        }
        for SkippedCheck { check, reason } in &self.skipped {
            say(format_args!("not checked: {check}: {reason}"));
        }
        say(format_args!("checked: {}", self.checked.join(", ")));
        match self.findings.len() {
            0 => say(format_args!("no findings")),
            1 => say(format_args!("1 finding")),
            more => say(format_args!("{more} findings")),
        }
        text
    }
}
