//! Connects to upstreams for WebSocket upgrades, around a race in Pingora.
//!
//! Pingora signals the end of the (empty) request body to its upstream half while that half reads the response. If the 101 of a
//! quick upstream is read first, the signal is treated as the end of the upgraded connection, which is then torn down (Pingora
//! issue 946). So the first bytes after a write are held back for a moment: the reader finds nothing at first, processes the end of
//! the body, and reads again.

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
use tokio::time::Sleep;

/// How long received bytes are held back after a write: far longer than processing the end of the body takes, far shorter than
/// users notice.
const HOLD: Duration = Duration::from_millis(2);
/// How often bytes are held back per connection: enough for a TLS handshake and the request, so that the upgraded connection is
/// not slowed down.
const HOLDS_MAX: u8 = 4;

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

/// A stream whose first bytes after a write are held back, a few times.
#[derive(Debug)]
struct HeldStream<S> {
    inner: S,
    written: bool,
    hold: Option<Pin<Box<Sleep>>>,
    holds: u8,
}

impl<S> HeldStream<S> {
    const fn new(inner: S) -> Self {
        Self {
            inner,
            written: false,
            hold: None,
            holds: 0,
        }
    }

    fn poll_hold(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.written && self.holds < HOLDS_MAX {
            self.written = false;
            self.holds = self.holds.saturating_add(1);
            self.hold = Some(Box::pin(tokio::time::sleep(HOLD)));
        }
        if let Some(hold) = &mut self.hold {
            if hold.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            self.hold = None;
        }
        Poll::Ready(())
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
        me.written |= written.is_ready();
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
    async fn bytes_after_a_write_are_held_back_a_few_times() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let mut held = HeldStream::new(ours);
        for round in 0..=HOLDS_MAX {
            held.write_all(b"ask").await.unwrap();
            theirs.write_all(b"data").await.unwrap();
            let mut buffer = [0; 4];
            let at_once = {
                let read = held.read_exact(&mut buffer);
                tokio::pin!(read);
                let first = futures_util::poll!(read.as_mut()).is_ready();
                if !first {
                    read.await.unwrap();
                }
                first
            };
            assert_eq!(at_once, round == HOLDS_MAX, "round {round}");
            assert_eq!(&buffer, b"data", "all of it, round {round}");
        }
    }
}
