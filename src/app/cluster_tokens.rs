//! The API tokens of the cluster at this gateway: known before its term begins, and followed all the time, because a gateway on standby
//! judges the callers of pass-through routes.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::app::StartError;
use crate::app::handler::GatewayHandler;
use crate::cluster::SharedTokens;
use crate::cluster::TokenSnapshot;
use crate::config;
use crate::etcd::EtcdError;
use crate::etcd::LeaderTerm;

/// Pause after a request to etcd that failed.
const PAUSE: Duration = Duration::from_millis(250);
/// How long changes are followed before everything is read again, in case a watch has silently stopped.
const FOLLOW_FOR: Duration = Duration::from_secs(5);

/// Keeps the gate's API tokens those of the cluster.
#[derive(Debug)]
pub(crate) struct ClusterTokens {
    shared: SharedTokens,
    handler: Arc<GatewayHandler>,
    /// The file whose tokens are imported once; `None` when the configuration names none.
    file: Option<PathBuf>,
    known: Mutex<TokenSnapshot>,
    /// The revision of the last change that the gate uses.
    used: watch::Sender<i64>,
}

impl ClusterTokens {
    /// The gate accepts no API tokens until those of the cluster are known.
    pub(crate) fn new(
        shared: SharedTokens,
        handler: Arc<GatewayHandler>,
        file: Option<PathBuf>,
    ) -> Self {
        handler.share_tokens(Vec::new());
        Self {
            shared,
            handler,
            file,
            known: Mutex::default(),
            used: watch::Sender::default(),
        }
    }

    /// Lets the gate use the tokens as they are now, those of the file if no gateway has imported any.
    ///
    /// # Errors
    /// [`StartError::Tokens`]: who may do what is not known without them.
    pub(crate) async fn load(&self) -> Result<(), StartError> {
        let explained = |error: EtcdError| StartError::Tokens(self.shared.explain(&error));
        let mut found = self.shared.read().await.map_err(explained)?;
        if let Some(file) = self.file.as_ref().filter(|_| !found.is_imported) {
            let records =
                config::read_tokens(file).map_err(|error| StartError::Tokens(error.to_string()))?;
            let imported = self.shared.import(&config::token_texts(&records)).await;
            imported.map_err(explained)?;
            tracing::info!(file = %file.display(), tokens = records.len(), "API tokens imported into etcd");
            found = self.shared.read().await.map_err(explained)?;
        }
        self.apply(found);
        Ok(())
    }

    /// Lets the gate use every change.
    pub(crate) async fn follow(&self) -> Infallible {
        let mut has_failed = false;
        loop {
            match self.follow_once().await {
                Ok(()) => has_failed = false,
                Err(error) => {
                    // Once for each outage.
                    if !std::mem::replace(&mut has_failed, true) {
                        let error = self.shared.explain(&error);
                        tracing::warn!(error, "API tokens of the cluster not read, retrying");
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn follow_once(&self) -> Result<(), EtcdError> {
        let found = self.shared.read().await?;
        let next = found.revision.saturating_add(1);
        self.apply(found);
        match self.shared.changed(next, FOLLOW_FOR).await {
            Ok(()) | Err(EtcdError::Compacted) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn apply(&self, found: TokenSnapshot) {
        let mut known = self.known.lock();
        // Two readers: what one of them read may be older than what the other has applied.
        if found.revision <= known.revision {
            return;
        }
        if found.records != known.records {
            let (tokens, problems) = config::api_tokens(&found.records);
            for problem in problems {
                tracing::error!(problem, "API token unreadable, it is refused");
            }
            self.handler.share_tokens(tokens);
        }
        self.used.send_replace(found.changed_at);
        *known = found;
    }

    /// Reports to commands that wait for it which changes this gateway uses, while it is the active one.
    pub(crate) async fn report_use(&self, term: &LeaderTerm) -> Infallible {
        let mut used = self.used.subscribe();
        let mut reported = None;
        let mut has_failed = false;
        loop {
            let revision = *used.borrow_and_update();
            if reported != Some(revision) {
                match self.shared.record_use(term, revision).await {
                    Ok(()) => (reported, has_failed) = (Some(revision), false),
                    Err(error) => {
                        // Once for each outage: etcd may be full for long.
                        if !std::mem::replace(&mut has_failed, true) {
                            let error = self.shared.explain(&error);
                            tracing::warn!(error, "use of API tokens not reported, retrying");
                        }
                        tokio::time::sleep(PAUSE).await;
                        continue;
                    }
                }
            }
            if used.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}
