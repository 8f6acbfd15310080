//! What operators may do while the gateway runs, and the file by which they find it.
//!
//! A user who may read the store can do with a stopped gateway what this offers for a running one. The file
//! beside the store, with the same rights, holds the address of the admin port and a token drawn at the start.

use std::fs::OpenOptions;
use std::io;
use std::io::Write;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::OnceLock;

use async_trait::async_trait;
use serde::Deserialize;
use serde::Serialize;
use serde_json::Value;
use serde_json::json;
use subtle::ConstantTimeEq;

use crate::app::active::ActiveOperations;
use crate::app::doctor::LiveDoctor;
use crate::app::membership::Membership;
use crate::app::term::Term;
use crate::config;
use crate::listener::ClusterChange;
use crate::listener::LogLevelChange;
use crate::listener::Operator;
use crate::listener::OperatorCaller;
use crate::listener::OperatorError;
use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::OperatorQuery;
use crate::model::Secret;
use crate::model::Timestamp;
use crate::operations::OfflineStoreError;
use crate::operations::OperationDetails;
use crate::operations::OperationSummary;
use crate::runtime::Clock;
use crate::runtime::Tasks;
use crate::telemetry;
use crate::telemetry::AuditClient;
use crate::telemetry::AuditRecord;
use crate::telemetry::AuditWriteError;
use crate::telemetry::LogLevel;
use crate::telemetry::Metrics;

/// Where a running gateway accepts operators' requests, and the token for them.
#[derive(Debug)]
pub struct OperatorAccess {
    /// The admin port.
    pub address: SocketAddr,
    /// The token of the process.
    pub token: Secret,
}

#[derive(Serialize, Deserialize)]
struct AccessFile {
    address: SocketAddr,
    token: String,
}

impl OperatorAccess {
    /// Reads the file that the running gateway wrote.
    ///
    /// # Errors
    /// When there is no such file, it may not be read, or it is something else.
    pub fn read(file: &Path) -> io::Result<Self> {
        let text = std::fs::read_to_string(file)?;
        let access: AccessFile = serde_json::from_str(&text)?;
        Ok(Self {
            address: access.address,
            token: Secret::new(access.token),
        })
    }

    /// Readable by this user alone from its first byte on, and whole or not there.
    fn write(&self, file: &Path) -> io::Result<()> {
        let mut new = file.as_os_str().to_owned();
        new.push(".new");
        let new = PathBuf::from(new);
        let written = AccessFile {
            address: self.address,
            token: self.token.reveal().to_owned(),
        };
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)?
            .write_all(&serde_json::to_vec(&written)?)?;
        std::fs::rename(&new, file)
    }
}

/// The operator's side of a running gateway.
#[derive(Debug)]
pub(crate) struct OperatorApi {
    active: Arc<ActiveOperations>,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    doctor: LiveDoctor,
    /// Not awaited at shutdown: a level that is to be restored later dies with the process.
    tasks: Tasks,
    token: Secret,
    file: PathBuf,
    membership: OnceLock<Arc<Membership>>,
}

impl OperatorApi {
    /// Draws a token.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub(crate) fn new(
        doctor: LiveDoctor,
        metrics: &Arc<Metrics>,
        file: PathBuf,
    ) -> Result<Self, getrandom::Error> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed)?;
        Ok(Self {
            active: Arc::clone(&doctor.active),
            clock: Arc::clone(&doctor.clock),
            metrics: Arc::clone(metrics),
            doctor,
            tasks: Tasks::default(),
            token: Secret::new(blake3::Hash::from_bytes(seed).to_hex().to_string()),
            file,
            membership: OnceLock::new(),
        })
    }

    /// From now on operators may change the part of the gateway in its cluster.
    pub(crate) fn join(&self, membership: &Arc<Membership>) {
        // Called once, at the start.
        drop(self.membership.set(Arc::clone(membership)));
    }

    fn membership(&self) -> Result<&Arc<Membership>, OperatorError> {
        self.membership.get().ok_or_else(|| {
            OperatorError::Conflict("this gateway is not a member of a cluster".to_owned())
        })
    }

    /// Writes the access file for operators. A gateway that cannot write it, for instance on a full disk, runs without it.
    pub(crate) fn open(&self, mut address: SocketAddr) {
        let ip = address.ip().to_canonical();
        if ip.is_unspecified() {
            address.set_ip(match ip {
                IpAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
                IpAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
            });
        }
        let token = self.token.clone();
        if let Err(error) = (OperatorAccess { address, token }).write(&self.file) {
            tracing::warn!(%error, file = %self.file.display(), "operator access file not written");
        }
    }

    /// Removes the operator access file.
    pub(crate) fn close(&self) {
        if let Err(error) = std::fs::remove_file(&self.file) {
            tracing::debug!(%error, "operator access file not removed");
        }
    }
}

