//! `[rate]`.

use crate::model::limits;
use crate::schema::declare_table;
use crate::schema::integer;

declare_table! { "rate", false, "Rate limits of clients. Limits by address do not apply to loopback addresses.",
    PRINCIPAL: Integer = "principal", integer(0, 0, limits::RATE_MAX), Reload,
        "Requests per second of one principal; 0 means no limit.";
    PRINCIPAL_BURST: Integer = "principal_burst", integer(0, 0, limits::RATE_MAX), Reload,
        "Burst of one principal; 0 means ten times `principal`.";
    ADDRESS: Integer = "address", integer(0, 0, limits::RATE_MAX), Reload,
        "Requests per second from one address (IPv6: one /64); 0 means no limit.";
    ADDRESS_BURST: Integer = "address_burst", integer(0, 0, limits::RATE_MAX), Reload,
        "Burst from one address; 0 means ten times `address`.";
    PRINCIPAL_CONCURRENT: Integer = "principal_concurrent", integer(limits::PRINCIPAL_CONCURRENT, 0, 1_000_000), Reload,
        "Concurrent requests of one principal, without waiting ones; 0 means no limit.";
    ADDRESS_CONCURRENT: Integer = "address_concurrent", integer(0, 0, 1_000_000), Reload,
        "Concurrent requests from one address, without waiting ones; 0 means no limit.";
    PRINCIPAL_WAITERS: Integer = "principal_waiters", integer(limits::PRINCIPAL_WAITERS, 0, 1_000_000), Reload,
        "Requests of one principal that wait for a Status at once, of `limits.waiters`; further ones are answered without waiting. 0 means no limit.";
}
