//! Where one LXD or Incus is, and how the gateway proves who it is.

use std::time::Duration;

use crate::adapters::incus::names;
use crate::adapters::transport::Address;
use crate::adapters::transport::Client;
use crate::adapters::transport::Server;
use crate::adapters::transport::ServerError;
use crate::adapters::transport::ServerUrl;

/// Where one LXD or Incus is, and how the gateway proves who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where it listens.
    pub address: Address,
    /// The project with the VMs.
    pub project: String,
    /// Longest time for making a connection.
    pub connect_timeout: Duration,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file or the address cannot be used.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The address has neither form.
    #[error("is neither unix:///path/of/the/socket nor https://host:port")]
    Address,
    /// The project's name is malformed.
    #[error("invalid project name")]
    Project,
}

impl Config {
    /// Reads the files; connects to nothing yet.
    ///
    /// # Errors
    /// [`ConfigError`] when a file or name cannot be used.
    pub fn client(&self) -> Result<Client, ConfigError> {
        if !names::is_safe_name(&self.project) {
            return Err(ConfigError::Project);
        }
        let server = Server {
            address: self.address.clone(),
            connect_timeout: self.connect_timeout,
        };
        Ok(server.client()?)
    }
}

/// From `unix:///path` or `https://host:port`. Neither daemon offers plain HTTP, and their API is at the root.
///
/// # Errors
/// [`ConfigError::Address`] when it has neither form.
pub fn parse_url(url: &str) -> Result<ServerUrl, ConfigError> {
    match ServerUrl::parse(url) {
        Ok(url @ ServerUrl::Unix(_)) => Ok(url),
        Ok(ServerUrl::Https(authority, path)) if path.is_empty() => {
            Ok(ServerUrl::Https(authority, path))
        }
        Ok(ServerUrl::Https(..) | ServerUrl::Loopback(..)) | Err(_) => Err(ConfigError::Address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sockets_and_https_without_a_path_are_addresses() {
        let rows = [
            ("unix:///var/lib/lxd/unix.socket", true),
            ("https://lab.example:8443", true),
            ("https://[::1]:8443/", true),
            ("unix://relative", false),
            ("http://lab.example:8443", false),
            ("http://127.0.0.1:8443", false),
            ("https://", false),
            ("https://user@lab.example", false),
            ("https://lab.example/1.0", false),
        ];
        for (url, expected) in rows {
            assert_eq!(parse_url(url).is_ok(), expected, "{url}");
        }
    }
}
