//! From the configuration file to checked, typed configuration for every room.

mod access;
mod addresses;
mod backends;
mod file_access;
mod htpasswd;
mod issuers;
mod load;
mod log_level;
#[cfg(test)]
mod operator_tests;
mod passthrough;
mod reference;
mod reload;
mod separate_paths;
mod settings;
mod tables;
#[cfg(test)]
mod tests;
mod tls;
mod tokens;
mod warnings;
mod watch;

pub use crate::adapters::registry::BackendConfig;
pub use crate::schema::Problem;
pub use crate::schema::Problems;
pub use crate::schema::SecretFile;
pub use crate::schema::environment;
pub use addresses::FixedAddress;
pub use addresses::FixedAddresses;
pub use issuers::KeyEndpoint;
pub use issuers::KeySource;
pub use load::load;
pub use load::load_at;
pub use reference::keys_as_markdown;
pub use reference::keys_as_toml;
pub use reload::restart_needed;
pub use settings::Backend;
pub use settings::LogFormat;
pub use settings::Logging;
pub use settings::Settings;
pub use tokens::TokenFileError;
pub use tokens::TokenRecord;
pub use tokens::change_tokens;
pub use tokens::read_tokens;
pub use warnings::warnings;
pub use watch::Watch;
