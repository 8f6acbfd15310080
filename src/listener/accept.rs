//! The accept loop: accepts a bounded number of connections, in total and per address, each as a tracked task.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use pingora::apps::HttpServerApp;
use pingora::protocols::l4::listener::Listener;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;

use crate::listener::connection_lifecycle::ConnectionGuard;
use crate::runtime::Stop;
use crate::runtime::Tasks;

/// Pause after the system ran out of descriptors or memory, in which other connections can end.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections until the gateway stops. Returns with the port closed; connections continue as tasks of `tasks`.
///
/// At the connection limit nothing more is accepted: clients wait in the kernel's queue until a connection ends. A connection
/// beyond the limit of its address is closed at once.
pub(super) async fn accept_connections<A>(
    listener: Listener,
    app: Arc<A>,
    guard: Arc<ConnectionGuard>,
    tasks: Tasks,
) where
    A: HttpServerApp + Send + Sync + 'static,
{
    let room = Arc::new(Semaphore::new(
        guard.limits.connections.clamp(1, Semaphore::MAX_PERMITS),
    ));
    let mut exhausted = false;
    while let Some(permit) = acquire_permit(&room, &guard.stop).await {
        let accepted = tokio::select! {
            biased;
            () = guard.stop.given() => break,
            accepted = listener.accept() => accepted,
        };
        let mut stream = match accepted {
            Ok(stream) => stream,
            Err(error) if is_of_one_connection(&error) => continue,
            Err(error) => {
                if !exhausted {
                    tracing::warn!(%error, "accepting connections failed, retrying");
                }
                exhausted = true;
                tokio::time::sleep(EXHAUSTED_PAUSE).await;
                continue;
            }
        };
        if exhausted {
            tracing::info!("accepting connections recovered");
            exhausted = false;
        }
        if let Err(error) = stream.set_nodelay() {
            tracing::debug!(%error, "connection lost while being accepted");
            continue;
        }
        let Ok(slot) = guard.take_address_slot(&stream) else {
            continue;
        };
        // A stream from `Listener::accept` has no buffers. `http1_requests` brings a read buffer of 4 KiB for each request, and
        // `Http1Connection` a write buffer.
        let (app, guard) = (Arc::clone(&app), Arc::clone(&guard));
        drop(tasks.spawn(async move {
            guard.serve_connection(&app, stream).await;
            drop((slot, permit));
        }));
    }
    // The guard ends idle connections. Pingora's own clean-up would cut requests that are just being received.
    drop(listener);
}

/// A permit for one more connection; `None` when the gateway stops.
async fn acquire_permit(room: &Arc<Semaphore>, stop: &Stop) -> Option<OwnedSemaphorePermit> {
    tokio::select! {
        biased;
        () = stop.given() => None,
        permit = Arc::clone(room).acquire_owned() => permit.ok(),
    }
}

/// Whether the error concerns only the connection that was being accepted.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_errors_of_one_connection_are_skipped_without_a_pause() {
        let rows = [
            (
                "aborted",
                libc_error(io::ErrorKind::ConnectionAborted),
                true,
            ),
            ("reset", libc_error(io::ErrorKind::ConnectionReset), true),
            // 24 is EMFILE, 23 ENFILE on every Unix.
            ("no descriptors", io::Error::from_raw_os_error(24), false),
            (
                "none in the system",
                io::Error::from_raw_os_error(23),
                false,
            ),
            ("no memory", libc_error(io::ErrorKind::OutOfMemory), false),
        ];
        for (name, error, expected) in rows {
            assert_eq!(is_of_one_connection(&error), expected, "{name}");
        }
    }

    fn libc_error(kind: io::ErrorKind) -> io::Error {
        io::Error::from(kind)
    }
}
