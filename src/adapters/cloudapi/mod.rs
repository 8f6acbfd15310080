//! A server that itself speaks this API: another snapgate, or a site's own implementation in any language.
//!
//! A backup made through it carries its id here as a tag, because the server chooses another one. Lossy: restore options
//! and notes are not passed on, so many as 63 tags fit, why a Status failed is known by its number alone. See
//! docs/adapters/cloudapi.md, also for what a server must do and for the versions tested.

mod before;
mod client;
mod config;
mod error;
mod find;
mod keys;
mod link;
mod map;
mod rests;
mod wire;

pub use config::Address;
pub use config::Config;
pub use config::ConfigError;
pub use config::Credential;
pub use config::Server;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::HeaderValue;
use http::Method;
use serde_json::Value;
use serde_json::json;

use crate::adapters::adapter::Adapter;
use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::BeginOutcome;
use crate::adapters::adapter::Capability;
use crate::adapters::adapter::FindOutcome;
use crate::adapters::adapter::Health;
use crate::adapters::adapter::Recovery;
use crate::adapters::adapter::TaskState;
use crate::adapters::adapter::VerbCapability;
use crate::model::Backup;
use crate::model::BackupId;
use crate::model::BackupKind;
use crate::model::BackupPage;
use crate::model::BackupState;
use crate::model::Change;
use crate::model::Deadline;
use crate::model::Evidence;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::Intent;
use crate::model::NewBackup;
use crate::model::Page;
use crate::model::RequestKey;
use crate::model::RunState;
use crate::model::Target;
use crate::model::TaskRef;
use crate::model::Vm;
use crate::model::VmId;
use crate::runtime::Clock;
use before::Before;
use client::Api;
use client::Asked;
use client::Told;
use map::Outcome;
use map::Seen;
use rests::Rests;

/// How long one request for a Status is held.
const WAIT: &str = "wait=20";
/// How long the answer to such a request may take.
const WAIT_DEADLINE: Duration = Duration::from_secs(30);
/// How long a request whose answer was lost may lie in the server's socket, or be looked into before it is accepted.
const SETTLE: Duration = Duration::from_secs(15);
/// The same where asking again does no harm.
const SETTLE_SAFE: Duration = Duration::from_secs(1);
/// A backup that was changed between the look at it and the request is looked at once more.
const TRIES: u32 = 2;

const fn verb(recovery: Recovery) -> Option<VerbCapability> {
    Some(VerbCapability {
        recovery,
        settle: match recovery {
            Recovery::ReplaySafe => SETTLE_SAFE,
            Recovery::Listable | Recovery::NoTrace => SETTLE,
        },
        cancel: true,
        progress: true,
    })
}

const fn capability(recovery: Recovery) -> Capability {
    Capability {
        kind: "cloudapi",
        create: verb(recovery),
        update: verb(recovery),
        delete: verb(recovery),
        restore: verb(recovery),
        // Which of them the VM manager behind it makes, the server says when asked for one.
        kinds: &BackupKind::ALL,
        restore_options: &[],
        online: true,
        memory: false,
        consistent: false,
    }
}

/// One server seen through the port.
#[derive(Debug)]
pub struct CloudApi {
    api: Api,
    recovery: Recovery,
    capability: Capability,
    version: String,
    rests: Rests,
    clock: Arc<dyn Clock>,
}

impl CloudApi {
    /// An adapter; connects to nothing yet.
    ///
    /// # Errors
    /// [`ConfigError`] when a file or text in the configuration cannot be used.
    pub fn new(config: &Config, clock: Arc<dyn Clock>) -> Result<Self, ConfigError> {
        Ok(Self {
            api: Api::new(config)?,
            recovery: config.recovery,
            capability: capability(config.recovery),
            version: config.version.clone(),
            rests: Rests::default(),
            clock,
        })
    }

    /// Whether the server lists the Statuses of its callers.
    const fn lists(&self) -> bool {
        match self.recovery {
            Recovery::ReplaySafe | Recovery::Listable => true,
            Recovery::NoTrace => false,
        }
    }

    async fn all(&self, vm: &VmId, by: Deadline) -> Result<Vec<Seen>, AdapterError> {
        let told = self.api.backups(vm, by).await;
        let told = told.map_err(|error| error.of_read(FaultKind::NoSuchVm))?;
        Ok(map::all_seen(vm, told))
    }

