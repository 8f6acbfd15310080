//! One store that can be opened again and again, on either engine.

use std::path::PathBuf;
use std::sync::Arc;

use tempfile::TempDir;

use crate::adapters::annotations::Annotations;
use crate::etcd::Txn;
use crate::etcd::TxnOp;
use crate::operations::store::EtcdStore;
use crate::operations::store::Opening;
use crate::operations::store::SqliteStore;
use crate::operations::store::Store;
use crate::operations::store::conformance::EtcdServer;
use crate::runtime::SystemClock;
use crate::telemetry::Metrics;

enum Engine {
    Sqlite(TempDir),
    Etcd(EtcdServer),
}

/// One store, closed.
pub(in crate::operations::store) struct Bed(Engine);

impl Bed {
    pub(in crate::operations::store) fn sqlite() -> Self {
        Self(Engine::Sqlite(tempfile::tempdir().unwrap()))
    }

    pub(in crate::operations::store) fn etcd() -> Self {
        Self(Engine::Etcd(EtcdServer::start(&[])))
    }

    pub(in crate::operations::store) async fn open(&self) -> Arc<dyn Store> {
        self.open_both().await.0
    }

    /// The store and the annotations in it.
    pub(in crate::operations::store) async fn open_both(
        &self,
    ) -> (Arc<dyn Store>, Arc<dyn Annotations>) {
        let metrics = Metrics::new().unwrap();
        match &self.0 {
            Engine::Sqlite(folder) => {
                let file = folder.path().join("s.db");
                let store = SqliteStore::open(file, SystemClock::shared(), metrics).unwrap();
                let annotations = store.annotations();
                (Arc::new(store), annotations)
            }
            Engine::Etcd(server) => {
                server.ready().await;
                let config = server.config();
                let opened = EtcdStore::open(Opening {
                    config: &config,
                    gateway: "one".to_owned(),
                    clock: SystemClock::shared(),
                    metrics,
                });
                let store = opened.await.unwrap();
                let annotations = store.annotations();
                (Arc::new(store), annotations)
            }
        }
    }

    /// Writes another format number into a record, as a newer version would have.
    pub(in crate::operations::store) async fn make_newer(&self, seq: u64) {
        match &self.0 {
            Engine::Sqlite(folder) => {
                let file: PathBuf = folder.path().join("s.db");
                let db = rusqlite::Connection::open(file).unwrap();
                let sql = "UPDATE operations SET record = replace(record, '\"format\":2', '\"format\":99') WHERE seq = ?1";
                let changed = db.execute(sql, [i64::try_from(seq).unwrap()]);
                assert_eq!(changed, Ok(1), "the record is there");
            }
            Engine::Etcd(server) => {
                let connection = server.ready().await;
                let key = format!("/snapgate/store/op/{seq:016x}");
                let mut found = connection.read(&*key, None).await.unwrap();
                let stored = found.take_kvs().pop().expect("the record is there");
                let text = String::from_utf8(stored.value().to_vec()).unwrap();
                let newer = text.replace("\"format\":2", "\"format\":99");
                assert_ne!(newer, text, "it names its format");
                let put = Txn::new().and_then([TxnOp::put(key, newer, None)]);
                connection.write(put).await.unwrap();
            }
        }
    }
}
