//! Tracks which received bytes of an HTTP/1 connection belong to which request, before Pingora reads them.
//!
//! Pingora repairs targets, parses chunks leniently and, while a request is handled, has no buffer for the next one. So the first
//! line of each request is kept as sent, chunked bodies are checked, and bytes after the end of a request wait here until that
//! request has been answered.

use http::HeaderValue;
use parking_lot::Mutex;
use parking_lot::MutexGuard;

use crate::listener::chunked_body::ChunkProgress;
use crate::listener::chunked_body::ChunkedBody;

/// Bytes of a request line that are kept. The limits of the gate are lower.
const LINE_BYTES_MAX: usize = 64 * 1024;
/// Bytes that may wait for the end of the request before them.
const EARLY_BYTES_MAX: usize = 16 * 1024;
/// Buffers up to this size are reused for the next request.
const KEPT_CAPACITY: usize = 2048;

/// How a request body is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyFraming {
    Chunked,
    /// This many bytes; 0 for no body.
    Length(u64),
}

/// The part of a request that is received next.
#[derive(Clone, Copy, Debug, Default)]
enum ReadStage {
    /// The request line, or empty lines before it.
    #[default]
    Line,
    /// The rest of the head.
    Head,
    ChunkedBody(ChunkedBody),
    /// A body of which this many bytes are left.
    Length(u64),
    /// Nothing: the request is complete.
    Complete,
    /// Bytes that are not checked, for example after an upgrade.
    Unchecked,
}

/// The bytes received for the current request of a connection.
#[derive(Debug, Default)]
pub(super) struct RequestTracker(Mutex<TrackedRequest>);

#[derive(Debug, Default)]
struct TrackedRequest {
    stage: ReadStage,
    /// The request line.
    line: Vec<u8>,
    /// The result of the last read of the head.
    last: Vec<u8>,
    /// Where in it the head ends, once that is known.
    head_end: Option<usize>,
    /// Bytes of the request received so far.
    received: usize,
    /// Bytes received after the end of the request.
    early: Vec<u8>,
    /// Whether Pingora read beyond the end of the request.
    is_overread: bool,
    /// Whether the body contradicts its framing.
    is_malformed: bool,
    /// The `Date` of the upstream, for the response head that is written next.
    upstream_date: Option<HeaderValue>,
}

/// What to do with received bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadDecision {
    /// This many belong to the request; the tracker has kept the rest.
    Keep(usize),
    /// None may be parsed.
    Malformed,
}

