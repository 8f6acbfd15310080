//! Bodies of HTTP/2 on their way to a server of HTTP/1.1, whatever the frames are that they end with.

use crate::frames::BACKUP;
use crate::frames::SOON;
use crate::frames::Secure;
use crate::frames::rows::Fate;
use crate::frames::rows::Row as Malformed;
use crate::frames::rows::lengths;
use crate::frames::rows::requests;
use crate::frames::table::is_expected;
use crate::frames::table::judge;
use crate::frames::wire::*;
use crate::passthrough::route;
use crate::passthrough::upstream::Upstream;

/// A POST to the server behind, without its body.
fn post(stream: u32, length: Option<usize>) -> Vec<u8> {
    let mut all = vec![
        (":method", "POST".to_owned()),
        (":scheme", "https".to_owned()),
        (":authority", "localhost".to_owned()),
        (":path", format!("/echo?{stream}")),
    ];
    all.extend(length.map(|length| ("content-length", length.to_string())));
    frame(HEADERS, END_HEADERS, stream, &fields(&all))
}

/// A name, whether it has a length, and frames of a body: kind, flags, payload.
type Row = (&'static str, bool, &'static [(u8, u8, &'static [u8])]);

/// Pingora issue 935: where a body ends with an empty frame, the end of the chunks was written twice, and what was left of it
/// on the connection to the server was the beginning of whatever came next.
#[apply(test)]
fn however_a_body_ends_the_server_behind_sees_one_end() {
    // A trailer `x-a: 1`.
    const TRAILERS: &[u8] = b"\0\x03x-a\x011";
    const ENDED: u8 = END_STREAM | END_HEADERS;
    let rows: [Row; 9] = [
        ("a last frame", false, &[(DATA, END_STREAM, b"abc")]),
        (
            "an empty last frame",
            false,
            &[(DATA, 0, b"abc"), (DATA, END_STREAM, b"")],
        ),
        (
            "nothing but an empty frame",
            false,
            &[(DATA, END_STREAM, b"")],
        ),
        (
            "empty frames on the way",
            false,
            &[
                (DATA, 0, b""),
                (DATA, 0, b"ab"),
                (DATA, 0, b""),
                (DATA, 0, b"c"),
                (DATA, 0, b""),
                (DATA, END_STREAM, b""),
            ],
        ),
        (
            "padding alone at the end",
            false,
            &[
                (DATA, 0, b"abc"),
                (DATA, END_STREAM | PADDED, &[3, 0, 0, 0]),
            ],
        ),
        (
            "trailers",
            false,
            &[(DATA, 0, b"abc"), (HEADERS, ENDED, TRAILERS)],
        ),
        (
            "an empty frame and trailers",
            false,
            &[
                (DATA, 0, b"abc"),
                (DATA, 0, b""),
                (HEADERS, ENDED, TRAILERS),
            ],
        ),
        (
            "a length and an empty last frame",
            true,
            &[(DATA, 0, b"abc"), (DATA, END_STREAM, b"")],
        ),
        ("a length of nothing", true, &[(DATA, END_STREAM, b"")]),
    ];
    let upstream = Upstream::start();
    let place = format!("http://{}", upstream.address);
    let secure = Secure::start(&route(
        "echo",
        "/echo",
        &[place],
        "authentication = \"none\"\n",
    ));
    let mut raw = secure.connect();
    let mut expected = Vec::new();
    for round in 0..5 {
        for (at, (name, has_length, frames)) in rows.iter().enumerate() {
            let stream = u32::try_from((round * rows.len() + at) * 2 + 1).unwrap();
            let pieces = frames
                .iter()
                .filter(|frame| frame.0 == DATA && frame.1 & PADDED == 0);
            let body: Vec<u8> = pieces.flat_map(|piece| piece.2).copied().collect();
            assert!(
                raw.send(&post(stream, has_length.then_some(body.len()))),
                "{name}: sent"
            );
            for (kind, flags, payload) in *frames {
                // Each by itself: together they would be one piece by the time they are read.
                raw.settle();
                let sent = raw.send(&frame(*kind, *flags, stream, payload));
                assert!(sent, "{name}: sent");
            }
            let found = raw.next_reaction(SOON);
            assert_eq!(
                found,
                Some(Reaction::Status(stream, 200)),
                "{name}, round {round}"
            );
            expected.push((format!("/echo?{stream}"), body));
        }
    }
    assert_eq!(upstream.garbage(), [""; 0], "nothing but requests");
    let seen = upstream.seen();
    let found: Vec<_> = seen
        .iter()
        .map(|request| (request.target.clone(), request.body.clone()))
        .collect();
    assert_eq!(found, expected, "every request as it was sent, once");
    let last = seen.iter().map(|request| request.connection).max().unwrap();
    assert!(
        last < expected.len() / 2,
        "connections are used again: {last} for {} requests",
        expected.len()
    );
}

/// The same rows as on routes of the API, with a path that is passed through in the place of a backup.
#[apply(test)]
fn malformed_requests_are_refused_before_the_server_behind_sees_them() {
    // As long as the other, so that the lengths in the frames stay true.
    const PASSED: &str = "/echo/1/backup/456";
    assert_eq!(PASSED.len(), BACKUP.len(), "as long as the other");
    let upstream = Upstream::start();
    let place = format!("http://{}", upstream.address);
    let secure = Secure::start(&route(
        "echo",
        "/",
        &[place],
        "authentication = \"none\"\nclient_authorization = \"keep\"\nbody = \"64KiB\"\n",
    ));
    let (mut wrong, mut taken) = (Vec::new(), 0);
    for row in requests().into_iter().chain(lengths()) {
        let bytes = replaced(&row.bytes, BACKUP.as_bytes(), PASSED.as_bytes());
        let fate = match row.fate {
            Fate::Answered(200 | 202) => Fate::Answered(200),
            // What the API has no resource for is a path that others could read differently.
            Fate::Answered(404) if row.name == "a path of two slashes" => Fate::Answered(400),
            other @ (Fate::Reset(_)
            | Fate::Ends(_)
            | Fate::Cut
            | Fate::Answered(_)
            | Fate::Passed) => other,
        };
        let row = Malformed { bytes, fate, ..row };
        taken += usize::from(fate == Fate::Answered(200));
        let (reaction, goes_on) = judge(&secure, &row);
        if !is_expected(fate, reaction, goes_on) {
            wrong.push(format!(
                "{}: {fate:?} expected, {reaction:?} found",
                row.name
            ));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    let seen = upstream.seen();
    assert_eq!(
        seen.len(),
        taken,
        "what was answered, and nothing else: {seen:?}"
    );
    for request in &seen {
        assert_eq!(request.field("host").len(), 1, "one Host: {request:?}");
        assert_eq!(request.field("te"), [""; 0], "no TE: {request:?}");
    }
    // What is no whole request is never read as one.
    let garbage = upstream.garbage();
    assert!(
        garbage
            .iter()
            .all(|text| text.contains("body") || text.contains("chunk")),
        "{garbage:?}"
    );
}

/// The bytes with all of one text replaced by another.
fn replaced(bytes: &[u8], text: &[u8], by: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    while let Some(at) = bytes.windows(text.len()).position(|window| window == text) {
        bytes.splice(at..at + text.len(), by.iter().copied());
    }
    bytes
}
