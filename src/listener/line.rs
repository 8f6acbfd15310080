//! The first line of each request of HTTP/1, as it comes over the connection.
//!
//! Pingora encodes spaces and control characters in a target and parses it again, and keeps nothing of what was sent. A server
//! that ends the target at the space reads another request, so what was sent is looked at here, before Pingora.

use std::sync::Mutex;
use std::sync::PoisonError;

/// How far a first line has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Part {
    /// Empty lines may come before it.
    #[default]
    Before,
    Method,
    Target,
    Version,
    /// It has ended; what follows is not looked at.
    After,
}

/// What is known of the first line of the request that a connection is at.
#[derive(Debug, Default)]
pub(super) struct Line(Mutex<Seen>);

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    part: Part,
    /// There is a space or a control character within the target.
    broken: bool,
}

impl Line {
    /// The next byte that comes is of another request.
    pub(super) fn begin(&self) {
        self.set(Seen::default());
    }

    /// Whether something of the request has come.
    pub(super) fn has_begun(&self) -> bool {
        self.seen().part != Part::Before
    }

    /// Whether there was a space or a control character within the target.
    pub(super) fn is_broken(&self) -> bool {
        self.seen().broken
    }

    /// These bytes came.
    pub(super) fn see(&self, bytes: &[u8]) {
        let mut seen = self.seen();
        if seen.part == Part::After {
            return;
        }
        for byte in bytes {
            seen.see(*byte);
            if seen.part == Part::After {
                break;
            }
        }
        self.set(seen);
    }

    fn seen(&self) -> Seen {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, seen: Seen) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = seen;
    }
}

impl Seen {
    fn see(&mut self, byte: u8) {
        match (self.part, byte) {
            (Part::After, _) | (Part::Before, b'\r' | b'\n') => {}
            (Part::Before, _) => self.part = Part::Method,
            (Part::Method | Part::Target | Part::Version, b'\n') => self.part = Part::After,
            (Part::Method, b' ') => self.part = Part::Target,
            (Part::Target, b' ') => self.part = Part::Version,
            // What was taken for the version was a piece of the target.
            (Part::Version, b' ') => self.broken = true,
            // The other controls are refused by Pingora anywhere but here.
            (Part::Target, _) => self.broken |= byte.is_ascii_control(),
            (Part::Version, _) => self.broken |= byte.is_ascii_control() && byte != b'\r',
            (Part::Method, _) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_within_the_target_breaks_it() {
        let rows: [(&str, &[u8], bool); 15] = [
            ("plain", b"GET /a HTTP/1.1\r\nX: a b\r\n\r\n", false),
            ("a line feed alone", b"GET /a HTTP/1.1\nX: a b\n\n", false),
            (
                "empty lines before",
                b"\r\n\nGET /a HTTP/1.1\r\n\r\n",
                false,
            ),
            ("no end yet", b"GET /a", false),
            ("a space", b"GET /a b HTTP/1.1\r\n", true),
            ("spaces", b"GET /a b c HTTP/1.1\r\n", true),
            ("two spaces before", b"GET  /a HTTP/1.1\r\n", true),
            ("two spaces after", b"GET /a  HTTP/1.1\r\n", true),
            ("a space at the end", b"GET /a HTTP/1.1 \r\n", true),
            ("a second version", b"GET /a HTTP/1.1 HTTP/1.1\r\n", true),
            ("a tab", b"GET /a\tb HTTP/1.1\r\n", true),
            ("NUL", b"GET /a\0 HTTP/1.1\r\n", true),
            ("a carriage return", b"GET /a\rb HTTP/1.1\r\n", true),
            ("delete", b"GET /a\x7f HTTP/1.1\r\n", true),
            (
                "another alphabet",
                "GET /\u{e9} HTTP/1.1\r\n".as_bytes(),
                false,
            ),
        ];
        for (name, bytes, expected) in rows {
            let whole = Line::default();
            whole.see(bytes);
            assert_eq!(whole.is_broken(), expected, "{name}");
            let pieces = Line::default();
            for byte in bytes.chunks(1) {
                pieces.see(byte);
            }
            assert_eq!(pieces.is_broken(), expected, "{name}, byte by byte");
        }
    }

    #[test]
    fn what_follows_the_line_is_not_looked_at_until_the_next_request() {
        let line = Line::default();
        line.see(b"POST /a HTTP/1.1\r\nHost: x\r\n\r\nGET /b c HTTP/1.1\r\n");
        assert!(!line.is_broken(), "a body");
        line.begin();
        line.see(b"GET /b c HTTP/1.1\r\n");
        assert!(line.is_broken(), "the next request");
        line.begin();
        assert!(!line.is_broken(), "the one after it");
    }
}
