//! The walk, driven without sockets over a service in memory.

mod all_statuses;
mod bearer;
mod cancel;
mod conditions;
mod cross_site;
mod denials;
mod discovery;
mod events;
mod limits;
mod names;
mod openapi;
mod page;
mod passthrough;
mod pipeline;
mod plans;
mod prefer;
mod rig;
mod tokens;
