//! What a client sends over a connection of HTTP/1, before Pingora reads it.
//!
//! Pingora repairs targets, reads chunks leniently and, while a request is handled, has no room for the next one. So the first
//! line of each request is kept as it was sent, chunked bodies are checked, and what comes after the end of a request waits here
//! until that request was answered.

use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use crate::listener::chunked_body::ChunkProgress;
use crate::listener::chunked_body::ChunkedBody;

/// Most bytes of a first line that are kept. The limits of the gate are lower.
const LINE_BYTES_MAX: usize = 64 * 1024;
/// Most bytes that wait for the end of the request before them.
const EARLY_BYTES_MAX: usize = 16 * 1024;
/// Buffers of at most this size are kept for the next request.
const KEPT_CAPACITY: usize = 2048;

/// How the body of a request is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Chunked,
    /// So many bytes, also none.
    Length(u64),
}

/// Which bytes are read next.
#[derive(Clone, Copy, Debug, Default)]
enum ReadStage {
    /// The first line of a request, or empty lines before it.
    #[default]
    Line,
    /// The rest of its head.
    Head,
    ChunkedBody(ChunkedBody),
    /// So many bytes of a body.
    Length(u64),
    /// None: the request is complete.
    Complete,
    /// What the gateway has no interest in.
    Open,
}

/// What a connection received of the request that it is at.
#[derive(Debug, Default)]
pub(super) struct RequestTracker(Mutex<TrackedRequest>);

#[derive(Debug, Default)]
struct TrackedRequest {
    stage: ReadStage,
    /// The first line.
    line: Vec<u8>,
    /// What was read last.
    last: Vec<u8>,
    /// Bytes of the request so far.
    received: usize,
    /// Came after the end of the request.
    early: Vec<u8>,
    /// Pingora read beyond the end of the request.
    is_overread: bool,
    /// The body is not what its framing says.
    is_malformed: bool,
}

/// What to do with bytes that were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadDecision {
    /// So many of them belong to the request; the rest is kept here.
    Keep(usize),
    /// They are not to be read by anybody.
    Malformed,
}

impl RequestTracker {
    fn lock(&self) -> MutexGuard<'_, TrackedRequest> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next byte that comes is of another request.
    pub(super) fn begin(&self) {
        let mut state = self.lock();
        let state = &mut *state;
        state.stage = ReadStage::Line;
        state.line.clear();
        state.line.shrink_to(KEPT_CAPACITY);
        state.received = 0;
        state.is_overread = false;
        state.is_malformed = false;
    }

    /// Pingora read this head of a request, and what follows is framed like this.
    pub(super) fn head_ended(&self, head: &[u8], framing: Framing) {
        let mut state = self.lock();
        let state = &mut *state;
        let beyond = state.received.checked_sub(head.len());
        let start = beyond.and_then(|count| state.last.len().checked_sub(count));
        let Some(start) = start.filter(|_| begins_with(head, &state.line)) else {
            // Pingora rewrote the head, so that nobody knows where it ended. It is refused.
            state.is_overread = true;
            state.stage = ReadStage::Open;
            return;
        };
        state.stage = match framing {
            Framing::Chunked => ReadStage::ChunkedBody(ChunkedBody::default()),
            Framing::Length(0) => ReadStage::Complete,
            Framing::Length(count) => ReadStage::Length(count),
        };
        let last = std::mem::take(&mut state.last);
        let rest = last.get(start..).unwrap_or_default();
        if !rest.is_empty() {
            match state.body(rest) {
                ReadDecision::Keep(count) => state.is_overread |= count < rest.len(),
                ReadDecision::Malformed => {}
            }
        }
        if last.capacity() <= KEPT_CAPACITY {
            state.last = last;
        }
    }

    /// Nothing that follows is checked any more.
    pub(super) fn open(&self) {
        self.lock().stage = ReadStage::Open;
    }

    /// Whether something of the next request has come.
    pub(super) fn has_begun(&self) -> bool {
        let state = self.lock();
        match state.stage {
            ReadStage::Line => !state.line.is_empty() || !state.early.is_empty(),
            ReadStage::Head | ReadStage::ChunkedBody(_) | ReadStage::Length(_) => true,
            ReadStage::Complete | ReadStage::Open => false,
        }
    }

