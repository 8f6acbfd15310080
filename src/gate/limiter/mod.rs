//! What one client may use of the gateway: requests in a time, concurrent requests, failed logins.

mod admission;
mod bucket_table;
mod client_network;
mod in_flight;
mod lockout;
mod rate;

pub(super) use admission::AdmittedRequest;
pub(super) use admission::LimitReached;
pub(super) use admission::Limiter;
pub(super) use client_network::ClientNetwork;
pub(super) use in_flight::InFlightSlot;
pub(super) use lockout::LockoutStatus;
pub(super) use rate::Quota;
