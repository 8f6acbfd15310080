//! A server that itself speaks this API: another snapgate, or a site's own implementation in any language.
//!
//! A backup created through the gateway carries its id as a tag, because the server chooses another one. Lossy: restore
//! options and notes are not passed on, at most 63 tags fit, and why a Status failed is known by its number alone. See
//! docs/adapters/cloudapi.md, also for what a server must do and for the versions tested.

mod baseline;
mod client;
mod config;
mod error;
mod find;
mod keys;
mod link;
mod map;
mod poll_backoff;
mod preview;
mod request_baseline;
mod wire;

pub use config::Config;
pub use config::ConfigError;

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
use crate::adapters::adapter::MetadataOwner;
use crate::adapters::adapter::Recovery;
use crate::adapters::adapter::TaskState;
use crate::adapters::adapter::VerbCapability;
use crate::adapters::adapter::lists_no_vms;
use crate::adapters::backup_listing::query_by_listing;
use crate::model::Backup;
use crate::model::BackupId;
use crate::model::BackupKind;
use crate::model::BackupPage;
use crate::model::BackupQuery;
use crate::model::BackupSelection;
use crate::model::BackupState;
use crate::model::Change;
use crate::model::Deadline;
use crate::model::Evidence;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::Identity;
use crate::model::Intent;
use crate::model::NewBackup;
use crate::model::Page;
use crate::model::Preview;
use crate::model::RequestKey;
use crate::model::RunState;
use crate::model::Target;
use crate::model::TaskRef;
use crate::model::Vm;
use crate::model::VmId;
use crate::model::VmPage;
use crate::model::VmRange;
use crate::public_text;
use crate::runtime::Clock;
use client::Api;
use client::OutgoingChange;
use client::StatusReply;
use map::RemoteBackup;
use map::StatusOutcome;
use poll_backoff::PollBackoff;
use request_baseline::RequestBaseline;
use request_baseline::request_key;

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
        // Whether this server does it is known when it is asked.
        lists_vms: true,
    }
}

