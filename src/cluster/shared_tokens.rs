//! The API tokens of a cluster, in etcd: a token that one command makes or revokes is accepted or refused by every gateway.
//!
//! | key below the prefix and `/tokens/` | value |
//! |---|---|
//! | `name/NAME` | the record of the token, as JSON |
//! | `changed` | nothing; written with each change of a token |
//! | `imported` | nothing; the tokens of a file were imported, and files are not read any more |
//! | `used` | the revision of the last change that the active gateway uses |

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::timeout;

use crate::etcd::Compare;
use crate::etcd::CompareOp;
use crate::etcd::Connection;
use crate::etcd::EtcdError;
use crate::etcd::GetOptions;
use crate::etcd::KeyValue;
use crate::etcd::LeaderTerm;
use crate::etcd::Txn;
use crate::etcd::TxnOp;
use crate::etcd::TxnOpResponse;

/// Tokens in one transaction of an import; etcd takes 128 operations.
const IMPORTED_TOGETHER: usize = 100;

/// All tokens at one moment: the record of each by its name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenSnapshot {
    /// The records as they were written.
    pub records: BTreeMap<String, String>,
    /// The revision of etcd at which they were read.
    pub revision: i64,
    /// The revision of the last change of a token.
    pub changed_at: i64,
    /// Whether files are not read any more.
    pub is_imported: bool,
}

/// Who uses a change of the tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenUse {
    /// The active gateway.
    Active,
    /// The active gateway does not yet.
    Pending,
    /// No gateway is active.
    NoGateway,
}

/// Reads and changes the tokens of one cluster.
#[derive(Clone, Debug)]
pub struct SharedTokens {
    connection: Connection,
    prefix: String,
    leader_key: String,
}

impl SharedTokens {
    /// Those below the prefix of the configuration; asks nothing yet.
    #[must_use]
    pub fn new(connection: Connection, prefix: &str) -> Self {
        Self {
            connection,
            prefix: format!("{prefix}/tokens/"),
            leader_key: format!("{prefix}/leader"),
        }
    }

    fn names(&self) -> String {
        format!("{}name/", self.prefix)
    }

    fn key(&self, name: &str) -> String {
        format!("{}name/{name}", self.prefix)
    }

    fn imported(&self) -> String {
        format!("{}imported", self.prefix)
    }

    fn changes(&self) -> String {
        format!("{}changed", self.prefix)
    }

    fn used(&self) -> String {
        format!("{}used", self.prefix)
    }

    /// All tokens.
    ///
    /// # Errors
    /// [`EtcdError`].
    pub async fn read(&self) -> Result<TokenSnapshot, EtcdError> {
        let (names, imported) = (self.names(), self.imported());
        let everything = GetOptions::new().with_prefix();
        let transaction = Txn::new().and_then([
            TxnOp::get(names.as_str(), Some(everything)),
            TxnOp::get(imported, None),
            TxnOp::get(self.changes(), None),
        ]);
        let answer = self.connection.read_together(transaction).await?;
        let revision = answer.header().map_or(0, |header| header.revision());
        let mut found = answer.op_responses().into_iter();
        let mut next = || match found.next() {
            Some(TxnOpResponse::Get(mut found)) => found.take_kvs(),
            Some(_) | None => Vec::new(),
        };
        let (all, marker, change) = (next(), next(), next());
        let changed_at = change.first().map_or(0, KeyValue::mod_revision);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let records = all.iter().map(|found| {
            let name = found.key().strip_prefix(names.as_bytes());
            (text(name.unwrap_or_default()), text(found.value()))
        });
        Ok(TokenSnapshot {
            records: records.collect(),
            revision,
            changed_at,
            is_imported: !marker.is_empty(),
        })
    }

    /// Takes over the tokens of a file, unless those of a file were taken over before. After this no file is read any more.
    ///
    /// # Errors
    /// [`EtcdError`]; an import that was interrupted goes on when it is begun again.
    pub async fn import(&self, records: &BTreeMap<String, String>) -> Result<(), EtcdError> {
        let is_first = || Compare::version(self.imported(), CompareOp::Equal, 0);
        let all: Vec<_> = records.iter().collect();
        for some in all.chunks(IMPORTED_TOGETHER) {
            let puts = some
                .iter()
                .map(|(name, record)| TxnOp::put(self.key(name), record.as_str(), None));
            let transaction = Txn::new()
                .when([is_first()])
                .and_then(puts.collect::<Vec<_>>());
            if !self.write_again(transaction).await? {
                return Ok(());
            }
        }
        let marker = TxnOp::put(self.imported(), "", None);
        let transaction = Txn::new()
            .when([is_first()])
            .and_then([marker, self.change()]);
        self.write_again(transaction).await.map(|_is_ours| ())
    }

    /// A part of every transaction that changes a token. The key of a token that is gone has no revision.
    fn change(&self) -> TxnOp {
        TxnOp::put(self.changes(), "", None)
    }

