//! A connection whose small writes are gathered until they are flushed: head and body of an answer leave in one call.
//!
//! Pingora's own connections have such a buffer when Pingora itself accepts them, and its HTTP parser flushes
//! accordingly; there is no other way to get one.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::task::Waker;
use std::time::Duration;

use async_trait::async_trait;
use pingora::protocols::GetProxyDigest;
use pingora::protocols::GetSocketDigest;
use pingora::protocols::GetTimingDigest;
use pingora::protocols::Peek;
use pingora::protocols::Shutdown;
use pingora::protocols::SocketDigest;
use pingora::protocols::Ssl;
use pingora::protocols::TimingDigest;
use pingora::protocols::UniqueID;
use pingora::protocols::UniqueIDType;
use pingora::protocols::l4::stream::Stream as Socket;
use pingora::protocols::raw_connect::ProxyDigest;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt;
use tokio::io::ReadBuf;

/// As much is gathered; more than one packet of most networks, and more than most answers of ours are long.
const GATHERED_BYTES: usize = 4096;

/// A plain connection with a buffer for what is written, which takes no memory while there is nothing in it.
#[derive(Debug)]
pub(super) struct Gathered {
    socket: Socket,
    waiting: Vec<u8>,
    /// How much of what waits was written already.
    written: usize,
}

impl Gathered {
    pub(super) const fn new(socket: Socket) -> Self {
        Self {
            socket,
            waiting: Vec::new(),
            written: 0,
        }
    }

    /// Writes what waits.
    fn poll_waiting(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.waiting.get(self.written..).filter(|it| !it.is_empty()) {
            let written = Pin::new(&mut self.socket).poll_write(context, rest);
            match std::task::ready!(written)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.written = self.written.saturating_add(count),
            }
        }
        self.waiting = Vec::new();
        self.written = 0;
        Poll::Ready(Ok(()))
    }
}

/// A connection that breaks off still sends what was said before, as far as the system takes it at once.
impl Drop for Gathered {
    fn drop(&mut self) {
        if !self.waiting.is_empty() {
            let mut context = Context::from_waker(Waker::noop());
            let left = matches!(self.poll_waiting(&mut context), Poll::Ready(Ok(())));
            tracing::trace!(left, "connection broken off with something to say");
        }
    }
}

impl AsyncRead for Gathered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(context, buffer)
    }
}

impl AsyncWrite for Gathered {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.waiting.len().saturating_add(bytes.len()) > GATHERED_BYTES {
            std::task::ready!(self.poll_waiting(context))?;
            if bytes.len() > GATHERED_BYTES {
                return Pin::new(&mut self.socket).poll_write(context, bytes);
            }
        }
        if self.waiting.is_empty() {
            self.waiting.reserve_exact(GATHERED_BYTES);
        }
        self.waiting.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(self.poll_waiting(context))?;
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(self.poll_waiting(context))?;
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

#[async_trait]
impl Shutdown for Gathered {
    async fn shutdown(&mut self) {
        if let Err(error) = AsyncWriteExt::shutdown(self).await {
            tracing::debug!(%error, "connection not shut down");
        }
    }
}

#[async_trait]
impl Peek for Gathered {
    async fn try_peek(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        self.socket.try_peek(buffer).await
    }
}

impl UniqueID for Gathered {
    fn id(&self) -> UniqueIDType {
        self.socket.id()
    }
}

// Nothing is encrypted here.
impl Ssl for Gathered {}

impl GetTimingDigest for Gathered {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.socket.get_timing_digest()
    }

    fn get_read_pending_time(&self) -> Duration {
        self.socket.get_read_pending_time()
    }

    fn get_write_pending_time(&self) -> Duration {
        self.socket.get_write_pending_time()
    }
}

impl GetProxyDigest for Gathered {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.socket.get_proxy_digest()
    }

    fn set_proxy_digest(&mut self, digest: ProxyDigest) {
        self.socket.set_proxy_digest(digest);
    }
}

impl GetSocketDigest for Gathered {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.socket.get_socket_digest()
    }

    fn set_socket_digest(&mut self, digest: SocketDigest) {
        self.socket.set_socket_digest(digest);
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;
    use tokio::net::TcpStream;

    use super::*;

    async fn pair() -> (Gathered, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let (client, served) = tokio::join!(client, listener.accept());
        let socket = Socket::from(served.unwrap().0);
        (Gathered::new(socket), client.unwrap())
    }

    #[tokio::test]
    async fn nothing_leaves_before_it_is_flushed_and_everything_then() {
        let (mut made, mut client) = pair().await;
        made.write_all(b"head ").await.unwrap();
        made.write_all(b"body").await.unwrap();
        let early = client.try_read(&mut [0; 16]).map_err(|it| it.kind());
        assert_eq!(early, Err(io::ErrorKind::WouldBlock), "gathered");
        made.flush().await.unwrap();
        let mut found = [0; 9];
        client.read_exact(&mut found).await.unwrap();
        assert_eq!(&found, b"head body", "all of it");
        assert_eq!(
            made.waiting.capacity(),
            0,
            "an idle connection keeps nothing"
        );
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
