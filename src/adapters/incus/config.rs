//! Where one LXD or Incus is, and how the gateway proves who it is.

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use crate::adapters::incus::map;
use crate::adapters::transport::BuildError;
use crate::adapters::transport::Client;
use crate::adapters::transport::ClientIdentity;
use crate::adapters::transport::Endpoint;
use crate::adapters::transport::Pin;
use crate::adapters::transport::Settings;
use crate::adapters::transport::Trust;
use crate::model::Secret;
use crate::model::limits;

/// Where one LXD or Incus is, and how the gateway proves who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where it listens.
    pub address: Address,
    /// The project with the VMs.
    pub project: String,
    /// Time for making a connection.
    pub connect_timeout: Duration,
}

/// Where one LXD or Incus listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// Its unix socket.
    Unix(PathBuf),
    /// TLS.
    Https {
        /// Host and port.
        authority: String,
        /// How it proves who it is.
        server: Server,
        /// The file with the gateway's certificate (PEM).
        client_certificate: PathBuf,
        /// The file with the key of that certificate (PEM).
        client_key: PathBuf,
    },
}

/// How a server proves who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Server {
    /// Its certificate is the one in this file (PEM).
    Certificate(PathBuf),
    /// Its certificate has this SHA-256: 64 hexadecimal digits.
    Fingerprint(String),
    /// An authority in this file (PEM) signed its certificate for the host in the address.
    Authority(PathBuf),
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("cannot read {}: {why}", file.display())]
    File {
        /// Which.
        file: PathBuf,
        /// What the system says.
        why: std::io::Error,
    },
    /// Something in a file or the address is wrong.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The address has neither form.
    #[error("is neither unix:///path/of/the/socket nor https://host:port")]
    Address,
    /// The project's name is malformed.
    #[error("invalid project name")]
    Project,
}

impl Config {
    /// Connects to nothing; reads the files.
    ///
    /// # Errors
    /// [`ConfigError`] when a file or name cannot be used.
    pub fn client(&self) -> Result<Client, ConfigError> {
        if !map::is_strict(&self.project) {
            return Err(ConfigError::Project);
        }
        let endpoint = match &self.address {
            Address::Unix(path) => Endpoint::Unix(path.clone()),
            Address::Https {
                authority,
                server,
                client_certificate,
                client_key,
            } => Endpoint::Https {
                authority: authority.clone(),
                trust: server.trust()?,
                identity: Some(ClientIdentity {
                    certificates: read(client_certificate)?,
                    key: Secret::new(fs::read_to_string(client_key).map_err(|why| {
                        ConfigError::File {
                            file: client_key.clone(),
                            why,
                        }
                    })?),
                }),
            },
        };
        Ok(Client::new(Settings {
            endpoint,
            connect_timeout: self.connect_timeout,
            body_bytes_max: limits::BACKEND_ANSWER_BYTES_MAX,
        })?)
    }
}

impl Server {
    fn trust(&self) -> Result<Trust, ConfigError> {
        Ok(match self {
            Self::Certificate(file) => Trust::Pin(Pin::of_pem(&read(file)?)?),
            Self::Fingerprint(text) => Trust::Pin(Pin::from_hex(text)?),
            Self::Authority(file) => Trust::Authorities(read(file)?),
        })
    }
}

/// What a configured address names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ServerUrl {
    /// The path of a unix socket.
    Socket(PathBuf),
    /// Host and port of TLS.
    Host(String),
}

impl ServerUrl {
    /// From `unix:///path` or `https://host:port`.
    ///
    /// # Errors
    /// [`ConfigError::Address`] when it has neither form.
    pub(super) fn parse(url: &str) -> Result<Self, ConfigError> {
        if let Some(path) = url
            .strip_prefix("unix://")
            .filter(|rest| rest.starts_with('/'))
        {
            return Ok(Self::Socket(PathBuf::from(path)));
        }
        let is_host =
            |character: char| character.is_ascii_alphanumeric() || ".-:[]".contains(character);
        url.strip_prefix("https://")
            .map(|rest| rest.strip_suffix('/').unwrap_or(rest))
            .filter(|host| !host.is_empty() && host.chars().all(is_host))
            .map(|host| Self::Host(host.to_owned()))
            .ok_or(ConfigError::Address)
    }
}

fn read(file: &Path) -> Result<Vec<u8>, ConfigError> {
    fs::read(file).map_err(|why| ConfigError::File {
        file: file.to_owned(),
        why,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_two_forms() {
        let socket = |path: &str| Some(ServerUrl::Socket(PathBuf::from(path)));
        let host = |host: &str| Some(ServerUrl::Host(host.to_owned()));
        let rows = [
            (
                "unix:///var/lib/lxd/unix.socket",
                socket("/var/lib/lxd/unix.socket"),
            ),
            ("https://lab.example:8443", host("lab.example:8443")),
            ("https://[::1]:8443/", host("[::1]:8443")),
            ("unix://relative", None),
            ("http://lab.example:8443", None),
            ("https://", None),
            ("https://user@lab.example", None),
            ("https://lab.example/1.0", None),
        ];
        for (url, expected) in rows {
            assert_eq!(ServerUrl::parse(url).ok(), expected, "{url}");
        }
    }
}