    /// The backup of that id, half made or not, with its tag; `None` when there is none.
    async fn look(
        &self,
        target: &Target,
        by: Deadline,
    ) -> Result<Option<(Seen, Option<HeaderValue>)>, AdapterError> {
        let inner = if map::is_minted(&target.backup) {
            let all = self.all(&target.vm, by).await?;
            match all.into_iter().find(|it| it.backup.id == target.backup) {
                Some(seen) => seen.inner,
                None => return Ok(None),
            }
        } else {
            target.backup.clone()
        };
        let told = self.api.backup(&target.vm, &inner, by).await;
        let told = told.map_err(|error| error.of_read(FaultKind::NoSuchVm))?;
        let Some((told, tag)) = told else {
            return Ok(None);
        };
        let seen = map::seen(inner, told).ok_or_else(|| {
            let text =
                "The server describes the backup in an invalid way: have the server repaired.";
            AdapterError::refused(FaultKind::BackendFailed, text)
        })?;
        Ok(Some((seen, tag)).filter(|(it, _)| it.backup.id == target.backup))
    }

    /// The very backup of the intent, fit for the change.
    async fn present(
        &self,
        intent: &Intent,
        by: Deadline,
    ) -> Result<(Seen, Option<HeaderValue>), AdapterError> {
        let seen = self.look(&intent.target, by).await?;
        let (seen, tag) = seen
            .filter(|(it, _)| intent.identity.as_ref() == Some(&it.backup.identity))
            .ok_or_else(|| refused(FaultKind::NoSuchBackup))?;
        let state = seen.backup.state;
        let unfit = match &intent.change {
            Change::Create(_) | Change::Update(_) => None,
            Change::Delete => seen.backup.protected.then_some(FaultKind::Protected),
            Change::Restore(_) => {
                let broken = matches!(state, BackupState::Creating | BackupState::Error);
                broken.then_some(FaultKind::NotReady)
            }
        };
        match unfit {
            Some(kind) => Err(refused(kind)),
            None => Ok((seen, tag)),
        }
    }

    /// Asks for a change of a backup that is there.
    async fn change(
        &self,
        intent: &Intent,
        name: &str,
        key: Option<&str>,
        by: Deadline,
    ) -> Result<BeginOutcome, AdapterError> {
        let vm = intent.target.vm.as_str();
        let mut tries = 1..=TRIES;
        loop {
            let is_last = tries.next().is_none_or(|it| it == TRIES);
            let (seen, if_match) = self.present(intent, by).await?;
            let whole = ["vms", vm, "backups", seen.inner.as_str(), "restore"];
            let [vms, vm, backups, backup, _] = whole;
            let one = [vms, vm, backups, backup];
            let (method, path, body): (_, &[&str], _) = match &intent.change {
                Change::Create(_) => return Err(refused(FaultKind::Invalid)),
                Change::Update(patch) => (
                    Method::PUT,
                    &one,
                    Some(map::update(patch, &seen).ok_or_else(no_room)?),
                ),
                Change::Delete => (Method::DELETE, &one, None),
                Change::Restore(_) => (Method::POST, &whole, Some(json!({ "note": name }))),
            };
            let asked = Asked {
                method,
                path,
                body,
                if_match,
                name,
                key,
            };
            let op = map::op(intent.verb());
            match self.api.change(asked, by).await {
                Ok(told) => return self.begun(&told, op),
                Err(error) if error.is_stale() && !is_last => {}
                Err(error) => return Err(error.of_write(FaultKind::NoSuchBackup)),
            }
        }
    }

    /// Asks for a new backup.
    async fn create(
        &self,
        target: &Target,
        body: Value,
        name: &str,
        key: Option<&str>,
        by: Deadline,
    ) -> Result<BeginOutcome, AdapterError> {
        let path = ["vms", target.vm.as_str(), "backups"];
        let asked = Asked {
            method: Method::POST,
            path: &path,
            body: Some(body),
            if_match: None,
            name,
            key,
        };
        let told = self.api.change(asked, by).await;
        let told = told.map_err(|error| error.of_write(FaultKind::NoSuchVm))?;
        self.begun(&told, "back_up")
    }

