//! A simulator that is a process of its own, reached over a Unix socket. See docs/adapters/sim.md for what is said.
//!
//! One connection per call, one line of JSON each way. Nothing is kept here: what became of a request is known over
//! there alone, as with any real VM manager.

use std::io;
use std::path::PathBuf;
use std::str::FromStr;

use async_trait::async_trait;
use serde::Deserialize;
use serde::Serialize;
use tokio::io::AsyncBufReadExt;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::io::BufReader;
use tokio::net::UnixStream;

use crate::adapters::adapter::Adapter;
use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::BeginOutcome;
use crate::adapters::adapter::Capability;
use crate::adapters::adapter::FindOutcome;
use crate::adapters::adapter::Health;
use crate::adapters::adapter::MetadataOwner;
use crate::adapters::adapter::Recovery;
use crate::adapters::adapter::TaskState;
use crate::adapters::adapter::lists_no_vms;
use crate::adapters::adapter::preview_from_reads;
use crate::adapters::backup_listing::query_by_listing;
use crate::adapters::layers::lease_ended;
use crate::adapters::sim::Config;
use crate::adapters::sim::simulation;
use crate::model::Backup;
use crate::model::BackupId;
use crate::model::BackupKind;
use crate::model::BackupName;
use crate::model::BackupPage;
use crate::model::BackupQuery;
use crate::model::BackupSelection;
use crate::model::BackupState;
use crate::model::Deadline;
use crate::model::Evidence;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::Identity;
use crate::model::Intent;
use crate::model::NewBackup;
use crate::model::Page;
use crate::model::Preview;
use crate::model::Progress;
use crate::model::RequestKey;
use crate::model::Target;
use crate::model::TaskRef;
use crate::model::Timestamp;
use crate::model::Verb;
use crate::model::Vm;
use crate::model::VmId;
use crate::model::VmPage;
use crate::model::VmRange;
use crate::public_text;
use crate::runtime::lease;

/// Longest answer that is read.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// A simulator in another process, seen through the port.
#[derive(Debug)]
pub struct Remote {
    socket: PathBuf,
    capability: Capability,
    recovery: Recovery,
}

/// What is asked.
#[derive(Debug, Serialize)]
#[serde(tag = "call", rename_all = "kebab-case")]
enum RemoteCall<'a> {
    Health,
    Vm {
        vm: &'a VmId,
    },
    List {
        vm: &'a VmId,
        after: Option<&'a BackupId>,
        limit: u16,
    },
    Read {
        vm: &'a VmId,
        backup: &'a BackupId,
    },
    Position,
    Begin {
        key: u64,
        intent: &'a Intent,
    },
    Poll {
        task: &'a str,
    },
    Find {
        key: u64,
    },
    Log {
        since: u64,
    },
}

/// What is answered.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RemoteAnswer {
    Product(String),
    Here,
    Backup(RemoteBackup),
    Backups {
        backups: Vec<RemoteBackup>,
        more: bool,
    },
    Position(u64),
    Done,
    Task(String),
    Running(u8),
    Failed(FaultKind),
    Gone,
    Log(Vec<LogEntry>),
    Refused(FaultKind),
}

/// A backup over there.
#[derive(Debug, PartialEq, Eq, Deserialize)]
struct RemoteBackup {
    id: BackupId,
    identity: Identity,
    name: BackupName,
    created: Timestamp,
}

/// One line of the log of tasks.
#[derive(Debug, PartialEq, Eq, Deserialize)]
struct LogEntry {
    task: String,
    vm: VmId,
    backup: BackupId,
    verb: Verb,
}

impl From<RemoteBackup> for Backup {
    fn from(held: RemoteBackup) -> Self {
        Self {
            id: held.id,
            identity: held.identity,
            name: held.name,
            description: None,
            kind: Some(BackupKind::Snapshot),
            created: held.created,
            tags: Vec::new(),
            state: BackupState::Available,
            size: None,
            protected: false,
        }
    }
}

impl Remote {
    /// The simulator behind the socket of the configuration, which need not be there yet; `None` when it names none.
    #[must_use]
    pub fn new(config: &Config) -> Option<Self> {
        Some(Self {
            socket: config.simulator.clone()?,
            capability: simulation::capability(config),
            recovery: config.recovery,
        })
    }

