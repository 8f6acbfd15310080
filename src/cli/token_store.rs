//! Where `snapgate token` reads and changes API tokens: the file of one gateway, or the etcd of a cluster.

use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use tokio::runtime::Runtime;

use crate::cli::CliError;
use crate::cli::effect;
use crate::cli::effect::Effect;
use crate::cluster::SharedTokens;
use crate::cluster::TokenUse;
use crate::config;
use crate::config::Settings;
use crate::config::TokenRecord;
use crate::etcd::Connection;
use crate::etcd::EtcdError;
use crate::operations::StoreLocation;
use crate::runtime::Clock;
use crate::runtime::SystemClock;

/// How long the active gateway may take to use a change. etcd announces each at once.
const PATIENCE: Duration = Duration::from_secs(5);
/// Time between two questions.
const PAUSE: Duration = Duration::from_millis(20);

/// Where the tokens of a configuration are.
#[derive(Debug)]
pub(super) enum TokenStore {
    /// In this file.
    File(PathBuf),
    /// In etcd.
    Cluster(ClusterStore),
}

/// The tokens in etcd.
#[derive(Debug)]
pub(super) struct ClusterStore {
    runtime: Runtime,
    shared: SharedTokens,
    /// Whose tokens are taken over with the first change.
    file: PathBuf,
}

/// A change that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenChange {
    /// In the file.
    File,
    /// In etcd, at this revision.
    Cluster(i64),
}

fn other(text: impl Into<String>) -> CliError {
    CliError::Other(text.into())
}

/// In a cluster, replaces the API tokens that were read from the file by those in etcd, which gateways use.
pub(super) fn use_shared(settings: &mut Settings) -> Result<(), CliError> {
    if settings.tokens.is_none() {
        return Ok(());
    }
    if let TokenStore::Cluster(cluster) = TokenStore::of(settings)? {
        let records = cluster.read()?;
        let (tokens, problems) = config::api_tokens(&config::token_texts(&records));
        if let Some(problem) = problems.into_iter().next() {
            return Err(other(problem));
        }
        settings.gate.credentials.tokens = Some(tokens);
    }
    Ok(())
}

