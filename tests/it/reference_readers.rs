//! The reference readers and the mutations of the fuzz targets, which must be right themselves.

use std::fs;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;

use crate::corpora::inputs;
use crate::corpora::inputs::mutation;
use crate::corpora::inputs::mutation::field;
use crate::corpora::inputs::mutation::frame;
use crate::corpora::inputs::mutation::request;
use crate::corpora::inputs::reference_answer;
use crate::corpora::inputs::reference_answer::End;
use crate::corpora::inputs::reference_http2;
use crate::corpora::inputs::reference_http2::CONTINUATION;
use crate::corpora::inputs::reference_http2::DATA;
use crate::corpora::inputs::reference_http2::END_HEADERS;
use crate::corpora::inputs::reference_http2::END_STREAM;
use crate::corpora::inputs::reference_http2::HEADERS;
use crate::corpora::inputs::reference_http2::PREFACE;
use crate::corpora::inputs::reference_http2::SETTINGS;

/// A good request with these fields in the place of its last one.
fn with(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut all = vec![
        (":method", "GET"),
        (":scheme", "https"),
        (":authority", "x"),
        (":path", "/"),
    ];
    for (name, value) in fields {
        let known = all
            .iter()
            .position(|field| field.0 == *name && name.starts_with(':'));
        match known {
            Some(at) => all[at] = (*name, *value),
            None => all.push((*name, *value)),
        }
    }
    let block: Vec<u8> = all
        .iter()
        .flat_map(|(name, value)| field(name, value))
        .collect();
    frame(HEADERS, END_STREAM | END_HEADERS, 1, &block)
}

#[apply(test)]
fn the_reference_reader_of_http_2_keeps_the_rules_of_rfc_9113() {
    let get = |stream| request(stream, "GET", true);
    let put = |length: &str| {
        let head = with(&[(":method", "PUT"), ("content-length", length)]);
        [&head[..4], &[END_HEADERS], &head[5..]].concat()
    };
    let block = &get(1)[9..];
    // name, frames, whole well-formed requests, whether the connection is broken
    let rows: Vec<(&str, Vec<u8>, usize, bool)> = vec![
        ("two requests", [get(1), get(3)].concat(), 2, false),
        (
            "a stream before the last",
            [get(3), get(1)].concat(),
            1,
            true,
        ),
        ("an even stream", get(2), 0, true),
        ("a stream twice", [get(1), get(1)].concat(), 1, false),
        (
            "in two parts",
            [
                frame(HEADERS, END_STREAM, 1, &block[..20]),
                frame(CONTINUATION, END_HEADERS, 1, &block[20..]),
            ]
            .concat(),
            1,
            false,
        ),
        (
            "parts of two",
            [
                frame(HEADERS, END_STREAM, 1, &block[..20]),
                frame(CONTINUATION, END_HEADERS, 3, &block[20..]),
            ]
            .concat(),
            0,
            true,
        ),
        (
            "as long as announced",
            [put("3"), frame(DATA, END_STREAM, 1, b"abc")].concat(),
            1,
            false,
        ),
        (
            "shorter than announced",
            [put("4"), frame(DATA, END_STREAM, 1, b"abc")].concat(),
            0,
            false,
        ),
        (
            "longer than announced",
            [put("2"), frame(DATA, END_STREAM, 1, b"abc")].concat(),
            0,
            false,
        ),
        (
            "data of no stream",
            frame(DATA, END_STREAM, 1, b"abc"),
            0,
            true,
        ),
        ("capitals", with(&[("X-A", "b")]), 0, false),
        ("Connection", with(&[("connection", "close")]), 0, false),
        ("another place", with(&[("host", "y")]), 0, false),
        ("the same place", with(&[("host", "x")]), 1, false),
        ("a user", with(&[(":authority", "me@x")]), 0, false),
        ("another scheme", with(&[(":scheme", "ftp")]), 0, false),
        ("no path", with(&[(":path", "")]), 0, false),
        (
            "a list of lengths",
            with(&[("content-length", "0, 0")]),
            0,
            false,
        ),
        ("padding of a value", with(&[("x-a", " b ")]), 1, false),
        ("NUL in a value", with(&[("x-a", "a\0b")]), 0, false),
        (
            "an unknown pseudo field",
            with(&[(":protocol", "x")]),
            0,
            false,
        ),
        (
            "a pseudo field late",
            with(&[("x-a", "b"), (":x", "y")]),
            0,
            false,
        ),
        ("TE", with(&[("te", "gzip")]), 0, false),
    ];
    for (name, frames, expected, is_broken) in rows {
        let bytes = [PREFACE, &frame(SETTINGS, 0, 0, &[]), &frames].concat();
        let reading = reference_http2::read(&bytes);
        let whole = reading.streams.values();
        let whole = whole.filter(|stream| stream.method.is_some() && stream.is_whole);
        assert_eq!(whole.count(), expected, "{name}: {reading:?}");
        assert_eq!(reading.is_broken, is_broken, "{name}: {reading:?}");
    }
    assert!(
        reference_http2::read(b"GET / HTTP/1.1\r\n").is_broken,
        "no preface"
    );
}

