//! Pingora: sockets, HTTP, and the admin port. The only room that knows it.

mod config;

pub use config::Config;
pub use config::Limits;