    /// Asks once. Without a connection nothing was sent; after that, an answer that does not come says nothing.
    async fn ask(&self, request: &RemoteCall<'_>) -> Result<RemoteAnswer, AdapterError> {
        let mut line = serde_json::to_vec(request).map_err(|error| {
            AdapterError::refused(
                FaultKind::Invalid,
                public_text!("The request is too large for the simulator. Shorten its texts."),
            )
            .because(error)
        })?;
        line.push(b'\n');
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| {
            AdapterError::unavailable(public_text!(
                "The simulator is unreachable. Start it, then try again."
            ))
            .because(error)
        })?;
        // Connecting may have taken any time. Nothing waits between this and the write.
        lease::check_current().map_err(lease_ended)?;
        let answer = exchange(stream, &line).await.map_err(|error| {
            let text = public_text!("The simulator did not answer, and the outcome is being determined. Wait for the final Status.");
            AdapterError::uncertain(FaultKind::Unavailable, text).because(error)
        })?;
        if let RemoteAnswer::Refused(kind) = answer {
            return Err(AdapterError::refused(
                kind,
                public_text!(
                    "The simulator refused the request, and nothing was changed. Try again later."
                ),
            ));
        }
        Ok(answer)
    }

    /// The one task of the log since the baseline that can be this request.
    async fn search(&self, intent: &Intent, since: u64) -> Result<FindOutcome, AdapterError> {
        let answer = self.ask(&RemoteCall::Log { since }).await?;
        let RemoteAnswer::Log(log) = answer else {
            return Err(unexpected_answer(&answer));
        };
        let fits = |value: &LogEntry| {
            value.vm == intent.target.vm
                && value.backup == intent.target.backup
                && value.verb == intent.verb()
        };
        let mut fitting = log.into_iter().filter(fits);
        Ok(match (fitting.next(), fitting.next()) {
            (None, _) => FindOutcome::NotBegun,
            (Some(entry), None) => FindOutcome::Task(task(entry.task)?),
            (Some(_), Some(_)) => FindOutcome::Unknowable,
        })
    }
}

async fn exchange(stream: UnixStream, line: &[u8]) -> io::Result<RemoteAnswer> {
    let mut stream = BufReader::new(stream);
    stream.write_all(line).await?;
    stream.flush().await?;
    let mut answer = String::new();
    let mut limited = stream.take(ANSWER_BYTES_MAX);
    limited.read_line(&mut answer).await?;
    Ok(serde_json::from_str(&answer)?)
}

fn task(name: String) -> Result<TaskRef, AdapterError> {
    let too_long = || {
        let text = public_text!(
            "The simulator sent an invalid task id, and the outcome is being determined. Wait for the final Status."
        );
        AdapterError::uncertain(FaultKind::BackendFailed, text)
    };
    TaskRef::new(name).ok_or_else(too_long)
}

/// An answer to something else. What was asked for may have been done.
fn unexpected_answer(answer: &RemoteAnswer) -> AdapterError {
    let text = public_text!(
        "The simulator sent an unexpected answer, and the outcome is being determined. Wait for the final Status."
    );
    AdapterError::uncertain(FaultKind::BackendFailed, text).because(format!("{answer:?}"))
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "an answer to something else is nonsense, whatever it is"
)]
#[async_trait]
impl Adapter for Remote {
    fn capability(&self) -> &Capability {
        &self.capability
    }

    /// `b<number of the operation>`, as in memory.
    fn mint_backup_id(&self, _new: &NewBackup, key: RequestKey) -> Result<BackupId, AdapterError> {
        simulation::mint_backup_id(key)
    }

    async fn health(&self, _by: Deadline) -> Result<Health, AdapterError> {
        match self.ask(&RemoteCall::Health).await? {
            RemoteAnswer::Product(product) => Ok(Health { product }),
            answer => Err(unexpected_answer(&answer)),
        }
    }

    async fn read_vm(&self, vm: &VmId, _by: Deadline) -> Result<Vm, AdapterError> {
        match self.ask(&RemoteCall::Vm { vm }).await? {
            RemoteAnswer::Here => Ok(simulation::vm(vm)),
            answer => Err(unexpected_answer(&answer)),
        }
    }

    async fn list_vms(&self, _range: &VmRange, _by: Deadline) -> Result<VmPage, AdapterError> {
        Err(lists_no_vms())
    }

    async fn list_backups(
        &self,
        vm: &VmId,
        page: &Page,
        _by: Deadline,
    ) -> Result<BackupPage, AdapterError> {
        let (after, limit) = (page.after.as_ref(), page.limit);
        match self.ask(&RemoteCall::List { vm, after, limit }).await? {
            RemoteAnswer::Backups { backups, more } => Ok(BackupPage {
                backups: backups.into_iter().map(Backup::from).collect(),
                more,
            }),
            answer => Err(unexpected_answer(&answer)),
        }
    }

