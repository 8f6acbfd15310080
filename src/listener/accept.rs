//! The accept loop: a bounded number of connections, of each address too, each a tracked task of its own.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use pingora::apps::ServerApp;
use pingora::protocols::l4::listener::Listener;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;

use crate::listener::connection_lifecycle::ConnectionGuard;
use crate::runtime::Stop;
use crate::runtime::Tasks;

/// How long to wait when the system has no descriptor or memory for another connection: others end meanwhile.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// Accepts until told to stop. Returns with the port closed; connections go on as tasks of `tasks`.
///
/// At the limit nothing more is accepted: clients wait in the kernel's queue until a connection ends.
/// What is beyond the limit of its address is closed at once.
pub(super) async fn accept<A>(
    listener: Listener,
    app: Arc<A>,
    guard: Arc<ConnectionGuard>,
    tasks: Tasks,
) where
    A: ServerApp + Send + Sync + 'static,
{
    let room = Arc::new(Semaphore::new(
        guard.limits.connections.clamp(1, Semaphore::MAX_PERMITS),
    ));
    let mut exhausted = false;
    while let Some(permit) = permit(&room, &guard.stop).await {
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
                    tracing::warn!(%error, "connections cannot be accepted");
                }
                exhausted = true;
                tokio::time::sleep(EXHAUSTED_PAUSE).await;
                continue;
            }
        };
        if exhausted {
            tracing::info!("connections are accepted again");
            exhausted = false;
        }
        if let Err(error) = stream.set_nodelay() {
            tracing::debug!(%error, "connection lost while it was accepted");
            continue;
        }
        let Ok(place) = guard.place(&stream) else {
            continue;
        };
        // A stream made by `Listener::accept` has no buffers of its own; the HTTP parser above brings one of 4 KiB to read,
        // and `Connection` one to write.
        let (app, guard) = (Arc::clone(&app), Arc::clone(&guard));
        drop(tasks.spawn(async move {
            guard.serve(&app, stream).await;
            drop((place, permit));
        }));
    }
    // Pingora's own clean-up would end idle connections in the middle of what their clients send: the guard ends them.
    drop(listener);
}

/// Room for one more connection; `None` when it is time to stop.
async fn permit(room: &Arc<Semaphore>, stop: &Stop) -> Option<OwnedSemaphorePermit> {
    tokio::select! {
        biased;
        () = stop.given() => None,
        permit = Arc::clone(room).acquire_owned() => permit.ok(),
    }
}

/// Whether the error is about the connection that was being accepted, so that the next one may do.
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
    fn only_errors_of_one_connection_are_passed_over_at_once() {
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
