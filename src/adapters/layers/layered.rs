//! An adapter with all layers around it.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::adapters::adapter::Adapter;
use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::BeginOutcome;
use crate::adapters::adapter::Capability;
use crate::adapters::adapter::FindOutcome;
use crate::adapters::adapter::Health;
use crate::adapters::adapter::MetadataOwner;
use crate::adapters::adapter::Retry;
use crate::adapters::adapter::TaskState;
use crate::adapters::layers::Call;
use crate::adapters::layers::Config;
use crate::adapters::layers::breaker::Breaker;
use crate::adapters::layers::deadline;
use crate::adapters::layers::read_limit::ReadLimit;
use crate::adapters::layers::retry::RetryPolicy;
use crate::model::BackendName;
use crate::model::Backup;
use crate::model::BackupId;
use crate::model::BackupPage;
use crate::model::BackupQuery;
use crate::model::BackupSelection;
use crate::model::Deadline;
use crate::model::Evidence;
use crate::model::Identity;
use crate::model::Intent;
use crate::model::NewBackup;
use crate::model::Page;
use crate::model::Preview;
use crate::model::RequestKey;
use crate::model::Target;
use crate::model::TaskRef;
use crate::model::Vm;
use crate::model::VmId;
use crate::model::VmPage;
use crate::model::VmRange;
use crate::runtime::Clock;
use crate::telemetry::Metrics;

/// An adapter with all layers around it.
#[derive(Debug)]
pub struct Layered {
    name: BackendName,
    inner: Arc<dyn Adapter>,
    timeout: Duration,
    limit: ReadLimit,
    retries: RetryPolicy,
    breaker: Breaker,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
}

/// How one attempt ended.
enum Attempt<T> {
    /// The backend was called, or no time was left to call it.
    Made(Result<T, AdapterError>),
    /// The breaker kept it from being called.
    Refused(AdapterError),
}

impl Layered {
    /// The adapter with everything around it.
    #[must_use]
    pub fn new(
        name: BackendName,
        inner: Arc<dyn Adapter>,
        config: &Config,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
    ) -> Self {
        // Without a seed the pauses are the same at each start, which is no harm.
        let seed = getrandom::u64().unwrap_or_default();
        Self {
            breaker: Breaker::new(
                name.clone(),
                config.breaker_failures,
                config.breaker_pause,
                Arc::clone(&clock),
                Arc::clone(&metrics),
            ),
            name,
            inner,
            timeout: config.timeout,
            limit: ReadLimit::new(config.reads),
            retries: RetryPolicy::new(config.retries, seed),
            clock,
            metrics,
        }
    }

    fn time_left(&self, by: Deadline) -> Duration {
        by.instant().saturating_duration_since(self.clock.instant())
    }

    /// A read: repeated when it failed for a passing reason.
    async fn read_call<T, F>(
        &self,
        call: Call,
        by: Deadline,
        work: impl Fn(Deadline) -> F + Send + Sync,
    ) -> Result<T, AdapterError>
    where
        F: Future<Output = Result<T, AdapterError>> + Send,
        T: Send,
    {
        let mut last = None;
        let mut pauses = self.retries.pauses();
        loop {
            let place = if call.is_limited() {
                match self.limit.acquire(|| self.time_left(by)).await {
                    Ok(place) => Some(place),
                    Err(full) => return Err(last.map_or(full, AdapterError::exhausted)),
                }
            } else {
                None
            };
            let error = match self.attempt(call, by, &work).await {
                Attempt::Made(Ok(value)) => return Ok(value),
                Attempt::Made(Err(error)) => error,
                Attempt::Refused(error) => {
                    return Err(last.map_or(error, AdapterError::exhausted));
                }
            };
            drop(place);
            match error.retry {
                Retry::Permanent | Retry::Exhausted => return Err(error),
                Retry::Temporary => {}
            }
            match pauses.next() {
                Some(pause) if pause < self.time_left(by) => {
                    tracing::debug!(
                        backend = %self.name,
                        call = call.as_str(),
                        kind = error.fault.kind.as_str(),
                        private = error.private(),
                        "backend call retried"
                    );
                    last = Some(error);
                    tokio::time::sleep(pause).await;
                }
                Some(_) | None => return Err(error.exhausted()),
            }
        }
    }

    /// A call with an effect: made once or not at all.
    async fn effect_call<T, F>(
        &self,
        call: Call,
        by: Deadline,
        work: impl Fn(Deadline) -> F + Send + Sync,
    ) -> Result<T, AdapterError>
    where
        F: Future<Output = Result<T, AdapterError>> + Send,
        T: Send,
    {
        match self.attempt(call, by, &work).await {
            Attempt::Made(result) => result,
            Attempt::Refused(error) => Err(error),
        }
    }