impl RequestTracker {
    fn lock(&self) -> MutexGuard<'_, TrackedRequest> {
        self.0.lock()
    }

    /// Starts the next request: the next byte received belongs to it.
    pub(super) fn begin_request(&self) {
        let mut state = self.lock();
        let state = &mut *state;
        state.stage = ReadStage::Line;
        state.line.clear();
        state.line.shrink_to(KEPT_CAPACITY);
        // Idle connections keep no large buffers.
        state.last.clear();
        state.last.shrink_to(KEPT_CAPACITY);
        state.head_end = None;
        state.received = 0;
        state.is_overread = false;
        state.is_malformed = false;
        state.upstream_date = None;
    }

    /// Records the request head as Pingora read it, and how the body after it is framed.
    pub(super) fn record_head(&self, head: &[u8], framing: BodyFraming) {
        let mut state = self.lock();
        let state = &mut *state;
        // Pingora reads in pieces: the last one holds the end of the head and perhaps the start of the body.
        let beyond = state.received.checked_sub(head.len());
        let start = beyond.and_then(|count| state.last.len().checked_sub(count));
        let Some(start) = start.filter(|_| starts_with_line(head, &state.line)) else {
            // Pingora rewrote the head, so the end of the sent head is unknown. The gate refuses the request.
            state.is_overread = true;
            state.stage = ReadStage::Unchecked;
            return;
        };
        state.stage = match framing {
            BodyFraming::Chunked => ReadStage::ChunkedBody(ChunkedBody::default()),
            BodyFraming::Length(0) => ReadStage::Complete,
            BodyFraming::Length(count) => ReadStage::Length(count),
        };
        // Pingora already has these bytes. What belongs to the next request cannot be given back to it.
        let last = std::mem::take(&mut state.last);
        let rest = last.get(start..).unwrap_or_default();
        if !rest.is_empty() {
            match state.track_body(rest) {
                ReadDecision::Keep(count) => state.is_overread |= count < rest.len(),
                ReadDecision::Malformed => {}
            }
        }
        state.last = last;
        state.head_end = Some(start);
    }

    /// What was received with the end of the head: the beginning of the body, or all of it, and what follows. `None` if that is not
    /// known, because the head was not recorded or was rewritten.
    pub(super) fn beyond_head(&self) -> Option<Vec<u8>> {
        let state = self.lock();
        state.last.get(state.head_end?..).map(<[u8]>::to_vec)
    }

    /// Keeps the `Date` of the upstream for the response head that is written next; `None` forgets it.
    pub(super) fn keep_upstream_date(&self, date: Option<HeaderValue>) {
        self.lock().upstream_date = date;
    }

    pub(super) fn take_upstream_date(&self) -> Option<HeaderValue> {
        self.lock().upstream_date.take()
    }

    /// Stops checking what follows.
    pub(super) fn stop_checking(&self) {
        self.lock().stage = ReadStage::Unchecked;
    }

    /// Whether bytes of the next request have been received.
    pub(super) fn has_begun(&self) -> bool {
        let state = self.lock();
        match state.stage {
            ReadStage::Line => !state.line.is_empty() || !state.early.is_empty(),
            ReadStage::Head | ReadStage::ChunkedBody(_) | ReadStage::Length(_) => true,
            ReadStage::Complete | ReadStage::Unchecked => false,
        }
    }

    /// The request target as sent: what is between the first and the last space of the request line.
    pub(super) fn target(&self) -> Vec<u8> {
        let state = self.lock();
        parse_target(&state.line).to_vec()
    }

    /// What was received of the target, while the head has not been recorded; `None` after that.
    pub(super) fn target_before_head(&self) -> Option<Vec<u8>> {
        let state = self.lock();
        matches!(state.stage, ReadStage::Line | ReadStage::Head)
            .then(|| parse_target(&state.line).to_vec())
    }

    /// Whether the body is known to contradict its framing.
    pub(super) fn is_malformed(&self) -> bool {
        self.lock().is_malformed
    }

    /// Whether bytes after the request were lost, so that no other request can be read from the connection.
    pub(super) fn is_overread(&self) -> bool {
        self.lock().is_overread
    }

    /// How many bytes may still be received early, while the request is handled; `None` before it is complete.
    pub(super) fn room_for_early(&self) -> Option<usize> {
        let state = self.lock();
        matches!(state.stage, ReadStage::Complete)
            .then(|| EARLY_BYTES_MAX.saturating_sub(state.early.len()))
    }

    /// Keeps bytes received after the end of the request.
    pub(super) fn keep_early(&self, bytes: &[u8]) {
        self.lock().early.extend_from_slice(bytes);
    }

    /// Takes at most `count` of the kept bytes.
    pub(super) fn take_early(&self, count: usize) -> Vec<u8> {
        let mut state = self.lock();
        if state.early.is_empty() {
            return Vec::new();
        }
        let count = count.min(state.early.len());
        let rest = state.early.split_off(count);
        std::mem::replace(&mut state.early, rest)
    }

    /// Tracks received bytes.
    pub(super) fn track(&self, bytes: &[u8]) -> ReadDecision {
        let mut state = self.lock();
        let state = &mut *state;
        match state.stage {
            ReadStage::Line | ReadStage::Head => {
                state.track_head(bytes);
                ReadDecision::Keep(bytes.len())
            }
            ReadStage::ChunkedBody(_) | ReadStage::Length(_) => {
                let verdict = state.track_body(bytes);
                if let ReadDecision::Keep(count) = verdict {
                    let rest = bytes.get(count..).unwrap_or_default();
                    state.early.extend_from_slice(rest);
                }
                verdict
            }
            ReadStage::Complete | ReadStage::Unchecked => ReadDecision::Keep(bytes.len()),
        }
    }
}

impl TrackedRequest {
    fn track_head(&mut self, bytes: &[u8]) {
        self.received = self.received.saturating_add(bytes.len());
        self.last.clear();
        self.last.extend_from_slice(bytes);
        if matches!(self.stage, ReadStage::Head) {
            return;
        }
        let mut rest = bytes;
        if self.line.is_empty() {
            // Empty lines before a request line are ignored (RFC 9112 section 2.2).
            let is_empty_line = |byte: &u8| matches!(byte, b'\r' | b'\n');
            let start = rest.iter().position(|byte| !is_empty_line(byte));
            rest = rest.get(start.unwrap_or(rest.len())..).unwrap_or_default();
        }
        let end = rest.iter().position(|byte| *byte == b'\n');
        let piece = rest.get(..end.unwrap_or(rest.len())).unwrap_or_default();
        // A longer line is cut, and refused by the gate for its length.
        let room = LINE_BYTES_MAX.saturating_sub(self.line.len());
        let piece = piece.get(..room).unwrap_or(piece);
        self.line.extend_from_slice(piece);
        if end.is_some() {
            self.stage = ReadStage::Head;
        }
    }

