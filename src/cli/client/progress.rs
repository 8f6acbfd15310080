//! The progress bar of a terminal: state, percent, size, time so far, and the time left only where there is a reason to know it.

use std::fmt::Write;
use std::time::Duration;

use indicatif::ProgressBar;
use indicatif::ProgressDrawTarget;
use indicatif::ProgressState;
use indicatif::ProgressStyle;

use crate::cli::client::text::printable;
use crate::cli::client::text::size;
use crate::client::Plan;
use crate::client::Status;

/// How often the time on the bar moves on.
const TICK: Duration = Duration::from_millis(250);
/// Percent and time that must have passed before a rate means anything.
const RATE_PERCENT_MIN: u64 = 5;
const RATE_TIME_MIN: Duration = Duration::from_secs(3);

/// What is known beforehand about an operation.
#[derive(Clone, Debug, Default)]
pub(super) struct Estimate {
    /// How long it may take, and what that is known from.
    duration: Option<(Duration, String)>,
    /// How many bytes it writes.
    bytes: Option<u64>,
}

impl Estimate {
    /// What a plan says.
    pub(super) fn of_plan(plan: &Plan) -> Self {
        let known = plan.duration.as_ref();
        let sizes = plan.overwrites.iter().map(|disk| disk.size);
        // One disk of unknown size makes the sum unknown.
        let bytes: Option<u64> = sizes.sum();
        Self {
            duration: known.map(|known| {
                let time = Duration::from_secs(known.seconds);
                (time, printable(&known.basis))
            }),
            bytes: bytes.filter(|bytes| *bytes > 0),
        }
    }

    /// The time left and what that is known from; nothing where it would be a guess.
    fn time_left(&self, first: u64, now: u64, elapsed: Duration) -> Option<String> {
        if let Some((whole, basis)) = &self.duration
            && let Some(left) = whole.checked_sub(elapsed)
            && !left.is_zero()
        {
            return Some(format!("about {} s left ({basis})", left.as_secs().max(1)));
        }
        let done = now.checked_sub(first)?;
        let left = 100_u64.checked_sub(now)?;
        if done < RATE_PERCENT_MIN || elapsed < RATE_TIME_MIN || left == 0 {
            return None;
        }
        let seconds = elapsed.as_secs().saturating_mul(left).checked_div(done)?;
        Some(format!("about {} s left (rate so far)", seconds.max(1)))
    }
}

/// The bar of one operation.
pub(super) struct Bar {
    bar: ProgressBar,
    size: String,
}

impl Bar {
    /// A bar on standard error, which must be a terminal.
    pub(super) fn begin(estimate: &Estimate, first: &Status) -> Self {
        let bar = ProgressBar::with_draw_target(Some(100), ProgressDrawTarget::stderr());
        bar.set_style(style(estimate.clone(), u64::from(first.progress)));
        bar.enable_steady_tick(TICK);
        let size = estimate.bytes.map(|bytes| format!(" {}", size(bytes)));
        let shown = Self {
            bar,
            size: size.unwrap_or_default(),
        };
        shown.show(first);
        shown
    }

    /// Shows the Status.
    pub(super) fn show(&self, status: &Status) {
        let state = status.state.as_deref().unwrap_or("RUNNING");
        self.bar
            .set_message(format!("{}{}", printable(state), self.size));
        self.bar.set_position(u64::from(status.progress));
    }

    /// Says that the gateway does not answer.
    pub(super) fn interrupt(&self, why: &str) {
        self.bar
            .set_message(format!("connection lost, trying again: {}", printable(why)));
    }

    /// Takes the bar away.
    pub(super) fn end(&self) {
        self.bar.finish_and_clear();
    }
}

fn style(estimate: Estimate, first: u64) -> ProgressStyle {
    let left = move |state: &ProgressState, text: &mut dyn Write| {
        let left = estimate.time_left(first, state.pos(), state.elapsed());
        // The bar has no one to report an error to.
        let _unreported = text.write_str(&left.unwrap_or_default());
    };
    let style = ProgressStyle::with_template("[{bar:30}] {pos:>3} % {msg} {elapsed} {left}");
    style
        .unwrap_or_else(|_invalid| ProgressStyle::default_bar())
        .progress_chars("=> ")
        .with_key("left", left)
}

#[cfg(test)]
mod tests {
    use crate::client::PlannedDisk;
    use crate::client::PlannedDuration;

    use super::*;

    #[test]
    fn the_time_left_is_shown_with_its_basis_or_not_at_all() {
        let planned = Estimate::of_plan(&Plan {
            duration: Some(PlannedDuration {
                seconds: 60,
                basis: "history".to_owned(),
            }),
            ..Plan::default()
        });
        let unplanned = Estimate::default();
        let rows = [
            (&planned, 0, 10, 20, Some("about 40 s left (history)")),
            // Longer than planned: the rate is all there is.
            (&planned, 0, 50, 80, Some("about 80 s left (rate so far)")),
            (&unplanned, 0, 50, 10, Some("about 10 s left (rate so far)")),
            (&unplanned, 0, 50, 1, None),
            (&unplanned, 0, 4, 100, None),
            // Progress before the waiting began says nothing about the rate.
            (&unplanned, 48, 50, 100, None),
            (&unplanned, 0, 100, 100, None),
        ];
        for (estimate, first, now, seconds, expected) in rows {
            let elapsed = Duration::from_secs(seconds);
            let left = estimate.time_left(first, now, elapsed);
            assert_eq!(left.as_deref(), expected, "{now} % after {seconds} s");
        }
    }

    #[test]
    fn bytes_are_those_of_all_disks_or_unknown() {
        let disk = |size| PlannedDisk {
            disk: "a".to_owned(),
            size,
        };
        let estimate = |disks: Vec<PlannedDisk>| {
            Estimate::of_plan(&Plan {
                overwrites: disks,
                ..Plan::default()
            })
        };
        assert_eq!(estimate(vec![disk(Some(2)), disk(Some(3))]).bytes, Some(5));
        assert_eq!(estimate(vec![disk(Some(2)), disk(None)]).bytes, None);
        assert_eq!(estimate(Vec::new()).bytes, None);
    }
}
