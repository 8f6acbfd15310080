//! Everything between bytes and a decision. A function from request parts to a response; knows no socket.

mod authn;
mod authz;
mod bodies;
mod cancel;
mod changes;
mod conditional;
mod config;
mod framing;
mod json;
mod links;
mod negotiate;
mod password;
mod placement;
mod prefer;
mod reads;
mod refusal;
mod reply;
mod request;
mod route;
mod shared;
mod statuses;
mod version;
mod walk;
mod wire;

#[cfg(test)]
mod tests;

pub use config::Config;
pub use config::CredentialRule;
pub use config::Grant;
pub use config::Grantee;
pub use config::Limits;
pub use config::OnMissingVersion;
pub use config::PasswordHash;
pub use config::Placement;
pub use config::Profile;
pub use config::PublicUrl;
pub use config::Specification;
pub use config::User;
pub use refusal::Code;
pub use refusal::Refusal;
pub use request::AuditAction;
pub use request::AuditEntry;
pub use request::AuditOutcome;
pub use request::Body;
pub use request::BodyError;
pub use request::Exchange;
pub use request::RequestHead;
pub use route::Kind as RouteKind;
pub use route::ROUTES;
pub use route::RouteSpec;
pub use shared::Shared;
pub use walk::Gate;
