//! Where one Proxmox VE cluster is, and how gateway and cluster prove who they are.

use std::path::PathBuf;
use std::time::Duration;

use crate::adapters::transport::Address;
use crate::adapters::transport::Client;
use crate::adapters::transport::Server;
use crate::adapters::transport::ServerError;
use crate::adapters::transport::ServerTrust;
use crate::model::Credential;
use crate::model::CredentialError;
use crate::model::Secret;

/// One Proxmox VE cluster, or a single node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Host and port of each node that may be asked, in order of preference.
    pub nodes: Vec<String>,
    /// How the nodes prove who they are.
    pub trust: NodeTrust,
    /// `USER@REALM!TOKENID=SECRET`, of a token that only this gateway uses.
    pub token: Secret,
    /// The storages with full backups; new ones go to the first. None: snapshots only.
    pub storages: Vec<String>,
    /// Whether snapshots of running QEMU guests hold their memory.
    pub snapshot_memory: bool,
    /// How full backups of running guests are made.
    pub backup_mode: BackupMode,
    /// What a guest does after a restore.
    pub after_restore: AfterRestore,
    /// Time for making a connection.
    pub connect_timeout: Duration,
}

/// How the nodes prove who they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeTrust {
    /// The SHA-256 of the certificate of each node, in the order of the nodes.
    Fingerprints(Vec<String>),
    /// The authority in this file (PEM) signed their certificates.
    Authority(PathBuf),
}

/// How a full backup of a running guest is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackupMode {
    /// It runs on; the state at the beginning is saved.
    Snapshot,
    /// It is suspended for some seconds.
    Suspend,
    /// It is shut down and started again.
    Stop,
}

impl BackupMode {
    /// From the word of the configuration.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        match word {
            "snapshot" => Some(Self::Snapshot),
            "suspend" => Some(Self::Suspend),
            "stop" => Some(Self::Stop),
            _ => None,
        }
    }

    /// The word that Proxmox VE uses.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Snapshot => "snapshot",
            Self::Suspend => "suspend",
            Self::Stop => "stop",
        }
    }
}

/// What a guest does after a restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterRestore {
    /// It runs if it ran before.
    AsBefore,
    /// It is started.
    Running,
    /// It stays off, unless the snapshot holds its memory.
    Stopped,
}

impl AfterRestore {
    /// From the word of the configuration and of the restore option.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "as-before" => Some(Self::AsBefore),
            "running" => Some(Self::Running),
            "stopped" => Some(Self::Stopped),
            _ => None,
        }
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file or an address cannot be used.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// No node is named.
    #[error("no URL is given")]
    NoNodes,
    /// The fingerprints do not belong to the nodes one by one.
    #[error("{fingerprints} fingerprints for {nodes} URLs (expected one for each URL)")]
    Fingerprints {
        /// How many fingerprints there are.
        fingerprints: usize,
        /// How many nodes there are.
        nodes: usize,
    },
    /// The token does not have the form of an API token.
    #[error("the token does not have the form USER@REALM!TOKENID=SECRET")]
    Token,
    /// A storage has a name that Proxmox VE does not allow.
    #[error("invalid storage name {0:?}")]
    Storage(String),
}

impl Config {
    /// What the gateway sends as `Authorization`.
    ///
    /// # Errors
    /// [`CredentialError`] when the token has a character that a header field cannot carry.
    pub fn credential(&self) -> Result<Credential, CredentialError> {
        Credential::with_scheme("PVEAPIToken=", &self.token)
    }

    /// One client for each node; connects to nothing, reads the files.
    ///
    /// # Errors
    /// [`ConfigError`] when a file, token, fingerprint or name cannot be used.
    pub fn clients(&self) -> Result<Vec<Client>, ConfigError> {
        if self.nodes.is_empty() {
            return Err(ConfigError::NoNodes);
        }
        if self.user_and_token().is_none() {
            return Err(ConfigError::Token);
        }
        if let Some(storage) = self.storages.iter().find(|name| !is_storage(name)) {
            return Err(ConfigError::Storage(storage.clone()));
        }
        let trust = self.trust_of_each()?;
        let nodes = self.nodes.iter().zip(trust);
        nodes
            .map(|(authority, trust)| {
                let server = Server {
                    address: Address::Https {
                        authority: authority.clone(),
                        trust,
                        identity: None,
                    },
                    connect_timeout: self.connect_timeout,
                };
                Ok(server.client()?)
            })
            .collect()
    }

    /// The user and the id of the token, which tasks name.
    pub(super) fn user_and_token(&self) -> Option<(String, String)> {
        let (id, secret) = self.token.reveal().split_once('=')?;
        let (user, token) = id.split_once('!')?;
        let is_whole = user.contains('@') && !token.is_empty() && !secret.is_empty();
        let is_plain = id.chars().all(|character| character.is_ascii_graphic());
        (is_whole && is_plain).then(|| (user.to_owned(), token.to_owned()))
    }

    fn trust_of_each(&self) -> Result<Vec<ServerTrust>, ConfigError> {
        match &self.trust {
            NodeTrust::Fingerprints(fingerprints) => {
                if fingerprints.len() != self.nodes.len() {
                    return Err(ConfigError::Fingerprints {
                        fingerprints: fingerprints.len(),
                        nodes: self.nodes.len(),
                    });
                }
                let each = fingerprints.iter().cloned();
                Ok(each.map(ServerTrust::Fingerprint).collect())
            }
            NodeTrust::Authority(file) => {
                let each = self.nodes.iter();
                Ok(each.map(|_| ServerTrust::Authority(file.clone())).collect())
            }
        }
    }
}

/// Whether a text can be host and port of a node.
pub(super) fn is_node_authority(text: &str) -> bool {
    let is_plain =
        |character: char| character.is_ascii_alphanumeric() || ".-:[]".contains(character);
    !text.is_empty() && text.chars().all(is_plain)
}

/// Whether a text can be the id of a storage.
pub(super) fn is_storage(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    name.bytes().all(is_allowed) && name.starts_with(|first: char| first.is_ascii_alphabetic())
}
