//! The walk, driven without sockets over a service in memory.

mod cancel;
mod fake;
mod passthrough;
mod prefer;
mod rig;
mod walk;
