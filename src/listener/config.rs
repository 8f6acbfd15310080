//! The configuration of the listener.

use std::net::SocketAddr;
use std::time::Duration;

use crate::listener::Tls;
use crate::model::limits;

/// Addresses, TLS and limits of the ports.
#[derive(Clone, Debug)]
pub struct Config {
    /// The address of the API port. Port 0 selects a free port. Changes need a restart.
    pub listen: SocketAddr,
    /// The address of the admin port: metrics and health. Changes need a restart.
    pub admin: SocketAddr,
    /// TLS of the API port. New certificates apply at once; turning TLS on or off needs a restart.
    pub tls: Option<Tls>,
    /// Time that requests in progress get to finish when the gateway stops.
    pub drain: Duration,
    /// How long `/readyz` reports 503 before new connections are refused, so that load balancers notice.
    pub drain_notice: Duration,
    /// Limits of connections.
    pub limits: Limits,
}

/// Limits of connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Concurrent connections; more wait in the kernel's queue.
    pub connections: usize,
    /// Concurrent connections per address (IPv6: per /64), trusted proxies excepted; 0 for no limit.
    pub connections_per_address: usize,
    /// Time for a TLS handshake.
    pub handshake_timeout: Duration,
    /// Concurrent requests per HTTP/2 connection.
    pub streams: u32,
    /// Time for a whole request head.
    pub header_timeout: Duration,
    /// Time for a whole request body.
    pub body_timeout: Duration,
    /// Minimum average rate of a request body in bytes per second; 0 for no minimum.
    pub body_rate: u64,
    /// Time from the start of a body before the minimum rate applies.
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
