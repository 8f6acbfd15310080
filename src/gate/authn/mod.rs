//! Who calls: by password, API token, JSON Web Token or client certificate.

mod authenticator;
mod basic;
mod caller;
mod certificate;
mod credentials;
mod denial;
mod issuer;
mod jwks;
mod jwt;
mod keyring;
mod password_queue;
mod shared_checks;
mod token;
mod token_digest;

pub use denial::ClaimedName;
pub use denial::DenialReason;
pub use issuer::Issuer;
pub use jwks::Algorithm;
pub use jwks::KeySet;
pub use keyring::KeyRing;
pub use token_digest::TokenDigest;
pub use token_digest::new_token;

pub(super) use authenticator::Authenticator;
pub(super) use caller::AuthContext;
pub(super) use caller::AuthenticatedCaller;
pub(super) use denial::CredentialsDenied;
pub(super) use password_queue::PasswordQueue;
pub(super) use shared_checks::SharedChecks;

#[cfg(test)]
pub(super) use basic::tests::VERIFIED;
#[cfg(test)]
pub(super) use password_queue::ClientStanding;
