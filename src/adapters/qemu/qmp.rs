//! A client of QEMU's machine protocol: one connection, unique ids, replies that are not ours dropped, job events followed.
//!
//! `snapshot-save` and `snapshot-load` run in QEMU's main loop, which answers nothing meanwhile, whereas events arrive
//! at once: the event confirms that such a job has started, and other commands fail as blocked until it ends.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::Value;
use serde_json::json;
use tokio::io::AsyncBufReadExt;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::io::BufReader;
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::Notify;
use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio::time::timeout_at;

use crate::adapters::qemu::disk::VmView;
use crate::adapters::qemu::error::QemuError;
use crate::adapters::qemu::own_names::OWN_PREFIX;
use crate::model::Deadline;
use crate::runtime::Tasks;

/// Longest line taken from QEMU: the nodes of a VM with thousands of snapshots are some MiB.
const LINE_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Commands that may wait to be written.
const COMMANDS_WAITING_MAX: usize = 64;
/// An unused connection is given up, so that others may use the monitor.
const IDLE: Duration = Duration::from_secs(10);

/// One line from QEMU.
#[derive(Debug, Deserialize)]
struct QmpMessage {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    event: Option<String>,
    data: Option<Value>,
    id: Option<String>,
    #[serde(rename = "return")]
    answer: Option<Value>,
    error: Option<ErrorReply>,
}

#[derive(Debug, Deserialize)]
struct ErrorReply {
    desc: String,
}

#[derive(Debug, Deserialize)]
struct JobChange {
    id: String,
    status: String,
}

/// One connection to the monitor of one QEMU.
#[derive(Debug)]
pub(super) struct Monitor {
    commands: mpsc::Sender<Vec<u8>>,
    shared: Arc<MonitorState>,
    prefix: String,
    next: AtomicU64,
    product: String,
}

/// What the connection's tasks and its users share.
#[derive(Debug)]
struct MonitorState {
    waiting: Mutex<BTreeMap<String, oneshot::Sender<Result<Value, QemuError>>>>,
    /// The last state of each job of ours, as events reported it.
    jobs: Mutex<BTreeMap<String, String>>,
    changed: Notify,
    closed: watch::Sender<bool>,
    /// The VM as it was last read, for while it cannot answer.
    view: Mutex<Option<Arc<VmView>>>,
}

impl Monitor {
    /// Connects and negotiates. A monitor serves one client at a time: another one gets no greeting.
    pub(super) async fn connect(
        socket: &Path,
        greeting: Duration,
        by: Deadline,
        tasks: &Tasks,
    ) -> Result<Arc<Self>, QemuError> {
        let stream = timeout(greeting, UnixStream::connect(socket)).await;
        let stream = stream
            .map_err(|_late| QemuError::MonitorHeld)?
            .map_err(|error| refused(&error))?;
        let (reader, writer) = stream.into_split();
        let mut lines = BufReader::new(reader);
        let first = timeout(greeting, read_line(&mut lines)).await;
        let hello = first.map_err(|_late| QemuError::MonitorHeld)??;
        let Some(hello) = hello.greeting else {
            return Err(QemuError::UnexpectedAnswer("no greeting".to_owned()));
        };
        let nonce =
            getrandom::u64().map_err(|error| QemuError::ConnectionLost(error.to_string()))?;
        let shared = Arc::new(MonitorState {
            waiting: Mutex::default(),
            jobs: Mutex::default(),
            changed: Notify::new(),
            closed: watch::Sender::new(false),
            view: Mutex::default(),
        });
        let (commands, waiting) = mpsc::channel(COMMANDS_WAITING_MAX);
        tasks.spawn(read_all(lines, Arc::clone(&shared)));
        tasks.spawn(write_all(writer, waiting, Arc::clone(&shared)));
        let made = Self {
            commands,
            shared,
            prefix: format!("snapgate-{nonce:016x}"),
            next: AtomicU64::new(0),
            product: product(&hello),
        };
        made.ask("qmp_capabilities", json!({}), by).await?;
        Ok(Arc::new(made))
    }

    /// Whether the connection has ended.
    pub(super) fn is_closed(&self) -> bool {
        *self.shared.closed.borrow()
    }

    /// For instance `QEMU 7.2.22`.
    pub(super) fn product(&self) -> &str {
        &self.product
    }

