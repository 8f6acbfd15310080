//! TLS of the API port: certificates by host name, client certificates, and the identity kept with a connection.

mod certificate;
mod client_certificate;
mod client_trust;
mod config;
mod error;
mod handshakes;
mod session_tickets;
mod sni;
#[cfg(test)]
pub(super) mod tests;

pub use certificate::Certificate;
pub use client_certificate::ClientCertificates;
pub use config::Tls;
pub use error::TlsError;
pub use session_tickets::SharedTicketKeys;
pub use session_tickets::TicketKeysError;

pub(super) use client_trust::NoLongerValid;
pub(super) use client_trust::PresentedCertificate;
pub(super) use handshakes::Handshakes;
pub(super) use handshakes::TlsPeer;
pub(super) use handshakes::tls_peer;
