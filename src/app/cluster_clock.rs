//! How far the clock of this gateway is apart from that of the active one, for the metrics.
//!
//! The active gateway writes its time into etcd. The others compare theirs as soon as etcd announces it, so that the offset is exact
//! up to the few milliseconds that this takes.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use crate::etcd::Connection;
use crate::etcd::EtcdError;
use crate::etcd::EventType;
use crate::etcd::LeaderTerm;
use crate::etcd::Txn;
use crate::etcd::TxnOp;
use crate::model::GatewayName;
use crate::model::Timestamp;
use crate::runtime::Clock;
use crate::telemetry::Metrics;

/// Time between two writes.
const EVERY: Duration = Duration::from_secs(10);
/// Pause after a request to etcd that failed. The election logs that etcd does not answer.
const PAUSE: Duration = Duration::from_secs(1);
/// How long the key is followed before the watch is made anew, in case it has silently stopped.
const FOLLOW_FOR: Duration = Duration::from_secs(60);

/// The clock of this gateway beside that of the active one.
#[derive(Debug)]
pub(crate) struct ClusterClock {
    connection: Connection,
    key: String,
    name: GatewayName,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
}

impl ClusterClock {
    /// The clock of this gateway, in the cluster with this prefix.
    pub(crate) fn new(
        connection: Connection,
        prefix: &str,
        name: GatewayName,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            connection,
            key: format!("{prefix}/clock"),
            name,
            clock,
            metrics,
        }
    }

    /// Announces the time of this gateway while it is the active one, whose clock is what the others are compared with.
    pub(crate) async fn announce(&self, term: &LeaderTerm) -> Infallible {
        loop {
            self.record(Duration::ZERO, false);
            let now = self.clock.now().as_millis().to_string();
            let put = TxnOp::put(&*self.key, now, None);
            let transaction = Txn::new().when([term.compare()]).and_then([put]);
            let written = self.connection.write(transaction).await;
            tokio::time::sleep(if written.is_ok() { EVERY } else { PAUSE }).await;
        }
    }

    /// Compares each time that the active gateway announces.
    pub(crate) async fn follow(&self) -> Infallible {
        loop {
            if self.follow_once().await.is_err() {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    async fn follow_once(&self) -> Result<(), EtcdError> {
        let found = self.connection.read(&*self.key, None).await?;
        let revision = found.header().map_or(0, |header| header.revision());
        let mut stream = self
            .connection
            .watch(&*self.key, revision.saturating_add(1))
            .await?;
        let announced = async {
            while let Some(message) = stream.message().await.map_err(EtcdError::from)? {
                if message.canceled() {
                    break;
                }
                let puts = message
                    .events()
                    .iter()
                    .filter(|event| event.event_type() == EventType::Put);
                if let Some(last) = puts.filter_map(|event| event.kv()).next_back() {
                    self.compare(last.value());
                }
            }
            Ok(())
        };
        timeout(FOLLOW_FOR, announced).await.unwrap_or(Ok(()))
    }

    fn compare(&self, announced: &[u8]) {
        let text = String::from_utf8_lossy(announced);
        let Ok(millis) = text.parse() else { return };
        let (theirs, ours) = (Timestamp::from_millis(millis), self.clock.now());
        if ours >= theirs {
            self.record(ours.since(theirs), false);
        } else {
            self.record(theirs.since(ours), true);
        }
    }

    fn record(&self, offset: Duration, is_behind: bool) {
        let name = self.name.as_str();
        let cluster = &self.metrics.cluster;
        cluster.set_clock_offset(name, offset, is_behind);
    }
}