    /// Sends a command and waits for its answer.
    pub(super) async fn ask(
        &self,
        command: &str,
        arguments: Value,
        by: Deadline,
    ) -> Result<Value, QemuError> {
        let answer = timeout_at(by.instant().into(), self.send(command, arguments)).await;
        let answer = answer.map_err(|_late| QemuError::TimedOut)??;
        match timeout_at(by.instant().into(), answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_gone)) => Err(lost()),
            Err(_late) if self.is_blocked() => Err(QemuError::MainLoopBlocked),
            Err(_late) => Err(QemuError::TimedOut),
        }
    }

    /// Starts a job. Returns once QEMU has answered, or has reported by an event that the job exists.
    pub(super) async fn start(
        &self,
        command: &str,
        arguments: Value,
        job: &str,
        by: Deadline,
    ) -> Result<(), QemuError> {
        let work = async {
            let mut answer = self.send(command, arguments).await?;
            loop {
                let changed = self.shared.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if self.job(job).is_some() {
                    return Ok(());
                }
                tokio::select! {
                    answer = &mut answer => return answer.unwrap_or_else(|_gone| Err(lost())).map(|_| ()),
                    () = changed => {}
                }
            }
        };
        timeout_at(by.instant().into(), work)
            .await
            .unwrap_or(Err(QemuError::TimedOut))
    }

    /// The state of a job of ours as far as events reported it.
    pub(super) fn job(&self, job: &str) -> Option<String> {
        self.shared.jobs.lock().get(job).cloned()
    }

    /// Whether QEMU's main loop works on a snapshot and cannot answer.
    pub(super) fn is_blocked(&self) -> bool {
        self.shared
            .jobs
            .lock()
            .values()
            .any(|state| matches!(state.as_str(), "created" | "running"))
    }

    /// Returns when an event reports that some job has changed.
    pub(super) async fn changed(&self) {
        self.shared.changed.notified().await;
    }

    /// Keeps the VM as it was read.
    pub(super) fn cache_view(&self, view: Arc<VmView>) {
        *self.shared.view.lock() = Some(view);
    }

    /// The VM as it was last read.
    pub(super) fn cached_view(&self) -> Option<Arc<VmView>> {
        self.shared.view.lock().clone()
    }

    async fn send(
        &self,
        command: &str,
        arguments: Value,
    ) -> Result<oneshot::Receiver<Result<Value, QemuError>>, QemuError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let id = format!("{}-{number}", self.prefix);
        let line = json!({"execute": command, "arguments": arguments, "id": id});
        let (sender, answer) = oneshot::channel();
        self.shared.waiting.lock().insert(id.clone(), sender);
        // Whole lines only are handed over: a caller that goes away leaves no half of one behind.
        let sent = self.commands.send(format!("{line}\n").into_bytes()).await;
        if sent.is_err() || self.is_closed() {
            self.shared.waiting.lock().remove(&id);
            return Err(QemuError::NotRunning("the connection is closed".to_owned()));
        }
        Ok(answer)
    }
}

/// Why there is no connection.
fn refused(error: &std::io::Error) -> QemuError {
    let is = |kind| error.kind() == kind;
    let text = error.to_string();
    if is(ErrorKind::NotFound) || is(ErrorKind::ConnectionRefused) {
        QemuError::NotRunning(text)
    } else if is(ErrorKind::PermissionDenied) {
        QemuError::AccessDenied(text)
    } else if is(ErrorKind::WouldBlock) {
        // As many clients wait for a greeting as may.
        QemuError::MonitorHeld
    } else {
        QemuError::ConnectionLost(text)
    }
}

fn lost() -> QemuError {
    QemuError::ConnectionLost("before the answer".to_owned())
}

fn product(hello: &Value) -> String {
    let number = |part: &str| {
        hello
            .pointer(&format!("/version/qemu/{part}"))
            .and_then(Value::as_u64)
            .unwrap_or_default()
    };
    format!(
        "QEMU {}.{}.{}",
        number("major"),
        number("minor"),
        number("micro")
    )
}

async fn read_line(from: &mut BufReader<OwnedReadHalf>) -> Result<QmpMessage, QemuError> {
    let mut line = Vec::new();
    let read = from.take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await;
    read.map_err(|error| QemuError::ConnectionLost(error.to_string()))?;
    if line.last() != Some(&b'\n') {
        return Err(QemuError::ConnectionLost(
            "the end, or a line too long".to_owned(),
        ));
    }
    serde_json::from_slice(&line).map_err(|error| QemuError::UnexpectedAnswer(error.to_string()))
}

async fn read_all(mut lines: BufReader<OwnedReadHalf>, shared: Arc<MonitorState>) {
    let mut closed = shared.closed.subscribe();
    loop {
        let line = tokio::select! {
            line = read_line(&mut lines) => line,
            _ = closed.wait_for(|closed| *closed) => break,
        };
        match line {
            Ok(line) => shared.take(line),
            Err(QemuError::UnexpectedAnswer(why)) => {
                tracing::warn!(error = why, "unreadable line from QEMU ignored");
            }
            Err(_ended) => break,
        }
    }
    shared.close();
}

async fn write_all(
    mut writer: OwnedWriteHalf,
    mut commands: mpsc::Receiver<Vec<u8>>,
    shared: Arc<MonitorState>,
) {
    let mut closed = shared.closed.subscribe();
    loop {
        let next = tokio::select! {
            next = timeout(IDLE, commands.recv()) => next,
            _ = closed.wait_for(|closed| *closed) => break,
        };
        match next {
            Ok(Some(line)) if writer.write_all(&line).await.is_ok() => {}
            Err(_idle) if shared.has_work() => {}
            Ok(Some(_) | None) | Err(_) => break,
        }
    }
    shared.close();
}

impl MonitorState {
    fn take(&self, line: QmpMessage) {
        if let Some(event) = line.event {
            if event == "JOB_STATUS_CHANGE"
                && let Some(change) = line
                    .data
                    .and_then(|data| serde_json::from_value::<JobChange>(data).ok())
            {
                if !change.id.starts_with(OWN_PREFIX) {
                    return;
                }
                let mut jobs = self.jobs.lock();
                if change.status == "null" {
                    jobs.remove(&change.id);
                } else {
                    jobs.insert(change.id, change.status);
                }
                drop(jobs);
                self.changed.notify_waiters();
            }
            return;
        }
        // The reply to a client before us may be delivered to us: its id is not ours.
        let waiter = line.id.and_then(|id| self.waiting.lock().remove(&id));
        let Some(waiter) = waiter else {
            tracing::debug!("reply from QEMU to another client ignored");
            return;
        };
        let answer = match line.error {
            Some(error) => Err(QemuError::Refused(error.desc)),
            None => Ok(line.answer.unwrap_or_default()),
        };
        // The caller may have gone away.
        drop(waiter.send(answer));
    }

    fn has_work(&self) -> bool {
        let busy = self.jobs.lock().values().any(|state| state != "concluded");
        busy || !self.waiting.lock().is_empty()
    }

    fn close(&self) {
        self.closed.send_replace(true);
        self.waiting.lock().clear();
        self.changed.notify_waiters();
    }
}
