//! One configured server: where it listens, how it proves who it is, and how the gateway does.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use crate::adapters::transport::BuildError;
use crate::adapters::transport::Client;
use crate::adapters::transport::ClientIdentity;
use crate::adapters::transport::ClientSettings;
use crate::adapters::transport::Endpoint;
use crate::adapters::transport::Pin;
use crate::adapters::transport::Trust;
use crate::model::Secret;
use crate::model::limits;

/// One server that a REST adapter talks to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Where it listens.
    pub address: Address,
    /// Longest time for making a connection, TLS included.
    pub connect_timeout: Duration,
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// Plain HTTP on this machine.
    Loopback(SocketAddr),
    /// TLS.
    Https {
        /// Host and port, for instance `lab.example.com:8443`.
        authority: String,
        /// How the server proves who it is.
        trust: ServerTrust,
        /// How the gateway proves who it is; `None` where it has a credential in a header field instead.
        identity: Option<ClientFiles>,
    },
}

/// How a server proves who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerTrust {
    /// Its certificate is the one in this file (PEM).
    Certificate(PathBuf),
    /// Its certificate has this SHA-256: 64 hexadecimal digits.
    Fingerprint(String),
    /// An authority in this file (PEM) signed its certificate for the host in the address.
    Authority(PathBuf),
}

/// The files by which the gateway proves who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientFiles {
    /// The client certificate (PEM).
    pub certificate: PathBuf,
    /// Its private key (PEM).
    pub key: PathBuf,
}

/// Why a configured server cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A file cannot be read.
    #[error("cannot read {}: {why}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// The error of the operating system.
        why: std::io::Error,
    },
    /// A certificate, key, fingerprint or address is invalid.
    #[error(transparent)]
    Build(#[from] BuildError),
}

impl Server {
    /// A client of the server. Reads the files; connects to nothing yet.
    ///
    /// # Errors
    /// [`ServerError`] when a file, certificate, key, fingerprint or address cannot be used.
    pub fn client(&self) -> Result<Client, ServerError> {
        let endpoint = match &self.address {
            Address::Unix(path) => Endpoint::Unix(path.clone()),
            Address::Loopback(address) => Endpoint::Http(*address),
            Address::Https {
                authority,
                trust,
                identity,
            } => Endpoint::Https {
                authority: authority.clone(),
                trust: trust.read()?,
                identity: identity.as_ref().map(ClientFiles::read).transpose()?,
            },
        };
        Ok(Client::new(ClientSettings {
            endpoint,
            connect_timeout: self.connect_timeout,
            body_bytes_max: limits::BACKEND_ANSWER_BYTES_MAX,
        })?)
    }

    /// Scheme, host and port, which links to this server begin with.
    #[must_use]
    pub fn origin(&self) -> String {
        match &self.address {
            Address::Unix(_) => "http://localhost".to_owned(),
            Address::Loopback(address) => format!("http://{address}"),
            Address::Https { authority, .. } => format!("https://{authority}"),
        }
    }
}

impl ServerTrust {
    fn read(&self) -> Result<Trust, ServerError> {
        Ok(match self {
            Self::Certificate(file) => Trust::Pin(Pin::from_pem(&read_file(file)?)?),
            Self::Fingerprint(digits) => Trust::Pin(Pin::from_hex(digits)?),
            Self::Authority(file) => Trust::Authorities(read_file(file)?),
        })
    }
}

impl ClientFiles {
    fn read(&self) -> Result<ClientIdentity, ServerError> {
        let certificates = read_file(&self.certificate)?;
        let key = fs::read_to_string(&self.key).map_err(|why| ServerError::File {
            file: self.key.clone(),
            why,
        })?;
        Ok(ClientIdentity {
            certificates,
            key: Secret::new(key),
        })
    }
}

fn read_file(file: &Path) -> Result<Vec<u8>, ServerError> {
    fs::read(file).map_err(|why| ServerError::File {
        file: file.to_owned(),
        why,
    })
}
