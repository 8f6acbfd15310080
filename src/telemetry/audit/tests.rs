use std::fs;
use std::fs::OpenOptions;
use std::io;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use super::*;
use crate::model::Timestamp;
use crate::telemetry::Metrics;
use crate::telemetry::audit::record::encode_line;
use crate::telemetry::audit::record::line_hash;

fn metrics() -> Arc<Metrics> {
    Arc::new(Metrics::new().unwrap())
}

fn trail(path: &std::path::Path) -> AuditTrail {
    AuditTrail::open(Some(path.to_owned()), false, metrics()).unwrap()
}

fn record<'a>(note: Option<&'a str>) -> AuditRecord<'a> {
    AuditRecord {
        principal: Some("alice"),
        vm: Some("1"),
        note,
        operation: Some(118_529_990_416_400_384),
        request: Some("r-1"),
        trace_id: Some(crate::model::TraceId::from_bits(7)),
        ..AuditRecord::new(Timestamp::from_millis(0), "restore", "refused")
    }
}

/// Accepts a number of bytes, and then none until `room` is called.
#[derive(Clone, Default)]
struct Disk(Arc<Mutex<(Vec<u8>, usize)>>);

impl Disk {
    fn room(&self, bytes: usize) {
        self.0.lock().1 = bytes;
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().0.clone()).unwrap()
    }
}

impl Write for Disk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (written, room) = &mut *self.0.lock();
        let count = bytes.len().min(*room);
        if count == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        written.extend_from_slice(&bytes[..count]);
        *room = room.saturating_sub(count);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Every member of a record, in order.
const MEMBERS: &str = "time principal token claimed client action backend vm backup note outcome code reason operation \
    request trace_id previous";

fn members(line: &str) -> Vec<String> {
    let bare = line.trim_start_matches('{').trim_end_matches('}');
    let names = bare.split(",\"").filter_map(|pair| pair.split_once("\":"));
    names
        .map(|(name, _)| name.trim_start_matches('"').to_owned())
        .collect()
}

#[test]
fn every_record_is_one_json_line_whatever_clients_send_and_across_rotation() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.log");
    let trail = trail(&path);
    let hostile = "a\"}\n{\"principal\":\"root\"\r\u{1b}[31m\u{0}\u{85}\u{9b}31m\u{2028}\u{202e}";
    trail.append(&record(Some(hostile))).unwrap();
    fs::rename(&path, dir.path().join("audit.log.1")).unwrap();
    trail.reopen();
    trail.append(&record(Some(hostile))).unwrap();
    for name in ["audit.log.1", "audit.log"] {
        let file = dir.path().join(name);
        let text = fs::read_to_string(&file).unwrap();
        assert_eq!(text.lines().count(), 1, "{name}: one line: {text}");
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["note"], hostile, "{name}: nothing is lost");
        assert_eq!(value["principal"], "alice", "{name}: nothing is forged");
        assert_eq!(value["time"], "1970-01-01T00:00:00Z", "{name}: time");
        let operation = &value["operation"];
        assert_eq!(operation, "118529990416400384", "{name}: to the last digit");
        assert!(
            !text
                .trim_end()
                .contains(|character: char| character.is_control() || character == '\u{202e}'),
            "{name}: {text:?}"
        );
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}: readable by its owner only");
    }
}

#[test]
fn every_record_has_every_member() {
    let disk = Disk::default();
    let trail = AuditTrail::with_destination(Box::new(disk.clone()), metrics());
    trail.append(&record(None)).unwrap_err();
    disk.room(10_000);
    trail.append(&record(None)).unwrap();
    let text = disk.text();
    assert_eq!(text.lines().count(), 2, "one of its own and ours: {text}");
    for line in text.lines() {
        assert_eq!(members(line).join(" "), MEMBERS, "{line}");
    }
}

#[test]
fn a_partly_written_record_is_completed_and_a_lost_one_is_reported() {
    let whole = encode_line(&record(None), None).unwrap().len() + 1;
    for room in 0..=whole {
        let disk = Disk::default();
        let metrics = metrics();
        let trail = AuditTrail::with_destination(Box::new(disk.clone()), Arc::clone(&metrics));
        disk.room(room);
        let first = trail.append(&record(None));
        assert_eq!(first.is_ok(), room == whole, "{room}: result");
        assert_eq!(
            trail.append(&record(Some("lost"))),
            Err(AuditWriteError),
            "{room}"
        );
        disk.room(10_000);
        trail.append(&record(Some("later"))).unwrap();
        let text = disk.text();
        let values: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{room}: {text}")))
            .collect();
        let outcomes: Vec<_> = values
            .iter()
            .map(|value| value["outcome"].as_str().unwrap())
            .collect();
        let lost = if room == 0 { 2 } else { 1 };
        if room == 0 {
            assert_eq!(outcomes, ["records-lost", "refused"], "{room}: {text}");
        } else {
            assert_eq!(
                outcomes,
                ["refused", "records-lost", "refused"],
                "{room}: {text}"
            );
        }
        let gap = &values[values.len() - 2]["note"];
        let expected = format!("{lost} records were lost here");
        assert!(
            gap.as_str().unwrap().starts_with(&expected),
            "{room}: {gap}"
        );
        let exported = String::from_utf8(metrics.encode_text()).unwrap();
        let expected = format!("snapgate_audit_records_lost_total {lost}\n");
        assert!(exported.contains(&expected), "{room}: {exported}");
    }
}

