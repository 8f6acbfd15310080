//! Sends one kind of request so many times through the gate, for callgrind to count: see `benches/count.sh`.
//!
//! Command: `count PATH TIMES`. One thread, a clock that stands still, fixed seeds; every answer is checked.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    unreachable_pub,
    reason = "a program that measures, and has nothing to save when something is wrong"
)]

mod rig;

use rig::Request;
use rig::Rig;

/// What is counted by default, as when cargo runs every benchmark: nothing more than that it works.
const DEFAULT: (&str, u32) = ("get", 100);

fn main() {
    let mut arguments = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with("--"));
    let path = arguments.next().unwrap_or_else(|| DEFAULT.0.to_owned());
    let times = arguments
        .next()
        .map_or(DEFAULT.1, |times| times.parse().unwrap());
    let (rig, request, expected) = match path.as_str() {
        "get" => (Rig::new(1), Request::get(), 200),
        "get_10000_grants" => (Rig::new(10_000), Request::get(), 200),
        "update" => (Rig::new(1), Request::update(), 202),
        other => panic!("no such path: {other}"),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        for _ in 0..times {
            let exchange = rig.send(&request).await;
            let status = exchange.response.status().as_u16();
            assert_eq!(status, expected, "{:?}", exchange.response);
        }
    });
}
