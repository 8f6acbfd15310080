//! The state machine of an operation: decides what each event makes of it.
//!
//! The state is the durable record itself, so what is decided here is all that a restart needs to know. The machine has no
//! clock, no randomness, no `await` and no I/O; the runner carries out what it decides.

mod decision;
mod event;
mod faults;
mod invariants;
mod transition;

#[cfg(test)]
mod tests;

pub(crate) use decision::NextAction;
pub(crate) use decision::Rules;
pub(crate) use event::Event;
pub(crate) use invariants::check_invariants;
pub(crate) use transition::step;