#[test]
fn an_incomplete_last_line_is_terminated_and_the_chain_continues() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.log");
    trail(&path).append(&record(None)).unwrap();
    let before = fs::read_to_string(&path).unwrap();
    let mut torn = OpenOptions::new().append(true).open(&path).unwrap();
    torn.write_all(b"{\"time\":\"1970-01-01T00:0").unwrap();
    trail(&path).append(&record(Some("after"))).unwrap();
    // And once more, when what is torn has an end.
    trail(&path).append(&record(Some("again"))).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 4, "{text}");
    assert!(text.starts_with(&before), "what was there stays: {text}");
    for (place, note) in [(2, "after"), (3, "again")] {
        let value: serde_json::Value = serde_json::from_str(lines[place]).unwrap();
        assert_eq!(value["note"], note, "a line of its own: {text}");
    }
    let found = verify(&[path]).unwrap();
    assert_eq!(found.problems, Vec::<String>::new(), "the chain is whole");
    assert_eq!(found.records, 3, "records");
    assert_eq!(found.remarks.len(), 1, "the torn line is named: {found:?}");
}

/// Five records over two files, moved away as log rotation does it, once with a restart in between.
fn two_files(dir: &std::path::Path, restart: bool) -> [PathBuf; 2] {
    let path = dir.join("audit.log");
    let older = dir.join("audit.log.1");
    let mut trail = trail(&path);
    for note in ["a", "b", "c"] {
        trail.append(&record(Some(note))).unwrap();
    }
    fs::rename(&path, &older).unwrap();
    if restart {
        trail = self::trail(&path);
    } else {
        trail.reopen();
    }
    for note in ["d", "e"] {
        trail.append(&record(Some(note))).unwrap();
    }
    [older, path]
}

#[test]
fn a_trail_is_verified_over_rotated_files() {
    for restart in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let files = two_files(dir.path(), restart);
        let found = verify(&files).unwrap();
        assert_eq!(found.problems, Vec::<String>::new(), "{restart}");
        assert_eq!(found.remarks, Vec::<String>::new(), "{restart}");
        assert_eq!(found.records, 5, "{restart}");
        let newest = fs::read_to_string(&files[1]).unwrap();
        let last = newest.lines().last().unwrap();
        assert_eq!(
            found.last,
            Some(line_hash(last.as_bytes())),
            "{restart}: for safekeeping"
        );
        let [older, newer] = files;
        let alone = verify(std::slice::from_ref(&newer)).unwrap();
        assert_eq!(
            alone.problems,
            Vec::<String>::new(),
            "{restart}: the newer alone"
        );
        assert_eq!(alone.remarks.len(), 1, "{restart}: which is remarked");
        assert!(
            !verify(&[newer, older]).unwrap().problems.is_empty(),
            "{restart}: in the wrong order"
        );
    }
}

#[test]
fn a_changed_missing_or_moved_record_is_found() {
    type Change = fn(&mut Vec<String>);
    let changes: [(&str, Change); 6] = [
        ("changed", |lines| {
            lines[1] = lines[1].replace("alice", "carol");
        }),
        ("removed", |lines| drop(lines.remove(1))),
        ("first removed, second forged", |lines| {
            lines.remove(0);
            let link = lines[0].rfind("\"previous\"").unwrap();
            lines[0].truncate(link);
            lines[0].push_str("\"previous\":null}");
        }),
        ("moved", |lines| lines.swap(0, 1)),
        ("repeated", |lines| lines.insert(1, lines[1].clone())),
        ("made unreadable", |lines| lines[1] = "{}".to_owned()),
    ];
    for (name, change) in changes {
        let dir = tempfile::tempdir().unwrap();
        let files = two_files(dir.path(), false);
        let text = fs::read_to_string(&files[0]).unwrap();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        change(&mut lines);
        fs::write(&files[0], lines.join("\n") + "\n").unwrap();
        let found = verify(&files).unwrap();
        assert!(!found.problems.is_empty(), "{name}: {found:?}");
    }
}

#[test]
fn a_lost_record_is_counted() {
    let metrics = metrics();
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let trail = AuditTrail::with_destination(Box::new(full), Arc::clone(&metrics));
    trail.append(&record(None)).unwrap_err();
    let text = String::from_utf8(metrics.encode_text()).unwrap();
    assert!(
        text.contains("snapgate_audit_errors_total{kind=\"write\"} 1"),
        "{text}"
    );
    assert!(
        text.contains("snapgate_audit_records_lost_total 1"),
        "{text}"
    );
}