fn operator_error(error: &OfflineStoreError) -> OperatorError {
    let text = error.to_string();
    match error {
        OfflineStoreError::NoSuchOperation(_) => OperatorError::NoSuchOperation(text),
        OfflineStoreError::NotUnknown(..) | OfflineStoreError::NotCancellable(..) => {
            OperatorError::Conflict(text)
        }
        OfflineStoreError::Absent(_) | OfflineStoreError::Open(_) | OfflineStoreError::Store(_) => {
            OperatorError::Unavailable(text)
        }
    }
}

fn shown(operation: &Operation) -> Value {
    json!(OperationSummary::from(operation))
}

/// Who acts as an operator: the account of the system whose rights to the store that takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorName(String);

impl OperatorName {
    /// The account that runs this process, for instance `os:root`.
    #[must_use]
    pub fn of_this_process() -> Self {
        let id = nix::unistd::geteuid();
        let user = nix::unistd::User::from_uid(id).ok().flatten();
        Self(user.map_or_else(|| format!("os:{id}"), |user| format!("os:{}", user.name)))
    }

    /// What `snapgate operations` says of itself to a running gateway. It knows the token, and with that has the right to
    /// the store: its word counts as much as what it could write there.
    fn from_caller(name: Option<&str>) -> Self {
        let name = name.filter(|name| name.starts_with("os:"));
        Self(name.unwrap_or("operator").to_owned())
    }

    /// The name, with `os:` before it: no user of the API has such a name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What an operator can decide about an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperatorAction {
    /// Its unknown outcome was looked into.
    Acknowledge,
    /// It is to be stopped.
    Cancel,
}

impl OperatorAction {
    /// The word of the audit trail, and of the path on the admin port.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Acknowledge => "acknowledge",
            Self::Cancel => "cancel",
        }
    }
}

/// What an operator decided about an operation.
#[derive(Clone, Copy, Debug)]
pub struct Decision<'a> {
    /// What is decided.
    pub action: OperatorAction,
    /// Who decided.
    pub by: &'a OperatorName,
    /// From where.
    pub client: AuditClient,
}

impl<'a> Decision<'a> {
    /// A decision that was made on this machine.
    #[must_use]
    pub const fn local(action: OperatorAction, by: &'a OperatorName) -> Self {
        Self {
            action,
            by,
            client: AuditClient::Local,
        }
    }

    /// Writes to the audit trail that the operation was decided about.
    pub fn record(&self, clock: &dyn Clock, operation: &Operation) {
        telemetry::record_audit(&self.audit_record(clock.now(), operation, "accepted"));
    }

    /// Writes to the audit trail that the operation is about to be decided about, where changes need the trail.
    ///
    /// # Errors
    /// [`AuditWriteError`]: the decision must not be carried out.
    pub fn record_before(
        &self,
        clock: &dyn Clock,
        operation: &Operation,
    ) -> Result<(), AuditWriteError> {
        telemetry::record_audit_before_change(&self.audit_record(clock.now(), operation, "asked"))
    }

    fn audit_record(
        &self,
        time: Timestamp,
        operation: &'a Operation,
        outcome: &'a str,
    ) -> AuditRecord<'a> {
        AuditRecord {
            principal: Some(self.by.as_str()),
            client: Some(self.client),
            backend: Some(operation.backend.as_str()),
            vm: Some(operation.target().vm.as_str()),
            backup: Some(operation.target().backup.as_str()),
            operation: Some(operation.seq.number()),
            ..AuditRecord::new(time, self.action.as_str(), outcome)
        }
    }
}

impl OperatorApi {
    /// The operations, which only the active gateway of a cluster has.
    fn term(&self) -> Result<Arc<Term>, OperatorError> {
        self.active.term().ok_or_else(|| {
            let text = "this gateway is on standby; ask the active one, which snapgate cluster status names";
            OperatorError::Unavailable(text.to_owned())
        })
    }

    /// Carries out what an operator decides, with the audit trail before and after it.
    async fn decide(
        &self,
        action: OperatorAction,
        seq: OperationSeq,
        caller: OperatorCaller<'_>,
    ) -> Result<Value, OperatorError> {
        let by = OperatorName::from_caller(caller.name);
        let decision = Decision {
            action,
            by: &by,
            client: caller
                .address
                .map_or(AuditClient::Local, AuditClient::Address),
        };
        let term = self.term()?;
        let before = term.operations.show(seq).await;
        let before = before.map_err(|error| operator_error(&error))?;
        decision
            .record_before(&*self.clock, &before)
            .map_err(|error| OperatorError::Unavailable(format!("{error}: nothing was changed")))?;
        let decided = match action {
            OperatorAction::Acknowledge => term.operations.acknowledge(seq).await,
            OperatorAction::Cancel => term.operations.cancel_by_operator(seq).await,
        };
        let decided = decided.map_err(|error| operator_error(&error))?;
        if decided.is_new {
            decision.record(&*self.clock, &decided.operation);
        }
        Ok(shown(&decided.operation))
    }
}