    async fn query_backups(
        &self,
        vm: &VmId,
        query: &BackupQuery,
        by: Deadline,
    ) -> Result<BackupSelection, AdapterError> {
        query_by_listing(self, vm, query, by).await
    }

    async fn read_backup(&self, target: &Target, _by: Deadline) -> Result<Backup, AdapterError> {
        let (vm, backup) = (&target.vm, &target.backup);
        match self.ask(&RemoteCall::Read { vm, backup }).await? {
            RemoteAnswer::Backup(held) => Ok(held.into()),
            answer => Err(unexpected_answer(&answer)),
        }
    }

    /// By reads alone: the process over there is not asked what it would do.
    async fn preview(&self, intent: &Intent, by: Deadline) -> Result<Preview, AdapterError> {
        preview_from_reads(self, intent, by).await
    }

    /// How long the log is.
    async fn baseline(
        &self,
        _intent: &Intent,
        _key: RequestKey,
        _by: Deadline,
    ) -> Result<Option<Evidence>, AdapterError> {
        match self.ask(&RemoteCall::Position).await? {
            RemoteAnswer::Position(at) => Ok(Evidence::new(at.to_string())),
            answer => Err(unexpected_answer(&answer)),
        }
    }

    async fn begin(
        &self,
        intent: &Intent,
        key: RequestKey,
        _baseline: Option<&Evidence>,
        _by: Deadline,
    ) -> Result<BeginOutcome, AdapterError> {
        let key = key.0.number();
        match self.ask(&RemoteCall::Begin { key, intent }).await? {
            RemoteAnswer::Done => Ok(BeginOutcome::Done),
            RemoteAnswer::Task(name) => task(name).map(BeginOutcome::Task),
            answer => Err(unexpected_answer(&answer)),
        }
    }

    async fn poll(&self, task: &TaskRef, _by: Deadline) -> Result<TaskState, AdapterError> {
        let task = task.as_str();
        match self.ask(&RemoteCall::Poll { task }).await? {
            RemoteAnswer::Running(percent) => {
                Ok(TaskState::Running(Some(Progress::unfinished(percent))))
            }
            RemoteAnswer::Done => Ok(TaskState::Done(None)),
            RemoteAnswer::Failed(kind) => Ok(TaskState::Failed(failed(kind))),
            RemoteAnswer::Gone => Ok(TaskState::Gone),
            answer => Err(unexpected_answer(&answer)),
        }
    }

    async fn find_outcome(
        &self,
        intent: &Intent,
        key: RequestKey,
        baseline: Option<&Evidence>,
        _by: Deadline,
    ) -> Result<FindOutcome, AdapterError> {
        match self.recovery {
            Recovery::ReplaySafe => {
                let key = key.0.number();
                match self.ask(&RemoteCall::Find { key }).await? {
                    RemoteAnswer::Task(name) => task(name).map(FindOutcome::Task),
                    RemoteAnswer::Done => Ok(FindOutcome::Done(None)),
                    RemoteAnswer::Failed(kind) => Ok(FindOutcome::Failed(failed(kind))),
                    RemoteAnswer::Gone => Ok(FindOutcome::NotBegun),
                    answer => Err(unexpected_answer(&answer)),
                }
            }
            Recovery::Listable => {
                let since = baseline.and_then(|baseline| u64::from_str(baseline.as_str()).ok());
                match since {
                    Some(since) => self.search(intent, since).await,
                    None => Ok(FindOutcome::Unknowable),
                }
            }
            Recovery::NoTrace => Ok(FindOutcome::Unknowable),
        }
    }

    async fn cancel(&self, _task: &TaskRef, _by: Deadline) -> Result<(), AdapterError> {
        let text = public_text!(
            "Tasks of a simulator over a socket cannot be cancelled. Wait for the end."
        );
        Err(AdapterError::refused(FaultKind::Unsupported, text))
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

    async fn changed(&self, _task: &TaskRef) {
        std::future::pending::<()>().await;
    }
}

fn failed(kind: FaultKind) -> Fault {
    Fault::new(
        kind,
        public_text!(
            "The task failed part-way, and its effects are unknown. Check the VM and its backups, then try again."
        ),
    )
}

#[cfg(test)]
mod tests {
    use std::io::BufRead;
    use std::io::Write;
    use std::os::unix::net::UnixListener;
    use std::time::Duration;

    use super::*;
    use crate::adapters::adapter::Effect;
    use crate::model::Change;
    use crate::model::OperationSeq;
    use crate::model::RestoreOptions;
    use crate::runtime::Clock;
    use crate::runtime::SystemClock;

