//! What the listener is configured with.

use std::net::SocketAddr;
use std::time::Duration;

use crate::listener::Tls;
use crate::model::limits;

/// Where to listen, and how patient to be.
#[derive(Clone, Debug)]
pub struct Config {
    /// The API port. Port 0 takes a free one. Changes need a restart.
    pub listen: SocketAddr,
    /// The admin port: metrics and health. Changes need a restart.
    pub admin: SocketAddr,
    /// Encryption of the API port; other certificates count at once, whether there are any only after a restart.
    pub tls: Option<Tls>,
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
    /// Of these from one address (IPv6: one /64) that is no proxy's; zero means any number.
    pub connections_per_address: usize,
    /// Time for a whole TLS handshake.
    pub handshake_timeout: Duration,
    /// Requests at once on one HTTP/2 connection.
    pub streams: u32,
    /// Time for a whole request head.
    pub header_timeout: Duration,
    /// Time for a whole request body.
    pub body_timeout: Duration,
    /// Fewest bytes a second of a request body, on average; zero means any number.
    pub body_rate: u64,
    /// Time from the start of a body before its rate counts.
    pub body_grace: Duration,
    /// Time a connection may be idle between requests.
    pub idle_timeout: Duration,
    /// Time for one write to a client.
    pub write_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: usize::try_from(limits::CONNECTIONS).unwrap_or(usize::MAX),
            connections_per_address: usize::try_from(limits::CONNECTIONS_PER_ADDRESS)
                .unwrap_or(usize::MAX),
            handshake_timeout: limits::HANDSHAKE_TIMEOUT,
            streams: u32::try_from(limits::STREAMS).unwrap_or(u32::MAX),
            header_timeout: limits::HEADER_TIMEOUT,
            body_timeout: limits::BODY_TIMEOUT,
            body_rate: limits::BODY_RATE,
            body_grace: limits::BODY_GRACE,
            idle_timeout: limits::IDLE_TIMEOUT,
            write_timeout: limits::WRITE_TIMEOUT,
        }
    }
}
