//! Which configuration file a command uses: that of `--config`, else of `SNAPGATE_CONFIG`, else the one that the packages install.

use std::path::PathBuf;

use clap::Args;

use crate::config;

/// Where the packages install the configuration.
const INSTALLED: &str = "/etc/snapgate/snapgate.toml";
/// The variable that names another file.
const VARIABLE: &str = "SNAPGATE_CONFIG";

/// `--config`, which every command on a configuration has.
#[derive(Clone, Debug, Args)]
pub(super) struct ConfigFile {
    /// The configuration file [default: $SNAPGATE_CONFIG, else /etc/snapgate/snapgate.toml]
    #[arg(long = "config", value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ConfigFile {
    /// The file to read. Users have no file of their own: it describes a service of the machine.
    pub(super) fn path(&self) -> PathBuf {
        choose_file(self.config.clone(), config::environment(VARIABLE))
    }
}

/// An empty variable counts as none, as unit files and container files write it.
fn choose_file(given: Option<PathBuf>, variable: Option<String>) -> PathBuf {
    let named = variable
        .filter(|value| !value.is_empty())
        .map(PathBuf::from);
    given.or(named).unwrap_or_else(|| PathBuf::from(INSTALLED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_wins_over_the_variable_and_the_variable_over_the_installed_file() {
        let rows = [
            ("option", Some("a.toml"), Some("b.toml"), "a.toml"),
            ("variable", None, Some("b.toml"), "b.toml"),
            ("empty variable", None, Some(""), INSTALLED),
            ("neither", None, None, INSTALLED),
        ];
        for (name, given, variable, expected) in rows {
            let found = choose_file(given.map(PathBuf::from), variable.map(str::to_owned));
            assert_eq!(found, PathBuf::from(expected), "{name}");
        }
    }
}