    fn intent() -> Intent {
        Intent {
            target: Target {
                vm: VmId::new("1").unwrap(),
                backup: BackupId::new("456").unwrap(),
            },
            identity: Some(Identity::new("first".to_owned())),
            change: Change::Restore(RestoreOptions::default()),
        }
    }

    fn remote(socket: PathBuf, recovery: Recovery) -> Remote {
        let config = Config {
            simulator: Some(socket),
            recovery,
            ..Config::default()
        };
        Remote::new(&config).unwrap()
    }

    /// Answers one connection with this line, and gives back what was asked.
    fn answering(answer: &str) -> (tempfile::TempDir, PathBuf, std::thread::JoinHandle<String>) {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let answer = answer.to_owned();
        let serving = std::thread::Builder::new().spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = String::new();
            io::BufReader::new(stream.try_clone().unwrap())
                .read_line(&mut asked)
                .unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            asked
        });
        (folder, socket, serving.unwrap())
    }

    #[tokio::test]
    async fn a_begin_that_got_no_clear_answer_may_have_had_an_effect() {
        let cases: &[(&str, &str, Result<&str, Effect>)] = &[
            ("a task", "{\"task\":\"7\"}\n", Ok("Task(TaskRef(\"7\"))")),
            ("done at once", "\"done\"\n", Ok("Done")),
            ("refused", "{\"refused\":\"busy\"}\n", Err(Effect::None)),
            ("closed without a word", "", Err(Effect::Possible)),
            ("no JSON", "what?\n", Err(Effect::Possible)),
            (
                "answer to something else",
                "{\"position\":3}\n",
                Err(Effect::Possible),
            ),
        ];
        let key = RequestKey(OperationSeq::new(9).unwrap());
        let by = SystemClock.deadline(Duration::from_secs(60));
        for (name, answer, expected) in cases {
            let (_folder, socket, serving) = answering(answer);
            let remote = remote(socket, Recovery::ReplaySafe);
            let begun = remote.begin(&intent(), key, None, by).await;
            let seen = begun
                .map(|begun| format!("{begun:?}"))
                .map_err(|error| error.effect);
            assert_eq!(seen, expected.map(str::to_owned), "{name}");
            let asked = serving.join().unwrap();
            assert!(
                asked.starts_with("{\"call\":\"begin\",\"key\":9,\"intent\":{"),
                "{name}: {asked}"
            );
        }
        let remote = remote(PathBuf::from("/nowhere/socket"), Recovery::ReplaySafe);
        let error = remote.begin(&intent(), key, None, by).await.unwrap_err();
        assert_eq!(error.effect, Effect::None, "nothing was sent");
    }

    #[tokio::test]
    async fn a_log_is_evidence_only_when_one_task_fits() {
        let entry = |task: u32, vm: &str, verb: &str| {
            format!(
                "{{\"task\":\"{task}\",\"vm\":\"{vm}\",\"backup\":\"456\",\"verb\":\"{verb}\"}}"
            )
        };
        let (mine, other, update) = (
            entry(5, "1", "restore"),
            entry(6, "2", "restore"),
            entry(7, "1", "update"),
        );
        let cases = [
            ("empty", String::new(), "NotBegun"),
            ("others", format!("{other},{update}"), "NotBegun"),
            ("one", format!("{other},{mine}"), "Task(TaskRef(\"5\"))"),
            ("two", format!("{mine},{mine}"), "Unknowable"),
        ];
        let key = RequestKey(OperationSeq::new(9).unwrap());
        let by = SystemClock.deadline(Duration::from_secs(60));
        let baseline = Evidence::new("4".to_owned());
        for (name, log, expected) in cases {
            let (_folder, socket, serving) = answering(&format!("{{\"log\":[{log}]}}\n"));
            let remote = remote(socket, Recovery::Listable);
            let found = remote
                .find_outcome(&intent(), key, baseline.as_ref(), by)
                .await;
            assert_eq!(format!("{:?}", found.unwrap()), expected, "{name}");
            let asked = serving.join().unwrap();
            assert_eq!(asked, "{\"call\":\"log\",\"since\":4}\n", "{name}");
        }
        let remote = remote(PathBuf::from("/nowhere/socket"), Recovery::Listable);
        let found = remote.find_outcome(&intent(), key, None, by).await.unwrap();
        assert!(
            matches!(found, FindOutcome::Unknowable),
            "no baseline: {found:?}"
        );
    }
}