    /// Runs a transaction that may run twice, and does so when its answer was lost. Returns whether its condition held.
    async fn write_again(&self, transaction: Txn) -> Result<bool, EtcdError> {
        match self.connection.write(transaction.clone()).await {
            Err(EtcdError::Unknown(_)) => self.connection.write(transaction).await,
            answer => answer,
        }
        .map(|answer| answer.succeeded())
    }

    /// Adds a token. Returns the revision of the change; `None` when there is one of this name.
    ///
    /// # Errors
    /// [`EtcdError`]; [`EtcdError::Unknown`] when the token may be there.
    pub async fn add(&self, name: &str, record: &str) -> Result<Option<i64>, EtcdError> {
        let key = self.key(name);
        let is_free = Compare::version(key.as_str(), CompareOp::Equal, 0);
        let transaction = Txn::new()
            .when([is_free])
            .and_then([TxnOp::put(key.as_str(), record, None), self.change()]);
        let revision = match self.connection.write(transaction).await {
            Ok(answer) if answer.succeeded() => answer.header().map(|header| header.revision()),
            Ok(_) => None,
            Err(EtcdError::Unknown(text)) => {
                // The record has a random digest: when it is there, this call wrote it.
                let found = self.connection.read(key, None).await?;
                match found.kvs().first() {
                    Some(found) if found.value() == record.as_bytes() => Some(found.mod_revision()),
                    Some(_) => None,
                    None => return Err(EtcdError::Unknown(text)),
                }
            }
            Err(error) => return Err(error),
        };
        Ok(revision)
    }

    /// Removes a token. Returns the revision of the change; `None` when there is none of this name.
    ///
    /// # Errors
    /// [`EtcdError`]; [`EtcdError::Unknown`] when the token may be there still.
    pub async fn remove(&self, name: &str) -> Result<Option<i64>, EtcdError> {
        let key = self.key(name);
        let exists = Compare::version(key.as_str(), CompareOp::Greater, 0);
        let transaction = Txn::new()
            .when([exists])
            .and_then([TxnOp::delete(key.as_str(), None), self.change()]);
        match self.connection.write(transaction).await {
            Ok(answer) if answer.succeeded() => Ok(answer.header().map(|header| header.revision())),
            Ok(_) => Ok(None),
            Err(EtcdError::Unknown(text)) => {
                let found = self.connection.read(key, None).await?;
                if !found.kvs().is_empty() {
                    return Err(EtcdError::Unknown(text));
                }
                Ok(found.header().map(|header| header.revision()))
            }
            Err(error) => Err(error),
        }
    }

    /// Returns once a token was added or removed at this revision or later, or after a while.
    ///
    /// # Errors
    /// [`EtcdError`] when the changes can no longer be followed.
    pub async fn changed(&self, from: i64, longest: Duration) -> Result<(), EtcdError> {
        let mut stream = self.connection.watch(self.changes(), from).await?;
        let changed = async {
            loop {
                let message = stream.message().await.map_err(EtcdError::from)?;
                let Some(message) = message.filter(|message| !message.canceled()) else {
                    return Ok(());
                };
                if !message.events().is_empty() {
                    return Ok(());
                }
            }
        };
        timeout(longest, changed).await.unwrap_or(Ok(()))
    }

    /// Records that the active gateway uses all changes up to this revision.
    ///
    /// # Errors
    /// [`EtcdError`]; commands that wait for it then report that they do not know.
    pub async fn record_use(&self, term: &LeaderTerm, revision: i64) -> Result<(), EtcdError> {
        let put = TxnOp::put(self.used(), revision.to_string(), None);
        let transaction = Txn::new().when([term.compare()]).and_then([put]);
        self.connection
            .write(transaction)
            .await
            .map(|_is_leader| ())
    }

    /// Whether the active gateway uses all changes up to this revision.
    ///
    /// # Errors
    /// [`EtcdError`].
    pub async fn use_of(&self, revision: i64) -> Result<TokenUse, EtcdError> {
        let leader = self.connection.read(self.leader_key.as_str(), None).await?;
        let used = self.connection.read(self.used(), None).await?;
        let Some(leader) = leader.kvs().first() else {
            return Ok(TokenUse::NoGateway);
        };
        let is_used = used.kvs().first().is_some_and(|found| {
            // What an earlier gateway used says nothing of the one that is active now.
            let text = String::from_utf8_lossy(found.value());
            found.mod_revision() > leader.create_revision()
                && text.parse().is_ok_and(|used: i64| used >= revision)
        });
        Ok(if is_used {
            TokenUse::Active
        } else {
            TokenUse::Pending
        })
    }

    /// The error as a sentence for an operator.
    #[must_use]
    pub fn explain(&self, error: &EtcdError) -> String {
        self.connection.explain(error)
    }
}
