//! An HTTP/2 connection: says early that it ends, and lets the client read everything before the socket closes.
//!
//! The h2 library ends a connection in two steps (RFC 9113 section 6.8): a GOAWAY without a limit together with a PING, and as soon as the
//! PING is acknowledged a GOAWAY with the last request that is handled. Clients such as h2 and nghttp2 acknowledge a PING before they send
//! requests that are queued already: these arrive after the limit and are ignored. So a GOAWAY without a limit and without a PING is sent here
//! first. Requests that were queued when it arrived have [`GOAWAY_NOTICE`] to be received and are handled.
//!
//! A socket that is closed with unread bytes is reset, and what the client has not acknowledged by then is lost. Clients send frames after the
//! last response, at least flow-control windows, so the end of the connection waits for the client's (as `lingering_close` of nginx does).

use std::io;
use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
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
use pingora::protocols::TimingDigest;
use pingora::protocols::UniqueID;
use pingora::protocols::UniqueIDType;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::SslDigest;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;
use tokio::time::Sleep;

use crate::listener::connection_phase::PhaseTracker;
use crate::listener::corked_stream::CorkedStream;
use crate::listener::frame_boundary::FrameBoundary;

/// How long requests that a client had queued when it was asked to leave may be on their way.
const GOAWAY_NOTICE: Duration = Duration::from_millis(500);
/// Limit for the client to close its side after the gateway closed its own.
const LINGER_TIME_MAX: Duration = Duration::from_secs(1);
/// Most bytes that are read and discarded meanwhile.
const LINGER_BYTES_MAX: usize = 64 * 1024;
/// GOAWAY for no error, with the largest identifier of a stream: no new requests, please.
const GOAWAY: [u8; 17] = [
    0, 0, 8, 7, 0, 0, 0, 0, 0, // 8 bytes of type 7, without flags, on stream 0
    0x7f, 0xff, 0xff, 0xff, // the largest stream
    0, 0, 0, 0, // NO_ERROR
];

/// How far the client has been asked to leave.
#[derive(Debug)]
enum Notice {
    /// Not yet, or its GOAWAY waits for the end of a frame; so many of its bytes are sent.
    Unsent(usize),
    /// The GOAWAY is sent. At the end of the time no more requests are accepted.
    Sent(Pin<Box<Sleep>>),
    /// The h2 library ends the connection.
    Over,
}

/// A connection over which the h2 library reads and writes.
#[derive(Debug)]
pub(super) struct Http2Connection {
    stream: CorkedStream,
    phases: PhaseTracker,
    written: FrameBoundary,
    notice: Notice,
    /// Present once the write side is closed: when to stop waiting for the client, and the bytes discarded since.
    lingering: Option<(Pin<Box<Sleep>>, usize)>,
}

impl Http2Connection {
    pub(super) fn new(stream: CorkedStream, phases: PhaseTracker) -> Self {
        Self {
            stream,
            phases,
            written: FrameBoundary::default(),
            notice: Notice::Unsent(0),
            lingering: None,
        }
    }

    /// Sends the first GOAWAY if it is due and no frame is half sent. Pending only if a part of it was sent.
    fn poll_notice(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Notice::Unsent(count) = &mut self.notice {
            let is_due = self.phases.is_asked_to_leave() && self.written.is_between_frames();
            let rest = GOAWAY.get(*count..).unwrap_or_default();
            if !is_due {
                return Poll::Ready(Ok(()));
            }
            if rest.is_empty() {
                let timer = Box::pin(tokio::time::sleep(GOAWAY_NOTICE));
                self.notice = Notice::Sent(timer);
                return Poll::Ready(Ok(()));
            }
            match Pin::new(&mut self.stream).poll_write(context, rest)? {
                Poll::Ready(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(sent) => *count = count.saturating_add(sent),
                Poll::Pending if *count == 0 => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Asks the client to leave if that is due, and ends the time that its queued requests had. Wakes the task when either changes.
    fn poll_leaving(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if matches!(self.notice, Notice::Over) {
            return Ok(());
        }
        self.phases.wake_when_asked_to_leave(context.waker());
        if self.poll_notice(context)?.is_ready() {
            // Pending is possible and harmless: the h2 library flushes after each read.
            let _flushed = Pin::new(&mut self.stream).poll_flush(context)?;
        }
        if let Notice::Sent(timer) = &mut self.notice
            && timer.as_mut().poll(context).is_ready()
        {
            self.notice = Notice::Over;
            self.phases.refuse_more_requests();
        }
        Ok(())
    }

    /// Reads and discards what the client still sends, until it closes its side.
    fn poll_linger(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let (timer, discarded) = self.lingering.get_or_insert_with(|| {
            let timer = Box::pin(tokio::time::sleep(LINGER_TIME_MAX));
            (timer, 0)
        });
        while timer.as_mut().poll(context).is_pending() && *discarded <= LINGER_BYTES_MAX {
            let mut piece = [0; 1024];
            let mut buffer = ReadBuf::new(&mut piece);
            let read = Pin::new(&mut self.stream).poll_read(context, &mut buffer);
            match std::task::ready!(read) {
                Ok(()) if !buffer.filled().is_empty() => {
                    *discarded = discarded.saturating_add(buffer.filled().len());
                }
                Ok(()) | Err(_) => break,
            }
        }
        Poll::Ready(())
    }
}

impl AsyncRead for Http2Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll_leaving(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Http2Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.lingering.is_none() {
            std::task::ready!(Pin::new(&mut self.stream).poll_shutdown(context))?;
        }
        self.poll_linger(context).map(Ok)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        std::task::ready!(self.poll_notice(context))?;
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, pieces);
        let count = std::task::ready!(written)?;
        let mut left = count;
        for piece in pieces {
            let sent = piece.get(..left.min(piece.len())).unwrap_or_default();
            self.written.track(sent);
            left = left.saturating_sub(sent.len());
        }
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[async_trait]
impl Shutdown for Http2Connection {
    async fn shutdown(&mut self) {
        let ended =
            std::future::poll_fn(|context| Pin::new(&mut self.stream).poll_shutdown(context));
        if let Err(error) = ended.await {
            tracing::debug!(%error, "HTTP/2 connection not ended properly");
        }
    }
}

impl Peek for Http2Connection {}

impl UniqueID for Http2Connection {
    fn id(&self) -> UniqueIDType {
        self.stream.with(|stream| stream.id())
    }
}

impl Ssl for Http2Connection {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.stream.with(|stream| stream.get_ssl_digest())
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.stream.with(|stream| stream.selected_alpn_proto())
    }
}

impl GetTimingDigest for Http2Connection {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.stream.with(|stream| stream.get_timing_digest())
    }
}

impl GetProxyDigest for Http2Connection {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.stream.with(|stream| stream.get_proxy_digest())
    }

    fn set_proxy_digest(&mut self, digest: ProxyDigest) {
        self.stream.with(|stream| stream.set_proxy_digest(digest));
    }
}

impl GetSocketDigest for Http2Connection {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.stream.with(|stream| stream.get_socket_digest())
    }

    fn set_socket_digest(&mut self, digest: SocketDigest) {
        self.stream.with(|stream| stream.set_socket_digest(digest));
    }
}