/// The adapter for one server.
#[derive(Debug)]
pub struct CloudApi {
    api: Api,
    recovery: Recovery,
    capability: Capability,
    version: String,
    poll_backoff: PollBackoff,
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
            poll_backoff: PollBackoff::default(),
            clock,
        })
    }

    /// Whether the server lists the Statuses of its callers.
    const fn lists_statuses(&self) -> bool {
        match self.recovery {
            Recovery::ReplaySafe | Recovery::Listable => true,
            Recovery::NoTrace => false,
        }
    }

    async fn list_remote(
        &self,
        vm: &VmId,
        by: Deadline,
    ) -> Result<Vec<RemoteBackup>, AdapterError> {
        let reply = self.api.backups(vm, by).await;
        let reply = reply.map_err(|error| error.into_read_error(FaultKind::NoSuchVm))?;
        Ok(map::remote_backups(vm, reply))
    }

    /// The backup of that id, half made or not, with its tag; `None` when there is none.
    async fn find_remote(
        &self,
        target: &Target,
        by: Deadline,
    ) -> Result<Option<(RemoteBackup, Option<HeaderValue>)>, AdapterError> {
        let server_id = if map::is_minted(&target.backup) {
            let all = self.list_remote(&target.vm, by).await?;
            match all
                .into_iter()
                .find(|remote| remote.backup.id == target.backup)
            {
                Some(remote) => remote.server_id,
                None => return Ok(None),
            }
        } else {
            target.backup.clone()
        };
        let reply = self.api.backup(&target.vm, &server_id, by).await;
        let reply = reply.map_err(|error| error.into_read_error(FaultKind::NoSuchVm))?;
        let Some((reply, tag)) = reply else {
            return Ok(None);
        };
        let remote = map::remote_backup(server_id, reply).ok_or_else(|| {
            let text = public_text!("The server returned an invalid description of the backup. Ask an operator to check the server.");
            AdapterError::refused(FaultKind::BackendFailed, text)
        })?;
        Ok(Some((remote, tag)).filter(|(remote, _)| remote.backup.id == target.backup))
    }

    /// The very backup of the intent, with its tag.
    async fn find_meant(
        &self,
        intent: &Intent,
        by: Deadline,
    ) -> Result<(RemoteBackup, Option<HeaderValue>), AdapterError> {
        let remote = self.find_remote(&intent.target, by).await?;
        remote
            .filter(|(remote, _)| intent.identity.as_ref() == Some(&remote.backup.identity))
            .ok_or_else(|| refuse(FaultKind::NoSuchBackup))
    }

    /// The very backup of the intent, fit for the change.
    async fn find_for_change(
        &self,
        intent: &Intent,
        by: Deadline,
    ) -> Result<(RemoteBackup, Option<HeaderValue>), AdapterError> {
        let (remote, tag) = self.find_meant(intent, by).await?;
        check_fit(&intent.change, &remote.backup)?;
        Ok((remote, tag))
    }

    /// Asks for a change of a backup that is there.
    async fn send_change(
        &self,
        intent: &Intent,
        name: &str,
        key: Option<&str>,
        by: Deadline,
    ) -> Result<BeginOutcome, AdapterError> {
        let vm = intent.target.vm.as_str();
        let mut tries = 1..=TRIES;
        loop {
            let is_last = tries.next().is_none_or(|nth| nth == TRIES);
            let (remote, if_match) = self.find_for_change(intent, by).await?;
            let restore = ["vms", vm, "backups", remote.server_id.as_str(), "restore"];
            let [vms, vm, backups, backup, _] = restore;
            let one = [vms, vm, backups, backup];
            let (method, path, body): (_, &[&str], _) = match &intent.change {
                Change::Create(_) => return Err(refuse(FaultKind::Invalid)),
                Change::Update(patch) => (
                    Method::PUT,
                    &one,
                    Some(map::update_body(patch, &remote).ok_or_else(too_many_tags)?),
                ),
                Change::Delete => (Method::DELETE, &one, None),
                Change::Restore(_) => (Method::POST, &restore, Some(json!({ "note": name }))),
            };
            let change = OutgoingChange {
                method,
                path,
                body,
                if_match,
                name,
                key,
            };
            let op = map::status_op(intent.verb());
            match self.api.change(change, by).await {
                Ok(reply) => return self.begin_outcome(&reply, op),
                Err(error) if error.is_stale() && !is_last => {}
                Err(error) => return Err(error.into_write_error(FaultKind::NoSuchBackup)),
            }
        }
    }

    /// Asks for a new backup.
    async fn send_create(
        &self,
        target: &Target,
        body: Value,
        name: &str,
        key: Option<&str>,
        by: Deadline,
    ) -> Result<BeginOutcome, AdapterError> {
        let path = ["vms", target.vm.as_str(), "backups"];
        let change = OutgoingChange {
            method: Method::POST,
            path: &path,
            body: Some(body),
            if_match: None,
            name,
            key,
        };
        let reply = self.api.change(change, by).await;
        let reply = reply.map_err(|error| error.into_write_error(FaultKind::NoSuchVm))?;
        self.begin_outcome(&reply, "back_up")
    }

    /// What an accepted change became. What cannot be followed may have been begun all the same.
    fn begin_outcome(&self, reply: &StatusReply, op: &str) -> Result<BeginOutcome, AdapterError> {
        let status = &reply.status;
        if !status.op.eq_ignore_ascii_case(op) {
            return Err(invalid_status_link(format!("Status of {:.40}", status.op)));
        }
        if map::read_outcome(status) == StatusOutcome::Done {
            return Ok(BeginOutcome::Done);
        }
        self.task_of_link(&status.status_uri)
            .map(BeginOutcome::Task)
    }

    /// The fault of a restore that failed, with whether the VM runs now and what the server left unsaid.
    async fn with_run_state(&self, mut fault: Fault, status: &wire::Status, by: Deadline) -> Fault {
        let Some(vm) = map::restored_vm(status) else {
            return fault;
        };
        let run_state = match self.read_vm(&vm, by).await {
            Ok(vm) => vm.run_state,
            Err(error) => {
                tracing::debug!(%vm, ?error, "run state unavailable after a failed restore");
                None
            }
        };
        let state = match run_state {
            Some(RunState::Started) => public_text!("The VM is running now."),
            Some(RunState::Stopped) => public_text!("The VM is off now."),
            Some(RunState::Sleeping) => public_text!("The VM is suspended now."),
            None => public_text!("The run state of the VM could not be determined."),
        };
        // A server that describes what it left is quoted in the fault already.
        let is_described = status
            .message
            .as_deref()
            .and_then(error::publishable_message)
            .is_some();
        fault.text = if is_described {
            fault.text.followed_by(&state)
        } else {
            public_text!(
                "{} {state} The server does not say whether the data of the VM was changed. Check the VM, or restore it again.",
                fault.text
            )
        };
        fault
    }

    /// How a Status is found again. Links to elsewhere are not taken.
    fn task_of_link(&self, uri: &str) -> Result<TaskRef, AdapterError> {
        let known = self
            .api
            .link(uri)
            .and_then(|_| TaskRef::new(uri.to_owned()));
        known.ok_or_else(|| invalid_status_link("status_uri leads elsewhere".to_owned()))
    }
}

