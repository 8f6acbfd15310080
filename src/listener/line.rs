//! The first line of each request of HTTP/1, as it comes over the connection.
//!
//! Pingora encodes spaces and control characters in a target and parses it again, and keeps nothing of what was sent. A server
//! that ends the target at the space reads another request, so what was sent is looked at here, before Pingora.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
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
use pingora::protocols::Stream;
use pingora::protocols::TimingDigest;
use pingora::protocols::UniqueID;
use pingora::protocols::UniqueIDType;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::SslDigest;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;

/// How far a first line has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Part {
    /// Empty lines may come before it.
    #[default]
    Before,
    Method,
    Target,
    Version,
    /// It has ended; what follows is not looked at.
    After,
}

/// What is known of the first line of the request that a connection is at.
#[derive(Debug, Default)]
pub(super) struct Line(Mutex<Seen>);

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    part: Part,
    /// There is a space or a control character within the target.
    broken: bool,
}

impl Line {
    /// The next byte that comes is of another request.
    pub(super) fn begin(&self) {
        self.set(Seen::default());
    }

    /// Whether there was a space or a control character within the target.
    pub(super) fn is_broken(&self) -> bool {
        self.seen().broken
    }

    fn see(&self, bytes: &[u8]) {
        let mut seen = self.seen();
        if seen.part == Part::After {
            return;
        }
        for byte in bytes {
            seen.see(*byte);
            if seen.part == Part::After {
                break;
            }
        }
        self.set(seen);
    }

    fn seen(&self) -> Seen {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, seen: Seen) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = seen;
    }
}

impl Seen {
    fn see(&mut self, byte: u8) {
        match (self.part, byte) {
            (Part::After, _) | (Part::Before, b'\r' | b'\n') => {}
            (Part::Before, _) => self.part = Part::Method,
            (Part::Method | Part::Target | Part::Version, b'\n') => self.part = Part::After,
            (Part::Method, b' ') => self.part = Part::Target,
            (Part::Target, b' ') => self.part = Part::Version,
            // What was taken for the version was a piece of the target.
            (Part::Version, b' ') => self.broken = true,
            // The other controls are refused by Pingora anywhere but here.
            (Part::Target, _) => self.broken |= byte.is_ascii_control(),
            (Part::Version, _) => self.broken |= byte.is_ascii_control() && byte != b'\r',
            (Part::Method, _) => {}
        }
    }
}

/// A connection whose first lines are looked at.
#[derive(Debug)]
pub(super) struct Watched<L> {
    stream: Stream,
    line: L,
}

impl<L> Watched<L> {
    /// `line` is told every byte.
    pub(super) const fn new(stream: Stream, line: L) -> Self {
        Self { stream, line }
    }
}

impl<L: AsRef<Line> + Unpin> AsyncRead for Watched<L> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        let came = buffer.filled().get(before..).unwrap_or_default();
        self.line.as_ref().see(came);
        read
    }
}

impl<L: Unpin> AsyncWrite for Watched<L> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[async_trait]
impl<L: Send> Shutdown for Watched<L> {
    async fn shutdown(&mut self) {
        Shutdown::shutdown(&mut *self.stream).await;
    }
}

#[async_trait]
impl<L: Send> Peek for Watched<L> {
    async fn try_peek(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        self.stream.try_peek(buffer).await
    }
}

impl<L> UniqueID for Watched<L> {
    fn id(&self) -> UniqueIDType {
        self.stream.id()
    }
}

impl<L> Ssl for Watched<L> {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.stream.get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.stream.selected_alpn_proto()
    }
}

impl<L> GetTimingDigest for Watched<L> {
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

impl<L> GetProxyDigest for Watched<L> {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.stream.get_proxy_digest()
    }

    fn set_proxy_digest(&mut self, digest: ProxyDigest) {
        self.stream.set_proxy_digest(digest);
    }
}

impl<L> GetSocketDigest for Watched<L> {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.stream.get_socket_digest()
    }

    fn set_socket_digest(&mut self, digest: SocketDigest) {
        self.stream.set_socket_digest(digest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_within_the_target_breaks_it() {
        let rows: [(&str, &[u8], bool); 15] = [
            ("plain", b"GET /a HTTP/1.1\r\nX: a b\r\n\r\n", false),
            ("a line feed alone", b"GET /a HTTP/1.1\nX: a b\n\n", false),
            (
                "empty lines before",
                b"\r\n\nGET /a HTTP/1.1\r\n\r\n",
                false,
            ),
            ("no end yet", b"GET /a", false),
            ("a space", b"GET /a b HTTP/1.1\r\n", true),
            ("spaces", b"GET /a b c HTTP/1.1\r\n", true),
            ("two spaces before", b"GET  /a HTTP/1.1\r\n", true),
            ("two spaces after", b"GET /a  HTTP/1.1\r\n", true),
            ("a space at the end", b"GET /a HTTP/1.1 \r\n", true),
            ("a second version", b"GET /a HTTP/1.1 HTTP/1.1\r\n", true),
            ("a tab", b"GET /a\tb HTTP/1.1\r\n", true),
            ("NUL", b"GET /a\0 HTTP/1.1\r\n", true),
            ("a carriage return", b"GET /a\rb HTTP/1.1\r\n", true),
            ("delete", b"GET /a\x7f HTTP/1.1\r\n", true),
            (
                "another alphabet",
                "GET /\u{e9} HTTP/1.1\r\n".as_bytes(),
                false,
            ),
        ];
        for (name, bytes, expected) in rows {
            let whole = Line::default();
            whole.see(bytes);
            assert_eq!(whole.is_broken(), expected, "{name}");
            let pieces = Line::default();
            for byte in bytes.chunks(1) {
                pieces.see(byte);
            }
            assert_eq!(pieces.is_broken(), expected, "{name}, byte by byte");
        }
    }

    #[test]
    fn what_follows_the_line_is_not_looked_at_until_the_next_request() {
        let line = Line::default();
        line.see(b"POST /a HTTP/1.1\r\nHost: x\r\n\r\nGET /b c HTTP/1.1\r\n");
        assert!(!line.is_broken(), "a body");
        line.begin();
        line.see(b"GET /b c HTTP/1.1\r\n");
        assert!(line.is_broken(), "the next request");
        line.begin();
        assert!(!line.is_broken(), "the one after it");
    }
}
