//! One frame of `snapgate top`, as text.

use std::time::Duration;

use crate::cli::top::sample::Sample;
use crate::operations::OperationSummary;

/// What a frame is made from: two samples, the time between them, and the operations.
#[derive(Debug)]
pub(super) struct View<'a> {
    pub(super) before: &'a Sample,
    pub(super) now: &'a Sample,
    pub(super) between: Duration,
    /// Seconds since 1970.
    pub(super) unix_seconds: f64,
    /// What `/readyz` says.
    pub(super) ready: &'a str,
    pub(super) operations: &'a [OperationSummary],
}

impl View<'_> {
    /// Growth of a counter per second.
    fn rate(&self, read: impl Fn(&Sample) -> f64) -> f64 {
        let seconds = self.between.as_secs_f64().max(0.001);
        ((read(self.now) - read(self.before)) / seconds).max(0.0)
    }

    /// The mean of a histogram since the sample before, in milliseconds.
    fn mean_ms(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let (sum, count) = (format!("{name}_sum"), format!("{name}_count"));
        let sums = self.rate(|sample| sample.sum(&sum, labels));
        let counts = self.rate(|sample| sample.sum(&count, labels));
        (counts > 0.0).then(|| sums / counts * 1000.0)
    }

    /// The lines of the frame.
    pub(super) fn lines(&self) -> Vec<String> {
        let mut lines = self.summary();
        lines.push(String::new());
        lines.extend(self.backends());
        lines.push(String::new());
        lines.extend(self.operations());
        lines
    }

    fn summary(&self) -> Vec<String> {
        let gauge = |name: &str| self.now.sum(name, &[]);
        let version = self
            .now
            .values_of("snapgate_build_info", "version")
            .concat();
        let up = (self.unix_seconds - gauge("process_start_time_seconds")).max(0.0);
        let up = Duration::try_from_secs_f64(up.floor()).unwrap_or_default();
        let cpu = self.rate(|sample| sample.sum("process_cpu_seconds_total", &[])) * 100.0;
        let memory = gauge("process_resident_memory_bytes") / (1024.0 * 1024.0);
        let requests = self.rate(|sample| sample.sum("snapgate_requests_total", &[]));
        let refused = self.rate(|sample| sample.sum("snapgate_refusals_total", &[]));
        let failed = self.rate(|sample| {
            sample.sum_where("snapgate_requests_total", "code", |code| {
                code.starts_with('5')
            })
        });
        let mean = self.mean_ms("snapgate_request_duration_seconds", &[]);
        vec![
            format!(
                "snapgate {version}   up {}   {}   cpu {cpu:.1} %   memory {memory:.0} MiB",
                humantime::format_duration(up),
                self.ready.trim()
            ),
            format!(
                "requests {requests:.1}/s   refused {refused:.1}/s   5xx {failed:.1}/s   mean {} ms   connections {:.0}   waiting {:.0}",
                shown_mean(mean),
                gauge("snapgate_connections"),
                gauge("snapgate_waiters")
            ),
        ]
    }

    fn backends(&self) -> Vec<String> {
        let row = |cells: [&str; 7]| {
            let [name, state, queued, running, calls, failed, mean] = cells;
            format!(
                "{name:<20} {state:<12} {queued:>7} {running:>7} {calls:>8} {failed:>9} {mean:>8}"
            )
        };
        let mut lines = vec![row([
            "BACKEND", "STATE", "QUEUED", "RUNNING", "CALLS/S", "FAILED/S", "MEAN MS",
        ])];
        for name in self.now.values_of("snapgate_backend_up", "backend") {
            let label = [("backend", name.as_str())];
            let depth = |state: &str| {
                let labels = [("backend", name.as_str()), ("state", state)];
                format!("{:.0}", self.now.sum("snapgate_queue_depth", &labels))
            };
            let calls = |sample: &Sample| sample.sum("snapgate_backend_calls_total", &label);
            let good = |sample: &Sample| {
                let labels = [("backend", name.as_str()), ("result", "ok")];
                sample.sum("snapgate_backend_calls_total", &labels)
            };
            let (all, failed) = (
                self.rate(calls),
                self.rate(|sample| calls(sample) - good(sample)),
            );
            let is_up = self.now.sum("snapgate_backend_up", &label) > 0.0;
            let is_open = self.now.sum("snapgate_backend_breaker_state", &label) > 1.5;
            let state = match (is_up, is_open) {
                (_, true) => "breaker open",
                (true, false) => "up",
                (false, false) => "down",
            };
            let mean = self.mean_ms("snapgate_backend_call_duration_seconds", &label);
            lines.push(row([
                &printable(&name),
                state,
                &depth("queued"),
                &depth("running"),
                &format!("{all:.1}"),
                &format!("{failed:.1}"),
                &shown_mean(mean),
            ]));
        }
        lines
    }

    fn operations(&self) -> Vec<String> {
        let row = |cells: [&str; 7]| {
            let [seq, phase, verb, backend, vm, backup, caller] = cells;
            format!("{seq:<20} {phase:<12} {verb:<8} {backend:<12} {vm:<16} {backup:<20} {caller}")
        };
        let mut lines = vec![row([
            "OPERATION",
            "PHASE",
            "KIND",
            "BACKEND",
            "VM",
            "BACKUP",
            "CALLER",
        ])];
        for operation in self.operations {
            lines.push(row([
                &operation.seq.to_string(),
                &operation.phase,
                &operation.verb,
                &printable(&operation.backend),
                &printable(&operation.vm),
                &printable(&operation.backup),
                &printable(&operation.principal),
            ]));
        }
        if self.operations.is_empty() {
            lines.push("none is unfinished".to_owned());
        }
        lines
    }
}

fn shown_mean(mean: Option<f64>) -> String {
    mean.map_or_else(|| "-".to_owned(), |mean| format!("{mean:.1}"))
}

/// Text that others chose, without what a terminal would act on.
fn printable(text: &str) -> String {
    let shown = |character: char| {
        if character.is_control() || ('\u{2028}'..='\u{202e}').contains(&character) {
            '?'
        } else {
            character
        }
    };
    text.chars().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_shows_rates_backends_and_operations() {
        let text = |requests: u32, calls: u32| {
            format!(
                "snapgate_build_info{{version=\"1.2.3\"}} 1\nprocess_start_time_seconds 1000\n\
                 snapgate_requests_total{{code=\"200\"}} {requests}\n\
                 snapgate_backend_up{{backend=\"lab\"}} 0\nsnapgate_backend_breaker_state{{backend=\"lab\"}} 0\n\
                 snapgate_backend_calls_total{{backend=\"lab\",result=\"timeout\"}} {calls}\n\
                 snapgate_queue_depth{{backend=\"lab\",state=\"queued\"}} 3\n"
            )
        };
        let (before, now) = (Sample::parse(&text(100, 0)), Sample::parse(&text(120, 4)));
        let view = View {
            before: &before,
            now: &now,
            between: Duration::from_secs(2),
            unix_seconds: 1090.0,
            ready: "ready\n",
            operations: &[],
        };
        let lines = view.lines();
        let all = lines.join("\n");
        for expected in [
            "snapgate 1.2.3   up 1m 30s   ready",
            "requests 10.0/s",
            "lab                  down               3       0      2.0       2.0        -",
            "none is unfinished",
        ] {
            assert!(all.contains(expected), "{expected}: {all}");
        }
    }

    #[test]
    fn texts_of_others_cannot_steer_the_terminal() {
        assert_eq!(printable("a\u{1b}[2J\u{9b}\u{202e}b"), "a?[2J??b");
    }
}
