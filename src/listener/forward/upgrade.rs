//! Connections for WebSockets, made reliable.
//!
//! Pingora sends the end of the request's (empty) body to the part that talks to the upstream and reads the answer at the
//! same time. When a quick upstream's 101 is read first, that end is taken for the end of the upgraded connection, which
//! is torn down (Pingora issue 946). So the first bytes after a write are held back for a moment: whoever reads finds
//! nothing at first, looks at the body meanwhile, and comes back.

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

/// How long what an upstream says is held back after something was sent to it: far longer than looking at a body takes
/// that is there already, far shorter than anybody notices.
const HOLD: Duration = Duration::from_millis(2);
/// How often on one connection: enough for a handshake of TLS and the request, so that the conversation itself is not
/// slowed down.
const HOLDS_MAX: u8 = 4;

/// Makes such connections.
#[derive(Debug)]
pub(super) struct UpgradeConnector {
    /// Time for one.
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
    /// What is worth setting was set when the connection was made.
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
    async fn what_is_there_at_once_is_not_read_at_once_after_a_write() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let mut held = HeldStream::new(ours);
        for round in 0..=HOLDS_MAX {
            held.write_all(b"ask").await.unwrap();
            theirs.write_all(b"tell").await.unwrap();
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
            assert_eq!(&buffer, b"tell", "all of it, round {round}");
        }
    }
}
