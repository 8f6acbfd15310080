//! The floor under durable changes on etcd: transactions of one record each, from so many clients at once.
//!
//! Command: `etcd_floor ENDPOINTS CLIENTS SECONDS BYTES`, the endpoints with commas between. Prints the transactions that were
//! confirmed in one second. Run by the row `cluster` of `benches/peers/run`.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a program that measures, and has nothing to save when something is wrong"
)]

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use futures_util::future::join_all;
use snapgate::etcd;
use snapgate::etcd::Connection;
use snapgate::etcd::EtcdError;
use snapgate::etcd::Txn;
use snapgate::etcd::TxnOp;

/// That of the program.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

async fn write(
    connection: Connection,
    numbers: Arc<AtomicU64>,
    value: Arc<Vec<u8>>,
    until: Instant,
) -> u64 {
    let mut written = 0_u64;
    while Instant::now() < until {
        let number = numbers.fetch_add(1, Ordering::Relaxed);
        let put = TxnOp::put(format!("/floor/{number:016x}"), value.to_vec(), None);
        match connection.write(Txn::new().and_then([put])).await {
            Ok(answer) => {
                assert!(answer.succeeded(), "a put has no condition");
                written = written.saturating_add(1);
            }
            // On a busy machine etcd is late now and then; what is not confirmed is not counted.
            Err(EtcdError::Unknown(_) | EtcdError::Unavailable(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
    written
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    // `cargo bench` hands in an argument that means nothing here.
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    let [endpoints, clients, seconds, bytes] = arguments.as_slice() else {
        panic!("etcd_floor ENDPOINTS CLIENTS SECONDS BYTES");
    };
    let endpoints = endpoints.split(',').map(str::to_owned).collect();
    let connection = Connection::new(&etcd::Config::plain(endpoints));
    let value = Arc::new(vec![b'x'; bytes.parse().unwrap()]);
    let clients: usize = clients.parse().unwrap();
    let numbers = Arc::new(AtomicU64::new(0));
    let begun = Instant::now();
    let until = begun
        .checked_add(Duration::from_secs_f64(seconds.parse().unwrap()))
        .unwrap();
    let writers = (0..clients).map(|_| {
        write(
            connection.clone(),
            Arc::clone(&numbers),
            Arc::clone(&value),
            until,
        )
    });
    let written: u64 = join_all(writers).await.into_iter().sum();
    let written = u32::try_from(written).unwrap();
    println!("{:.1}", f64::from(written) / begun.elapsed().as_secs_f64());
}