    /// What an accepted change became. What cannot be followed may have been begun all the same.
    fn begun(&self, told: &Told, op: &str) -> Result<BeginOutcome, AdapterError> {
        let status = &told.status;
        if !status.op.eq_ignore_ascii_case(op) {
            return Err(astray(format!("Status of {:.40}", status.op)));
        }
        if map::outcome(status) == Outcome::Done {
            return Ok(BeginOutcome::Done);
        }
        self.task(&status.status_uri).map(BeginOutcome::Task)
    }

    /// The fault of a restore that failed, with whether the VM runs now and what the server left unsaid.
    async fn with_run_state(&self, mut fault: Fault, status: &wire::Status, by: Deadline) -> Fault {
        let Some(vm) = map::restored_vm(status) else {
            return fault;
        };
        let run_state = match self.vm(&vm, by).await {
            Ok(vm) => vm.run_state,
            Err(error) => {
                tracing::debug!(%vm, ?error, "VM not looked at after a failed restore");
                None
            }
        };
        let state = match run_state {
            Some(RunState::Started) => "The VM is running now.",
            Some(RunState::Stopped) => "The VM is off now.",
            Some(RunState::Sleeping) => "The VM is suspended now.",
            None => "Whether the VM runs could not be determined.",
        };
        let data = match status.message.as_deref().and_then(error::sayable) {
            Some(_said) => "",
            None => {
                " Whether its data was changed the server does not say: check it, or restore the VM again."
            }
        };
        fault.text = format!("{} {state}{data}", fault.text).into();
        fault
    }

    /// How a Status is found again. Links to elsewhere are not taken.
    fn task(&self, uri: &str) -> Result<TaskRef, AdapterError> {
        let known = self
            .api
            .link(uri)
            .and_then(|_| TaskRef::new(uri.to_owned()));
        known.ok_or_else(|| astray("status_uri leads elsewhere".to_owned()))
    }
}

fn refused(kind: FaultKind) -> AdapterError {
    AdapterError::refused(kind, error::sentence(kind))
}

fn no_room() -> AdapterError {
    let text = "The tags do not fit: give at most 63, none of which begins with snapgate-id=.";
    AdapterError::refused(FaultKind::Invalid, text)
}

fn astray(private: String) -> AdapterError {
    let text = "The server accepted it, but its answer leads nowhere.";
    AdapterError::uncertain(FaultKind::BackendFailed, text).because(private)
}

#[async_trait]
impl Adapter for CloudApi {
    fn capability(&self) -> &Capability {
        &self.capability
    }

    /// `via-<number of the operation>`, which the new backup carries as a tag.
    fn mint_backup_id(&self, _new: &NewBackup, key: RequestKey) -> Result<BackupId, AdapterError> {
        BackupId::new(&map::minted(key.0))
            .map_err(|error| refused(FaultKind::Invalid).because(error))
    }

    async fn health(&self, by: Deadline) -> Result<Health, AdapterError> {
        let mut product = "Cloud API server of an unknown version".to_owned();
        match self.api.versions(by).await {
            Ok(told) => {
                let mut spoken = told.specification_version.split(',').map(str::trim);
                if !spoken.any(|it| it == self.version) {
                    let text =
                        "The server does not speak the configured version of the specification.";
                    let error = AdapterError::refused(FaultKind::BackendFailed, text);
                    return Err(error.because(format!("{:.80}", told.specification_version)));
                }
                let (build, spoken) = (told.implementation_version, told.specification_version);
                product = format!("Cloud API server {build:.80} (specification {spoken:.80})");
            }
            Err(error) if error.is_missing() => {}
            Err(error) => return Err(error.of_read(FaultKind::BackendFailed)),
        }
        if self.lists() {
            let listed = self.api.lists_statuses(by).await;
            listed.map_err(|error| error.of_read(FaultKind::BackendFailed))?;
        }
        Ok(Health { product })
    }

    async fn vm(&self, vm: &VmId, by: Deadline) -> Result<Vm, AdapterError> {
        let told = self.api.vm(vm, by).await;
        let told = told.map_err(|error| error.of_read(FaultKind::NoSuchVm))?;
        Ok(map::vm(vm, told))
    }

    async fn list(&self, vm: &VmId, page: &Page, by: Deadline) -> Result<BackupPage, AdapterError> {
        let all = self.all(vm, by).await?;
        let whole = all.into_iter().filter(|it| !it.half_made);
        Ok(page.of(whole.map(|whole| whole.backup)))
    }