fn describe_level(level: &LogLevel) -> Value {
    json!({ "level": level.current, "configured": level.configured })
}

impl OperatorApi {
    /// Changes the log level of the process, and restores it when its time is over.
    fn change_level(
        &self,
        change: LogLevelChange,
        caller: OperatorCaller<'_>,
    ) -> Result<Value, OperatorError> {
        let LogLevelChange { level, duration } = change;
        let level = level.as_deref().map(config::check_log_level).transpose();
        let level =
            level.map_err(|(what, hint)| OperatorError::Invalid(format!("{what}: {hint}")))?;
        let changed = telemetry::set_log_level(level.as_deref());
        let changed = changed.map_err(|error| OperatorError::Unavailable(error.to_string()))?;
        let by = OperatorName::from_caller(caller.name);
        // At the highest level: who reads the log must learn why lines appear or are missing.
        tracing::error!(
            target: "snapgate::log_level",
            level = changed.current,
            configured = changed.configured,
            by = by.as_str(),
            for_seconds = duration.map(|duration| duration.as_secs()),
            "log level changed"
        );
        telemetry::record_audit(&AuditRecord {
            principal: Some(by.as_str()),
            client: Some(
                caller
                    .address
                    .map_or(AuditClient::Local, AuditClient::Address),
            ),
            note: Some(&changed.current),
            ..AuditRecord::new(self.clock.now(), "log-level", "accepted")
        });
        if let Some(duration) = duration {
            let change = changed.clone();
            drop(self.tasks.spawn(async move {
                tokio::time::sleep(duration).await;
                telemetry::undo_log_level(&change);
            }));
        }
        Ok(describe_level(&changed))
    }
}

#[async_trait]
impl Operator for OperatorApi {
    fn is_token(&self, token: &[u8]) -> bool {
        self.token.reveal().as_bytes().ct_eq(token).into()
    }

    async fn list(&self, query: OperatorQuery) -> Result<Vec<Value>, OperatorError> {
        let found = self.term()?.operations.list_for_operator(&query).await;
        let found = found.map_err(|error| operator_error(&error))?;
        Ok(found.iter().map(|operation| shown(operation)).collect())
    }

    async fn show(&self, seq: OperationSeq) -> Result<Value, OperatorError> {
        let found = self
            .term()?
            .operations
            .show(seq)
            .await
            .map_err(|error| operator_error(&error))?;
        Ok(json!(OperationDetails::from(&*found)))
    }

    async fn acknowledge(
        &self,
        seq: OperationSeq,
        caller: OperatorCaller<'_>,
    ) -> Result<Value, OperatorError> {
        self.decide(OperatorAction::Acknowledge, seq, caller).await
    }

    async fn cancel(
        &self,
        seq: OperationSeq,
        caller: OperatorCaller<'_>,
    ) -> Result<Value, OperatorError> {
        self.decide(OperatorAction::Cancel, seq, caller).await
    }

    async fn log_level(&self) -> Result<Value, OperatorError> {
        telemetry::log_level()
            .map(|level| describe_level(&level))
            .ok_or_else(|| OperatorError::Unavailable("logging is not initialized".to_owned()))
    }

    async fn change_log_level(
        &self,
        change: LogLevelChange,
        caller: OperatorCaller<'_>,
    ) -> Result<Value, OperatorError> {
        self.change_level(change, caller)
    }

    async fn examine(&self) -> Result<Value, OperatorError> {
        Ok(json!(self.doctor.examine().await))
    }

    async fn cluster(&self) -> Result<Value, OperatorError> {
        Ok(self.membership()?.describe())
    }

    async fn change_cluster(
        &self,
        change: ClusterChange,
        caller: OperatorCaller<'_>,
    ) -> Result<Value, OperatorError> {
        let membership = self.membership()?;
        match change {
            ClusterChange::StepDown => membership.step_down(),
            ClusterChange::Drain => membership.drain(true),
            ClusterChange::Return => membership.drain(false),
        }
        let by = OperatorName::from_caller(caller.name);
        tracing::warn!(
            by = by.as_str(),
            change = change.as_str(),
            "cluster membership changed"
        );
        telemetry::record_audit(&AuditRecord {
            principal: Some(by.as_str()),
            client: Some(
                caller
                    .address
                    .map_or(AuditClient::Local, AuditClient::Address),
            ),
            ..AuditRecord::new(self.clock.now(), change.as_str(), "accepted")
        });
        Ok(membership.describe())
    }

    fn denied(&self, reason: &'static str, client: Option<IpAddr>) {
        self.metrics.callers.record_refused_credentials(reason);
        tracing::info!(
            target: "snapgate::authentication",
            client = client.map(tracing::field::display),
            reason,
            "admin credentials refused"
        );
        telemetry::record_audit(&AuditRecord {
            client: client.map(AuditClient::Address),
            code: Some("Unauthenticated"),
            reason: Some(reason),
            ..AuditRecord::new(self.clock.now(), "operate", "refused")
        });
    }
}