    /// The target of the request as it was sent, between the first space and the last one of the line.
    pub(super) fn target(&self) -> Vec<u8> {
        let state = self.lock();
        target_of(&state.line).to_vec()
    }

    /// Whether the body is known not to be what its framing says.
    pub(super) fn is_malformed(&self) -> bool {
        self.lock().is_malformed
    }

    /// Whether bytes behind the request were read that no other request can be read from any more.
    pub(super) fn is_overread(&self) -> bool {
        self.lock().is_overread
    }

    /// How many bytes may be read that have to wait; `None` where they need not.
    pub(super) fn room_for_early(&self) -> Option<usize> {
        let state = self.lock();
        matches!(state.stage, ReadStage::Complete)
            .then(|| EARLY_BYTES_MAX.saturating_sub(state.early.len()))
    }

    /// Keeps what comes after the end of a request.
    pub(super) fn keep_early(&self, bytes: &[u8]) {
        self.lock().early.extend_from_slice(bytes);
    }

    /// At most so many bytes of what was kept.
    pub(super) fn take_early(&self, count: usize) -> Vec<u8> {
        let mut state = self.lock();
        if state.early.is_empty() {
            return Vec::new();
        }
        let count = count.min(state.early.len());
        let rest = state.early.split_off(count);
        std::mem::replace(&mut state.early, rest)
    }

    /// These bytes came.
    pub(super) fn see(&self, bytes: &[u8]) -> ReadDecision {
        let mut state = self.lock();
        let state = &mut *state;
        match state.stage {
            ReadStage::Line | ReadStage::Head => {
                state.head(bytes);
                ReadDecision::Keep(bytes.len())
            }
            ReadStage::ChunkedBody(_) | ReadStage::Length(_) => {
                let verdict = state.body(bytes);
                if let ReadDecision::Keep(count) = verdict {
                    let rest = bytes.get(count..).unwrap_or_default();
                    state.early.extend_from_slice(rest);
                }
                verdict
            }
            ReadStage::Complete | ReadStage::Open => ReadDecision::Keep(bytes.len()),
        }
    }
}

impl TrackedRequest {
    fn head(&mut self, bytes: &[u8]) {
        self.received = self.received.saturating_add(bytes.len());
        self.last.clear();
        self.last.extend_from_slice(bytes);
        if matches!(self.stage, ReadStage::Head) {
            return;
        }
        let mut rest = bytes;
        if self.line.is_empty() {
            let is_empty_line = |byte: &u8| matches!(byte, b'\r' | b'\n');
            let start = rest.iter().position(|byte| !is_empty_line(byte));
            rest = rest.get(start.unwrap_or(rest.len())..).unwrap_or_default();
        }
        let end = rest.iter().position(|byte| *byte == b'\n');
        let piece = rest.get(..end.unwrap_or(rest.len())).unwrap_or_default();
        let room = LINE_BYTES_MAX.saturating_sub(self.line.len());
        let piece = piece.get(..room).unwrap_or(piece);
        self.line.extend_from_slice(piece);
        if end.is_some() {
            self.stage = ReadStage::Head;
        }
    }

