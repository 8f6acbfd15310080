//! Server-sent events (WHATWG HTML, section 9.2), from pieces of a body as they arrive.

use std::time::Duration;

/// Longest line: a Status with the longest texts is far smaller.
const LINE_BYTES_MAX: usize = 1024 * 1024;

/// One block of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Event {
    /// For `Last-Event-ID`.
    pub(super) id: Option<String>,
    /// The kind of event; `None` for the usual one.
    pub(super) kind: Option<String>,
    /// What it carries.
    pub(super) data: Option<String>,
    /// How long to wait before a broken stream is asked for again.
    pub(super) retry: Option<Duration>,
}

/// A line is longer than any that a gateway sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a line of the stream is longer than {LINE_BYTES_MAX} bytes")]
pub(super) struct LineTooLong;

/// Collects pieces of a body into events.
#[derive(Debug, Default)]
pub(super) struct EventParser {
    line: Vec<u8>,
    event: Event,
}

impl EventParser {
    /// Takes the next piece and returns the events that it completes.
    ///
    /// # Errors
    /// [`LineTooLong`]; the stream cannot be read on.
    pub(super) fn push(&mut self, piece: &[u8]) -> Result<Vec<Event>, LineTooLong> {
        let mut events = Vec::new();
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(part);
            if self.line.len() > LINE_BYTES_MAX {
                return Err(LineTooLong);
            }
            if part.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                let text = String::from_utf8_lossy(&line);
                self.read_line(text.trim_end_matches(['\r', '\n']), &mut events);
            }
        }
        Ok(events)
    }

    fn read_line(&mut self, line: &str, events: &mut Vec<Event>) {
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            // Two empty lines, or one after a comment, end nothing.
            if event != Event::default() {
                events.push(event);
            }
            return;
        }
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value).to_owned();
        match name {
            "id" => self.event.id = Some(value),
            "event" => self.event.kind = Some(value),
            "retry" => self.event.retry = value.parse().ok().map(Duration::from_millis),
            "data" => match &mut self.event.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(&value);
                }
                data @ None => *data = Some(value),
            },
            // A comment, or a field of a later version.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &[u8] = b"retry: 2000\n\n:\n\nid: 7-1\ndata: {\"a\":1}\n\nevent: reset\r\ndata: {}\r\n\r\ndata: x\ndata: y\nlater: z\n\nid: 7-2\n";

    #[test]
    fn events_do_not_depend_on_how_the_body_is_cut() {
        let whole = EventParser::default().push(STREAM).unwrap();
        let texts: Vec<Option<&str>> = whole.iter().map(|event| event.data.as_deref()).collect();
        let expected = [None, Some("{\"a\":1}"), Some("{}"), Some("x\ny")];
        assert_eq!(texts, expected, "{whole:?}");
        assert_eq!(whole[0].retry, Some(Duration::from_secs(2)), "{whole:?}");
        assert_eq!(whole[1].id.as_deref(), Some("7-1"), "{whole:?}");
        assert_eq!(whole[2].kind.as_deref(), Some("reset"), "{whole:?}");
        for size in [1, 2, 7] {
            let mut parser = EventParser::default();
            let pieces = STREAM.chunks(size);
            let events: Vec<Event> = pieces
                .flat_map(|piece| parser.push(piece).unwrap())
                .collect();
            assert_eq!(events, whole, "pieces of {size}");
        }
    }

    #[test]
    fn an_endless_line_is_refused() {
        let mut parser = EventParser::default();
        let piece = vec![b'x'; 512 * 1024];
        assert_eq!(parser.push(&piece), Ok(Vec::new()), "not yet too long");
        assert!(parser.push(&piece).is_ok(), "as long as may be");
        assert_eq!(parser.push(b"x"), Err(LineTooLong), "too long");
    }
}