impl TokenStore {
    /// The store of this configuration; connects to nothing yet.
    pub(super) fn of(settings: &Settings) -> Result<Self, CliError> {
        let file = settings.tokens.clone().ok_or_else(|| {
            other("no token file is configured; write [authentication] tokens = \"tokens.json\"")
        })?;
        let StoreLocation::Etcd(etcd) = &settings.operations.store else {
            return Ok(Self::File(file));
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let connection = {
            let _runtime = runtime.enter();
            Connection::new(etcd)
        };
        let shared = SharedTokens::new(connection, &etcd.prefix);
        Ok(Self::Cluster(ClusterStore {
            runtime,
            shared,
            file,
        }))
    }

    /// All tokens.
    pub(super) fn read(&self) -> Result<Vec<TokenRecord>, CliError> {
        match self {
            Self::File(file) => Ok(config::read_tokens(file)?),
            Self::Cluster(cluster) => cluster.read(),
        }
    }

    /// Adds a token, whose name must be free.
    pub(super) fn add(&self, record: TokenRecord) -> Result<TokenChange, CliError> {
        let taken = |record: &TokenRecord| {
            let name = &record.name;
            other(format!(
                "token {name} exists; revoke it first, or choose another name"
            ))
        };
        match self {
            Self::File(file) => {
                config::change_tokens::<_, CliError>(file, |all| {
                    if all.iter().any(|token| token.name == record.name) {
                        return Err(taken(&record));
                    }
                    all.push(record);
                    Ok(())
                })?;
                Ok(TokenChange::File)
            }
            Self::Cluster(cluster) => {
                let revision = cluster.add(&record)?;
                revision
                    .map(TokenChange::Cluster)
                    .ok_or_else(|| taken(&record))
            }
        }
    }

    /// Removes a token.
    pub(super) fn revoke(&self, name: &str) -> Result<TokenChange, CliError> {
        let unknown = || other(format!("unknown token {name:?}"));
        match self {
            Self::File(file) => {
                config::change_tokens::<_, CliError>(file, |all| {
                    let before = all.len();
                    all.retain(|token| token.name.as_str() != name);
                    if all.len() == before {
                        return Err(unknown());
                    }
                    Ok(())
                })?;
                Ok(TokenChange::File)
            }
            Self::Cluster(cluster) => {
                let revision = cluster.revoke(name)?;
                revision.map(TokenChange::Cluster).ok_or_else(unknown)
            }
        }
    }

    /// Waits until the running gateway uses the change.
    pub(super) fn wait(
        &self,
        change: TokenChange,
        config_file: &Path,
        settings: &Settings,
    ) -> Result<Effect, CliError> {
        match (self, change) {
            (Self::Cluster(cluster), TokenChange::Cluster(revision)) => Ok(cluster.wait(revision)),
            (Self::File(_) | Self::Cluster(_), _) => effect::wait(config_file, settings),
        }
    }
}

impl ClusterStore {
    fn unchanged(&self, error: &EtcdError) -> CliError {
        let why = self.shared.explain(error);
        match error {
            EtcdError::Unknown(_) => other(format!(
                "the change of the API tokens in etcd was not confirmed: {why}; run snapgate token list to see whether it was made"
            )),
            EtcdError::NotConnected(_)
            | EtcdError::Unavailable(_)
            | EtcdError::NoSpace(_)
            | EtcdError::Refused(_)
            | EtcdError::Compacted
            | EtcdError::LeaseExpired => other(format!(
                "cannot use the API tokens in etcd: {why}; nothing was changed"
            )),
        }
    }

    fn read(&self) -> Result<Vec<TokenRecord>, CliError> {
        let found = self.runtime.block_on(self.shared.read());
        let found = found.map_err(|error| self.unchanged(&error))?;
        if !found.is_imported {
            return Ok(config::read_tokens(&self.file)?);
        }
        config::token_records(&found.records).map_err(other)
    }

    /// Nothing may be changed before the tokens of the file are there: a revoked one would come back with them.
    async fn import(&self) -> Result<(), CliError> {
        let found = self.shared.read().await;
        if found.map_err(|error| self.unchanged(&error))?.is_imported {
            return Ok(());
        }
        let records = config::read_tokens(&self.file)?;
        let imported = self.shared.import(&config::token_texts(&records)).await;
        imported.map_err(|error| self.unchanged(&error))
    }

    fn add(&self, record: &TokenRecord) -> Result<Option<i64>, CliError> {
        let added = async {
            self.import().await?;
            let text = record.to_text();
            let added = self.shared.add(record.name.as_str(), &text).await;
            added.map_err(|error| self.unchanged(&error))
        };
        self.runtime.block_on(added)
    }

    fn revoke(&self, name: &str) -> Result<Option<i64>, CliError> {
        let removed = async {
            self.import().await?;
            let removed = self.shared.remove(name).await;
            removed.map_err(|error| self.unchanged(&error))
        };
        self.runtime.block_on(removed)
    }

    fn wait(&self, revision: i64) -> Effect {
        let by = SystemClock.deadline(PATIENCE);
        let used = async {
            loop {
                let why = match self.shared.use_of(revision).await {
                    Ok(TokenUse::Active) => return Effect::InUse,
                    Ok(TokenUse::NoGateway) => return Effect::NoGateway,
                    Ok(TokenUse::Pending) => {
                        "it has not read the change yet; see its log".to_owned()
                    }
                    Err(error) => self.shared.explain(&error),
                };
                if SystemClock.instant() >= by.instant() {
                    return Effect::Unconfirmed(why);
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        self.runtime.block_on(used)
    }
}