    /// Tracks a piece of the body.
    fn track_body(&mut self, bytes: &[u8]) -> ReadDecision {
        match &mut self.stage {
            ReadStage::ChunkedBody(chunks) => match chunks.consume(bytes) {
                ChunkProgress::Within => ReadDecision::Keep(bytes.len()),
                ChunkProgress::Ended(count) => {
                    self.stage = ReadStage::Complete;
                    ReadDecision::Keep(count)
                }
                ChunkProgress::Malformed => {
                    self.is_malformed = true;
                    // Pingora may read more of the body, but only to discard it.
                    self.stage = ReadStage::Unchecked;
                    ReadDecision::Malformed
                }
            },
            ReadStage::Length(left) => {
                let length = usize::try_from(*left).unwrap_or(usize::MAX);
                let count = bytes.len().min(length);
                *left = left.saturating_sub(u64::try_from(count).unwrap_or(u64::MAX));
                if *left == 0 {
                    self.stage = ReadStage::Complete;
                }
                ReadDecision::Keep(count)
            }
            // A request without a body owns nothing after its head.
            ReadStage::Complete => ReadDecision::Keep(0),
            ReadStage::Line | ReadStage::Head | ReadStage::Unchecked => {
                ReadDecision::Keep(bytes.len())
            }
        }
    }
}

/// The target in a request line.
fn parse_target(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let is_space = |byte: &u8| *byte == b' ';
    let Some(first) = line.iter().position(is_space) else {
        return b"";
    };
    let rest = line.get(first.saturating_add(1)..).unwrap_or_default();
    // The last space, not the second: spaces within a target must be seen by the gate, which refuses them.
    match rest.iter().rposition(is_space) {
        Some(last) => rest.get(..last).unwrap_or_default(),
        None => rest,
    }
}

