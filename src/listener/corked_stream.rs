//! A connection of HTTP/2 whose writes are held back while its requests are served, and leave together when there is nothing more to write.
//!
//! The h2 library writes and flushes each response with a body of 256 bytes or more by itself. Ten responses that were ready at once left in ten
//! packets, each in a TLS record of its own. The loop of the connection corks it before it lets the library write, and uncorks it
//! when the library waits.

use std::io;
use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;

use bytes::Buf as _;
use bytes::BytesMut;
use parking_lot::Mutex;
use pingora::protocols::Stream;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;

/// Most bytes that are held back: as many as a TLS record has.
const HELD_BYTES_MAX: usize = 16 * 1024;

/// A handle to a connection. The h2 library reads and writes through one, the loop of the connection corks it through another.
#[derive(Clone, Debug)]
pub(super) struct CorkedStream(Arc<Mutex<Corked>>);

#[derive(Debug)]
struct Corked {
    stream: Stream,
    is_corked: bool,
    /// What was written and is not sent yet; without memory while it is empty.
    held: BytesMut,
    /// Whether a flush was asked for that has not happened yet.
    is_flush_due: bool,
    /// A failure to send what was held back. It is returned by the next read or write.
    failure: Option<io::Error>,
}

impl CorkedStream {
    pub(super) fn new(stream: Stream) -> Self {
        Self(Arc::new(Mutex::new(Corked {
            stream,
            is_corked: false,
            held: BytesMut::new(),
            is_flush_due: false,
            failure: None,
        })))
    }

    /// Holds back what is written from now on, as far as there is room.
    pub(super) fn cork(&self) {
        self.0.lock().is_corked = true;
    }

    /// Sends what was held back. What the connection does not take now is sent at the next call, for which the task is woken.
    pub(super) fn uncork(&self, context: &mut Context<'_>) {
        let mut corked = self.0.lock();
        corked.is_corked = false;
        if corked.is_flush_due
            && let Poll::Ready(Err(error)) = corked.poll_flush(context)
        {
            corked.failure = Some(error);
            // Nothing else may wake the task of a connection that only writes.
            context.waker().wake_by_ref();
        }
    }

    /// Calls this with the connection, without what was held back.
    pub(super) fn with<T>(&self, call: impl FnOnce(&mut Stream) -> T) -> T {
        call(&mut self.0.lock().stream)
    }
}

impl Corked {
    fn check(&mut self) -> io::Result<()> {
        self.failure.take().map_or(Ok(()), Err)
    }