    async fn read(&self, target: &Target, by: Deadline) -> Result<Backup, AdapterError> {
        let seen = self.look(target, by).await?;
        seen.filter(|(it, _)| !it.half_made)
            .map(|(it, _)| it.backup)
            .ok_or_else(|| refused(FaultKind::NoSuchBackup))
    }

    async fn baseline(
        &self,
        intent: &Intent,
        _key: RequestKey,
        by: Deadline,
    ) -> Result<Option<Evidence>, AdapterError> {
        self.before(intent, by).await
    }

    async fn begin(
        &self,
        intent: &Intent,
        key: RequestKey,
        baseline: Option<&Evidence>,
        by: Deadline,
    ) -> Result<BeginOutcome, AdapterError> {
        let before = Before::read(baseline);
        let name = key.to_string();
        let key = match self.recovery {
            Recovery::ReplaySafe => Some(self.key(&name, before.as_ref())?),
            Recovery::Listable | Recovery::NoTrace => None,
        };
        match &intent.change {
            Change::Create(new) => {
                let body = map::creation(new, &intent.target.backup).ok_or_else(no_room)?;
                self.create(&intent.target, body, &name, key.as_deref(), by)
                    .await
            }
            Change::Update(_) | Change::Delete | Change::Restore(_) => {
                self.change(intent, &name, key.as_deref(), by).await
            }
        }
    }

    async fn poll(&self, task: &TaskRef, by: Deadline) -> Result<TaskState, AdapterError> {
        let uri = task.as_str();
        if let Some(progress) = self.rests.resting(uri, self.clock.instant()) {
            return Ok(TaskState::Running(Some(progress)));
        }
        // The address was changed since: it is looked for on the new one.
        let Some(link) = self.api.link(uri) else {
            return Ok(TaskState::Gone);
        };
        let told = match self.api.status(&link, None, by).await {
            Ok(told) => told,
            Err(error) if error.is_missing() => return Ok(TaskState::Gone),
            Err(error) => return Err(error.of_read(FaultKind::BackendFailed)),
        };
        Ok(match map::outcome(&told.status) {
            Outcome::Running(progress) => {
                if let Some(seconds) = told.retry_after {
                    let now = self.clock.instant();
                    self.rests.rest(uri, seconds, progress, now);
                }
                TaskState::Running(Some(progress))
            }
            Outcome::Done => TaskState::Done,
            Outcome::Failed(fault) => {
                TaskState::Failed(self.with_run_state(fault, &told.status, by).await)
            }
            Outcome::Cancelled => TaskState::Cancelled,
            // What the server does not know is looked for, and not found.
            Outcome::Unknown => TaskState::Gone,
        })
    }

    async fn changed(&self, task: &TaskRef) {
        let uri = task.as_str();
        if let Some(link) = self.api.link(uri) {
            let by = self.clock.deadline(WAIT_DEADLINE);
            if let Ok(told) = self.api.status(&link, Some(WAIT), by).await {
                let unfinished = matches!(map::outcome(&told.status), Outcome::Running(_));
                if !unfinished || told.waited {
                    self.rests.wake(uri);
                    return;
                }
                // It does not wait, or not now: it is asked again at the pace of the gateway and of the server.
            }
        }
        std::future::pending::<()>().await;
    }

    async fn find(
        &self,
        intent: &Intent,
        _key: RequestKey,
        baseline: Option<&Evidence>,
        by: Deadline,
    ) -> Result<FindOutcome, AdapterError> {
        self.look_for(intent, Before::read(baseline).as_ref(), by)
            .await
    }

    async fn cancel(&self, task: &TaskRef, by: Deadline) -> Result<(), AdapterError> {
        let not_offered = || {
            let text = "The server cannot stop that operation, or no longer: wait for its end.";
            AdapterError::refused(FaultKind::Unsupported, text)
        };
        let link = self.api.link(task.as_str()).ok_or_else(not_offered)?;
        match self.api.cancel(&link, by).await {
            Ok(()) => {
                self.rests.wake(task.as_str());
                Ok(())
            }
            Err(error) if error.is_not_offered() => Err(not_offered().because(error)),
            Err(error) => Err(error.of_write(FaultKind::BackendFailed)),
        }
    }
}
