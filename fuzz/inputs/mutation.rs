//! Mutations that know what they change: lines of HTTP/1.1, chunks, and frames of HTTP/2 with the lengths that they then have.
//!
//! Half of the time the mutations of libFuzzer are used, which know no structure and therefore break it in every way.

use super::reference_http2;
use super::reference_http2::split_frame;

/// The mutation of libFuzzer: changes the first `size` bytes and returns how many there are then, at most `max`.
pub(crate) type Plain = fn(data: &mut [u8], size: usize, max: usize) -> usize;

/// Lines and fragments of requests.
const REQUEST: &[&str] = &[
    "GET /vms/33333/backups/456 HTTP/1.1\r\nHost: x\r\nAuthorization: Basic YW5uOnNlY3JldA==\r\n\r\n",
    "PUT /vms/33333/backups/456 HTTP/1.1\r\nHost: x\r\nAuthorization: Basic YW5uOnNlY3JldA==\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nb\r\n{\"tags\":[]}\r\n0\r\n\r\n",
    "Host: x\r\n",
    "Host: y@x\r\n",
    "Content-Length: 11\r\n",
    "Content-Length: 5, 5\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding: identity\r\n",
    "Transfer-Encoding: , chunked\r\n",
    "Connection: close\r\n",
    "Connection: host, content-length\r\n",
    "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
    "Expect: 100-continue\r\n",
    "TE: trailers, chunked\r\n",
    "Trailer: Content-Length\r\n",
    "Keep-Alive: timeout=5\r\n",
    " folded\r\n",
    "X-A: a\rb\r\n",
    "2;\nxx\r\n",
    "b;a=\"b\"\r\n",
    "0\r\nX: y\r\n\r\n",
    "0\r\n\r\n",
    "\r\n",
    "\n",
];

/// Lines and fragments of answers.
const ANSWER: &[&str] = &[
    "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "HTTP/1.0 200 OK\r\n",
    "HTTP/1.1 204 No Content\r\n",
    "HTTP/1.1 304 Not Modified\r\n",
    "HTTP/1.1 100 Continue\r\n\r\n",
    "HTTP/1.1 102 Processing\r\n\r\n",
    "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n",
    "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
    "Content-Length: 3\r\n",
    "Content-Length: 3, 3\r\n",
    "Content-Length: +3\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding: , chunked\r\n",
    "Connection: close\r\n",
    "Connection: keep-alive\r\n",
    "Connection: content-type, x-a\r\n",
    "Keep-Alive: timeout=5\r\n",
    "Date: Thu, 01 Jan 1970 00:00:00 GMT\r\n",
    "Age: 5\r\n",
    "Content-Type: a/b\r\n",
    "Set-Cookie: a=b\r\n",
    "Upgrade: h2c\r\n",
    "Trailer: X\r\n",
    "X-A : b\r\n",
    "X-A: a\r\n b\r\n",
    "3;a=b\r\nabc\r\n",
    "0\r\nX: y\r\n\r\n",
    "\r\n",
    "\n",
];

/// Fields of HTTP/2 requests.
const FIELDS: &[(&str, &str)] = &[
    (":method", "GET"),
    (":method", "PUT"),
    (":method", "CONNECT"),
    (":scheme", "https"),
    (":scheme", "ftp"),
    (":authority", "localhost"),
    (":authority", "me@localhost"),
    (":path", "/vms/33333/backups/456"),
    (":path", "/vms/33333/backups/456#x"),
    (":path", ""),
    (":path", "*"),
    (":protocol", "websocket"),
    ("host", "localhost"),
    ("host", "other"),
    ("authorization", "Basic YW5uOnNlY3JldA=="),
    ("content-type", "application/json"),
    ("content-length", "11"),
    ("content-length", "5, 5"),
    ("transfer-encoding", "chunked"),
    ("connection", "close"),
    ("te", "trailers"),
    ("te", "gzip"),
    ("expect", "100-continue"),
    ("cookie", "a=b"),
    ("X-A", "b"),
    ("x-a", " b "),
];

