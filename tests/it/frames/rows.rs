//! Malformed HTTP/2: the bytes of each row, and what must become of the stream or connection.

use crate::frames::BACKUP;
use crate::frames::get;
use crate::frames::good;
use crate::frames::put;
use crate::frames::wire::*;

/// Errors of HTTP/2 (RFC 9113 section 7).
pub(crate) const PROTOCOL: u32 = 1;

const FLOW_CONTROL: u32 = 3;

const STREAM_CLOSED: u32 = 5;

const FRAME_SIZE: u32 = 6;

pub(crate) const REFUSED: u32 = 7;

const COMPRESSION: u32 = 9;

/// What must become of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The stream is reset with this error, and the connection goes on.
    Reset(u32),
    /// The connection is given up with this error.
    Ends(u32),
    /// The connection is closed, whatever is said about it.
    Cut,
    /// The stream is answered with this status, and the connection goes on.
    Answered(u16),
    /// No reaction, and the connection goes on.
    Passed,
}

pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) bytes: Vec<u8>,
    pub(crate) fate: Fate,
}

pub(crate) fn row(name: &'static str, bytes: Vec<u8>, fate: Fate) -> Row {
    Row { name, bytes, fate }
}

/// A request on stream 1 with these fields, ended.
fn request<N: AsRef<[u8]>, V: AsRef<[u8]>>(all: &[(N, V)]) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, 1, &fields(all))
}