#[apply(test)]
fn the_reference_reader_of_answers_keeps_the_rules_of_rfc_9112() {
    let ok = "HTTP/1.1 200 OK\r\n";
    let chunked = |body: &str| format!("{ok}Transfer-Encoding: chunked\r\n\r\n{body}");
    let length = |value: &str| format!("{ok}Content-Length: {value}\r\n\r\nabc");
    // name, bytes, status, body and end; `None` for what is refused
    let rows: Vec<(&str, String, Option<(u16, &str, End)>)> = vec![
        ("a length", length("3"), Some((200, "abc", End::Whole))),
        (
            "a shorter body",
            length("9"),
            Some((200, "abc", End::Broken)),
        ),
        ("a longer body", length("2"), Some((200, "ab", End::Whole))),
        ("a list", length("3, 3"), None),
        ("a word", length("x"), None),
        (
            "an open end",
            format!("{ok}\r\nabc"),
            Some((200, "abc", End::Whole)),
        ),
        (
            "chunks",
            chunked("3;a\r\nabc\r\n0\r\nX: y\r\n\r\n"),
            Some((200, "abc", End::Whole)),
        ),
        (
            "chunks cut off",
            chunked("3\r\nabc\r\n"),
            Some((200, "abc", End::Broken)),
        ),
        (
            "no size",
            chunked("3\r\nabc\r\nzz\r\n"),
            Some((200, "abc", End::Broken)),
        ),
        (
            "LF in chunks",
            chunked("3\nabc\n0\n\n"),
            Some((200, "", End::Broken)),
        ),
        (
            "no content",
            "HTTP/1.1 204 No\r\nContent-Length: 3\r\n\r\nabc".to_owned(),
            Some((204, "", End::Whole)),
        ),
        ("an upgrade", "HTTP/1.1 101 Up\r\n\r\n".to_owned(), None),
        (
            "hints",
            format!("HTTP/1.1 103 Hint\r\n\r\n{}", length("3")),
            Some((200, "abc", End::Whole)),
        ),
        ("half a head", ok.to_owned(), None),
        ("NUL", format!("{ok}X: a\0b\r\n\r\n"), None),
        (
            "chunks of HTTP/1.0",
            chunked("0\r\n\r\n").replace("/1.1", "/1.0"),
            None,
        ),
        (
            "two types",
            format!("{ok}Content-Type: a/b\r\nContent-Type: c/d\r\n\r\n"),
            None,
        ),
    ];
    for (name, bytes, expected) in rows {
        let reading = reference_answer::read(bytes.as_bytes(), false);
        let found = reading.answer.as_ref().map(|answer| {
            (
                answer.status,
                str::from_utf8(&answer.body).unwrap(),
                answer.end,
            )
        });
        assert_eq!(found, expected, "{name}: {reading:?}");
    }
    let fields = format!(
        "{ok}Connection: x-hop\r\nX-Hop: 1\r\nServer: s\r\nSet-Cookie: a\r\nset-cookie: b\r\nX-A : c\r\n d\r\n\r\n"
    );
    let answer = reference_answer::read(fields.as_bytes(), true)
        .answer
        .unwrap();
    let found: Vec<(&str, &[u8])> = answer
        .fields
        .iter()
        .map(|(name, value)| (&**name, &**value))
        .collect();
    let expected: [(&str, &[u8]); 3] =
        [("set-cookie", b"a"), ("set-cookie", b"b"), ("x-a", b"c d")];
    assert_eq!(found, expected, "what is passed on");
}

type Mutation = fn(&mut [u8], usize, usize, u32, mutation::Plain) -> usize;

/// The targets whose inputs have a structure that is kept.
const STRUCTURED: [(&str, Mutation); 2] = [
    ("answers", mutation::answers),
    ("listener", mutation::requests),
];
const BYTES_MAX: usize = 2048;

/// In the place of libFuzzer's mutation: changes one byte that depends on the others, or adds one.
fn change_byte(data: &mut [u8], size: usize, max: usize) -> usize {
    let sum = data[..size]
        .iter()
        .fold(size, |sum, byte| sum * 31 % 65_537 + usize::from(*byte));
    let at = sum % (size + 1).min(max);
    data[at] = u8::try_from(sum % 256).unwrap();
    size.max(at + 1)
}

fn mutated(given: &[u8], mutate: Mutation, seed: u32) -> Vec<u8> {
    let mut data = given.to_vec();
    data.resize(BYTES_MAX, 0);
    let size = mutate(
        &mut data,
        given.len().min(BYTES_MAX),
        BYTES_MAX,
        seed,
        change_byte,
    );
    assert!(size <= BYTES_MAX, "seed {seed}: {size}");
    data.truncate(size);
    data
}

#[apply(test)]
fn mutations_stay_within_their_bounds_and_can_be_repeated() {
    for (target, mutate) in STRUCTURED {
        for entry in fs::read_dir(format!("fuzz/corpus/{target}")).unwrap() {
            let given = fs::read(entry.unwrap().path()).unwrap();
            for seed in 0..40 {
                let one = mutated(&given, mutate, seed);
                assert_eq!(one, mutated(&given, mutate, seed), "{target}: seed {seed}");
            }
        }
    }
}

/// A little fuzzing without libFuzzer. `SNAPGATE_MUTATIONS` says how many inputs are made of each file of the corpora.
#[apply(test)]
fn mutated_inputs_hold_what_the_corpora_hold() {
    let count = std::env::var("SNAPGATE_MUTATIONS").ok();
    let count = count.map_or(3, |count| count.parse().unwrap());
    for (target, mutate) in STRUCTURED {
        for entry in fs::read_dir(format!("fuzz/corpus/{target}")).unwrap() {
            let path = entry.unwrap().path();
            let mut data = fs::read(&path).unwrap();
            for seed in 0..count {
                data = mutated(&data, mutate, seed);
                let fed = catch_unwind(AssertUnwindSafe(|| inputs::feed(target, &data)));
                let shown = data.escape_ascii();
                assert!(
                    fed.is_ok(),
                    "{path:?}, seed {seed}: see the panic above: {shown}"
                );
                // Back to what is nearly well-formed.
                if seed % 8 == 7 {
                    data = fs::read(&path).unwrap();
                }
            }
        }
    }
}
