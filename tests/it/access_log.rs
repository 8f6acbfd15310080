//! The access log of a whole process: a stop loses no line, and a destination that takes nothing holds up no request.

use std::fs;
use std::fs::File;
use std::io::PipeReader;
use std::io::Read;
use std::io::Write;
use std::net::TcpStream;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;

use serde_json::Value;
use tempfile::TempDir;

use crate::client::Client;
use crate::client::read_reply;
use crate::harness::PATIENCE;
use crate::harness::Process;
use crate::harness::SECRET_HASH;
use crate::harness::SIM;
use crate::harness::metric;

/// Bytes of a request target that is logged whole.
const LONG: usize = 900;

/// A gateway whose standard error is a pipe.
fn start() -> (Process, PipeReader, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("snapgate.toml");
    let ports = "[server]\nlisten = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n[log]\nformat = \"json\"\naudit = \"audit.jsonl\"\n";
    let sim = SIM.replace("SECRET_HASH", SECRET_HASH);
    fs::write(&config, format!("{ports}{sim}")).unwrap();
    // Others could read the hashes in it otherwise, which is a warning on standard error.
    fs::set_permissions(&config, fs::Permissions::from_mode(0o600)).unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    let arguments = ["serve", "--config", config.to_str().unwrap()];
    let process = Process::start_logging(&arguments, File::from(OwnedFd::from(writer)));
    (process, reader, folder)
}

/// Sends requests with these numbers and long targets on one connection; all are answered.
fn send(process: &Process, numbers: Range<usize>) {
    let mut stream = TcpStream::connect(process.api).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let long = "x".repeat(LONG);
    for number in numbers {
        let request = format!("GET /nothing?{number}&{long} HTTP/1.1\r\nHost: x\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let reply = read_reply(&mut stream, false);
        assert!(reply.status >= 400, "request {number}: {reply:?}");
    }
}

/// Reads the log to its end, in a thread.
fn read(mut reader: PipeReader) -> std::thread::JoinHandle<Vec<Value>> {
    let read = move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        // Warnings of the configuration come before the log begins.
        let lines = text.lines().filter(|line| !line.starts_with("warning: "));
        lines
            .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line:?}")))
            .collect()
    };
    std::thread::Builder::new().spawn(read).unwrap()
}

/// The numbers of the requests in the log, in its order.
fn numbers(lines: &[Value]) -> Vec<usize> {
    let requests = lines.iter().filter(|line| line["message"] == "request");
    let number = |line: &Value| {
        let path = line["path"].as_str()?.strip_prefix("/nothing?")?;
        path.split_once('&')?.0.parse().ok()
    };
    requests.filter_map(number).collect()
}

#[apply(test)]
fn a_stop_loses_no_line_and_lines_keep_their_order() {
    let (process, reader, _folder) = start();
    let reading = read(reader);
    send(&process, 0..300);
    process.signal("TERM");
    assert_eq!(process.wait(), Some(0), "a clean end");
    let lines = reading.join().unwrap();
    assert_eq!(numbers(&lines), (0..300).collect::<Vec<_>>(), "each once");
    let last = lines.last().unwrap();
    assert_eq!(last["message"], "stopped", "the last line: {last}");
}

#[apply(test)]
fn a_log_that_is_not_read_holds_up_no_request_and_lost_lines_are_counted_and_reported() {
    let (process, reader, _folder) = start();
    // More than the pipe, the queue and its thread hold: 8 MiB and 64 KiB.
    let count = 9_000;
    send(&process, 0..count);
    // Lines of changes go the same way.
    let alice = Client::new(process.api, "alice", "secret");
    let status_uri = alice.post("/vms/1/backups/456/restore", "").status_uri();
    alice.finished(&status_uri);
    let reading = read(reader);
    send(&process, count..count + 1);
    let series = "snapgate_log_lines_dropped_total{kind=\"access\"}";
    let dropped = metric(process.admin, series);
    assert!(dropped > 0.0, "counted");
    process.signal("TERM");
    assert_eq!(process.wait(), Some(0), "a clean end");
    let lines = reading.join().unwrap();
    let reports = lines.iter().filter(|line| line["level"] == "WARN");
    let reported: f64 = reports.filter_map(|line| line["access"].as_f64()).sum();
    assert!(
        (reported - dropped).abs() < 0.5,
        "reported: {reported} of {dropped}"
    );
    let written = numbers(&lines);
    assert!(written.is_sorted(), "in order");
    let lost = f64::from(u32::try_from(count + 1 - written.len()).unwrap());
    assert!(
        lost <= dropped,
        "each line is written or counted: {lost} of {dropped}"
    );
    let accepted = |line: &&Value| line.get("operation").is_some() && line["message"] != "request";
    assert!(
        lines.iter().any(|line| accepted(&line)),
        "lines of the change are not displaced"
    );
}
