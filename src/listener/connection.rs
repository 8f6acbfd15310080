//! A connection of HTTP/1: what comes is checked before Pingora reads it, and the head of an answer leaves with what follows it.
//!
//! Pingora writes head and body apart and flushes at the end of an answer. Its own connections have a buffer for that where
//! Pingora itself accepts them, and its HTTP parser flushes accordingly; there is no other way to get one. Only the first
//! write after a flush is kept: bodies of known length are flushed at their end, and a piece of one that an upstream sends
//! slowly must not wait for the next. Encrypted, head and body are one record.

use std::io;
use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::task::Waker;
use std::time::Duration;

use async_trait::async_trait;
use pingora::protocols::ALPN;
use pingora::protocols::GetProxyDigest;
use pingora::protocols::GetSocketDigest;
use pingora::protocols::GetTimingDigest;
use pingora::protocols::Peek;
use pingora::protocols::Shutdown;
use pingora::protocols::SocketDigest;
use pingora::protocols::Ssl;
use pingora::protocols::Stream;
use pingora::protocols::TimingDigest;
use pingora::protocols::UniqueID;
use pingora::protocols::UniqueIDType;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::SslDigest;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;
use tokio::time::Sleep;

use crate::listener::request_tracker::ReadDecision;
use crate::listener::request_tracker::RequestTracker;

/// As much leaves together; more than one packet of most networks, and more than most answers of ours are long.
const KEPT_BYTES_MAX: usize = 4096;
/// How long a client that has closed its side may wait for an answer. Some close it right after the request; most have gone away.
const LEAVING_TIME_MAX: Duration = Duration::from_millis(500);
/// Bytes read at once of what has to wait.
const EARLY_PIECE_BYTES: usize = 1024;

/// A connection, plain or encrypted, with a buffer that takes no memory while there is nothing in it.
#[derive(Debug)]
pub(super) struct Connection<L> {
    stream: Stream,
    tracker: L,
    /// Runs out after the client has closed its side while its request is handled.
    leaving: Option<Pin<Box<Sleep>>>,
    /// What was written and did not leave.
    kept: Vec<u8>,
    /// How much of it left.
    left: usize,
    /// Whether something was written since the last flush.
    begun: bool,
}

impl<L> Connection<L> {
    /// `tracker` sees every byte that comes.
    pub(super) const fn new(stream: Stream, tracker: L) -> Self {
        Self {
            stream,
            tracker,
            leaving: None,
            kept: Vec::new(),
            left: 0,
            begun: false,
        }
    }

    /// Writes what is kept.
    fn poll_kept(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.kept.get(self.left..).filter(|it| !it.is_empty()) {
            let written = Pin::new(&mut self.stream).poll_write(context, rest);
            match std::task::ready!(written)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.left = self.left.saturating_add(count),
            }
        }
        self.kept = Vec::new();
        self.left = 0;
        Poll::Ready(Ok(()))
    }

    /// Keeps the pieces if they are the first since the last flush. Else they leave with what was kept, as far as they
    /// are taken now.
    fn poll_pieces(
        &mut self,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = pieces
            .iter()
            .fold(0_usize, |sum, it| sum.saturating_add(it.len()));
        let before = self.kept.len();
        let alone = self.begun && before == 0;
        if alone || before.saturating_add(length) > KEPT_BYTES_MAX {
            std::task::ready!(self.poll_kept(context))?;
            self.begun = true;
            return Pin::new(&mut self.stream).poll_write_vectored(context, pieces);
        }
        if self.kept.is_empty() {
            self.kept.reserve_exact(KEPT_BYTES_MAX);
        }
        for piece in pieces {
            self.kept.extend_from_slice(piece);
        }
        if !self.begun {
            self.begun = true;
            return Poll::Ready(Ok(length));
        }
        if self.poll_kept(context)?.is_ready() {
            return Poll::Ready(Ok(length));
        }
        let taken = self.left.saturating_sub(before);
        if taken == 0 {
            self.kept.truncate(before);
            return Poll::Pending;
        }
        // The rest is handed in again.
        self.kept = Vec::new();
        self.left = 0;
        Poll::Ready(Ok(taken))
    }
}

/// A connection that breaks off still sends what was said before, as far as the system takes it at once.
impl<L> Drop for Connection<L> {
    fn drop(&mut self) {
        if !self.kept.is_empty() {
            let mut context = Context::from_waker(Waker::noop());
            let left = matches!(self.poll_kept(&mut context), Poll::Ready(Ok(())));
            tracing::trace!(left, "connection broken off with something to say");
        }
    }
}

