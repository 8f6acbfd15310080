//! Who is informed while a client waits.

use std::time::Duration;

use crate::client::wire::Status;

/// Is informed of what happens while a client waits.
pub trait Observer {
    /// The gateway does not answer; it is asked again after the pause.
    fn on_interruption(&mut self, why: &str, pause: Duration);

    /// The Status of the operation that is waited for changed.
    fn on_status(&mut self, status: &Status);
}

/// Is informed of nothing.
#[derive(Clone, Copy, Debug)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn on_interruption(&mut self, _why: &str, _pause: Duration) {}

    fn on_status(&mut self, _status: &Status) {}
}
