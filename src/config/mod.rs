//! From the configuration file to checked, typed configuration for every room.

mod access;
mod addresses;
mod apart;
mod backends;
mod htpasswd;
mod issuers;
mod load;
mod log_level;
#[cfg(test)]
mod operator_tests;
mod passthrough;
mod paths;
mod problem;
mod proxmox;
mod reader;
mod reference;
mod reload;
mod rights;
mod schema;
mod secret_source;
mod settings;
mod suggest;
#[cfg(test)]
mod tests;
mod tls;
mod tokens;
mod warnings;
mod watch;

pub use addresses::FixedAddress;
pub use addresses::FixedAddresses;
pub use issuers::KeyEndpoint;
pub use load::load;
pub use load::load_at;
pub use problem::Problem;
pub use problem::Problems;
pub use reference::keys_as_markdown;
pub use reference::keys_as_toml;
pub use reload::restart_needed;
pub use secret_source::environment;
pub use settings::Backend;
pub use settings::BackendKind;
pub use settings::KeySource;
pub use settings::LogFormat;
pub use settings::Logging;
pub use settings::SecretFile;
pub use settings::Settings;
pub use tokens::TokenFileError;
pub use tokens::TokenRecord;
pub use tokens::change_tokens;
pub use tokens::read_tokens;
pub use warnings::warnings;
pub use watch::Watch;