    async fn attempt<T, F>(
        &self,
        call: Call,
        by: Deadline,
        work: &(impl Fn(Deadline) -> F + Send + Sync),
    ) -> Attempt<T>
    where
        F: Future<Output = Result<T, AdapterError>> + Send,
    {
        let begun = self.clock.instant();
        let latest = begun.checked_add(self.timeout).unwrap_or(begun);
        let by = by.earlier(Deadline::at(latest));
        let within = by.instant().saturating_duration_since(begun);
        if within.is_zero() {
            return Attempt::Made(Err(deadline::no_time_left()));
        }
        let admitted = match self.breaker.admit(call) {
            Ok(admitted) => admitted,
            Err(error) => return Attempt::Refused(error),
        };
        let result = deadline::with_time_limit(call, within, work(by)).await;
        let took = self.clock.instant().saturating_duration_since(begun);
        let failure = result.as_ref().err();
        admitted.report_result(failure);
        let fault = failure.map(|error| error.fault.kind);
        let word = fault.map_or("ok", |kind| kind.as_str());
        self.metrics
            .backends
            .record_backend_call(self.name.as_str(), call.as_str(), word, took);
        Attempt::Made(result)
    }
}

#[async_trait]
impl Adapter for Layered {
    fn capability(&self) -> &Capability {
        self.inner.capability()
    }

    fn is_identity_of(&self, stored: &Identity, backup: &Backup) -> bool {
        self.inner.is_identity_of(stored, backup)
    }

    fn metadata_owner(&self) -> MetadataOwner {
        self.inner.metadata_owner()
    }

    fn mint_backup_id(&self, new: &NewBackup, key: RequestKey) -> Result<BackupId, AdapterError> {
        self.inner.mint_backup_id(new, key)
    }

    fn needs_baseline(&self, intent: &Intent) -> bool {
        self.inner.needs_baseline(intent)
    }

    async fn health(&self, by: Deadline) -> Result<Health, AdapterError> {
        self.read_call(Call::Health, by, |by| self.inner.health(by))
            .await
    }

    async fn read_vm(&self, vm: &VmId, by: Deadline) -> Result<Vm, AdapterError> {
        self.read_call(Call::Vm, by, |by| self.inner.read_vm(vm, by))
            .await
    }

    async fn list_vms(&self, range: &VmRange, by: Deadline) -> Result<VmPage, AdapterError> {
        self.read_call(Call::Vms, by, |by| self.inner.list_vms(range, by))
            .await
    }

    async fn list_backups(
        &self,
        vm: &VmId,
        page: &Page,
        by: Deadline,
    ) -> Result<BackupPage, AdapterError> {
        self.read_call(Call::List, by, |by| self.inner.list_backups(vm, page, by))
            .await
    }

    async fn query_backups(
        &self,
        vm: &VmId,
        query: &BackupQuery,
        by: Deadline,
    ) -> Result<BackupSelection, AdapterError> {
        self.read_call(Call::List, by, |by| self.inner.query_backups(vm, query, by))
            .await
    }

    async fn read_backup(&self, target: &Target, by: Deadline) -> Result<Backup, AdapterError> {
        self.read_call(Call::Read, by, |by| self.inner.read_backup(target, by))
            .await
    }

    async fn preview(&self, intent: &Intent, by: Deadline) -> Result<Preview, AdapterError> {
        self.read_call(Call::Preview, by, |by| self.inner.preview(intent, by))
            .await
    }

    async fn baseline(
        &self,
        intent: &Intent,
        key: RequestKey,
        by: Deadline,
    ) -> Result<Option<Evidence>, AdapterError> {
        self.read_call(Call::Baseline, by, |by| {
            self.inner.baseline(intent, key, by)
        })
        .await
    }

    async fn begin(
        &self,
        intent: &Intent,
        key: RequestKey,
        baseline: Option<&Evidence>,
        by: Deadline,
    ) -> Result<BeginOutcome, AdapterError> {
        self.effect_call(Call::Begin, by, |by| {
            self.inner.begin(intent, key, baseline, by)
        })
        .await
    }

    async fn poll(&self, task: &TaskRef, by: Deadline) -> Result<TaskState, AdapterError> {
        self.read_call(Call::Poll, by, |by| self.inner.poll(task, by))
            .await
    }

    async fn changed(&self, task: &TaskRef) {
        self.inner.changed(task).await;
    }

    async fn find_outcome(
        &self,
        intent: &Intent,
        key: RequestKey,
        baseline: Option<&Evidence>,
        by: Deadline,
    ) -> Result<FindOutcome, AdapterError> {
        self.read_call(Call::Find, by, |by| {
            self.inner.find_outcome(intent, key, baseline, by)
        })
        .await
    }

    async fn cancel(&self, task: &TaskRef, by: Deadline) -> Result<(), AdapterError> {
        self.effect_call(Call::Cancel, by, |by| self.inner.cancel(task, by))
            .await
    }
}
