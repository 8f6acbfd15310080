//! Where one server is, and how the gateway proves who it is.

use std::fmt;
use std::fs;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;

use crate::adapters::adapter::Recovery;
use crate::adapters::transport::BuildError;
use crate::adapters::transport::Client;
use crate::adapters::transport::ClientIdentity;
use crate::adapters::transport::Endpoint;
use crate::adapters::transport::Pin;
use crate::adapters::transport::Settings;
use crate::adapters::transport::Trust;
use crate::model::Secret;
use crate::model::limits;

/// Where one server is, and how the gateway proves who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where it listens.
    pub address: Address,
    /// The segments of the path below which its API is.
    pub base: Vec<String>,
    /// How the gateway says who it is, besides a client certificate.
    pub credential: Option<Credential>,
    /// The version of the specification that is asked for.
    pub version: String,
    /// How a lost answer is made good; it must be true of the server.
    pub recovery: Recovery,
    /// Time for making a connection.
    pub connect_timeout: Duration,
}

/// Where one server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// Its unix socket.
    Unix(PathBuf),
    /// Plain HTTP on this machine.
    Loopback(SocketAddr),
    /// TLS.
    Https {
        /// Host and port.
        authority: String,
        /// How it proves who it is.
        server: Server,
        /// The files with the gateway's certificate and its key (PEM).
        identity: Option<(PathBuf, PathBuf)>,
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

/// The value of `Authorization`.
#[derive(Clone)]
pub struct Credential(Secret);

impl Credential {
    /// User and password (RFC 7617).
    ///
    /// # Errors
    /// [`ConfigError::Credential`] when the name holds a colon, or one of them a control character.
    pub fn basic(user: &str, password: &Secret) -> Result<Self, ConfigError> {
        let has_control = |text: &str| text.chars().any(char::is_control);
        if user.is_empty()
            || user.contains(':')
            || has_control(user)
            || has_control(password.reveal())
        {
            return Err(ConfigError::Credential);
        }
        let both = Secret::new(format!("{user}:{}", password.reveal()));
        let text = format!("Basic {}", STANDARD.encode(both.reveal()));
        Ok(Self(Secret::new(text)))
    }

    /// A token (RFC 6750).
    ///
    /// # Errors
    /// [`ConfigError::Credential`] when it is empty or holds anything but visible ASCII.
    pub fn bearer(token: &Secret) -> Result<Self, ConfigError> {
        let token = token.reveal();
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(ConfigError::Credential);
        }
        Ok(Self(Secret::new(format!("Bearer {token}"))))
    }

    /// The value of the header field.
    pub(super) const fn value(&self) -> &Secret {
        &self.0
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential(***)")
    }
}

impl PartialEq for Credential {
    fn eq(&self, other: &Self) -> bool {
        self.0.reveal() == other.0.reveal()
    }
}

impl Eq for Credential {}

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
    /// The address has none of the forms.
    #[error(
        "is neither unix:///path/of/the/socket, https://host:port/path nor http://127.0.0.1:port/path"
    )]
    Address,
    /// Plain HTTP would cross a network.
    #[error("would send credentials in cleartext to another machine; use https://")]
    Plaintext,
    /// User, password or token hold what a header field cannot.
    #[error(
        "cannot be sent in a header field: user names must not contain a colon, and no credential may contain control characters"
    )]
    Credential,
    /// The version is malformed.
    #[error("is not a version such as 0.1")]
    Version,
}

impl Config {
    /// Connects to nothing; reads the files.
    ///
    /// # Errors
    /// [`ConfigError`] when a file, version or address cannot be used.
    pub fn client(&self) -> Result<Client, ConfigError> {
        self.version_field()?;
        let endpoint = match &self.address {
            Address::Unix(path) => Endpoint::Unix(path.clone()),
            Address::Loopback(address) => Endpoint::Http(*address),
            Address::Https {
                authority,
                server,
                identity,
            } => Endpoint::Https {
                authority: authority.clone(),
                trust: server.trust()?,
                identity: identity
                    .as_ref()
                    .map(|(certificate, key)| identity_of(certificate, key))
                    .transpose()?,
            },
        };
        Ok(Client::new(Settings {
            endpoint,
            connect_timeout: self.connect_timeout,
            body_bytes_max: limits::BACKEND_ANSWER_BYTES_MAX,
        })?)
    }

    /// The version as it is sent.
    pub(super) fn version_field(&self) -> Result<HeaderValue, ConfigError> {
        let digits =
            |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        let parts = self.version.split('.').count();
        if parts > 3 || !self.version.split('.').all(digits) || self.version.len() > 64 {
            return Err(ConfigError::Version);
        }
        HeaderValue::from_str(&self.version).map_err(|_not_ascii| ConfigError::Version)
    }

