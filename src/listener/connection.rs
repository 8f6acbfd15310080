//! An HTTP/1 connection: checks received bytes before Pingora reads them, and sends a response head together with what follows.
//!
//! Pingora writes head and body separately and flushes at the end of a response. It buffers only connections that it accepted
//! itself. Here only the first write after a flush is buffered: bodies of known length are flushed at their end, and a piece of a
//! body that an upstream sends slowly must not wait for the next piece. On TLS, head and body then form one record.

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
use crate::listener::unreadable_request::UnreadableRequests;
use crate::listener::upstream_date::is_final_head;
use crate::listener::upstream_date::restore_date;

/// Size of the write buffer: more than a packet of most networks and than most responses of the API.
const BUFFER_BYTES_MAX: usize = 4096;
/// How long a client that closed its write side may wait for a response. Some close it right after the request; most of those
/// that close it have disconnected.
const HALF_CLOSED_TIME_MAX: Duration = Duration::from_millis(500);
/// Bytes per read of data that has to wait for the current request.
const EARLY_PIECE_BYTES: usize = 1024;

/// A connection, plain or encrypted, with a write buffer that takes no memory while it is empty.
#[derive(Debug)]
pub(super) struct Http1Connection<T> {
    stream: Stream,
    tracker: T,
    /// Ends the connection some time after the client closed its write side while its request is handled.
    half_closed: Option<Pin<Box<Sleep>>>,
    /// Bytes that were written by Pingora and not sent yet.
    buffered: Vec<u8>,
    /// How many of them have been sent.
    sent: usize,
    /// Whether anything was written since the last flush.
    begun: bool,
    /// Present where the answers of Pingora's parser are replaced.
    unreadable: Option<UnreadableRequests>,
    /// Whether that happened: all later writes belong to the replaced answer.
    is_refused: bool,
}

impl<T> Http1Connection<T> {
    /// `tracker` sees every received byte.
    pub(super) const fn new(
        stream: Stream,
        tracker: T,
        unreadable: Option<UnreadableRequests>,
    ) -> Self {
        Self {
            stream,
            tracker,
            half_closed: None,
            buffered: Vec::new(),
            sent: 0,
            begun: false,
            unreadable,
            is_refused: false,
        }
    }

    /// Sends the buffered bytes.
    fn poll_send_buffered(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self
            .buffered
            .get(self.sent..)
            .filter(|rest| !rest.is_empty())
        {
            let written = Pin::new(&mut self.stream).poll_write(context, rest);
            match std::task::ready!(written)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.sent = self.sent.saturating_add(count),
            }
        }
        // The memory is freed: most connections are idle most of the time.
        self.buffered = Vec::new();
        self.sent = 0;
        Poll::Ready(Ok(()))
    }

    /// Buffers the pieces if they are the first since the last flush. Otherwise sends them after the buffered bytes, as far as
    /// the system accepts them now.
    fn poll_write_pieces(
        &mut self,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = pieces
            .iter()
            .fold(0_usize, |sum, piece| sum.saturating_add(piece.len()));
        let before = self.buffered.len();
        // A piece of a body after a sent head goes out at once: it must not wait for the next piece.
        let alone = self.begun && before == 0;
        if alone || before.saturating_add(length) > BUFFER_BYTES_MAX {
            std::task::ready!(self.poll_send_buffered(context))?;
            self.begun = true;
            return Pin::new(&mut self.stream).poll_write_vectored(context, pieces);
        }
        if self.buffered.is_empty() {
            self.buffered.reserve_exact(BUFFER_BYTES_MAX);
        }
        for piece in pieces {
            self.buffered.extend_from_slice(piece);
        }
        if !self.begun {
            self.begun = true;
            return Poll::Ready(Ok(length));
        }
        if self.poll_send_buffered(context)?.is_ready() {
            return Poll::Ready(Ok(length));
        }
        // Of what was just appended, only the part that was sent counts as written.
        let taken = self.sent.saturating_sub(before);
        if taken == 0 {
            self.buffered.truncate(before);
            return Poll::Pending;
        }
        // The caller passes the rest again.
        self.buffered = Vec::new();
        self.sent = 0;
        Poll::Ready(Ok(taken))
    }
}

/// A connection that is dropped still sends its buffered bytes, as far as the system accepts them at once.
impl<T> Drop for Http1Connection<T> {
    fn drop(&mut self) {
        if !self.buffered.is_empty() {
            let mut context = Context::from_waker(Waker::noop());
            let sent = matches!(self.poll_send_buffered(&mut context), Poll::Ready(Ok(())));
            tracing::trace!(sent, "connection dropped with buffered bytes");
        }
    }
}

impl<T: AsRef<RequestTracker> + Unpin> Http1Connection<T> {
    /// Whether the bytes belong to an answer of Pingora's parser, in whose place a refusal of the gateway is buffered.
    fn replaces_parser_answer(&mut self, bytes: &[u8]) -> bool {
        if self.is_refused {
            return true;
        }
        // The status is compared first: it costs less than looking at the tracker, and hardly any response has it.
        if self.begun || !UnreadableRequests::is_parser_answer(bytes) {
            return false;
        }
        let Some(unreadable) = &self.unreadable else {
            return false;
        };
        let Some(target) = self.tracker.as_ref().target_before_head() else {
            return false;
        };
        let digest = self.stream.get_socket_digest();
        let peer = digest
            .as_ref()
            .and_then(|digest| Some(digest.peer_addr()?.as_inet()?.ip()));
        self.buffered = unreadable.refuse(&target, peer);
        self.begun = true;
        self.is_refused = true;
        true
    }

