//! The walk, driven without sockets over a service in memory.

mod bearer;
mod cancel;
mod conditions;
mod denials;
mod events;
mod limits;
mod names;
mod openapi;
mod passthrough;
mod pipeline;
mod prefer;
mod rig;
mod tokens;
