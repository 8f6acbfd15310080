//! Everything between bytes and a decision. A function from request parts to a response; knows no socket.

mod config;
mod request;

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
pub use request::Body;
pub use request::BodyError;
pub use request::Exchange;
pub use request::RequestHead;
