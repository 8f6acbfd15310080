//! `[limits]`.

use crate::model::limits;
use crate::schema::declare_table;
use crate::schema::duration;
use crate::schema::integer;
use crate::schema::size;

declare_table! { "limits", false, "Sizes and times of requests and connections.",
    BODY: Size = "body", size(limits::BODY_BYTES, limits::BODY_BYTES_RANGE.0, limits::BODY_BYTES_RANGE.1), Reload,
        "Largest request body.";
    TARGET: Size = "target", size(limits::TARGET_BYTES, 1024, 64 * 1024), Reload, "Longest request target.";
    HEADER: Size = "header", size(limits::HEADER_BYTES, 4 * 1024, 256 * 1024), Reload,
        "Largest request head, names and values.";
    HEADER_COUNT: Integer = "header_count", integer(limits::HEADER_COUNT, 16, 1000), Reload, "Most header fields.";
    WAIT: DurationValue = "wait", duration(limits::WAIT, 0, 600), Reload, "Longest `Prefer: wait` that is honoured.";
    STREAM: DurationValue = "stream", duration(limits::STREAM, 1, 3600), Reload,
        "Longest event stream; the client then reconnects.";
    WAITERS: Integer = "waiters", integer(limits::WAITERS, 0, 1_000_000), Reload,
        "Most requests that wait at once, including event streams.";
    CONNECTIONS: Integer = "connections", integer(limits::CONNECTIONS, 1, 1_000_000), Restart, "Most connections at once.";
    CONNECTIONS_PER_ADDRESS: Integer = "connections_per_address", integer(limits::CONNECTIONS_PER_ADDRESS, 0, 1_000_000), Restart,
        "Most connections at once from one address (IPv6: one /64); further ones are closed. 0 means no limit. There is no limit for `trusted_proxies` and loopback addresses.";
    STREAMS: Integer = "streams", integer(limits::STREAMS, 1, 1000), Restart,
        "Most requests at once on one HTTP/2 connection.";
    HANDSHAKE_TIMEOUT: DurationValue = "handshake_timeout", duration(limits::HANDSHAKE_TIMEOUT, 1, 600), Restart,
        "Time for a whole TLS handshake.";
    HEADER_TIMEOUT: DurationValue = "header_timeout", duration(limits::HEADER_TIMEOUT, 1, 600), Restart, "Time for a whole request head.";
    BODY_TIMEOUT: DurationValue = "body_timeout", duration(limits::BODY_TIMEOUT, 1, 600), Restart, "Time for a whole request body.";
    BODY_RATE: Size = "body_rate", size(limits::BODY_RATE, 0, 1024 * 1024 * 1024), Restart,
        "Lowest average rate of a request body, in bytes per second; 0B means no limit.";
    BODY_GRACE: DurationValue = "body_grace", duration(limits::BODY_GRACE, 0, 600), Restart, "Time before `body_rate` applies.";
    IDLE_TIMEOUT: DurationValue = "idle_timeout", duration(limits::IDLE_TIMEOUT, 1, 3600), Restart,
        "Time a connection may be idle between requests.";
    WRITE_TIMEOUT: DurationValue = "write_timeout", duration(limits::WRITE_TIMEOUT, 1, 600), Restart, "Time for one write to a client.";
}