/// Whether the backup is in a state for the change.
fn check_fit(change: &Change, backup: &Backup) -> Result<(), AdapterError> {
    let unfit = match change {
        Change::Create(_) | Change::Update(_) => None,
        Change::Delete => backup.protected.then_some(FaultKind::Protected),
        Change::Restore(_) => {
            let broken = matches!(backup.state, BackupState::Creating | BackupState::Error);
            broken.then_some(FaultKind::NotReady)
        }
    };
    unfit.map_or(Ok(()), |kind| Err(refuse(kind)))
}

fn refuse(kind: FaultKind) -> AdapterError {
    AdapterError::refused(kind, error::sentence_for(kind))
}

fn too_many_tags() -> AdapterError {
    let text = public_text!(
        "The server cannot store these tags; nothing was changed. Use at most 63 tags, none of which begins with `{}`.",
        map::ID_TAG
    );
    AdapterError::refused(FaultKind::Invalid, text)
}

fn invalid_status_link(private: String) -> AdapterError {
    let text = public_text!(
        "The server accepted the request, but returned an invalid link to its Status. Check the VM and its backups."
    );
    AdapterError::uncertain(FaultKind::BackendFailed, text).because(private)
}

#[async_trait]
impl Adapter for CloudApi {
    fn capability(&self) -> &Capability {
        &self.capability
    }

    /// `via-<number of the operation>`, which the new backup carries as a tag.
    fn mint_backup_id(&self, _new: &NewBackup, key: RequestKey) -> Result<BackupId, AdapterError> {
        BackupId::new(&map::minted_id(key.0))
            .map_err(|error| refuse(FaultKind::Invalid).because(error))
    }

    async fn health(&self, by: Deadline) -> Result<Health, AdapterError> {
        let mut product = "Cloud API server of an unknown version".to_owned();
        match self.api.versions(by).await {
            Ok(reply) => {
                let mut versions = reply.specification_version.split(',').map(str::trim);
                if !versions.any(|version| version == self.version) {
                    let text = public_text!(
                        "The server does not support the configured version of the specification."
                    );
                    let error = AdapterError::refused(FaultKind::BackendFailed, text);
                    return Err(error.because(format!("{:.80}", reply.specification_version)));
                }
                let (build, versions) = (reply.implementation_version, reply.specification_version);
                product = format!("Cloud API server {build:.80} (specification {versions:.80})");
            }
            Err(error) if error.is_missing() => {}
            Err(error) => return Err(error.into_read_error(FaultKind::BackendFailed)),
        }
        if self.lists_statuses() {
            let listed = self.api.check_status_list(by).await;
            listed.map_err(|error| error.into_read_error(FaultKind::BackendFailed))?;
        }
        Ok(Health { product })
    }

    async fn read_vm(&self, vm: &VmId, by: Deadline) -> Result<Vm, AdapterError> {
        let reply = self.api.vm(vm, by).await;
        let reply = reply.map_err(|error| error.into_read_error(FaultKind::NoSuchVm))?;
        Ok(map::vm(vm, reply))
    }

    /// Asks the server's own list. A server without one, as those of the first edition and most of a site's own, cannot list.
    async fn list_vms(&self, range: &VmRange, by: Deadline) -> Result<VmPage, AdapterError> {
        match self.api.vms(range, by).await {
            Ok(found) => Ok(map::vm_page(range, found)),
            Err(error) if error.is_unknown_path() => Err(lists_no_vms().because(error)),
            Err(error) => Err(error.into_read_error(FaultKind::BackendFailed)),
        }
    }

    async fn list_backups(
        &self,
        vm: &VmId,
        page: &Page,
        by: Deadline,
    ) -> Result<BackupPage, AdapterError> {
        let all = self.list_remote(vm, by).await?;
        let complete = all.into_iter().filter(|remote| !remote.is_incomplete);
        Ok(page.of(complete.map(|remote| remote.backup)))
    }

    async fn query_backups(
        &self,
        vm: &VmId,
        query: &BackupQuery,
        by: Deadline,
    ) -> Result<BackupSelection, AdapterError> {
        query_by_listing(self, vm, query, by).await
    }

    async fn read_backup(&self, target: &Target, by: Deadline) -> Result<Backup, AdapterError> {
        let remote = self.find_remote(target, by).await?;
        remote
            .filter(|(remote, _)| !remote.is_incomplete)
            .map(|(remote, _)| remote.backup)
            .ok_or_else(|| refuse(FaultKind::NoSuchBackup))
    }

