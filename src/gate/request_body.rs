//! The body of a request while it is handled: read at most once, within its limit, and remembered to have been read.

use bytes::Bytes;

use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::gate::request::Body;
use crate::gate::request::BodyError;

/// A body that may not have been read yet.
pub(super) struct IncomingBody<'a> {
    body: &'a mut dyn Body,
    bytes_max: usize,
    is_present: bool,
    is_read: bool,
    /// Read already, and to be read once more.
    kept: Option<Bytes>,
}

impl<'a> IncomingBody<'a> {
    pub(super) fn new(body: &'a mut dyn Body, bytes_max: usize) -> Self {
        Self {
            is_present: body.is_present(),
            body,
            bytes_max,
            is_read: false,
            kept: None,
        }
    }

    /// Whether the request has a body, by its framing.
    pub(super) const fn is_present(&self) -> bool {
        self.is_present
    }

    /// Whether the connection must be closed after the response: what is left of the body would be read as the next request.
    pub(super) const fn is_left_unread(&self) -> bool {
        self.is_present && !self.is_read
    }

    /// The whole body; empty when there is none.
    pub(super) async fn read(&mut self) -> Result<Bytes, Refusal> {
        if !self.is_present {
            return Ok(Bytes::new());
        }
        if let Some(kept) = self.kept.take() {
            return Ok(kept);
        }
        let read = self.body.read(self.bytes_max).await;
        let bytes = read.map_err(|error| {
            Refusal::from(match error {
                BodyError::TooLarge => Code::BodyTooLarge,
                BodyError::TooSlow => Code::BodyTooSlow,
                BodyError::Broken => Code::UnreadableBody,
            })
        })?;
        self.is_read = true;
        Ok(bytes)
    }

    /// The whole body, which can be read once more.
    pub(super) async fn read_and_keep(&mut self) -> Result<Bytes, Refusal> {
        let bytes = self.read().await?;
        self.kept = Some(bytes.clone());
        Ok(bytes)
    }

    /// Reads a body that has no meaning, so that the connection can be used again.
    pub(super) async fn skip(&mut self) -> Result<(), Refusal> {
        drop(self.read().await?);
        Ok(())
    }
}
