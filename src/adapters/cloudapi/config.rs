//! Where one server is, and how the gateway proves who it is.

use std::time::Duration;

use http::HeaderValue;

use crate::adapters::adapter::Recovery;
use crate::adapters::transport::Address;
use crate::adapters::transport::Client;
use crate::adapters::transport::Server;
use crate::adapters::transport::ServerError;
use crate::model::Credential;

/// Where one server is, and how the gateway proves who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where it listens.
    pub address: Address,
    /// The segments of the path below which its API is.
    pub base: Vec<String>,
    /// How the gateway says who it is, besides a client certificate.
    pub credential: Option<Credential>,
    /// The version of the specification to request, for instance `0.1`.
    pub version: String,
    /// How a lost answer is made good; it must be true of the server.
    pub recovery: Recovery,
    /// Longest time for making a connection.
    pub connect_timeout: Duration,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file or the address cannot be used.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The version is malformed.
    #[error("is not a version such as 0.1")]
    Version,
}

impl Config {
    /// Reads the files; connects to nothing yet.
    ///
    /// # Errors
    /// [`ConfigError`] when a file, version or address cannot be used.
    pub fn client(&self) -> Result<Client, ConfigError> {
        self.version_field()?;
        Ok(self.server().client()?)
    }

    /// The version as it is sent.
    pub(super) fn version_field(&self) -> Result<HeaderValue, ConfigError> {
        let is_number =
            |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        let parts = self.version.split('.').count();
        if parts > 3 || !self.version.split('.').all(is_number) || self.version.len() > 64 {
            return Err(ConfigError::Version);
        }
        HeaderValue::from_str(&self.version).map_err(|_not_ascii| ConfigError::Version)
    }

    /// What links to the server begin with.
    pub(super) fn origin(&self) -> String {
        self.server().origin()
    }

    fn server(&self) -> Server {
        Server {
            address: self.address.clone(),
            connect_timeout: self.connect_timeout,
        }
    }
}