    /// Counts a piece of the body.
    fn body(&mut self, bytes: &[u8]) -> ReadDecision {
        match &mut self.stage {
            ReadStage::ChunkedBody(chunks) => match chunks.read(bytes) {
                ChunkProgress::Within => ReadDecision::Keep(bytes.len()),
                ChunkProgress::Ended(count) => {
                    self.stage = ReadStage::Complete;
                    ReadDecision::Keep(count)
                }
                ChunkProgress::Malformed => {
                    self.is_malformed = true;
                    // Read once more only to be thrown away.
                    self.stage = ReadStage::Open;
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
            // A request without a body keeps nothing of what comes after its head.
            ReadStage::Complete => ReadDecision::Keep(0),
            ReadStage::Line | ReadStage::Head | ReadStage::Open => ReadDecision::Keep(bytes.len()),
        }
    }
}

/// The target in a first line without its end.
fn target_of(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let is_space = |byte: &u8| *byte == b' ';
    let Some(first) = line.iter().position(is_space) else {
        return b"";
    };
    let rest = line.get(first.saturating_add(1)..).unwrap_or_default();
    match rest.iter().rposition(is_space) {
        Some(last) => rest.get(..last).unwrap_or_default(),
        None => rest,
    }
}

/// Whether Pingora read the first line as it was sent. It encodes bytes that may not be in a target.
fn begins_with(head: &[u8], line: &[u8]) -> bool {
    let start = head.iter().position(|byte| !matches!(byte, b'\r' | b'\n'));
    let head = head.get(start.unwrap_or(0)..).unwrap_or_default();
    head.starts_with(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_those_that_were_sent() {
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
            whole.see(bytes);
            assert_eq!(whole.target(), expected, "{name:?}");
            let pieces = RequestTracker::default();
            for byte in bytes.chunks(1) {
                pieces.see(byte);
            }
            assert_eq!(pieces.target(), expected, "{name:?}, byte by byte");
        }
    }

    #[test]
    fn a_line_without_end_takes_bounded_memory() {
        let tracker = RequestTracker::default();
        for _ in 0..100 {
            tracker.see(&[b'a'; 10_000]);
        }
        let state = tracker.lock();
        assert!(state.line.len() <= LINE_BYTES_MAX, "{}", state.line.len());
        assert!(state.last.len() <= 10_000, "{}", state.last.len());
    }

    #[test]
    fn each_request_is_judged_by_its_own_line() {
        let tracker = RequestTracker::default();
        let head = b"POST /a HTTP/1.1\r\nHost: x\r\n\r\n";
        tracker.see(head);
        tracker.head_ended(head, Framing::Length(3));
        assert_eq!(tracker.see(b"b c"), ReadDecision::Keep(3), "its body");
        assert_eq!(tracker.target(), b"/a", "the first");
        tracker.begin();
        tracker.see(b"GET /b HTTP/1.1\r\n");
        assert_eq!(tracker.target(), b"/b", "the second");
    }

    /// Name, framing, read with the head, read later, kept of that, malformed, overread, and what waits.
    type Row = (
        &'static str,
        Framing,
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
            Framing::Length(3),
            b"",
            b"abcGET",
            ReadDecision::Keep(3),
            false,
            false,
            b"GET",
        ),
        (
            "a length, half and half",
            Framing::Length(3),
            b"a",
            b"bcG",
            ReadDecision::Keep(2),
            false,
            false,
            b"G",
        ),
        (
            "a length, with the head",
            Framing::Length(3),
            b"abcGET",
            b"",
            ReadDecision::Keep(0),
            false,
            true,
            b"",
        ),
        (
            "no body",
            Framing::Length(0),
            b"GET",
            b"",
            ReadDecision::Keep(0),
            false,
            true,
            b"",
        ),
        (
            "chunks",
            Framing::Chunked,
            b"1\r\n",
            b"a\r\n0\r\n\r\nGET",
            ReadDecision::Keep(8),
            false,
            false,
            b"GET",
        ),
        (
            "malformed chunks, later",
            Framing::Chunked,
            b"1\r\n",
            b"a\n0\r\n\r\nGET",
            ReadDecision::Malformed,
            true,
            false,
            b"",
        ),
        (
            "malformed chunks, with the head",
            Framing::Chunked,
            b"2;\nxx\r\n39\r\n0\r\n\r\n",
            b"",
            ReadDecision::Keep(0),
            true,
            false,
            b"",
        ),
    ];

    #[test]
    fn bodies_end_where_their_framing_says_and_the_rest_waits() {
        let head = b"PUT / HTTP/1.1\r\n\r\n";
        for (name, framing, with, later, verdict, malformed, overread, waits) in BODIES {
            let tracker = RequestTracker::default();
            tracker.see(&[head.as_slice(), with].concat());
            tracker.head_ended(head, framing);
            if !later.is_empty() {
                assert_eq!(tracker.see(later), verdict, "{name}: kept");
            }
            assert_eq!(tracker.is_malformed(), malformed, "{name}: malformed");
            assert_eq!(tracker.is_overread(), overread, "{name}: overread");
            assert_eq!(tracker.take_early(100), waits, "{name}: waits");
        }
    }
}
