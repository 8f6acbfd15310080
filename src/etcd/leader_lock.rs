//! A key that at most one gateway holds, kept by a lease, and the fence that it gives to every write.
//!
//! A lock alone does not keep two gateways apart: one that was suspended may go on after its lease has expired. Each of its
//! writes therefore compares the revision at which it made the key ([`LeaderTerm::compare`]); after another gateway has made
//! the key anew, such a write is not applied.

use std::time::Duration;

use etcd_client::Compare;
use etcd_client::CompareOp;
use etcd_client::PutOptions;
use etcd_client::Txn;
use etcd_client::TxnOp;
use etcd_client::TxnOpResponse;

use crate::etcd::connection::Connection;
use crate::etcd::error::EtcdError;

/// The time for which one gateway leads: from the creation of a key until it is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaderTerm {
    /// The key.
    pub key: String,
    /// The revision at which this gateway made it. Rises from term to term.
    pub create_revision: i64,
}

impl LeaderTerm {
    /// What every transaction of the leader compares: whether it leads still.
    #[must_use]
    pub fn compare(&self) -> Compare {
        Compare::create_revision(&*self.key, CompareOp::Equal, self.create_revision)
    }
}

/// The result of an attempt to become the leader.
#[derive(Debug)]
pub enum Attempt {
    /// This gateway leads.
    Leads(LeaderLock),
    /// Another one does.
    Held {
        /// What it wrote into the key.
        holder: String,
    },
}

/// The key that this gateway holds.
#[derive(Debug)]
pub struct LeaderLock {
    connection: Connection,
    lease: i64,
    term: LeaderTerm,
}

impl LeaderLock {
    /// Makes the key, if there is none. `holder` is what others are shown, and must be different for every attempt.
    ///
    /// # Errors
    /// [`EtcdError`]; a key that was made nevertheless vanishes with its lease.
    pub async fn attempt(
        connection: &Connection,
        key: &str,
        holder: &str,
        lifetime: Duration,
    ) -> Result<Attempt, EtcdError> {
        let lease = connection.grant_lease(lifetime).await?;
        let absent = Compare::version(key, CompareOp::Equal, 0);
        let put = TxnOp::put(key, holder, Some(PutOptions::new().with_lease(lease)));
        let transaction = Txn::new()
            .when([absent])
            .and_then([put])
            .or_else([TxnOp::get(key, None)]);
        let outcome = connection.write(transaction).await;
        let made_at = match &outcome {
            Ok(answer) if answer.succeeded() => answer.header().map(|header| header.revision()),
            Ok(_) | Err(_) => None,
        };
        if let Some(create_revision) = made_at {
            return Ok(Attempt::Leads(Self::new(
                connection,
                (key, create_revision),
                lease,
            )));
        }
        // The key of another gateway, or an answer that was lost: what is there now decides.
        let found = match outcome {
            Ok(answer) => first_key(answer.op_responses()),
            Err(EtcdError::Unknown(_)) => connection.read(key, None).await?.take_kvs().pop(),
            Err(error) => return Err(error),
        };
        match found {
            Some(found) if found.value() == holder.as_bytes() => Ok(Attempt::Leads(Self::new(
                connection,
                (key, found.create_revision()),
                lease,
            ))),
            Some(found) => {
                // Its own lease holds nothing, and expires by itself when this fails.
                drop(connection.revoke_lease(lease).await);
                let holder = String::from_utf8_lossy(found.value()).into_owned();
                Ok(Attempt::Held { holder })
            }
            None => Err(EtcdError::Unavailable(
                "the key of the leader changed meanwhile".to_owned(),
            )),
        }
    }

    fn new(connection: &Connection, (key, create_revision): (&str, i64), lease: i64) -> Self {
        Self {
            connection: connection.clone(),
            lease,
            term: LeaderTerm {
                key: key.to_owned(),
                create_revision,
            },
        }
    }

    /// The fence for the writes of this gateway.
    #[must_use]
    pub const fn term(&self) -> &LeaderTerm {
        &self.term
    }

    /// The lease of the key; other keys may be put under it.
    #[must_use]
    pub const fn lease(&self) -> i64 {
        self.lease
    }

    /// Lets the lease begin anew. It lasts from the moment of this call, not of its return.
    ///
    /// # Errors
    /// [`EtcdError::LeaseExpired`] when this gateway leads no longer.
    pub async fn renew(&self) -> Result<(), EtcdError> {
        self.connection.renew_lease(self.lease).await
    }

    /// Removes the key, so that another gateway need not wait for the end of the lease.
    ///
    /// # Errors
    /// [`EtcdError`]; the key vanishes with its lease.
    pub async fn release(&self) -> Result<(), EtcdError> {
        match self.connection.revoke_lease(self.lease).await {
            Ok(()) | Err(EtcdError::LeaseExpired) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn first_key(answers: Vec<TxnOpResponse>) -> Option<etcd_client::KeyValue> {
    answers.into_iter().find_map(|answer| match answer {
        TxnOpResponse::Get(mut found) => found.take_kvs().pop(),
        TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_) => None,
    })
}
