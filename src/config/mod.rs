//! From the configuration file to checked, typed configuration for every room.

mod settings;

pub use settings::Backend;
pub use settings::BackendKind;
pub use settings::LogFormat;
pub use settings::Logging;
pub use settings::Settings;
