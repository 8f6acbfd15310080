//! What the listener is configured with.

use std::net::SocketAddr;
use std::time::Duration;

use crate::model::limits;

/// Where to listen, and how patient to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The API port. Port 0 takes a free one. Changes need a restart.
    pub listen: SocketAddr,
    /// The admin port: metrics and health. Changes need a restart.
    pub admin: SocketAddr,
    /// How long running requests are waited for when the gateway stops.
    pub drain: Duration,
    /// How long `/readyz` says 503 before new connections are refused, so that load balancers notice.
    pub drain_notice: Duration,
    /// Sizes and times of connections.
    pub limits: Limits,
}

/// Sizes and times of connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once; more wait in the kernel's queue.
    pub connections: usize,
    /// Time for a whole request head.
    pub header_timeout: Duration,
    /// Time for a whole request body.
    pub body_timeout: Duration,
    /// Time a connection may be idle between requests.
    pub idle_timeout: Duration,
    /// Time for one write to a client.
    pub write_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: usize::try_from(limits::CONNECTIONS).unwrap_or(usize::MAX),
            header_timeout: limits::HEADER_TIMEOUT,
            body_timeout: limits::BODY_TIMEOUT,
            idle_timeout: limits::IDLE_TIMEOUT,
            write_timeout: limits::WRITE_TIMEOUT,
        }
    }
}
