//! Floods: each is cheap to send, and must stay cheap to receive.

use std::time::Duration;

use crate::frames::BACKUP;
use crate::frames::SOON;
use crate::frames::Secure;
use crate::frames::get;
use crate::frames::good;
use crate::frames::put;
use crate::frames::wire::*;

/// Error of a peer who asks too much (RFC 9113 section 7).
const ENHANCE_YOUR_CALM: u32 = 11;
/// Most that a flood may add to the memory, in KiB.
const GROWTH_KIB: u64 = 48 * 1024;
/// Most bytes that a flood sends.
const BYTES: usize = 32 * 1024 * 1024;

/// What a flood is made of: the first bytes, and those that are repeated for each number.
struct Flood {
    name: &'static str,
    begin: Vec<u8>,
    again: Box<dyn Fn(u32) -> Vec<u8>>,
    /// Whether it must end its own connection, with this error.
    ends: Option<u32>,
}

fn floods() -> Vec<Flood> {
    let block = fields(&good("GET", BACKUP));
    let long = fields(&[("x-a", "x".repeat(16_000))]);
    let endless = frame(HEADERS, END_STREAM, 1, &block);
    let number = |round: u32| round * 2 + 1;
    let flood = |name, begin: &[u8], ends, again: Box<dyn Fn(u32) -> Vec<u8>>| Flood {
        name,
        begin: begin.to_vec(),
        again,
        ends,
    };
    let calm = Some(ENHANCE_YOUR_CALM);
    vec![
        // CVE-2024-27316 and its like.
        flood("continuations without end", &endless, calm, {
            Box::new(move |_| frame(CONTINUATION, 0, 1, &long))
        }),
        flood("continuations of nothing", &endless, calm, {
            Box::new(|_| frame(CONTINUATION, 0, 1, &[]))
        }),
        // CVE-2023-44487.
        flood("requests that are reset at once", &[], calm, {
            Box::new(move |round| {
                let cancel = frame(RST_STREAM, 0, number(round), &8_u32.to_be_bytes());
                [get(number(round)), cancel].concat()
            })
        }),
        // CVE-2025-8671: the gateway is made to reset the stream itself.
        flood("requests that must be reset", &[], calm, {
            Box::new(move |round| {
                let nothing = frame(WINDOW_UPDATE, 0, number(round), &[0; 4]);
                [put(number(round), None), nothing].concat()
            })
        }),
        flood("malformed requests", &[], None, {
            Box::new(move |round| {
                let block = fields(&[(":method", "GET"), (":scheme", "https")]);
                frame(HEADERS, END_STREAM | END_HEADERS, number(round), &block)
            })
        }),
        // CVE-2019-9515, 9512, 9516, 9518.
        flood("settings", &[], None, Box::new(|_| setting(3, 100))),
        flood("pings", &[], None, Box::new(|_| frame(PING, 0, 0, &[7; 8]))),
        flood("data of nothing", &put(1, None), None, {
            Box::new(|_| frame(DATA, 0, 1, &[]))
        }),
        flood("data of padding alone", &put(1, None), None, {
            Box::new(|_| {
                let mut padding = [0; 256];
                padding[0] = 255;
                frame(DATA, PADDED, 1, &padding)
            })
        }),
        flood("priorities", &[], None, {
            Box::new(move |round| frame(PRIORITY, 0, number(round), &[0, 0, 0, 0, 1]))
        }),
        flood("frames of no kind", &[], None, {
            Box::new(|_| frame(0xfe, 0, 0, &[0; 1000]))
        }),
    ]
}

#[apply(test)]
fn floods_end_at_worst_their_own_connection_and_take_bounded_memory() {
    let secure = Secure::start("[limits]\nheader_timeout = \"2s\"\nbody_timeout = \"2s\"\n");
    secure.serves("nothing");
    let before = secure.memory();
    for flood in floods() {
        let name = flood.name;
        let mut raw = secure.connect();
        raw.patience(Duration::from_secs(5));
        let mut sent = flood.begin.len();
        let mut goes_on = raw.send(&flood.begin);
        let mut round = 0;
        // Many at once: one write each would be a flood of writes of ours.
        while goes_on && sent < BYTES && round < 100_000 {
            let mut bytes = Vec::new();
            while bytes.len() < 64 * 1024 {
                bytes.extend((flood.again)(round));
                round += 1;
            }
            sent += bytes.len();
            goes_on = raw.send(&bytes);
        }
        secure.serves(name);
        // One that still lives has its request answered, or is given up for what it did.
        let mut last = None;
        for _ in 0..100_000 {
            match raw.next_reaction(SOON) {
                Some(reaction @ (Reaction::GoAway(_) | Reaction::Closed)) => {
                    last = last.or(Some(reaction));
                    break;
                }
                Some(_) => {}
                None => break,
            }
        }
        if let Some(error) = flood.ends {
            assert!(!goes_on, "{name}: stopped, after {sent} bytes: {last:?}");
            let good =
                matches!(last, Some(Reaction::Closed)) || last == Some(Reaction::GoAway(error));
            assert!(good, "{name}: {last:?}");
        }
        let grown = secure.memory().saturating_sub(before);
        assert!(
            grown < GROWTH_KIB,
            "{name}: {grown} KiB more after {sent} bytes"
        );
    }
}