    /// What links to the server begin with.
    pub(super) fn origin(&self) -> String {
        match &self.address {
            Address::Unix(_) => "http://localhost".to_owned(),
            Address::Loopback(address) => format!("http://{address}"),
            Address::Https { authority, .. } => format!("https://{authority}"),
        }
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

fn identity_of(certificate: &Path, key: &Path) -> Result<ClientIdentity, ConfigError> {
    let text = fs::read_to_string(key).map_err(|why| ConfigError::File {
        file: key.to_owned(),
        why,
    })?;
    Ok(ClientIdentity {
        certificates: read(certificate)?,
        key: Secret::new(text),
    })
}

fn read(file: &Path) -> Result<Vec<u8>, ConfigError> {
    fs::read(file).map_err(|why| ConfigError::File {
        file: file.to_owned(),
        why,
    })
}

/// What a configured address names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ServerUrl {
    /// The path of a unix socket.
    Socket(PathBuf),
    /// Plain HTTP on this machine, and the path below which the API is.
    Loopback(SocketAddr, Vec<String>),
    /// Host and port of TLS, and the path below which the API is.
    Host(String, Vec<String>),
}

impl ServerUrl {
    /// From `unix:///path`, `https://host:port/path` or `http://127.0.0.1:port/path`.
    ///
    /// # Errors
    /// [`ConfigError::Address`] when it has none of these forms, [`ConfigError::Plaintext`] for HTTP to elsewhere.
    pub(super) fn parse(url: &str) -> Result<Self, ConfigError> {
        if let Some(path) = url
            .strip_prefix("unix://")
            .filter(|rest| rest.starts_with('/'))
        {
            return Ok(Self::Socket(PathBuf::from(path)));
        }
        let (scheme, rest) = url.split_once("://").ok_or(ConfigError::Address)?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let is_host =
            |character: char| character.is_ascii_alphanumeric() || ".-:[]".contains(character);
        let is_unreserved =
            |character: char| character.is_ascii_alphanumeric() || "-._~".contains(character);
        let is_segment =
            |text: &&str| !matches!(*text, "" | "." | "..") && text.chars().all(is_unreserved);
        let base: Vec<&str> = path.split('/').filter(|_| !path.is_empty()).collect();
        if authority.is_empty() || !authority.chars().all(is_host) || !base.iter().all(is_segment) {
            return Err(ConfigError::Address);
        }
        let base = base.into_iter().map(str::to_owned).collect();
        match scheme {
            "https" => Ok(Self::Host(authority.to_owned(), base)),
            "http" => match loopback(authority) {
                Some(address) => Ok(Self::Loopback(address, base)),
                None => Err(ConfigError::Plaintext),
            },
            _ => Err(ConfigError::Address),
        }
    }
}

/// An IP address of this machine alone, with or without a port. Names may lead anywhere.
fn loopback(authority: &str) -> Option<SocketAddr> {
    let without_port = |text: &str| {
        let host = text.trim_start_matches('[').trim_end_matches(']');
        let host: Option<IpAddr> = host.parse().ok();
        host.map(|host| SocketAddr::new(host, 80))
    };
    let address = authority.parse().ok().or_else(|| without_port(authority))?;
    Some(address).filter(|address: &SocketAddr| address.ip().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_three_forms() {
        let base = |segments: &[&str]| segments.iter().map(|text| (*text).to_owned()).collect();
        let rows: Vec<(&str, Result<ServerUrl, &str>)> = vec![
            (
                "unix:///run/vmm.socket",
                Ok(ServerUrl::Socket(PathBuf::from("/run/vmm.socket"))),
            ),
            (
                "https://lab.example:8443",
                Ok(ServerUrl::Host("lab.example:8443".to_owned(), base(&[]))),
            ),
            (
                "https://[::1]:8443/",
                Ok(ServerUrl::Host("[::1]:8443".to_owned(), base(&[]))),
            ),
            (
                "https://lab.example/cloud/v1",
                Ok(ServerUrl::Host(
                    "lab.example".to_owned(),
                    base(&["cloud", "v1"]),
                )),
            ),
            (
                "http://127.0.0.1:8080",
                Ok(ServerUrl::Loopback(
                    "127.0.0.1:8080".parse().unwrap(),
                    base(&[]),
                )),
            ),
            (
                "http://[::1]:8080/a",
                Ok(ServerUrl::Loopback(
                    "[::1]:8080".parse().unwrap(),
                    base(&["a"]),
                )),
            ),
            ("http://192.0.2.1:8080", Err("in cleartext")),
            ("http://localhost:8080", Err("in cleartext")),
            ("http://127.0.0.1.evil.example", Err("in cleartext")),
            ("unix://relative", Err("is neither")),
            ("https://", Err("is neither")),
            ("https://user@lab.example", Err("is neither")),
            ("https://lab.example/a/../b", Err("is neither")),
            ("https://lab.example/a//b", Err("is neither")),
            ("https://lab.example/a%2fb", Err("is neither")),
            ("https://lab.example/?x", Err("is neither")),
            ("ftp://lab.example", Err("is neither")),
            ("lab.example", Err("is neither")),
        ];
        for (url, expected) in rows {
            match (ServerUrl::parse(url), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{url}"),
                (Err(found), Err(expected)) => {
                    assert!(found.to_string().contains(expected), "{url}: {found}");
                }
                (found, expected) => panic!("{url}: {found:?} instead of {expected:?}"),
            }
        }
    }

    #[test]
    fn credentials_fit_into_a_header_field_and_do_not_print() {
        let secret = |text: &str| Secret::new(text.to_owned());
        let basic = Credential::basic("gate", &secret("p\u{e4}ss:word")).unwrap();
        assert_eq!(
            basic.value().reveal(),
            "Basic Z2F0ZTpww6Rzczp3b3Jk",
            "encoded"
        );
        assert!(!format!("{basic:?}").contains("Z2F0"), "hidden");
        let bearer = Credential::bearer(&secret("abc.def")).unwrap();
        assert_eq!(bearer.value().reveal(), "Bearer abc.def", "as it is");
        for user in ["", "a:b", "a\nb"] {
            assert!(Credential::basic(user, &secret("x")).is_err(), "{user:?}");
        }
        assert!(
            Credential::basic("a", &secret("x\r\ny")).is_err(),
            "password"
        );
        for token in ["", "a b", "a\r\nX: y", "\u{e4}"] {
            assert!(Credential::bearer(&secret(token)).is_err(), "{token:?}");
        }
    }
}
