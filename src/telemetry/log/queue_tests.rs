//! Tests of the queue of log lines: order, blocked and lost destinations, its end.

use std::io::Read;
use std::io::Write;
use std::io::pipe;
use std::sync::mpsc;

use parking_lot::Mutex;
use tracing::Dispatch;

use super::*;
use crate::model::Timestamp;
use crate::model::limits;
use crate::telemetry::log::queue::Line;
use crate::telemetry::log::queue::Urgency;

fn record(target: &str) -> AccessRecord<'_> {
    AccessRecord {
        time: Timestamp::from_millis(1_764_486_000_123),
        request: "r-1",
        trace: None,
        peer: Some([127, 0, 0, 1].into()),
        client: None,
        method: "GET",
        route: "backup",
        status: 200,
        bytes: 12,
        took: Duration::from_micros(34),
        principal: Some("alice"),
        target,
        user_agent: None,
        operation: None,
        passthrough: None,
        upstream: Some("up:1"),
    }
}

fn push_access(queue: &LogQueue, target: &str) {
    assert!(queue.push_access(&record(target)), "open");
}

/// A started queue whose lines are JSON.
fn started(destination: impl Write + Send + 'static) -> (Arc<LogQueue>, Dispatch) {
    let config = LogConfig {
        format: LineFormat::Json,
        journal: false,
        level: "info".to_owned(),
        quiet: "noisy=off",
        access: true,
        queued: true,
        audit: None,
        audit_required: false,
    };
    tests::keep_a_dispatcher();
    let queue = LogQueue::new(Arc::new(Metrics::new().unwrap()));
    let writers = LineWriters(Some(Arc::clone(&queue)));
    let (made, _switch) = subscriber(&config, writers).unwrap();
    let dispatch = Dispatch::new(made);
    tracing::dispatcher::with_default(&dispatch, || {
        queue.start(Box::new(destination)).unwrap();
    });
    (queue, dispatch)
}

/// Closes the queue and waits for its thread.
fn end(queue: &LogQueue) {
    queue.close(Duration::from_secs(10));
    let thread = queue.thread.lock().take();
    thread.unwrap().join().unwrap();
}

/// Lines that were dropped, of the access log and others.
fn dropped(queue: &LogQueue) -> (u64, u64) {
    let text = String::from_utf8(queue.metrics.encode_text()).unwrap();
    let count = |kind: &str| {
        let name = format!("snapgate_log_lines_dropped_total{{kind=\"{kind}\"}} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&name));
        line.unwrap().parse().unwrap()
    };
    (count("access"), count("other"))
}

#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn values(bytes: &[u8]) -> Vec<serde_json::Value> {
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    let lines = text.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn lines_of_all_kinds_are_written_once_in_their_order() {
    let kept = Kept::default();
    let (queue, dispatch) = started(kept.clone());
    for number in 0..5_000 {
        push_access(&queue, &format!("/{number}"));
        if number % 1_000 == 7 {
            tracing::dispatcher::with_default(&dispatch, || {
                tracing::warn!(target: "snapgate::x", path = format!("/{number}"), "between");
            });
        }
    }
    end(&queue);
    let lines = values(&kept.0.lock());
    let paths: Vec<_> = lines
        .iter()
        .map(|line| line["path"].as_str().unwrap().to_owned())
        .collect();
    let expected = (0..5_000).flat_map(|number| {
        let times = if number % 1_000 == 7 { 2 } else { 1 };
        vec![format!("/{number}"); times]
    });
    assert!(paths.into_iter().eq(expected), "each once, in order");
    let first = &lines[0];
    for (member, value) in [
        ("timestamp", "2025-11-30T07:00:00.123000Z"),
        ("peer", "127.0.0.1"),
        ("client", ""),
        ("principal", "alice"),
        ("upstream", "up:1"),
    ] {
        assert_eq!(first[member], value, "{member}");
    }
    assert_eq!(first.get("user_agent"), None, "what is absent is left out");
    assert_eq!(dropped(&queue), (0, 0), "none");
}

#[test]
fn a_blocked_destination_blocks_no_other_thread_and_what_does_not_fit_is_counted_and_reported() {
    // Nothing reads the pipe: it takes 64 KiB, and then its writer waits.
    let (mut reader, writer) = pipe().unwrap();
    let (queue, dispatch) = started(writer);
    let long = "x".repeat(1024);
    let room = limits::LOG_QUEUE_ACCESS_BYTES_MAX / 1024;
    // Twice the room, because the thread holds as much as the queue.
    let pushed = room * 2 + 1_000;
    for number in 0..pushed {
        push_access(&queue, &format!("/{number}/{long}"));
    }
    assert!(!queue.flush(Duration::from_millis(10)), "blocked");
    tracing::dispatcher::with_default(&dispatch, || {
        tracing::warn!(target: "snapgate::x", "a warning has room");
    });
    let (access, other) = dropped(&queue);
    assert!(access > 0, "more than there is room for");
    assert_eq!(other, 0, "not displaced");
    let reading = std::thread::Builder::new().spawn(move || {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        bytes
    });
    end(&queue);
    let lines = values(&reading.unwrap().join().unwrap());
    let requests = lines.iter().filter(|line| line["message"] == "request");
    let requests = u64::try_from(requests.count()).unwrap();
    assert_eq!(
        requests.saturating_add(access),
        u64::try_from(pushed).unwrap(),
        "each line is written or counted"
    );
    let says = |text: &str| lines.iter().find(|line| line["message"] == text);
    assert!(says("a warning has room").is_some(), "{:?}", lines.last());
    let report = says("log lines dropped, standard error was blocked or too slow").unwrap();
    assert_eq!(report["access"], access, "reported");
}

#[test]
fn a_closed_queue_gives_lines_back_and_one_whose_destination_is_gone_counts_them() {
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    let (queue, _dispatch) = started(writer);
    push_access(&queue, "/1");
    assert!(queue.flush(Duration::from_secs(10)), "lost, not waiting");
    assert_eq!(dropped(&queue), (1, 0), "counted");
    end(&queue);
    assert!(
        queue
            .push(Line::Text(Urgency::Immediate, b"x\n".to_vec()))
            .is_some(),
        "closed"
    );
    assert!(!queue.push_access(&record("/2")), "closed");
}

#[test]
fn a_line_that_panics_is_lost_alone() {
    let kept = Kept::default();
    let (queue, _dispatch) = started(kept.clone());
    let (sent, received) = mpsc::channel();
    let panic = Line::Elsewhere(Urgency::Batched, 0, Box::new(|| panic!("meant to")));
    let send = Line::Elsewhere(
        Urgency::Immediate,
        0,
        Box::new(move || sent.send(()).unwrap()),
    );
    let taken = queue.push(panic).is_none() && queue.push(send).is_none();
    assert!(taken, "open");
    push_access(&queue, "/after");
    end(&queue);
    assert!(received.try_recv().is_ok(), "the next one was sent");
    assert_eq!(values(&kept.0.lock())[0]["path"], "/after", "and written");
}