    /// Buffers the head of a forwarded response with the `Date` of its upstream. `false` for all other bytes.
    fn buffers_restored_head(&mut self, bytes: &[u8]) -> bool {
        // Heads are the first bytes after a flush.
        if self.begun || !self.buffered.is_empty() || !is_final_head(bytes) {
            return false;
        }
        let date = self.tracker.as_ref().take_upstream_date();
        let Some(head) = date.and_then(|date| restore_date(bytes, &date)) else {
            return false;
        };
        self.buffered = head;
        self.begun = true;
        true
    }

    /// Reads bytes after a request that is still being handled, to find out whether the client has disconnected. Ready only
    /// some time after the end of the connection.
    fn poll_early(&mut self, context: &mut Context<'_>, mut room: usize) -> Poll<io::Result<()>> {
        while self.half_closed.is_none() {
            let mut piece = [0; EARLY_PIECE_BYTES];
            let Some(space) = piece.get_mut(..room.min(EARLY_PIECE_BYTES)) else {
                return Poll::Pending;
            };
            if space.is_empty() {
                // The client pipelines without waiting for responses. Reading resumes after the current response.
                return Poll::Pending;
            }
            let mut buffer = ReadBuf::new(space);
            std::task::ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer))?;
            if buffer.filled().is_empty() {
                self.half_closed = Some(Box::pin(tokio::time::sleep(HALF_CLOSED_TIME_MAX)));
            }
            room = room.saturating_sub(buffer.filled().len());
            self.tracker.as_ref().keep_early(buffer.filled());
        }
        match &mut self.half_closed {
            Some(timer) => timer.as_mut().poll(context).map(Ok),
            None => Poll::Pending,
        }
    }
}

impl<T: AsRef<RequestTracker> + Unpin> AsyncRead for Http1Connection<T> {
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
        let received = buffer.filled().get(before..).unwrap_or_default();
        match self.tracker.as_ref().track(received) {
            ReadDecision::Keep(count) => {
                buffer.set_filled(before.saturating_add(count));
                Poll::Ready(Ok(()))
            }
            ReadDecision::Malformed => {
                buffer.set_filled(before);
                let message = "malformed chunked body";
                Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, message)))
            }
        }
    }
}

impl<T: AsRef<RequestTracker> + Unpin> AsyncWrite for Http1Connection<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.replaces_parser_answer(bytes) || self.buffers_restored_head(bytes) {
            return Poll::Ready(Ok(bytes.len()));
        }
        self.poll_write_pieces(context, &[IoSlice::new(bytes)])
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(self.poll_send_buffered(context))?;
        self.begun = false;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(self.poll_send_buffered(context))?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let first = pieces.first().map(|piece| &**piece).unwrap_or_default();
        // Pingora writes a head as one piece.
        let is_head = pieces.len() == 1 && self.buffers_restored_head(first);
        if is_head || self.replaces_parser_answer(first) {
            let length = pieces
                .iter()
                .fold(0_usize, |sum, piece| sum.saturating_add(piece.len()));
            return Poll::Ready(Ok(length));
        }
        self.poll_write_pieces(context, pieces)
    }

    // Pingora writes a chunk as three pieces: size, content and line end.
    fn is_write_vectored(&self) -> bool {
        true
    }
}

#[async_trait]
impl<T: Send> Shutdown for Http1Connection<T> {
    async fn shutdown(&mut self) {
        let flushed = std::future::poll_fn(|context| self.poll_send_buffered(context)).await;
        if let Err(error) = flushed {
            tracing::debug!(%error, "buffered bytes not sent at shutdown");
        }
        Shutdown::shutdown(&mut *self.stream).await;
    }
}

#[async_trait]
impl<T: Send> Peek for Http1Connection<T> {
    async fn try_peek(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        self.stream.try_peek(buffer).await
    }
}

impl<T> UniqueID for Http1Connection<T> {
    fn id(&self) -> UniqueIDType {
        self.stream.id()
    }
}

impl<T> Ssl for Http1Connection<T> {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.stream.get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.stream.selected_alpn_proto()
    }
}

impl<T> GetTimingDigest for Http1Connection<T> {
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

impl<T> GetProxyDigest for Http1Connection<T> {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.stream.get_proxy_digest()
    }

    fn set_proxy_digest(&mut self, digest: ProxyDigest) {
        self.stream.set_proxy_digest(digest);
    }
}

impl<T> GetSocketDigest for Http1Connection<T> {
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

    async fn pair() -> (Http1Connection<Arc<RequestTracker>>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let (client, served) = tokio::join!(client, listener.accept());
        let socket = Socket::from(served.unwrap().0);
        let made = Http1Connection::new(Box::new(socket), Arc::default(), None);
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
    async fn the_first_write_is_sent_with_the_next_or_when_it_is_flushed() {
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
            assert_eq!(made.buffered.capacity(), 0, "{round}: nothing is kept");
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
    async fn what_a_slow_client_does_not_accept_is_written_again() {
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
    async fn bytes_arrive_in_order_for_writes_of_any_size() {
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
