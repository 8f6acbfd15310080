//! Keeps idle connections to an upstream for the next request.

use std::collections::VecDeque;
use std::time::Instant;

use futures_util::FutureExt as _;
use parking_lot::Mutex;
use pingora::protocols::Stream;
use tokio::io::AsyncReadExt as _;

use crate::listener::forward::peer::ResolvedAddress;
use crate::model::limits;

/// The idle connections of one upstream, the most recently used last.
#[derive(Debug, Default)]
pub(super) struct IdleConnections(Mutex<VecDeque<IdleConnection>>);

#[derive(Debug)]
struct IdleConnection {
    stream: Stream,
    address: ResolvedAddress,
    until: Instant,
}

impl IdleConnections {
    /// Takes the most recently used connection to the address that is open and silent. It is the least likely to be closed soon.
    pub(super) fn take(&self, address: &ResolvedAddress, now: Instant) -> Option<Stream> {
        loop {
            let mut found = {
                let mut all = self.0.lock();
                let at = all
                    .iter()
                    .rposition(|connection| connection.address == *address)?;
                all.remove(at)?
            };
            if found.until > now && is_silent(&mut found.stream) {
                return Some(found.stream);
            }
        }
    }

    /// Keeps a connection until `until`. Closes the oldest if there are too many.
    pub(super) fn put(&self, stream: Stream, address: ResolvedAddress, until: Instant) {
        let mut all = self.0.lock();
        if all.len() >= limits::UPSTREAM_IDLE_MAX {
            drop(all.pop_front());
        }
        all.push_back(IdleConnection {
            stream,
            address,
            until,
        });
    }

    /// Closes connections whose time is over.
    pub(super) fn close_expired(&self, now: Instant) {
        self.0.lock().retain(|connection| connection.until > now);
    }
}

/// Whether the upstream neither closed the connection nor sent unsolicited bytes, which would be read as the next response.
/// Needs no system call if the runtime knows that there is nothing to read.
fn is_silent(stream: &mut Stream) -> bool {
    let mut byte = [0];
    let read = tokio::task::unconstrained(stream.read(&mut byte));
    read.now_or_never().is_none()
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use pingora::protocols::l4::stream::Stream as Socket;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;
    use tokio::net::TcpStream;

    use super::*;
    use crate::model::Timestamp;
    use crate::runtime::Clock as _;
    use crate::runtime::ManualClock;

    fn now() -> Instant {
        ManualClock::new(Timestamp::default()).instant()
    }

    async fn pair(listener: &TcpListener) -> (Stream, TcpStream) {
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let (client, served) = tokio::join!(client, listener.accept());
        (Box::new(Socket::from(client.unwrap())), served.unwrap().0)
    }

    async fn found(idle: &IdleConnections, address: SocketAddr, now: Instant) -> Option<i32> {
        idle.take(&ResolvedAddress::Inet(address), now)
            .map(|stream| stream.id())
    }

    #[tokio::test]
    async fn only_open_silent_unexpired_connections_are_reused_the_last_first() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (here, elsewhere) = ("127.0.0.1:1", "127.0.0.1:2");
        let (here, elsewhere): (SocketAddr, SocketAddr) =
            (here.parse().unwrap(), elsewhere.parse().unwrap());
        let idle = IdleConnections::default();
        let now = now();
        let later = now + Duration::from_secs(60);
        let mut others = Vec::new();
        let mut ids = Vec::new();
        // where to, kept until, what the upstream does
        for (address, until, said) in [
            (here, later, Some("")),
            (here, later, Some("x")),
            (here, later, None),
            (here, now, Some("")),
            (elsewhere, later, Some("")),
        ] {
            let (mut stream, mut other) = pair(&listener).await;
            match said {
                Some("") => others.push(other),
                Some(text) => {
                    other.write_all(text.as_bytes()).await.unwrap();
                    assert!(stream.try_peek(&mut [0]).await.unwrap(), "arrived");
                    others.push(other);
                }
                None => {
                    drop(other);
                    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "closed");
                }
            }
            ids.push(stream.id());
            idle.put(stream, ResolvedAddress::Inet(address), until);
        }
        assert_eq!(found(&idle, elsewhere, now).await, Some(ids[4]), "its own");
        assert_eq!(
            found(&idle, here, now).await,
            Some(ids[0]),
            "neither the one whose time is over, nor the closed one, nor the one that said something"
        );
        assert_eq!(found(&idle, here, now).await, None, "no other is left");
        let (stream, _other) = pair(&listener).await;
        idle.put(stream, ResolvedAddress::Inet(here), later);
        idle.close_expired(now);
        assert_eq!(idle.0.lock().len(), 1, "in time");
        idle.close_expired(later);
        assert_eq!(idle.0.lock().len(), 0, "over");
    }

    #[tokio::test]
    async fn the_number_of_idle_connections_is_bounded() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let here = ResolvedAddress::Inet("127.0.0.1:1".parse().unwrap());
        let idle = IdleConnections::default();
        let later = now() + Duration::from_secs(60);
        let mut ids = Vec::new();
        for _ in 0..=limits::UPSTREAM_IDLE_MAX {
            let (stream, _) = pair(&listener).await;
            ids.push(stream.id());
            idle.put(stream, here.clone(), later);
        }
        let kept: Vec<i32> = idle
            .0
            .lock()
            .iter()
            .map(|connection| connection.stream.id())
            .collect();
        assert_eq!(kept, ids[1..], "all but the oldest");
    }
}
