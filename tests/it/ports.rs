//! Ports for programs that cannot be given a socket: each is handed out once in a test run.

use std::hash::BuildHasher;
use std::hash::Hasher;
use std::hash::RandomState;
use std::net::TcpListener;
use std::sync::LazyLock;
use std::sync::atomic::AtomicU16;
use std::sync::atomic::Ordering;

/// Below the ports that the kernel gives to connections, of which one could have it before the program starts.
const FIRST: u16 = 10_000;
const COUNT: u16 = 22_000;

/// Where the next one is looked for. Another test run on the machine begins elsewhere.
static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| {
    let random = RandomState::new().build_hasher().finish();
    AtomicU16::new(u16::try_from(random % u64::from(COUNT)).unwrap())
});

/// A port of 127.0.0.1 that is free and that no other test gets.
pub(crate) fn free_port() -> u16 {
    loop {
        let step = |at: u16| Some((at + 1) % COUNT);
        let order = Ordering::Relaxed;
        let at = NEXT.fetch_update(order, order, step).unwrap();
        let port = FIRST + at;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

#[apply(test)]
fn no_port_is_handed_out_twice() {
    let ports: std::collections::BTreeSet<u16> = (0..100).map(|_| free_port()).collect();
    assert_eq!(ports.len(), 100, "{ports:?}");
    assert!(
        ports
            .iter()
            .all(|port| (FIRST..FIRST + COUNT).contains(port))
    );
}