/// Numbers that are random enough (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let limit = u64::try_from(limit.max(1)).unwrap();
        usize::try_from(self.0 % limit).unwrap()
    }

    fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

/// Changes requests of HTTP/1.1 and of HTTP/2.
pub(crate) fn requests(data: &mut [u8], size: usize, max: usize, seed: u32, plain: Plain) -> usize {
    let mut random = Random(u64::from(seed) | 1 << 40);
    if random.below(2) == 0 {
        return plain(data, size, max);
    }
    let given = &data[..size];
    let changed = match given.strip_prefix(reference_http2::PREFACE) {
        Some(frames) => change_frames(frames, &mut random, plain),
        // Now and then the other protocol.
        None if random.below(16) == 0 => change_frames(&[], &mut random, plain),
        None => change_lines(given, REQUEST, &mut random),
    };
    store(data, &changed, max)
}

/// Changes answers of upstreams.
pub(crate) fn answers(data: &mut [u8], size: usize, max: usize, seed: u32, plain: Plain) -> usize {
    let mut random = Random(u64::from(seed) | 1 << 40);
    if random.below(2) == 0 {
        return plain(data, size, max);
    }
    let changed = change_lines(&data[..size], ANSWER, &mut random);
    store(data, &changed, max)
}

fn store(data: &mut [u8], changed: &[u8], max: usize) -> usize {
    let length = changed.len().min(max).min(data.len());
    data[..length].copy_from_slice(&changed[..length]);
    length
}

/// Changes one line, or the framing of what follows.
fn change_lines(given: &[u8], words: &[&str], random: &mut Random) -> Vec<u8> {
    let mut lines: Vec<Vec<u8>> = given
        .split_inclusive(|byte| *byte == b'\n')
        .map(<[u8]>::to_vec)
        .collect();
    let at = random.below(lines.len() + 1);
    let word = random.pick(words).as_bytes().to_vec();
    match random.below(7) {
        0 | 1 => lines.insert(at, word),
        2 if at < lines.len() => lines[at] = word,
        3 if at < lines.len() => drop(lines.remove(at)),
        4 if at < lines.len() => {
            let line = lines[at].clone();
            lines.insert(random.below(lines.len()), line);
        }
        5 if at < lines.len() => {
            // Another end of the line.
            let ends: [&[u8]; 5] = [b"\n", b"\r\n", b"\r", b"\0\r\n", b" \r\n"];
            let text = lines[at].trim_ascii_end().to_vec();
            lines[at] = [&text, *random.pick(&ends)].concat();
        }
        _ => {
            // What is behind that line, as one chunk.
            let body = lines.split_off(at).concat();
            let head = format!("{:x}\r\n", body.len()).into_bytes();
            lines.extend([head, body, b"\r\n0\r\n\r\n".to_vec()]);
        }
    }
    lines.concat()
}

/// One frame, with the length it has.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A field in the plainest form of HPACK.
pub(crate) fn field(name: &str, value: &str) -> Vec<u8> {
    let part = |text: &str| {
        let length = u8::try_from(text.len()).unwrap().min(126);
        [&[length], &text.as_bytes()[..usize::from(length)]].concat()
    };
    [vec![0], part(name), part(value)].concat()
}

/// A good request.
pub(crate) fn request(stream: u32, method: &str, ends: bool) -> Vec<u8> {
    let fields = [
        (":method", method),
        (":scheme", "https"),
        (":authority", "localhost"),
        (":path", "/vms/33333/backups/456"),
        ("authorization", "Basic YW5uOnNlY3JldA=="),
        ("content-type", "application/json"),
    ];
    let block = fields.map(|(name, value)| field(name, value)).concat();
    let flags = if ends { reference_http2::END_STREAM } else { 0 };
    frame(
        reference_http2::HEADERS,
        flags | reference_http2::END_HEADERS,
        stream,
        &block,
    )
}

type Owned = (u8, u8, u32, Vec<u8>);

