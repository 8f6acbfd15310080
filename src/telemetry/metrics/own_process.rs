//! The standard metrics of a process, read from `/proc` when they are collected: processor time, memory, file descriptors.
//!
//! The collector of the `prometheus` crate counts whole seconds of processor time, which is too coarse for rates over a scrape
//! interval.

use std::fs;

use prometheus::Counter;
use prometheus::Gauge;
use prometheus::core::Collector;
use prometheus::core::Desc;
use prometheus::proto::MetricFamily;
use rustix::process::Resource;

/// Where the fields of `/proc/self/stat` are, counted from the one behind the name of the program.
const USER_TICKS: usize = 11;
const SYSTEM_TICKS: usize = 12;
const START_TICKS: usize = 19;
const VIRTUAL_BYTES: usize = 20;
const RESIDENT_PAGES: usize = 21;

/// Collects the metrics of this process.
#[derive(Debug)]
pub(super) struct OwnProcess {
    cpu_seconds: Counter,
    resident_bytes: Gauge,
    virtual_bytes: Gauge,
    open_fds: Gauge,
    max_fds: Gauge,
    start_time: Gauge,
}

/// What `/proc/self/stat` says.
#[derive(Clone, Copy, Debug, PartialEq)]
struct ProcessStat {
    cpu_ticks: f64,
    start_ticks: f64,
    virtual_bytes: f64,
    resident_pages: f64,
}

impl ProcessStat {
    /// Reads the line. The name of the program is in parentheses and may hold spaces and parentheses itself.
    fn parse(line: &str) -> Option<Self> {
        let (_, fields) = line.rsplit_once(')')?;
        let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
        let number = |place: usize| fields.get(place)?.parse::<f64>().ok();
        Some(Self {
            cpu_ticks: number(USER_TICKS)? + number(SYSTEM_TICKS)?,
            start_ticks: number(START_TICKS)?,
            virtual_bytes: number(VIRTUAL_BYTES)?,
            resident_pages: number(RESIDENT_PAGES)?,
        })
    }
}

/// When the machine was started, in seconds since 1970.
fn parse_boot_time(stat: &str) -> Option<f64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    line.trim().parse().ok()
}

impl OwnProcess {
    pub(super) fn new() -> Result<Self, prometheus::Error> {
        let gauge = |name: &str, help: &str| Gauge::new(name, help);
        Ok(Self {
            cpu_seconds: Counter::new(
                "process_cpu_seconds_total",
                "Processor time of the process, user and system, in seconds.",
            )?,
            resident_bytes: gauge(
                "process_resident_memory_bytes",
                "Memory of the process that is in RAM, in bytes.",
            )?,
            virtual_bytes: gauge(
                "process_virtual_memory_bytes",
                "Address space of the process, in bytes.",
            )?,
            open_fds: gauge("process_open_fds", "Open file descriptors of the process.")?,
            max_fds: gauge(
                "process_max_fds",
                "Limit of open file descriptors of the process.",
            )?,
            start_time: gauge(
                "process_start_time_seconds",
                "Start of the process as a Unix time.",
            )?,
        })
    }

    fn all(&self) -> [&dyn Collector; 6] {
        [
            &self.cpu_seconds,
            &self.resident_bytes,
            &self.virtual_bytes,
            &self.open_fds,
            &self.max_fds,
            &self.start_time,
        ]
    }

    /// Sets what can be read. What cannot keeps its last value.
    fn refresh(&self) {
        let stat = fs::read_to_string("/proc/self/stat").ok();
        if let Some(stat) = stat.and_then(|line| ProcessStat::parse(&line)) {
            let ticks = as_number(rustix::param::clock_ticks_per_second());
            // Two scrapes at once may find the counter ahead of what one of them read.
            let cpu = stat.cpu_ticks / ticks - self.cpu_seconds.get();
            self.cpu_seconds.inc_by(cpu.max(0.0));
            self.virtual_bytes.set(stat.virtual_bytes);
            let page = u64::try_from(rustix::param::page_size()).unwrap_or_default();
            self.resident_bytes
                .set(stat.resident_pages * as_number(page));
            let boot = fs::read_to_string("/proc/stat").ok();
            if let Some(boot) = boot.and_then(|stat| parse_boot_time(&stat)) {
                self.start_time.set(boot + stat.start_ticks / ticks);
            }
        }
        if let Ok(open) = fs::read_dir("/proc/self/fd") {
            // Without the one by which they are listed.
            let open = open.count().saturating_sub(1);
            self.open_fds
                .set(as_number(u64::try_from(open).unwrap_or_default()));
        }
        let limit = rustix::process::getrlimit(Resource::Nofile).current;
        self.max_fds.set(limit.map_or(f64::INFINITY, as_number));
    }
}

/// Exact up to 2^53, which none of these numbers reaches.
#[expect(
    clippy::as_conversions,
    clippy::cast_precision_loss,
    reason = "there is no lossless conversion, and far smaller numbers occur"
)]
const fn as_number(number: u64) -> f64 {
    number as f64
}

impl Collector for OwnProcess {
    fn desc(&self) -> Vec<&Desc> {
        self.all()
            .into_iter()
            .flat_map(|metric| metric.desc())
            .collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.refresh();
        let all = self.all().into_iter();
        all.flat_map(|metric| metric.collect()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_the_kernel_is_read_whatever_the_program_is_called() {
        let line = "42 (a) b (c)) S 1 42 42 0 -1 4194560 100 0 3 0 250 50 0 0 20 0 4 0 1234 5000000 77 18446744073709551615";
        let expected = ProcessStat {
            cpu_ticks: 300.0,
            start_ticks: 1234.0,
            virtual_bytes: 5_000_000.0,
            resident_pages: 77.0,
        };
        assert_eq!(ProcessStat::parse(line), Some(expected));
        assert_eq!(ProcessStat::parse("42 (a) S 1"), None, "too short");
        assert_eq!(ProcessStat::parse(""), None, "nothing");
        let stat = "cpu  1 2 3\nbtime 1764460800\nprocesses 5\n";
        assert_eq!(parse_boot_time(stat), Some(1_764_460_800.0));
    }

    #[test]
    fn this_process_has_used_something_of_everything() {
        let own = OwnProcess::new().unwrap();
        let values = |family: MetricFamily| {
            let metric = family.get_metric().first().unwrap().clone();
            let value = metric.get_counter().get_value() + metric.get_gauge().get_value();
            (family.name().to_owned(), value)
        };
        // Enough work for more than one tick of the processor clock.
        let mut bits = 1_u64;
        while own.collect().remove(0).get_metric()[0]
            .get_counter()
            .get_value()
            <= 0.0
        {
            bits = (0..100_000).fold(bits, |bits, _| std::hint::black_box(bits.rotate_left(7)));
        }
        for (name, value) in own.collect().into_iter().map(values) {
            assert!(value > 0.0, "{name}: {value}");
        }
    }
}
