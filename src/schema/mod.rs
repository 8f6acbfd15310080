//! Declared configuration keys, and reading them from TOML with every error collected.
//!
//! This room knows no key itself: `config/` declares the tables of the file, and each adapter the keys of its kind.

mod key;
mod paths;
mod problem;
mod reader;
mod secret_source;
mod section;

pub(crate) use key::Choice;
pub(crate) use key::Description;
pub(crate) use key::DurationValue;
pub(crate) use key::Example;
pub(crate) use key::Flag;
pub(crate) use key::InheritedDuration;
pub(crate) use key::Integer;
pub(crate) use key::Key;
pub(crate) use key::Size;
pub(crate) use key::Table;
pub(crate) use key::TakesEffect;
pub(crate) use key::Text;
pub(crate) use key::TextList;
pub(crate) use key::WhenAbsent;
pub(crate) use key::declare_table;
pub(crate) use key::default_text;
pub(crate) use key::duration;
pub(crate) use key::format_duration;
pub(crate) use key::integer;
pub(crate) use key::optional_text;
pub(crate) use key::required_text;
pub(crate) use key::secret;
pub(crate) use key::size;
pub(crate) use paths::Overlap;
pub(crate) use paths::overlap;
pub use problem::Problem;
pub use problem::Problems;
pub(crate) use reader::LocatedText;
pub(crate) use reader::Reader;
pub use secret_source::SecretFile;
pub(crate) use secret_source::SecretSource;
pub use secret_source::environment;
pub(crate) use secret_source::hash_files;
pub(crate) use secret_source::io_reason;
pub(crate) use section::Section;
