//! What only a store that several gateways could open must do: the lock, the fence, and writes whose answers are lost.

mod copies;
mod failures;
mod fence;

use std::sync::Arc;
use std::time::Duration;

use crate::etcd::Config;
use crate::operations::store::EtcdStore;
use crate::operations::store::OpenError;
use crate::operations::store::Opening;
use crate::operations::store::conformance::EtcdServer;
use crate::runtime::SystemClock;
use crate::telemetry::Metrics;

async fn try_open(server: &EtcdServer, gateway: &str) -> Result<Arc<EtcdStore>, OpenError> {
    try_open_with(server, gateway, server.config().lease).await
}

async fn try_open_with(
    server: &EtcdServer,
    gateway: &str,
    lease: Duration,
) -> Result<Arc<EtcdStore>, OpenError> {
    server.ready().await;
    let config = Config {
        lease,
        ..server.config()
    };
    let opened = EtcdStore::open(Opening {
        config: &config,
        gateway: gateway.to_owned(),
        clock: SystemClock::shared(),
        metrics: Metrics::new().unwrap(),
    });
    opened.await.map(Arc::new)
}

async fn open(server: &EtcdServer, gateway: &str) -> Arc<EtcdStore> {
    try_open(server, gateway).await.expect("opens")
}
