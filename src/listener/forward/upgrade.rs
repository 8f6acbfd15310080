//! Connects to upstreams for WebSocket upgrades, around a race in Pingora.
//!
//! Pingora signals the end of the (empty) request body to its upstream half while that half reads the response. If the 101 of a
//! quick upstream is read first, the signal is treated as the end of the upgraded connection, which is then torn down (Pingora
//! issue 946). Both halves run in one task, and the signal is sent before the first read. So the first reads after a write find
//! nothing, whatever has arrived: the task processes the end of the body, and reads again. This takes no time, and no load delays it.

use std::io;
use std::pin::Pin;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use pingora::Error;
use pingora::ErrorType;
use pingora::OrErr;
use pingora::connectors::l4::Connect;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::protocols::l4::stream::Stream;
use pingora::protocols::l4::virt::VirtualSockOpt;
use pingora::protocols::l4::virt::VirtualSocket;
use pingora::protocols::l4::virt::VirtualSocketStream;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;
use tokio::net::TcpStream;
use tokio::net::UnixStream;

/// How many reads find nothing after a write. One is enough while both halves are polled in turn; the other one is for an order
/// that changes with a version of Pingora.
const EMPTY_READS: u8 = 2;

/// Connects with [`HeldStream`]s.
#[derive(Debug)]
pub(super) struct UpgradeConnector {
    /// Time limit for connecting.
    pub(super) connect: Duration,
}

#[async_trait]
impl Connect for UpgradeConnector {
    async fn connect(&self, address: &SocketAddr) -> pingora::Result<Stream> {
        let socket: Box<dyn VirtualSocket> = match address {
            SocketAddr::Inet(address) => {
                let stream = self.in_time(TcpStream::connect(address)).await?;
                stream
                    .set_nodelay(true)
                    .or_err(ErrorType::ConnectError, "no delay")?;
                Box::new(HeldStream::new(stream))
            }
            SocketAddr::Unix(address) => {
                let path = address.as_pathname().unwrap_or_else(|| "".as_ref());
                Box::new(HeldStream::new(
                    self.in_time(UnixStream::connect(path)).await?,
                ))
            }
        };
        Ok(Stream::from(VirtualSocketStream::new(socket)))
    }
}

impl UpgradeConnector {
    async fn in_time<S>(
        &self,
        connecting: impl Future<Output = io::Result<S>>,
    ) -> pingora::Result<S> {
        match tokio::time::timeout(self.connect, connecting).await {
            Ok(made) => made.or_err(ErrorType::ConnectError, "for an upgrade"),
            Err(_) => Error::e_explain(ErrorType::ConnectTimedout, "for an upgrade"),
        }
    }
}

/// A stream whose first reads after a write find nothing.
#[derive(Debug)]
struct HeldStream<S> {
    inner: S,
    /// How many of the next reads find nothing.
    empty_reads: u8,
}

impl<S> HeldStream<S> {
    const fn new(inner: S) -> Self {
        Self {
            inner,
            empty_reads: 0,
        }
    }

    fn poll_hold(&mut self, context: &Context<'_>) -> Poll<()> {
        let Some(left) = self.empty_reads.checked_sub(1) else {
            return Poll::Ready(());
        };
        self.empty_reads = left;
        // The task runs again at once, after everything else that it can do now.
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for HeldStream<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        match me.poll_hold(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => Pin::new(&mut me.inner).poll_read(context, buffer),
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for HeldStream<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        let written = Pin::new(&mut me.inner).poll_write(context, bytes);
        if written.is_ready() {
            me.empty_reads = EMPTY_READS;
        }
        written
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(context)
    }
}

impl<S> VirtualSocket for HeldStream<S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + Sync + std::fmt::Debug,
{
    /// Options were set when the connection was made.
    fn set_socket_option(&self, _: VirtualSockOpt) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn the_first_reads_after_a_write_find_nothing_and_the_next_one_all() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let mut held = HeldStream::new(ours);
        for round in 0..3 {
            held.write_all(b"ask").await.unwrap();
            theirs.write_all(b"data").await.unwrap();
            let mut buffer = [0; 4];
            {
                let read = held.read_exact(&mut buffer);
                tokio::pin!(read);
                for number in 0..EMPTY_READS {
                    let found = futures_util::poll!(read.as_mut());
                    assert!(found.is_pending(), "round {round}: read {number}");
                }
                let found = futures_util::poll!(read.as_mut());
                assert!(found.is_ready(), "round {round}: the next read");
            }
            assert_eq!(&buffer, b"data", "round {round}: all of it");
            theirs.write_all(b"more").await.unwrap();
            let found = futures_util::poll!(std::pin::pin!(held.read_exact(&mut buffer)));
            assert!(found.is_ready(), "round {round}: at once without a write");
        }
    }
}