/// Whether Pingora kept the request line as sent. It percent-encodes bytes that are not allowed in a target.
fn starts_with_line(head: &[u8], line: &[u8]) -> bool {
    let start = head.iter().position(|byte| !matches!(byte, b'\r' | b'\n'));
    let head = head.get(start.unwrap_or(0)..).unwrap_or_default();
    head.starts_with(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_kept_as_sent() {
        let rows: [(&[u8], &[u8]); 15] = [
            (b"GET /a HTTP/1.1\r\nX: a b\r\n\r\n", b"/a"),
            (b"GET /a HTTP/1.1\nX: a b\n\n", b"/a"),
            (b"\r\n\nGET /a HTTP/1.1\r\n\r\n", b"/a"),
            (b"GET /a#b HTTP/1.1\r\n", b"/a#b"),
            (b"GET /a b HTTP/1.1\r\n", b"/a b"),
            (b"GET /a b c HTTP/1.1\r\n", b"/a b c"),
            (b"GET  /a HTTP/1.1\r\n", b" /a"),
            (b"GET /a  HTTP/1.1\r\n", b"/a "),
            (b"GET /a HTTP/1.1 \r\n", b"/a HTTP/1.1"),
            (b"GET /a\tb HTTP/1.1\r\n", b"/a\tb"),
            (b"GET /a\0 HTTP/1.1\r\n", b"/a\0"),
            (b"GET /a\rb HTTP/1.1\r\n", b"/a\rb"),
            (b"GET /\xff HTTP/1.1\r\n", b"/\xff"),
            (b"GET http://h?x HTTP/1.1\r\n", b"http://h?x"),
            (b"CONNECT h:443 HTTP/1.1\r\n", b"h:443"),
        ];
        for (bytes, expected) in rows {
            let name = String::from_utf8_lossy(bytes);
            let whole = RequestTracker::default();
            whole.track(bytes);
            assert_eq!(whole.target(), expected, "{name:?}");
            let pieces = RequestTracker::default();
            for byte in bytes.chunks(1) {
                pieces.track(byte);
            }
            assert_eq!(pieces.target(), expected, "{name:?}, byte by byte");
        }
    }

    #[test]
    fn a_line_without_end_takes_bounded_memory() {
        let tracker = RequestTracker::default();
        for _ in 0..100 {
            tracker.track(&[b'a'; 10_000]);
        }
        let state = tracker.lock();
        assert!(state.line.len() <= LINE_BYTES_MAX, "{}", state.line.len());
        assert!(state.last.len() <= 10_000, "{}", state.last.len());
    }

    #[test]
    fn each_request_has_its_own_target() {
        let tracker = RequestTracker::default();
        let head = b"POST /a HTTP/1.1\r\nHost: x\r\n\r\n";
        tracker.track(head);
        tracker.record_head(head, BodyFraming::Length(3));
        assert_eq!(tracker.track(b"b c"), ReadDecision::Keep(3), "its body");
        assert_eq!(tracker.target(), b"/a", "the first");
        tracker.begin_request();
        tracker.track(b"GET /b HTTP/1.1\r\n");
        assert_eq!(tracker.target(), b"/b", "the second");
    }

    #[test]
    fn what_came_with_the_head_is_known_of_the_current_request_only() {
        let tracker = RequestTracker::default();
        let (first, second) = (b"POST /a HTTP/1.1\r\n", b"X: y\r\n\r\nbody");
        tracker.track(first);
        tracker.track(second);
        assert_eq!(
            tracker.beyond_head(),
            None,
            "the end of the head is unknown"
        );
        let head = [first.as_slice(), b"X: y\r\n\r\n"].concat();
        tracker.record_head(&head, BodyFraming::Length(8));
        assert_eq!(tracker.beyond_head().as_deref(), Some(&b"body"[..]));
        tracker.track(b"more");
        assert_eq!(
            tracker.beyond_head().as_deref(),
            Some(&b"body"[..]),
            "later"
        );
        tracker.begin_request();
        assert_eq!(tracker.beyond_head(), None, "the next request");
        let rewritten = b"GET /%ff HTTP/1.1\r\n\r\n";
        tracker.track(b"GET /\xff HTTP/1.1\r\n\r\n");
        tracker.record_head(rewritten, BodyFraming::Length(0));
        assert_eq!(tracker.beyond_head(), None, "a head that was rewritten");
    }

    /// Name, framing, read with the head, read later, kept of that, malformed, overread, and what waits.
    type Row = (
        &'static str,
        BodyFraming,
        &'static [u8],
        &'static [u8],
        ReadDecision,
        bool,
        bool,
        &'static [u8],
    );
    const BODIES: [Row; 7] = [
        (
            "a length, later",
            BodyFraming::Length(3),
            b"",
            b"abcGET",
            ReadDecision::Keep(3),
            false,
            false,
            b"GET",
        ),
        (
            "a length, half and half",
            BodyFraming::Length(3),
            b"a",
            b"bcG",
            ReadDecision::Keep(2),
            false,
            false,
            b"G",
        ),
        (
            "a length, with the head",
            BodyFraming::Length(3),
            b"abcGET",
            b"",
            ReadDecision::Keep(0),
            false,
            true,
            b"",
        ),
        (
            "no body",
            BodyFraming::Length(0),
            b"GET",
            b"",
            ReadDecision::Keep(0),
            false,
            true,
            b"",
        ),
        (
            "chunks",
            BodyFraming::Chunked,
            b"1\r\n",
            b"a\r\n0\r\n\r\nGET",
            ReadDecision::Keep(8),
            false,
            false,
            b"GET",
        ),
        (
            "malformed chunks, later",
            BodyFraming::Chunked,
            b"1\r\n",
            b"a\n0\r\n\r\nGET",
            ReadDecision::Malformed,
            true,
            false,
            b"",
        ),
        (
            "malformed chunks, with the head",
            BodyFraming::Chunked,
            b"2;\nxx\r\n39\r\n0\r\n\r\n",
            b"",
            ReadDecision::Keep(0),
            true,
            false,
            b"",
        ),
    ];

    #[test]
    fn bodies_end_where_their_framing_ends_and_the_rest_waits() {
        let head = b"PUT / HTTP/1.1\r\n\r\n";
        for (name, framing, with, later, verdict, malformed, overread, waits) in BODIES {
            let tracker = RequestTracker::default();
            tracker.track(&[head.as_slice(), with].concat());
            tracker.record_head(head, framing);
            if !later.is_empty() {
                assert_eq!(tracker.track(later), verdict, "{name}: kept");
            }
            assert_eq!(
                tracker.beyond_head().as_deref(),
                Some(with),
                "{name}: with the head"
            );
            assert_eq!(tracker.is_malformed(), malformed, "{name}: malformed");
            assert_eq!(tracker.is_overread(), overread, "{name}: overread");
            assert_eq!(tracker.take_early(100), waits, "{name}: waits");
        }
    }
}
