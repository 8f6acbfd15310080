//! The settings of the connection.

use std::sync::Arc;
use std::time::Duration;

use crate::model::Secret;

/// The settings of the connection. A change needs a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Addresses of the members, `https://host:port` or `http://host:port`; at least one, all of the same scheme.
    pub endpoints: Vec<String>,
    /// What all keys of this group of gateways begin with, such as `/snapgate`; without a `/` at the end.
    pub prefix: String,
    /// The certificates of the authorities that signed those of the members, as PEM; `None` with `http://`.
    pub authorities: Option<Arc<str>>,
    /// The certificate by which this gateway is known to etcd.
    pub identity: Option<Identity>,
    /// The user of etcd's own authentication.
    pub credentials: Option<Credentials>,
    /// How long after its last sign of life another gateway may take over, 2 s..=60 s.
    pub lease: Duration,
}

/// A client certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The certificate, and those between it and an authority, as PEM.
    pub certificates: Arc<str>,
    /// The key of the first certificate, as PEM.
    pub key: Secret,
}

/// A user of etcd and its password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// The name.
    pub username: String,
    /// The password.
    pub password: Secret,
}

impl Config {
    /// A connection without TLS and credentials, with the usual prefix and lease.
    #[must_use]
    pub fn plain(endpoints: Vec<String>) -> Self {
        Self {
            endpoints,
            prefix: "/snapgate".to_owned(),
            authorities: None,
            identity: None,
            credentials: None,
            lease: Duration::from_secs(10),
        }
    }

    /// The key that the gateway which writes holds.
    #[must_use]
    pub fn leader_key(&self) -> String {
        format!("{}/leader", self.prefix)
    }
}