    async fn preview(&self, intent: &Intent, by: Deadline) -> Result<Preview, AdapterError> {
        self.preview_change(intent, by).await
    }

    async fn baseline(
        &self,
        intent: &Intent,
        _key: RequestKey,
        by: Deadline,
    ) -> Result<Option<Evidence>, AdapterError> {
        self.read_baseline(intent, by).await
    }

    async fn begin(
        &self,
        intent: &Intent,
        key: RequestKey,
        baseline: Option<&Evidence>,
        by: Deadline,
    ) -> Result<BeginOutcome, AdapterError> {
        let before = RequestBaseline::read(baseline);
        let name = key.to_string();
        let key = match self.recovery {
            Recovery::ReplaySafe => Some(request_key(&name, before.as_ref(), self.clock.now())?),
            Recovery::Listable | Recovery::NoTrace => None,
        };
        match &intent.change {
            Change::Create(new) => {
                let body =
                    map::create_body(new, &intent.target.backup).ok_or_else(too_many_tags)?;
                self.send_create(&intent.target, body, &name, key.as_deref(), by)
                    .await
            }
            Change::Update(_) | Change::Delete | Change::Restore(_) => {
                self.send_change(intent, &name, key.as_deref(), by).await
            }
        }
    }

    async fn poll(&self, task: &TaskRef, by: Deadline) -> Result<TaskState, AdapterError> {
        let uri = task.as_str();
        if let Some(progress) = self
            .poll_backoff
            .progress_while_held_off(uri, self.clock.instant())
        {
            return Ok(TaskState::Running(Some(progress)));
        }
        // The configured address changed since: the outcome is searched for at the new one.
        let Some(link) = self.api.link(uri) else {
            return Ok(TaskState::Gone);
        };
        let reply = match self.api.status(&link, None, by).await {
            Ok(reply) => reply,
            Err(error) if error.is_missing() => return Ok(TaskState::Gone),
            Err(error) => return Err(error.into_read_error(FaultKind::BackendFailed)),
        };
        Ok(match map::read_outcome(&reply.status) {
            StatusOutcome::Running(progress) => {
                if let Some(seconds) = reply.retry_after {
                    let now = self.clock.instant();
                    self.poll_backoff.hold_off(uri, seconds, progress, now);
                }
                TaskState::Running(Some(progress))
            }
            StatusOutcome::Done => TaskState::Done(None),
            StatusOutcome::Failed(fault) => {
                TaskState::Failed(self.with_run_state(fault, &reply.status, by).await)
            }
            StatusOutcome::Cancelled => TaskState::Cancelled,
            // The server does not know the outcome: it is searched for like a lost answer.
            StatusOutcome::Unknown => TaskState::Gone,
        })
    }

    async fn changed(&self, task: &TaskRef) {
        let uri = task.as_str();
        if let Some(link) = self.api.link(uri) {
            let by = self.clock.deadline(WAIT_DEADLINE);
            if let Ok(reply) = self.api.status(&link, Some(WAIT), by).await {
                let unfinished =
                    matches!(map::read_outcome(&reply.status), StatusOutcome::Running(_));
                if !unfinished || reply.waited {
                    self.poll_backoff.release(uri);
                    return;
                }
                // The server did not wait: the gateway polls at its own pace and the server's.
            }
        }
        std::future::pending::<()>().await;
    }

    async fn find_outcome(
        &self,
        intent: &Intent,
        _key: RequestKey,
        baseline: Option<&Evidence>,
        by: Deadline,
    ) -> Result<FindOutcome, AdapterError> {
        self.find_outcome(intent, RequestBaseline::read(baseline).as_ref(), by)
            .await
    }

    async fn cancel(&self, task: &TaskRef, by: Deadline) -> Result<(), AdapterError> {
        let not_offered = || {
            let text = public_text!(
                "The server cannot cancel this operation, or no longer. Wait for its end."
            );
            AdapterError::refused(FaultKind::Unsupported, text)
        };
        let link = self.api.link(task.as_str()).ok_or_else(not_offered)?;
        match self.api.cancel(&link, by).await {
            Ok(()) => {
                self.poll_backoff.release(task.as_str());
                Ok(())
            }
            Err(error) if error.is_not_offered() => Err(not_offered().because(error)),
            Err(error) => Err(error.into_write_error(FaultKind::BackendFailed)),
        }
    }

    fn metadata_owner(&self) -> MetadataOwner {
        MetadataOwner::Native
    }

    fn is_identity_of(&self, stored: &Identity, backup: &Backup) -> bool {
        *stored == backup.identity
    }

    fn needs_baseline(&self, _intent: &Intent) -> bool {
        true
    }
}
