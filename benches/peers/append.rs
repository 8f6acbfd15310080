//! The floor under every durable answer: threads hand records to one committer, which appends what has gathered and
//! calls fdatasync once for all of it. Prints the records made durable in one second.
//!
//! Command: `append FILE THREADS SECONDS RECORD_BYTES`. Built by `benches/peers/run` with `rustc -O`.

use std::fs::OpenOptions;
use std::io::Write;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::time::Duration;
use std::time::Instant;

#[derive(Default)]
struct Queue {
    /// Records not yet taken by the committer.
    gathered: u64,
    /// Records handed over so far: the ticket of the last one.
    handed: u64,
    /// All records up to this ticket are durable.
    durable: u64,
    stopped: bool,
}

fn client(shared: &(Mutex<Queue>, Condvar, Condvar)) {
    let (queue, work, done) = shared;
    let mut queue = queue.lock().unwrap();
    while !queue.stopped {
        queue.gathered += 1;
        queue.handed += 1;
        let ticket = queue.handed;
        work.notify_one();
        while queue.durable < ticket && !queue.stopped {
            queue = done.wait(queue).unwrap();
        }
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, threads, seconds, bytes] = arguments.as_slice() else {
        panic!("append FILE THREADS SECONDS RECORD_BYTES");
    };
    let threads: usize = threads.parse().unwrap();
    let wanted = Duration::from_secs_f64(seconds.parse().unwrap());
    let record = vec![b'x'; bytes.parse().unwrap()];
    let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
    let shared = Arc::new((Mutex::new(Queue::default()), Condvar::new(), Condvar::new()));
    let clients: Vec<_> = (0..threads)
        .map(|_| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || client(&shared))
        })
        .collect();

    let (queue, work, done) = &*shared;
    let began = Instant::now();
    let mut buffer = Vec::new();
    while began.elapsed() < wanted {
        let mut taken = queue.lock().unwrap();
        while taken.gathered == 0 {
            taken = work.wait(taken).unwrap();
        }
        let (count, ticket) = (std::mem::take(&mut taken.gathered), taken.handed);
        drop(taken);
        buffer.clear();
        for _ in 0..count {
            buffer.extend_from_slice(&record);
        }
        file.write_all(&buffer).unwrap();
        file.sync_data().unwrap();
        queue.lock().unwrap().durable = ticket;
        done.notify_all();
    }
    let took = began.elapsed().as_secs_f64();
    let mut end = queue.lock().unwrap();
    end.stopped = true;
    let durable = end.durable;
    drop(end);
    done.notify_all();
    for client in clients {
        client.join().unwrap();
    }
    println!("{:.1}", durable as f64 / took);
}
