//! What is malformed, frame by frame, and what becomes of each.

use crate::frames::SOON;
use crate::frames::Secure;
use crate::frames::get;
use crate::frames::put;
use crate::frames::rows::Fate;
use crate::frames::rows::PROTOCOL;
use crate::frames::rows::REFUSED;
use crate::frames::rows::Row;
use crate::frames::rows::all;
use crate::frames::rows::lengths;
use crate::frames::rows::requests;
use crate::frames::rows::shapes;
use crate::frames::rows::streams;
use crate::frames::wire::*;

/// What became of it: the first reaction, and whether the connection goes on.
pub(super) fn judge(secure: &Secure, row: &Row) -> (Option<Reaction>, bool) {
    /// Later than the stream of any row.
    const AFTER: u32 = 1001;
    let mut raw = secure.connect();
    raw.send(&row.bytes);
    let mut first = None;
    // Read before more is sent: what comes to a connection that is closed already resets it, and with that goes the reaction.
    if matches!(row.fate, Fate::Reset(_) | Fate::Answered(_) | Fate::Ends(_)) {
        first = raw.next_reaction(SOON);
    }
    raw.send(&get(AFTER));
    loop {
        match raw.next_reaction(SOON) {
            Some(Reaction::Status(AFTER, 200)) => return (first, true),
            Some(reaction @ (Reaction::Reset(..) | Reaction::Status(..))) => {
                first = first.or(Some(reaction));
            }
            Some(reaction @ (Reaction::GoAway(_) | Reaction::Closed)) => {
                return (first.or(Some(reaction)), false);
            }
            None => return (first, false),
        }
    }
}

/// Whether that is what must become of it.
pub(super) fn is_expected(fate: Fate, reaction: Option<Reaction>, goes_on: bool) -> bool {
    match (fate, reaction) {
        (Fate::Reset(error), Some(Reaction::Reset(_, found))) => error == found && goes_on,
        (Fate::Answered(status), Some(Reaction::Status(1, found))) => status == found && goes_on,
        (Fate::Passed, None) => goes_on,
        // Most libraries call the special errors the general one.
        (Fate::Ends(error), Some(Reaction::GoAway(found))) => found == error || found == PROTOCOL,
        (Fate::Cut, Some(Reaction::GoAway(_) | Reaction::Closed)) => true,
        _ => false,
    }
}

#[apply(test)]
fn malformed_frames_end_what_they_must_and_nothing_else() {
    let secure = Secure::start("");
    let mut wrong = Vec::new();
    let rows = [shapes(), streams(), requests(), lengths()]
        .into_iter()
        .flatten();
    for row in rows {
        let (reaction, goes_on) = judge(&secure, &row);
        if !is_expected(row.fate, reaction, goes_on) {
            wrong.push(format!(
                "{}: {:?} expected, {reaction:?} found, goes on: {goes_on}",
                row.name, row.fate
            ));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    secure.serves("all of them");
    let memory = secure.memory();
    assert!(memory < 200 * 1024, "memory: {memory} KiB");
}

#[apply(test)]
fn what_is_no_preface_is_no_connection() {
    let secure = Secure::start("");
    let rows: [(&str, &[u8]); 5] = [
        (
            "HTTP/1.1",
            b"GET /versions HTTP/1.1\r\nHost: localhost\r\n\r\n",
        ),
        (
            "half of it, and rubbish",
            b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
        ),
        ("rubbish", &[0xff; 64]),
        (
            "frames without it",
            &[
                0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8,
            ],
        ),
        ("the end of another", b"HTTP/1.1 200 OK\r\n\r\n"),
    ];
    for (name, bytes) in rows {
        let mut raw = secure.silent();
        raw.send(bytes);
        let reaction = raw.next_reaction(SOON);
        let good = matches!(
            reaction,
            Some(Reaction::GoAway(PROTOCOL) | Reaction::Closed)
        );
        assert!(good, "{name}: {reaction:?}");
        secure.serves(name);
    }
}

#[apply(test)]
fn a_stream_too_many_is_refused_and_the_others_go_on() {
    /// As many as may be open at once.
    const MOST: u32 = 100;
    let secure = Secure::start("");
    let mut raw = secure.connect();
    let streams = (0..MOST).map(|number| number * 2 + 1);
    let open: Vec<u8> = streams
        .clone()
        .flat_map(|stream| put(stream, None))
        .collect();
    let more = MOST * 2 + 1;
    raw.send(&all(&[&open, &put(more, None)]));
    assert_eq!(
        raw.next_reaction(SOON),
        Some(Reaction::Reset(more, REFUSED)),
        "refused"
    );
    raw.send(
        &streams
            .clone()
            .flat_map(|stream| frame(DATA, END_STREAM, stream, b"x"))
            .collect::<Vec<u8>>(),
    );
    let mut answered = Vec::new();
    while answered.len() < streams.clone().count() {
        match raw.next_reaction(SOON) {
            Some(Reaction::Status(stream, 400)) => answered.push(stream),
            other => panic!("after {} answers: {other:?}", answered.len()),
        }
    }
    answered.sort_unstable();
    assert!(
        answered.iter().copied().eq(streams),
        "each one: {answered:?}"
    );
    let again = more + 2;
    raw.send(&get(again));
    assert_eq!(
        raw.next_reaction(SOON),
        Some(Reaction::Status(again, 200)),
        "there is room again"
    );
}