fn change_frames(mut given: &[u8], random: &mut Random, plain: Plain) -> Vec<u8> {
    let mut frames: Vec<Owned> = Vec::new();
    while let Some((frame, rest)) = split_frame(given) {
        frames.push((
            frame.kind,
            frame.flags,
            frame.stream,
            frame.payload.to_vec(),
        ));
        given = rest;
    }
    if frames.is_empty() {
        frames.push((reference_http2::SETTINGS, 0, 0, Vec::new()));
    }
    change_one(&mut frames, random, plain);
    let frames = frames
        .iter()
        .map(|(kind, flags, stream, payload)| frame(*kind, *flags, *stream, payload));
    let changed: Vec<u8> = frames.flatten().collect();
    [reference_http2::PREFACE, &changed].concat()
}

/// Changes one frame, or which frames there are.
fn change_one(frames: &mut Vec<Owned>, random: &mut Random, plain: Plain) {
    let at = random.below(frames.len());
    let next = frames.iter().map(|frame| frame.2).max().unwrap_or_default();
    let next = (next.min(0x7fff_fff0) + 1) | 1;
    match random.below(10) {
        0 => {
            let method = *random.pick(&["GET", "DELETE", "POST"]);
            let whole = request(next, method, true);
            frames.extend(split_frame(&whole).map(|(frame, _)| owned(frame)));
        }
        1 => {
            let whole = request(next, "PUT", false);
            frames.extend(split_frame(&whole).map(|(frame, _)| owned(frame)));
            frames.push((
                reference_http2::DATA,
                reference_http2::END_STREAM,
                next,
                br#"{"tags":[]}"#.to_vec(),
            ));
        }
        2 => drop(frames.remove(at)),
        3 => frames.insert(at, frames[random.below(frames.len())].clone()),
        4 => frames[at].0 = u8::try_from(random.below(11)).unwrap(),
        5 => frames[at].1 ^= random.pick(&[1, 4, 8, 32]),
        6 => frames[at].2 = frames[random.below(frames.len())].2,
        7 => {
            // A field at some place between others, where the list begins with plain ones.
            let (name, value) = *random.pick(FIELDS);
            let payload = &mut frames[at].3;
            let ends = fields_in(payload);
            let place = *random.pick(&ends);
            let rest = payload.split_off(place);
            payload.extend(field(name, value));
            // Or in the place of the next one.
            let next = ends
                .iter()
                .find(|end| **end > place)
                .map_or(0, |end| end - place);
            let skipped = if random.below(2) == 0 { next } else { 0 };
            payload.extend_from_slice(&rest[skipped..]);
        }
        8 => {
            // In two parts.
            let (kind, flags, stream, payload) = &mut frames[at];
            let rest = payload.split_off(random.below(payload.len() + 1));
            let next = if *kind == reference_http2::DATA {
                *kind
            } else {
                reference_http2::CONTINUATION
            };
            let part = (next, *flags, *stream, rest);
            *flags &= !reference_http2::END_HEADERS;
            frames.insert(at + 1, part);
        }
        _ => {
            let payload = &mut frames[at].3;
            let (size, max) = (payload.len(), payload.len() + 16);
            payload.resize(max, 0);
            let size = plain(payload, size, max);
            payload.truncate(size);
        }
    }
    if frames.is_empty() {
        frames.push((reference_http2::SETTINGS, 0, 0, Vec::new()));
    }
}

fn owned(frame: reference_http2::Frame<'_>) -> Owned {
    (
        frame.kind,
        frame.flags,
        frame.stream,
        frame.payload.to_vec(),
    )
}

/// The ends of the plain fields that a list begins with, and its start.
fn fields_in(payload: &[u8]) -> Vec<usize> {
    let mut ends = vec![0];
    let mut at = 0;
    while payload.get(at) == Some(&0) {
        at += 1;
        for _ in 0..2 {
            let Some(length) = payload.get(at).filter(|length| **length < 127) else {
                return ends;
            };
            at += 1 + usize::from(*length);
        }
        if at > payload.len() {
            return ends;
        }
        ends.push(at);
    }
    ends
}
