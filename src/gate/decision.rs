//! What the gate decides about a request.

use crate::gate::handled_request::HandledRequest;
use crate::gate::passthrough::PassThrough;

/// What to do with a request.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly every request is answered: a box would be one more allocation for each"
)]
pub enum GateDecision {
    /// It is answered.
    Answer(HandledRequest),
    /// It is passed through to a VM manager's own interface. Its body has not been read.
    PassThrough(Box<PassThrough>),
}