impl<L: AsRef<RequestTracker> + Unpin> Connection<L> {
    /// Reads what comes after a request that is still being handled, to see whether the client has gone away. Ready at the
    /// end of the connection alone, a while after it.
    fn poll_early(&mut self, context: &mut Context<'_>, mut room: usize) -> Poll<io::Result<()>> {
        while self.leaving.is_none() {
            let mut piece = [0; EARLY_PIECE_BYTES];
            let Some(space) = piece.get_mut(..room.min(EARLY_PIECE_BYTES)) else {
                return Poll::Pending;
            };
            if space.is_empty() {
                // The client sends without waiting for answers. It is read again when it was answered.
                return Poll::Pending;
            }
            let mut buffer = ReadBuf::new(space);
            std::task::ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer))?;
            if buffer.filled().is_empty() {
                self.leaving = Some(Box::pin(tokio::time::sleep(LEAVING_TIME_MAX)));
            }
            room = room.saturating_sub(buffer.filled().len());
            self.tracker.as_ref().keep_early(buffer.filled());
        }
        match &mut self.leaving {
            Some(leaving) => leaving.as_mut().poll(context).map(Ok),
            None => Poll::Pending,
        }
    }
}

impl<L: AsRef<RequestTracker> + Unpin> AsyncRead for Connection<L> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(room) = self.tracker.as_ref().room_for_early() {
            return self.poll_early(context, room);
        }
        let before = buffer.filled().len();
        let early = self.tracker.as_ref().take_early(buffer.remaining());
        if early.is_empty() {
            std::task::ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        } else {
            buffer.put_slice(&early);
        }
        let came = buffer.filled().get(before..).unwrap_or_default();
        match self.tracker.as_ref().see(came) {
            ReadDecision::Keep(count) => {
                buffer.set_filled(before.saturating_add(count));
                Poll::Ready(Ok(()))
            }
            ReadDecision::Malformed => {
                buffer.set_filled(before);
                let message = "the chunked body is malformed";
                Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, message)))
            }
        }
    }
}

impl<L: Unpin> AsyncWrite for Connection<L> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_pieces(context, &[IoSlice::new(bytes)])
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(self.poll_kept(context))?;
        self.begun = false;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(self.poll_kept(context))?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_pieces(context, pieces)
    }

    // A chunk is a length, bytes and an end of a line.
    fn is_write_vectored(&self) -> bool {
        true
    }
}

#[async_trait]
impl<L: Send> Shutdown for Connection<L> {
    async fn shutdown(&mut self) {
        let flushed = std::future::poll_fn(|context| self.poll_kept(context)).await;
        if let Err(error) = flushed {
            tracing::debug!(%error, "connection ended with something to say");
        }
        Shutdown::shutdown(&mut *self.stream).await;
    }
}

#[async_trait]
impl<L: Send> Peek for Connection<L> {
    async fn try_peek(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        self.stream.try_peek(buffer).await
    }
}

impl<L> UniqueID for Connection<L> {
    fn id(&self) -> UniqueIDType {
        self.stream.id()
    }
}

impl<L> Ssl for Connection<L> {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.stream.get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.stream.selected_alpn_proto()
    }
}

impl<L> GetTimingDigest for Connection<L> {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.stream.get_timing_digest()
    }

    fn get_read_pending_time(&self) -> Duration {
        self.stream.get_read_pending_time()
    }

    fn get_write_pending_time(&self) -> Duration {
        self.stream.get_write_pending_time()
    }
}

impl<L> GetProxyDigest for Connection<L> {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.stream.get_proxy_digest()
    }

    fn set_proxy_digest(&mut self, digest: ProxyDigest) {
        self.stream.set_proxy_digest(digest);
    }
}

