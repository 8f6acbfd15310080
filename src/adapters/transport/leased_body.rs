//! The body of a request with an effect, which looks at the lease when the connection is about to write.
//!
//! A look before the call is not enough: connecting takes time, and the process may be stopped meanwhile. The client writes head and body
//! together, and asks for the body in the same step in which it writes to the socket. A body that fails then ends the connection before a
//! byte has left.

use std::pin::Pin;
use std::task::Context;
use std::task::Poll;

use bytes::Bytes;
use hyper::body::Body;
use hyper::body::Frame;
use hyper::body::SizeHint;

use crate::runtime::Lease;
use crate::runtime::LeaseEnded;

/// Bytes that are handed out only while the lease is held.
#[derive(Debug)]
pub(super) struct LeasedBody {
    /// `None` once they are handed out.
    bytes: Option<Bytes>,
    lease: Lease,
}

impl LeasedBody {
    /// A body of these bytes, which may be none.
    pub(super) fn new(bytes: Vec<u8>, lease: Lease) -> Self {
        Self {
            bytes: Some(bytes.into()),
            lease,
        }
    }
}

impl Body for LeasedBody {
    type Data = Bytes;
    type Error = LeaseEnded;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, LeaseEnded>>> {
        if let Err(ended) = self.lease.check() {
            return Poll::Ready(Some(Err(ended)));
        }
        Poll::Ready(self.bytes.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    // Not even an empty body is at its end before it was asked for.
    fn is_end_stream(&self) -> bool {
        self.bytes.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let left = self.bytes.as_ref().map_or(0, Bytes::len);
        let left = u64::try_from(left).unwrap_or(u64::MAX);
        // The client does not ask for an empty body. It asks for the size right before it writes the head, so that a body whose
        // lease has ended is not empty: it is asked for, and fails.
        SizeHint::with_exact(if self.lease.is_held() {
            left
        } else {
            left.max(1)
        })
    }
}
