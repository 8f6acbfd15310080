//! The time of log lines: of an access line the end of its request, of all others the present.

use std::cell::Cell;
use std::fmt;
use std::time::Duration;
use std::time::SystemTime;

use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::fmt::time::SystemTime as Present;

use crate::model::Timestamp;

thread_local! {
    /// The time of the line that is being formatted, if it is not the present.
    static GIVEN: Cell<Option<Timestamp>> = const { Cell::new(None) };
}

/// Formats the time of lines: RFC 3339 in UTC with microseconds.
#[derive(Clone, Copy, Debug)]
pub(in crate::telemetry) struct LineTime;

impl LineTime {
    /// Runs `work`, whose lines have this time.
    pub(super) fn within(time: Timestamp, work: impl FnOnce()) {
        GIVEN.set(Some(time));
        work();
        GIVEN.set(None);
    }
}

impl FormatTime for LineTime {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let Some(given) = GIVEN.get() else {
            return Present.format_time(writer);
        };
        let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(given.as_millis()));
        let time = time.unwrap_or(SystemTime::UNIX_EPOCH);
        write!(writer, "{}", humantime::format_rfc3339_micros(time))
    }
}