impl<L> GetSocketDigest for Connection<L> {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.stream.get_socket_digest()
    }

    fn set_socket_digest(&mut self, digest: SocketDigest) {
        self.stream.set_socket_digest(digest);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Buf;
    use pingora::protocols::l4::stream::Stream as Socket;
    use tokio::io::AsyncReadExt;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;
    use tokio::net::TcpStream;

    use super::*;

    async fn pair() -> (Connection<Arc<RequestTracker>>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let (client, served) = tokio::join!(client, listener.accept());
        let socket = Socket::from(served.unwrap().0);
        let made = Connection::new(Box::new(socket), Arc::default());
        (made, client.unwrap())
    }

    fn arrived(client: &TcpStream) -> String {
        let mut found = [0; 64];
        match client.try_read(&mut found) {
            Ok(count) => String::from_utf8_lossy(&found[..count]).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => String::new(),
            Err(error) => panic!("{error}"),
        }
    }

    #[tokio::test]
    async fn the_first_write_leaves_with_the_next_or_when_it_is_flushed() {
        let (mut made, client) = pair().await;
        for round in 0..2 {
            made.write_all(b"head ").await.unwrap();
            assert_eq!(arrived(&client), "", "{round}: kept");
            made.write_all(b"piece ").await.unwrap();
            client.readable().await.unwrap();
            assert_eq!(arrived(&client), "head piece ", "{round}: both");
            made.write_all(b"drop").await.unwrap();
            client.readable().await.unwrap();
            assert_eq!(arrived(&client), "drop", "{round}: at once");
            made.flush().await.unwrap();
            assert_eq!(made.kept.capacity(), 0, "{round}: nothing is kept");
        }
        made.write_all(b"head alone").await.unwrap();
        made.flush().await.unwrap();
        client.readable().await.unwrap();
        assert_eq!(arrived(&client), "head alone", "flushed");
        let mut chunk = Buf::chain(&b"4\r\n"[..], Buf::chain(&b"text"[..], &b"\r\n"[..]));
        made.write_all_buf(&mut chunk).await.unwrap();
        assert_eq!(arrived(&client), "", "the parts of a chunk are one write");
        made.flush().await.unwrap();
        client.readable().await.unwrap();
        assert_eq!(arrived(&client), "4\r\ntext\r\n", "the chunk");
    }

    #[tokio::test]
    async fn what_a_slow_client_does_not_take_is_handed_in_again() {
        let (mut made, mut client) = pair().await;
        let mut context = Context::from_waker(Waker::noop());
        let (mut sent, mut pending) = (Vec::new(), 0);
        // Until the system takes no more, and then some more, a kept head and pieces in turn.
        for number in 0_u8..=255 {
            let bytes = [number; 2000].repeat(if number.is_multiple_of(7) { 100 } else { 1 });
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                match Pin::new(&mut made).poll_write(&mut context, rest) {
                    Poll::Ready(count) => {
                        let (taken, left) = rest.split_at(count.unwrap());
                        sent.extend_from_slice(taken);
                        rest = left;
                    }
                    Poll::Pending => {
                        pending += 1;
                        let mut some = [0; 1500];
                        let want = sent.len().min(some.len());
                        client.read_exact(&mut some[..want]).await.unwrap();
                        assert!(sent.starts_with(&some[..want]), "{number}: in order");
                        sent.drain(..want);
                        tokio::task::yield_now().await;
                    }
                }
            }
            if number.is_multiple_of(3) {
                drop(Pin::new(&mut made).poll_flush(&mut context));
            }
        }
        assert!(pending > 10, "was full: {pending}");
        let mut found = Vec::new();
        let (read, ()) = tokio::join!(client.read_to_end(&mut found), async move {
            Shutdown::shutdown(&mut made).await;
        });
        read.unwrap();
        assert!(found == sent, "{} of {} bytes", found.len(), sent.len());
    }

    #[tokio::test]
    async fn whatever_the_sizes_are_the_bytes_arrive_in_order() {
        let (mut made, mut client) = pair().await;
        let sizes = [1, 4095, 4096, 4097, 0, 3, 300_000, 4000, 97, 1];
        let mut sent = Vec::new();
        for (at, size) in sizes.into_iter().enumerate() {
            sent.extend(vec![u8::try_from(at).unwrap(); size]);
        }
        let expected = sent.clone();
        let write = async move {
            let mut rest = sent.as_slice();
            for size in sizes {
                let (part, after) = rest.split_at(size);
                made.write_all(part).await.unwrap();
                rest = after;
            }
            Shutdown::shutdown(&mut made).await;
        };
        let mut found = Vec::new();
        let (read, ()) = tokio::join!(client.read_to_end(&mut found), write);
        read.unwrap();
        assert!(
            found == expected,
            "{} of {} bytes",
            found.len(),
            expected.len()
        );
    }
}
