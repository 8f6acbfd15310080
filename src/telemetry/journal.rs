//! Log lines as entries of the systemd journal, with their fields: `journalctl SNAPGATE_OPERATION=118529990508675072`.
//!
//! The protocol is a datagram for each entry (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>).

use std::fmt::Write as _;
use std::io;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use tracing::Event;
use tracing::Level;
use tracing::Subscriber;
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::telemetry::context_fields::context_fields;
use crate::telemetry::escape::escape_line;
use crate::telemetry::json_lines::EventFields;
use crate::telemetry::log::queue::Urgency;
use crate::telemetry::log::queue::send_line;

/// Where the journal listens.
const SOCKET: &str = "/run/systemd/journal/socket";

/// Whether standard error goes to the journal: `variable` is `JOURNAL_STREAM`, the device and inode of the stream that the service
/// manager connected. A shell in a service has the variable too, but another standard error.
#[must_use]
pub fn is_journal_stream(variable: Option<&str>) -> bool {
    let Some((device, inode)) = variable.and_then(|text| text.split_once(':')) else {
        return false;
    };
    // Follows the link to the stream itself.
    std::fs::metadata("/proc/self/fd/2")
        .is_ok_and(|stream| device.parse() == Ok(stream.dev()) && inode.parse() == Ok(stream.ino()))
}

/// Sends each event to the journal. What the journal does not take goes to standard error.
#[derive(Debug)]
pub(super) struct JournalLayer {
    socket: Arc<UnixDatagram>,
}

impl JournalLayer {
    /// Connects to the journal.
    pub(super) fn connect() -> io::Result<Self> {
        Self::connect_to(Path::new(SOCKET))
    }

    fn connect_to(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(path)?;
        Ok(Self {
            socket: Arc::new(socket),
        })
    }
}

impl<S: Subscriber> Layer<S> for JournalLayer {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let mut fields = EventFields::default();
        event.record(&mut fields);
        let mut members = fields.into_members();
        let metadata = event.metadata();
        let context = context_fields(metadata).into_iter();
        members.extend(context.map(|(name, value)| (name, Value::String(value))));
        let message = message_of(&members);
        let entry = entry_of(*metadata.level(), metadata.target(), &message, &members);
        let line = format!("{} {message}\n", metadata.level());
        let socket = Arc::clone(&self.socket);
        let length = entry.len().saturating_add(line.len());
        send_line(
            Urgency::of(*metadata.level()),
            length,
            Box::new(move || {
                if socket.send(&entry).is_err() {
                    // The journal is restarting, or the entry is too large for it.
                    io::stderr().write_all(line.as_bytes()).unwrap_or_default();
                }
            }),
        );
    }
}

/// The text of a value, as people read it.
fn text_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            value.to_string()
        }
    }
}

/// The message with every field behind it, because `journalctl` shows nothing else.
fn message_of(members: &[(&'static str, Value)]) -> String {
    let message = members.iter().find(|(name, _)| *name == "message");
    let mut text = message.map(|(_, value)| text_of(value)).unwrap_or_default();
    for (name, value) in members.iter().filter(|(name, _)| *name != "message") {
        let value = text_of(value);
        let is_plain = !value.is_empty() && !value.contains([' ', '"', '=']);
        // Writing to a string does not fail.
        let written = if is_plain {
            write!(text, " {name}={value}")
        } else {
            write!(text, " {name}={value:?}")
        };
        written.unwrap_or_default();
    }
    escape_line(&text)
}

/// The priorities of syslog.
const fn priority_of(level: Level) -> &'static str {
    match level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "6",
        Level::DEBUG | Level::TRACE => "7",
    }
}

fn entry_of(
    level: Level,
    target: &str,
    message: &str,
    members: &[(&'static str, Value)],
) -> Vec<u8> {
    let mut entry = Vec::new();
    add_field(&mut entry, "MESSAGE", message);
    add_field(&mut entry, "PRIORITY", priority_of(level));
    add_field(&mut entry, "SYSLOG_IDENTIFIER", env!("CARGO_PKG_NAME"));
    add_field(&mut entry, "SNAPGATE_TARGET", target);
    for (name, value) in members.iter().filter(|(name, _)| *name != "message") {
        let name = name.to_ascii_uppercase().replace('.', "_");
        add_field(&mut entry, &format!("SNAPGATE_{name}"), &text_of(value));
    }
    entry
}

/// `NAME=value`, or for a value with line ends its length before it.
fn add_field(entry: &mut Vec<u8>, name: &str, value: &str) {
    entry.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        let length = u64::try_from(value.len()).unwrap_or(u64::MAX);
        entry.push(b'\n');
        entry.extend_from_slice(&length.to_le_bytes());
    } else {
        entry.push(b'=');
    }
    entry.extend_from_slice(value.as_bytes());
    entry.push(b'\n');
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[test]
    fn an_entry_has_the_fields_of_its_event() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let journal = UnixDatagram::bind(&path).unwrap();
        let layer = JournalLayer::connect_to(&path).unwrap();
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(target: "snapgate::x", vm = "web 01", operation = %7, text = "a\nMESSAGE=forged", "backend unavailable");
        });
        let mut bytes = [0; 4096];
        let length = journal.recv(&mut bytes).unwrap();
        let entry = String::from_utf8_lossy(&bytes[..length]).into_owned();
        for expected in [
            "MESSAGE=backend unavailable vm=\"web 01\" operation=7 text=\"a\\nMESSAGE=forged\"\n",
            "PRIORITY=4\n",
            "SYSLOG_IDENTIFIER=snapgate\n",
            "SNAPGATE_TARGET=snapgate::x\n",
            "SNAPGATE_VM=web 01\n",
            "SNAPGATE_OPERATION=7\n",
            "SNAPGATE_TEXT\n\u{10}\0\0\0\0\0\0\0a\nMESSAGE=forged\n",
        ] {
            assert!(entry.contains(expected), "{expected:?}: {entry:?}");
        }
    }

    #[test]
    fn another_stream_is_not_the_journal() {
        let own = std::fs::metadata("/proc/self/fd/2").unwrap();
        let (device, inode) = (own.dev(), own.ino());
        let rows = [
            (None, false),
            (Some(String::new()), false),
            (Some("1:2".to_owned()), false),
            (Some(format!("{device}:{inode}")), true),
            (Some(format!("{device}:{inode}x")), false),
        ];
        for (variable, expected) in rows {
            let found = is_journal_stream(variable.as_deref());
            assert_eq!(found, expected, "{variable:?}");
        }
    }
}