    fn poll_send_held(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            let sent = Pin::new(&mut self.stream).poll_write(context, &self.held);
            match std::task::ready!(sent)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                sent => self.held.advance(sent),
            }
        }
        self.held = BytesMut::new();
        Poll::Ready(Ok(()))
    }

    fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        let length = pieces.iter().map(|piece| piece.len()).sum::<usize>();
        if self.is_corked && self.held.len().saturating_add(length) <= HELD_BYTES_MAX {
            pieces
                .iter()
                .for_each(|piece| self.held.extend_from_slice(piece));
            self.is_flush_due = true;
            return Poll::Ready(Ok(length));
        }
        std::task::ready!(self.poll_send_held(context))?;
        Pin::new(&mut self.stream).poll_write_vectored(context, pieces)
    }

    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_corked {
            self.is_flush_due = true;
            return Poll::Ready(Ok(()));
        }
        std::task::ready!(self.poll_send_held(context))?;
        std::task::ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        self.is_flush_due = false;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(self.poll_send_held(context))?;
        self.is_flush_due = false;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl AsyncRead for CorkedStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut corked = self.0.lock();
        corked.check()?;
        Pin::new(&mut corked.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for CorkedStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.lock().poll_write(context, &[IoSlice::new(bytes)])
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.lock().poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.lock().poll_shutdown(context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.lock().poll_write(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.with(|stream| stream.is_write_vectored())
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use futures_util::task::noop_waker;
    use tokio::io::AsyncReadExt;
    use tokio::io::AsyncWriteExt;
    use tokio::io::DuplexStream;
    use tokio::io::duplex;

    use super::*;

    /// A connection that takes so many bytes before its peer reads, and the peer.
    fn connection(room: usize) -> (CorkedStream, DuplexStream) {
        let (near, far) = duplex(room);
        (CorkedStream::new(Box::new(near)), far)
    }

    /// What the peer has received.
    fn received(peer: &mut DuplexStream) -> Vec<u8> {
        let mut bytes = vec![0; 1 << 20];
        let count = peer.read(&mut bytes).now_or_never();
        bytes.truncate(count.map_or(0, Result::unwrap));
        bytes
    }

    fn uncork(stream: &CorkedStream) {
        stream.uncork(&mut Context::from_waker(&noop_waker()));
    }

    #[test]
    fn writes_leave_when_the_connection_is_uncorked() {
        let (stream, mut peer) = connection(1 << 20);
        let write = |bytes: &[u8]| {
            let mut stream = stream.clone();
            let written = stream.write_all(bytes).now_or_never();
            written.unwrap().unwrap();
            stream.flush().now_or_never().unwrap().unwrap();
        };
        write(b"a");
        assert_eq!(received(&mut peer), b"a", "not corked");
        stream.cork();
        write(b"b");
        write(b"c");
        assert_eq!(received(&mut peer), b"", "corked");
        uncork(&stream);
        assert_eq!(received(&mut peer), b"bc", "together");
        assert_eq!(stream.0.lock().held.capacity(), 0, "memory");
    }

    #[test]
    fn a_connection_that_takes_nothing_holds_back_a_bounded_number_of_bytes() {
        let (mut stream, mut peer) = connection(100);
        stream.cork();
        let mut sent = Vec::new();
        for number in 0_u16.. {
            let piece = number.to_be_bytes().repeat(500);
            let written = stream.write(&piece).now_or_never();
            let Some(count) = written else { break };
            sent.extend_from_slice(&piece[..count.unwrap()]);
            assert!(sent.len() < 2 * HELD_BYTES_MAX, "without end");
        }
        assert!(
            sent.len() > HELD_BYTES_MAX - 1000,
            "held back: {}",
            sent.len()
        );
        let mut found = Vec::new();
        while found.len() < sent.len() {
            uncork(&stream);
            let piece = received(&mut peer);
            assert!(!piece.is_empty(), "after {} bytes", found.len());
            found.extend(piece);
        }
        assert_eq!(found, sent, "in order");
    }

    #[test]
    fn large_writes_go_straight_after_what_was_held_back() {
        let (mut stream, mut peer) = connection(1 << 20);
        stream.cork();
        let large = vec![b'x'; HELD_BYTES_MAX];
        let written = stream.write_all(b"a").now_or_never();
        written.unwrap().unwrap();
        let written = stream.write_all(&large).now_or_never();
        written.unwrap().unwrap();
        let found = received(&mut peer);
        assert_eq!(found.first(), Some(&b'a'), "first");
        assert_eq!(found.len(), HELD_BYTES_MAX + 1, "at once");
    }

    #[test]
    fn a_failed_write_is_reported_once_and_wakes_the_task() {
        let (mut stream, peer) = connection(100);
        stream.cork();
        let written = stream.write_all(b"a").now_or_never();
        written.unwrap().unwrap();
        drop(peer);
        uncork(&stream);
        let mut byte = [0];
        let error = stream.read(&mut byte).now_or_never().unwrap().unwrap_err();
        assert_eq!(
            error.kind(),
            io::ErrorKind::BrokenPipe,
            "returned by the next read"
        );
        assert_eq!(stream.read(&mut byte).now_or_never().unwrap().unwrap(), 0);
    }

    #[test]
    fn what_was_held_back_is_sent_before_the_end() {
        let (mut stream, mut peer) = connection(100);
        stream.cork();
        let written = stream.write_all(b"last").now_or_never();
        written.unwrap().unwrap();
        stream.shutdown().now_or_never().unwrap().unwrap();
        let mut all = Vec::new();
        peer.read_to_end(&mut all).now_or_never().unwrap().unwrap();
        assert_eq!(all, b"last", "before the end");
    }
}
