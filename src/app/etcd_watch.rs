//! Asks the members of etcd for their state again and again, for the metrics: a scrape never waits for etcd.

use std::sync::Arc;
use std::time::Duration;

use crate::config::Settings;
use crate::etcd::Connection;
use crate::operations::StoreLocation;
use crate::runtime::Clock;
use crate::runtime::Stop;
use crate::runtime::Stopper;
use crate::runtime::Tasks;
use crate::runtime::stop_pair;
use crate::telemetry::Metrics;

/// Time between two looks.
const EVERY: Duration = Duration::from_secs(30);

/// The task that asks, until it is dropped.
#[derive(Debug)]
pub(crate) struct EtcdWatch {
    _stopper: Stopper,
}

struct Watch {
    connection: Connection,
    /// The key that is read for the latency; it need not exist.
    key: String,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
}

impl EtcdWatch {
    /// Begins to ask; `None` where the operations are not in etcd.
    pub(crate) fn start(
        settings: &Settings,
        clock: &Arc<dyn Clock>,
        metrics: &Arc<Metrics>,
    ) -> Option<Self> {
        let StoreLocation::Etcd(config) = &settings.operations.store else {
            return None;
        };
        let (stopper, stop) = stop_pair();
        let watch = Watch {
            // Of its own, so that a member that is down does not turn requests of the store to another one.
            connection: Connection::new(config),
            key: config.leader_key(),
            clock: Arc::clone(clock),
            metrics: Arc::clone(metrics),
        };
        // Not awaited at shutdown: it writes nothing.
        drop(Tasks::default().spawn(watch.repeated(stop)));
        Some(Self { _stopper: stopper })
    }
}

impl Watch {
    async fn repeated(self, stop: Stop) {
        loop {
            tokio::select! {
                biased;
                () = stop.given() => return,
                () = self.look() => {}
            }
            tokio::select! {
                biased;
                () = stop.given() => return,
                () = tokio::time::sleep(EVERY) => {}
            }
        }
    }

    async fn look(&self) {
        for (endpoint, status) in self.connection.member_statuses().await {
            match status {
                Ok(status) => self.metrics.etcd.set_member(
                    &endpoint,
                    status.has_leader,
                    Some(status.database_bytes),
                ),
                Err(_) => self.metrics.etcd.set_member(&endpoint, false, None),
            }
        }
        let begun = self.clock.instant();
        // That it failed is seen in the state of the members.
        if self.connection.read(&*self.key, None).await.is_ok() {
            let took = self.clock.instant().saturating_duration_since(begun);
            self.metrics.etcd.record_read(took);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd;
    use crate::runtime::SystemClock;

    #[tokio::test]
    async fn a_member_that_does_not_answer_is_down() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let metrics = Arc::new(Metrics::new().unwrap());
        let watch = Watch {
            connection: Connection::new(&etcd::Config::plain(vec![endpoint.clone()])),
            key: "/snapgate/leader".to_owned(),
            clock: SystemClock::shared(),
            metrics: Arc::clone(&metrics),
        };
        watch.look().await;
        let text = String::from_utf8(metrics.encode_text()).unwrap();
        let series = format!("snapgate_etcd_member_up{{endpoint=\"{endpoint}\"}} 0\n");
        assert!(text.contains(&series), "{text}");
        assert!(
            !text.contains("snapgate_etcd_database_bytes{"),
            "its size is not known: {text}"
        );
    }
}
