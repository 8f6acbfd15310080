//! From the configuration file to checked, typed configuration for every room.

mod access;
mod backends;
mod htpasswd;
mod keys;
mod load;
mod near;
mod problem;
mod reader;
mod settings;
mod source;

pub use load::load;
pub use problem::Problem;
pub use problem::Problems;
pub use settings::Backend;
pub use settings::BackendKind;
pub use settings::LogFormat;
pub use settings::Logging;
pub use settings::Settings;
pub use source::environment;