/// A good request with one more field.
pub(crate) fn with(name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Vec<u8> {
    let mut all = good("GET", BACKUP);
    all.push((name.as_ref().to_vec(), value.as_ref().to_vec()));
    request(&all)
}

/// A good request without a field, and with these in front.
fn instead(name: &str, others: &[(&str, &str)]) -> Vec<u8> {
    let mut all = good("GET", BACKUP);
    all.retain(|(field, _)| field != name.as_bytes());
    let others = others.iter().rev();
    others.for_each(|(name, value)| all.insert(0, ((*name).into(), (*value).into())));
    request(&all)
}

fn path(target: &str) -> Vec<u8> {
    instead(":path", &[(":path", target)])
}

pub(crate) fn all(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

/// Frames that are none, or are not allowed where they are.
pub(crate) fn shapes() -> Vec<Row> {
    use Fate::Ends;
    use Fate::Passed;
    let block = fields(&good("GET", BACKUP));
    let (half, rest) = block.split_at(20);
    let whole = END_STREAM | END_HEADERS;
    let mut unknown = frame(0xfe, 0xff, 1, b"whatever");
    unknown.extend(frame(0xfe, 0, 0, &[]));
    let mut reserved = frame(PING, 0, 0, &[0; 8]);
    reserved[5] |= 0x80;
    vec![
        row("an unknown frame", unknown, Passed),
        row("a reserved bit", reserved, Passed),
        row(
            "a frame too large",
            frame(DATA, 0, 1, &[0; 16_385]),
            Ends(FRAME_SIZE),
        ),
        row(
            "a setting too short",
            frame(SETTINGS, 0, 0, &[0; 5]),
            Ends(FRAME_SIZE),
        ),
        row(
            "settings of a stream",
            frame(SETTINGS, 0, 1, &[0; 6]),
            Ends(PROTOCOL),
        ),
        row(
            "an acknowledgement with settings",
            frame(SETTINGS, ACK, 0, &[0; 6]),
            Ends(FRAME_SIZE),
        ),
        row(
            "a window beyond all",
            setting(4, 0x8000_0000),
            Ends(FLOW_CONTROL),
        ),
        row("frames too small to be", setting(5, 100), Ends(PROTOCOL)),
        row(
            "frames too large to be",
            setting(5, 0x0100_0000),
            Ends(PROTOCOL),
        ),
        row("push as a number", setting(2, 2), Ends(PROTOCOL)),
        row("an unknown setting", setting(0xfefe, 7), Passed),
        row(
            "a ping too short",
            frame(PING, 0, 0, &[0; 7]),
            Ends(FRAME_SIZE),
        ),
        row(
            "a ping of a stream",
            frame(PING, 0, 1, &[0; 8]),
            Ends(PROTOCOL),
        ),
        row(
            "a promise by a client",
            frame(PUSH_PROMISE, END_HEADERS, 1, &[0; 4]),
            Ends(PROTOCOL),
        ),
        row(
            "fields of no stream",
            frame(HEADERS, whole, 0, &block),
            Ends(PROTOCOL),
        ),
        row("data of no stream", frame(DATA, 0, 0, b"x"), Ends(PROTOCOL)),
        row(
            "a reset of no stream",
            frame(RST_STREAM, 0, 0, &[0; 4]),
            Ends(PROTOCOL),
        ),
        row(
            "fields of an even stream",
            frame(HEADERS, whole, 2, &block),
            Ends(PROTOCOL),
        ),
        row(
            "data of a stream to come",
            frame(DATA, 0, 1, b"x"),
            Ends(PROTOCOL),
        ),
        row(
            "a reset of a stream to come",
            frame(RST_STREAM, 0, 1, &[0; 4]),
            Ends(PROTOCOL),
        ),
        row(
            "a reset too short",
            all(&[&put(1, None), &frame(RST_STREAM, 0, 1, &[0; 3])]),
            Ends(FRAME_SIZE),
        ),
        row(
            "a priority too short",
            frame(PRIORITY, 0, 1, &[0; 4]),
            Fate::Cut,
        ),
        row(
            "a stream before the last",
            all(&[&put(5, None), &frame(HEADERS, whole, 3, &block)]),
            Ends(PROTOCOL),
        ),
        row(
            "a continuation of nothing",
            frame(CONTINUATION, END_HEADERS, 1, &block),
            Ends(PROTOCOL),
        ),
        row(
            "fields broken off by data",
            all(&[&frame(HEADERS, 0, 1, half), &frame(DATA, 0, 1, b"x")]),
            Ends(PROTOCOL),
        ),
        row(
            "fields broken off by a ping",
            all(&[&frame(HEADERS, 0, 1, half), &frame(PING, 0, 0, &[0; 8])]),
            Ends(PROTOCOL),
        ),
        row(
            "a continuation of another stream",
            all(&[
                &frame(HEADERS, 0, 1, half),
                &frame(CONTINUATION, END_HEADERS, 3, rest),
            ]),
            Ends(PROTOCOL),
        ),
        row(
            "fields in pieces",
            all(&[
                &frame(HEADERS, END_STREAM, 1, half),
                &frame(CONTINUATION, END_HEADERS, 1, rest),
            ]),
            Fate::Answered(200),
        ),
        row(
            "more padding than frame",
            frame(HEADERS, whole | PADDED, 1, &[200, 0, 0]),
            Ends(PROTOCOL),
        ),
        row(
            "padding without its length",
            frame(HEADERS, whole | PADDED, 1, &[]),
            Fate::Cut,
        ),
        row(
            "data with more padding than frame",
            all(&[&put(1, None), &frame(DATA, PADDED, 1, &[5, 0, 0])]),
            Ends(PROTOCOL),
        ),
        row(
            "data of padding without its length",
            all(&[&put(1, None), &frame(DATA, PADDED, 1, &[])]),
            Fate::Cut,
        ),
        row(
            "an index of nothing",
            frame(HEADERS, whole, 1, &[0x80]),
            Ends(COMPRESSION),
        ),
        row(
            "an index beyond all tables",
            frame(HEADERS, whole, 1, &[0xff, 0xff, 0x7f]),
            Ends(COMPRESSION),
        ),
        row(
            "a number without end",
            frame(HEADERS, whole, 1, &[0xff; 40]),
            Ends(COMPRESSION),
        ),
        row(
            "a table beyond what is allowed",
            frame(HEADERS, whole, 1, &[0x3f, 0xff, 0xff, 0x7f]),
            Ends(COMPRESSION),
        ),
        row(
            "a text longer than the block",
            frame(HEADERS, whole, 1, &[0, 10, b'a']),
            Ends(COMPRESSION),
        ),
    ]
}

/// Streams and windows.
pub(crate) fn streams() -> Vec<Row> {
    use Fate::Ends;
    use Fate::Reset;
    let widen = |stream: u32, by: u32| frame(WINDOW_UPDATE, 0, stream, &by.to_be_bytes());
    let open = put(1, None);
    let most = 0x7fff_ffff;
    vec![
        row(
            "a window too wide",
            all(&[&widen(0, most), &widen(0, most)]),
            Ends(FLOW_CONTROL),
        ),
        row("a window wider by nothing", widen(0, 0), Ends(PROTOCOL)),
        row(
            "a width too short",
            frame(WINDOW_UPDATE, 0, 0, &[0; 3]),
            Ends(FRAME_SIZE),
        ),
        row(
            "a stream's window too wide",
            all(&[&open, &widen(1, most), &widen(1, most)]),
            Reset(FLOW_CONTROL),
        ),
        row(
            "a stream's window wider by nothing",
            all(&[&open, &widen(1, 0)]),
            Ends(PROTOCOL),
        ),
        row("a window of a stream to come", widen(1, 1), Ends(PROTOCOL)),
        row(
            "more than the window",
            {
                let data = frame(DATA, 0, 1, &[b' '; 16_384]);
                all(&[&open, &data, &data, &data, &data, &data])
            },
            Ends(FLOW_CONTROL),
        ),
        row(
            "data after the end",
            all(&[&get(1), &frame(DATA, 0, 1, b"x")]),
            Ends(STREAM_CLOSED),
        ),
        row(
            "fields after the end",
            all(&[&get(1), &get(1)]),
            Ends(STREAM_CLOSED),
        ),
        row(
            "trailers that do not end",
            all(&[
                &open,
                &frame(HEADERS, END_HEADERS, 1, &fields(&[("x-a", "1")])),
            ]),
            Reset(PROTOCOL),
        ),
        // Trailers are not read, so nothing in them means anything.
        row(
            "trailers with a pseudo field",
            {
                let trailers = fields(&[(":path", "/x")]);
                let trailers = frame(HEADERS, END_HEADERS | END_STREAM, 1, &trailers);
                all(&[&open, &frame(DATA, 0, 1, br#"{"tags":[]}"#), &trailers])
            },
            Fate::Answered(202),
        ),
        row(
            "an end too short",
            frame(GOAWAY, 0, 0, &[0; 7]),
            Ends(FRAME_SIZE),
        ),
    ]
}

/// Requests whose fields are not what they must be (RFC 9113 section 8).
pub(crate) fn requests() -> Vec<Row> {
    use Fate::Answered;
    use Fate::Ends;
    use Fate::Reset;
    let mut late = good("GET", BACKUP);
    let first = late.remove(0);
    late.push(first);
    let many = (0..150).map(|number| (format!("x-{number}"), "1".to_owned()));
    let many: Vec<(String, String)> = many.collect();
    let mut lots = good("GET", BACKUP);
    lots.extend(
        many.into_iter()
            .map(|(name, value)| (name.into(), value.into())),
    );
    vec![
        row("a good one", get(1), Answered(200)),
        row("a name in capitals", with("X-A", "1"), Ends(PROTOCOL)),
        row("an empty name", with("", "1"), Ends(PROTOCOL)),
        row("a name with a space", with("x a", "1"), Ends(PROTOCOL)),
        row("a name with a colon", with("x:a", "1"), Ends(PROTOCOL)),
        row(
            "a name with an underscore",
            with("x_forwarded_for", "10.0.0.1"),
            Answered(400),
        ),
        row("a value with NUL", with("x-a", "1\u{0}2"), Ends(PROTOCOL)),
        row(
            "a value with a line end",
            with("x-a", "1\r\nx-b: 2"),
            Ends(PROTOCOL),
        ),
        row(
            "connection",
            with("connection", "keep-alive"),
            Reset(PROTOCOL),
        ),
        row("keep-alive", with("keep-alive", "1"), Reset(PROTOCOL)),
        row(
            "proxy-connection",
            with("proxy-connection", "close"),
            Reset(PROTOCOL),
        ),
        row(
            "transfer-encoding",
            with("transfer-encoding", "chunked"),
            Reset(PROTOCOL),
        ),
        row("upgrade", with("upgrade", "websocket"), Reset(PROTOCOL)),
        row("te of something else", with("te", "gzip"), Reset(PROTOCOL)),
        row("te of trailers", with("te", "trailers"), Answered(200)),
        row(
            "another scheme",
            instead(":scheme", &[(":scheme", "ftp")]),
            Answered(400),
        ),
        row(
            "the scheme without encryption",
            instead(":scheme", &[(":scheme", "http")]),
            Answered(200),
        ),
        row(
            "a list of lengths",
            with("content-length", "5, 5"),
            Reset(PROTOCOL),
        ),
        row("no method", instead(":method", &[]), Reset(PROTOCOL)),
        row("no scheme", instead(":scheme", &[]), Reset(PROTOCOL)),
        row("no path", instead(":path", &[]), Reset(PROTOCOL)),
        row("no authority", instead(":authority", &[]), Answered(400)),
        row(
            "two methods",
            instead(":method", &[(":method", "GET"), (":method", "GET")]),
            Reset(PROTOCOL),
        ),
        row(
            "two paths",
            instead(":path", &[(":path", BACKUP), (":path", "/versions")]),
            Reset(PROTOCOL),
        ),
        row(
            "two schemes",
            instead(":scheme", &[(":scheme", "https"), (":scheme", "http")]),
            Reset(PROTOCOL),
        ),
        row(
            "two authorities",
            instead(":authority", &[(":authority", "a"), (":authority", "b")]),
            Reset(PROTOCOL),
        ),
        row(
            "a pseudo field of answers",
            instead("", &[(":status", "200")]),
            Reset(PROTOCOL),
        ),
        row(
            "an unknown pseudo field",
            instead("", &[(":x", "1")]),
            Ends(PROTOCOL),
        ),
        row(
            "a pseudo field after others",
            request(&late),
            Reset(PROTOCOL),
        ),
        row("an empty path", path(""), Reset(PROTOCOL)),
        row(
            "a path without a slash",
            path("vms/1/backups/456"),
            Reset(PROTOCOL),
        ),
        row("an asterisk", path("*"), Answered(400)),
        row(
            "a whole URL as path",
            path("https://localhost/vms/1/backups/456"),
            Reset(PROTOCOL),
        ),
        row(
            "a path with a space",
            path("/vms/1/backups/4 56"),
            Reset(PROTOCOL),
        ),
        row(
            "a path with a control character",
            path("/vms/1/backups/\u{1}"),
            Reset(PROTOCOL),
        ),
        row(
            "a path with a line end",
            path("/x HTTP/1.1\r\nHost: x\r\n\r\n"),
            Reset(PROTOCOL),
        ),
        row(
            "a path with a fragment",
            path("/vms/1/backups/456#x"),
            Answered(200),
        ),
        row(
            "a path with a tab",
            path("/vms/1/backups/4\t56"),
            Reset(PROTOCOL),
        ),
        row(
            "a path with NUL",
            path("/vms/1/backups/4\0"),
            Reset(PROTOCOL),
        ),
        row(
            "a path with DEL",
            path("/vms/1/backups/4\u{7f}"),
            Reset(PROTOCOL),
        ),
        row(
            "a path beyond ASCII",
            path("/vms/1/backups/4\u{e9}"),
            Answered(400),
        ),
        row(
            "a query beyond ASCII",
            path("/vms/1/backups/456?\u{e9}"),
            Answered(400),
        ),
        row(
            "a path with dots",
            path("/vms/1/x/../backups/456"),
            Answered(404),
        ),
        row(
            "a path of two slashes",
            path("//vms/1/backups/456"),
            Answered(404),
        ),
        row(
            "an encoded slash",
            path("/vms/1%2Fbackups/456"),
            Answered(404),
        ),
        row("another host", with("host", "other.example"), Answered(400)),
        row("the same host", with("host", "localhost"), Answered(200)),
        row("two hosts", instead(":authority", &[]), Answered(400)),
        row(
            "an authority with a user",
            instead(":authority", &[(":authority", "me@localhost")]),
            Answered(400),
        ),
        row(
            "an authority of rubbish",
            instead(":authority", &[(":authority", "a b")]),
            Reset(PROTOCOL),
        ),
        row(
            "an invented method",
            instead(":method", &[(":method", "FO-O!")]),
            Answered(405),
        ),
        row(
            "TRACE",
            instead(":method", &[(":method", "TRACE")]),
            Answered(405),
        ),
        row(
            "CONNECT",
            request(&[(":method", "CONNECT"), (":authority", "localhost:443")]),
            Answered(405),
        ),
        row(
            "CONNECT by the extension",
            instead(
                ":method",
                &[(":method", "CONNECT"), (":protocol", "websocket")],
            ),
            Reset(PROTOCOL),
        ),
        row("too many fields", request(&lots), Answered(431)),
        row(
            "a field too long",
            {
                let block = fields(&[("x-a", "x".repeat(40_000))]);
                let mut bytes = frame(HEADERS, END_STREAM, 1, &fields(&good("GET", BACKUP)));
                let pieces: Vec<&[u8]> = block.chunks(16_384).collect();
                for (at, piece) in pieces.iter().enumerate() {
                    let last = at + 1 == pieces.len();
                    bytes.extend(frame(
                        CONTINUATION,
                        if last { END_HEADERS } else { 0 },
                        1,
                        piece,
                    ));
                }
                bytes
            },
            Answered(431),
        ),
    ]
}

/// Bodies that are not as long as was said.
pub(crate) fn lengths() -> Vec<Row> {
    use Fate::Answered;
    use Fate::Reset;
    let body = br#"{"tags":[]}"#;
    let data = frame(DATA, END_STREAM, 1, body);
    let ended = |length: &str| {
        let mut all = good("PUT", BACKUP);
        all.push((b"content-length".to_vec(), length.into()));
        request(&all)
    };
    let mut twice = good("PUT", BACKUP);
    for length in ["11", "11"] {
        twice.push((b"content-length".to_vec(), length.into()));
    }
    vec![
        row(
            "as long as said",
            all(&[&put(1, Some("11")), &data]),
            Answered(202),
        ),
        row(
            "no length said",
            all(&[&put(1, None), &data]),
            Answered(202),
        ),
        row(
            "longer than said",
            all(&[&put(1, Some("5")), &data]),
            Reset(PROTOCOL),
        ),
        row(
            "shorter than said",
            all(&[&put(1, Some("50")), &data]),
            Reset(PROTOCOL),
        ),
        row(
            "nothing where something was said",
            ended("5"),
            Reset(PROTOCOL),
        ),
        row(
            "a length that is none",
            all(&[&put(1, Some("+11")), &data]),
            Reset(PROTOCOL),
        ),
        row(
            "a negative length",
            all(&[&put(1, Some("-1")), &data]),
            Reset(PROTOCOL),
        ),
        row(
            "a length beyond the limit",
            put(1, Some("70000")),
            Answered(413),
        ),
        row(
            "the length twice",
            all(&[&frame(HEADERS, END_HEADERS, 1, &fields(&twice)), &data]),
            Answered(400),
        ),
    ]
}
