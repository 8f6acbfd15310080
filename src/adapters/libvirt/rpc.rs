//! libvirt's RPC over a unix socket: frames, many calls on one connection, keepalive.
//!
//! A connection has two tasks, a reader and a writer. Either ends when the other does, when the daemon gives no
//! sign of life, or when the last handle is dropped; every call that waits then learns that the connection is lost.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use parking_lot::MutexGuard;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio::sync::mpsc;
use tokio::sync::oneshot;

use crate::adapters::libvirt::xdr::Reader;
use crate::adapters::libvirt::xdr::Writer;
use crate::adapters::libvirt::xdr::XdrError;
use crate::model::Deadline;
use crate::runtime::Stop;
use crate::runtime::Tasks;
use crate::runtime::stop_pair;

/// Bytes of a frame's head: length, program, version, procedure, type, serial, status.
const HEAD_BYTES: u32 = 28;
/// Largest frame taken: a list of all snapshots libvirt allows of one VM fits.
const FRAME_BYTES_MAX: u32 = 16 * 1024 * 1024;
/// Calls on one connection at once: libvirtd stops reading, signs of life included, at five.
const CALLS_MAX: usize = 4;
/// Frames that may wait to be written: every call, and answers to pings.
const FRAMES_MAX: usize = 16;
/// Signs of life that may be missing.
const SILENCE_MAX: u32 = 4;

const KEEPALIVE: u32 = 0x6b65_6570;
const PING: u32 = 1;
const PONG: u32 = 2;
const TYPE_CALL: u32 = 0;
const TYPE_REPLY: u32 = 1;
const TYPE_EVENT: u32 = 2;

/// The sets of procedures that are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    /// The calls of every driver.
    Remote,
    /// The calls of the QEMU driver alone.
    Qemu,
}

impl Program {
    const fn number(self) -> u32 {
        match self {
            Self::Remote => 0x2000_8086,
            Self::Qemu => 0x2000_8087,
        }
    }
}

/// Why a call has no result.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum RpcError {
    /// The daemon cannot be reached. Nothing was sent.
    #[error("the daemon cannot be reached: {0}")]
    Unreachable(String),
    /// The daemon wants credentials in a way that is not supported. Nothing was sent.
    #[error("the daemon wants authentication of kind {0}")]
    Authentication(u32),
    /// The deadline passed before the call was sent.
    #[error("the deadline passed before the call was sent")]
    NotSent,
    /// The deadline passed; the daemon may still be at it.
    #[error("the deadline passed before the answer came")]
    TimedOut,
    /// The connection ended before the answer came.
    #[error("the connection ended: {0}")]
    Lost(String),
    /// The arguments cannot be sent.
    #[error("the arguments cannot be sent")]
    Arguments(#[source] XdrError),
    /// The answer makes no sense.
    #[error("the answer makes no sense")]
    Malformed(#[from] XdrError),
    /// The daemon said no.
    #[error("libvirt error {code}: {message}")]
    Native {
        /// libvirt's number for it.
        code: u32,
        /// What libvirt says about it, for the log.
        message: String,
    },
}

impl RpcError {
    /// The daemon's own number, if it answered with one.
    pub(crate) const fn code(&self) -> Option<u32> {
        match self {
            Self::Native { code, .. } => Some(*code),
            Self::Unreachable(_)
            | Self::Authentication(_)
            | Self::NotSent
            | Self::TimedOut
            | Self::Lost(_)
            | Self::Arguments(_)
            | Self::Malformed(_) => None,
        }
    }

    /// Whether the call may have been carried out although there is no answer.
    pub(crate) const fn may_have_happened(&self) -> bool {
        match self {
            Self::TimedOut | Self::Lost(_) | Self::Malformed(_) => true,
            Self::Unreachable(_)
            | Self::Authentication(_)
            | Self::NotSent
            | Self::Arguments(_)
            | Self::Native { .. } => false,
        }
    }
}

type Answer = Result<Vec<u8>, RpcError>;

/// A call that waits. The permit is held until the answer comes, even if the caller has gone away.
#[derive(Debug)]
struct Waiting {
    answer: oneshot::Sender<Answer>,
    _slot: OwnedSemaphorePermit,
}

/// What both tasks and the callers share.
#[derive(Debug, Default)]
struct Shared {
    /// `None` once the connection is lost.
    waiting: Mutex<Option<BTreeMap<u32, Waiting>>>,
    /// Signs of life asked for and not seen since.
    silence: AtomicU32,
}

impl Shared {
    fn add(&self, serial: u32, call: Waiting) -> bool {
        match &mut *self.lock() {
            Some(waiting) => {
                waiting.insert(serial, call);
                true
            }
            None => false,
        }
    }

    fn take(&self, serial: u32) -> Option<Waiting> {
        self.lock().as_mut()?.remove(&serial)
    }

    fn close(&self, why: &str) {
        let waiting = self.lock().take();
        for call in waiting.into_iter().flatten().map(|(_, call)| call) {
            // The caller may have given up.
            drop(call.answer.send(Err(RpcError::Lost(why.to_owned()))));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<BTreeMap<u32, Waiting>>> {
        self.waiting.lock()
    }
}

/// One connection. Calls may be made on it side by side.
#[derive(Debug)]
pub(crate) struct Connection {
    frames: mpsc::Sender<Vec<u8>>,
    shared: Arc<Shared>,
    slots: Arc<Semaphore>,
    serial: AtomicU32,
    is_local: bool,
}

/// Whether libvirt's daemon itself, or systemd on its behalf, made the socket, and not a program that forwards it.
fn is_daemon(stream: &UnixStream) -> bool {
    const DAEMONS: [&str; 4] = ["libvirtd", "virtqemud", "virtproxyd", "systemd"];
    let peer = stream.peer_cred().ok().and_then(|peer| peer.pid());
    let name = peer.and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/comm")).ok());
    name.is_some_and(|name| DAEMONS.contains(&name.trim()))
}

impl Connection {
    /// Connects; nothing is said yet.
    ///
    /// # Errors
    /// When there is no such socket, or nothing listens on it.
    pub(crate) async fn open(
        socket: &Path,
        keepalive: Duration,
        tasks: &Tasks,
    ) -> io::Result<Self> {
        let stream = UnixStream::connect(socket).await?;
        let is_local = is_daemon(&stream);
        let (input, output) = stream.into_split();
        let (frames, queue) = mpsc::channel(FRAMES_MAX);
        let shared = Arc::new(Shared {
            waiting: Mutex::new(Some(BTreeMap::new())),
            silence: AtomicU32::new(0),
        });
        let (stopper, stop) = stop_pair();
        let reader = Input {
            stream: input,
            shared: Arc::clone(&shared),
            frames: frames.downgrade(),
        };
        drop(tasks.spawn(async move { reader.run(stop).await }));
        let writer = Output {
            stream: output,
            shared: Arc::clone(&shared),
            keepalive,
        };
        drop(tasks.spawn(async move {
            writer.run(queue).await;
            stopper.stop();
        }));
        Ok(Self {
            frames,
            shared,
            slots: Arc::new(Semaphore::new(CALLS_MAX)),
            serial: AtomicU32::new(1),
            is_local,
        })
    }

    /// Whether the daemon itself is at the other end, on this host.
    pub(crate) const fn is_local(&self) -> bool {
        self.is_local
    }

    /// Whether calls can still be made.
    pub(crate) fn is_open(&self) -> bool {
        !self.frames.is_closed() && self.shared.lock().is_some()
    }

    /// Makes one call and waits for its answer. Dropping the future does not take the call back.
    ///
    /// # Errors
    /// [`RpcError`]; [`RpcError::may_have_happened`] says whether the call may have been carried out.
    pub(crate) async fn call(
        &self,
        program: Program,
        procedure: u32,
        arguments: &[u8],
        by: Deadline,
    ) -> Answer {
        let at = tokio::time::Instant::from_std(by.instant());
        let slot = match tokio::time::timeout_at(at, Arc::clone(&self.slots).acquire_owned()).await
        {
            Ok(Ok(slot)) => slot,
            Ok(Err(_closed)) => return Err(RpcError::Unreachable("closed".to_owned())),
            Err(_elapsed) => return Err(RpcError::NotSent),
        };
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let frame = frame(program.number(), procedure, TYPE_CALL, serial, arguments)
            .map_err(RpcError::Arguments)?;
        let (answer, wait) = oneshot::channel();
        // The permit is given back with the answer: the daemon counts calls whose caller has gone away, too.
        let call = Waiting {
            answer,
            _slot: slot,
        };
        if !self.shared.add(serial, call) {
            return Err(RpcError::Unreachable("the connection has ended".to_owned()));
        }
        if let Err(error) = self.frames.try_send(frame) {
            drop(self.shared.take(serial));
            return Err(RpcError::Unreachable(error.to_string()));
        }
        match tokio::time::timeout_at(at, wait).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_dropped)) => Err(RpcError::Lost("the connection has ended".to_owned())),
            Err(_elapsed) => Err(RpcError::TimedOut),
        }
    }
}

/// The half that writes: calls, answers to pings, and pings.
struct Output {
    stream: OwnedWriteHalf,
    shared: Arc<Shared>,
    keepalive: Duration,
}

impl Output {
    async fn run(mut self, mut queue: mpsc::Receiver<Vec<u8>>) {
        let why = self.write_all(&mut queue).await;
        queue.close();
        self.shared.close(&why);
    }

    /// Returns why it ended.
    async fn write_all(&mut self, queue: &mut mpsc::Receiver<Vec<u8>>) -> String {
        let mut ticks = tokio::time::interval(self.keepalive.max(Duration::from_millis(1)));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        ticks.tick().await;
        let patience = self.keepalive.saturating_mul(SILENCE_MAX);
        loop {
            let frame = tokio::select! {
                frame = queue.recv() => match frame {
                    Some(frame) => frame,
                    None => return "closed".to_owned(),
                },
                _ = ticks.tick() => {
                    if self.shared.lock().is_none() {
                        return "closed by the daemon".to_owned();
                    }
                    if self.shared.silence.fetch_add(1, Ordering::Relaxed) >= SILENCE_MAX {
                        return "the daemon gives no sign of life".to_owned();
                    }
                    match frame(KEEPALIVE, PING, TYPE_EVENT, 0, &[]) {
                        Ok(ping) => ping,
                        Err(error) => return error.to_string(),
                    }
                }
            };
            match tokio::time::timeout(patience, self.stream.write_all(&frame)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return error.to_string(),
                Err(_elapsed) => return "the daemon reads nothing".to_owned(),
            }
        }
    }
}

/// The half that reads, and hands every answer to the call that waits for it.
struct Input {
    stream: OwnedReadHalf,
    shared: Arc<Shared>,
    frames: mpsc::WeakSender<Vec<u8>>,
}

impl Input {
    async fn run(mut self, stop: Stop) {
        let why = tokio::select! {
            why = self.read_all() => why,
            () = stop.given() => "closed".to_owned(),
        };
        self.shared.close(&why);
    }

    /// Returns why it ended.
    async fn read_all(&mut self) -> String {
        loop {
            let bytes = match self.frame().await {
                Ok(bytes) => bytes,
                Err(error) => return error.to_string(),
            };
            self.shared.silence.store(0, Ordering::Relaxed);
            if let Err(error) = self.take(&bytes) {
                return error.to_string();
            }
        }
    }

    /// One frame without its length.
    async fn frame(&mut self) -> io::Result<Vec<u8>> {
        let length = self.stream.read_u32().await?;
        if !(HEAD_BYTES..=FRAME_BYTES_MAX).contains(&length) {
            return Err(io::Error::other(format!("a frame of {length} bytes")));
        }
        let body = length.saturating_sub(4);
        // Grows with what arrives, not with what is promised.
        let mut bytes = Vec::new();
        let read = (&mut self.stream)
            .take(u64::from(body))
            .read_to_end(&mut bytes)
            .await?;
        if u32::try_from(read) == Ok(body) {
            Ok(bytes)
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }

    fn take(&self, bytes: &[u8]) -> Result<(), XdrError> {
        let mut reader = Reader::new(bytes);
        let (program, _version, procedure) = (reader.u32()?, reader.u32()?, reader.u32()?);
        let (kind, serial, status) = (reader.u32()?, reader.u32()?, reader.u32()?);
        if program == KEEPALIVE {
            if procedure == PING
                && let Some(frames) = self.frames.upgrade()
            {
                let pong = frame(KEEPALIVE, PONG, TYPE_EVENT, 0, &[])?;
                // Full only while calls wait to be written, and those are signs of life too.
                drop(frames.try_send(pong));
            }
            return Ok(());
        }
        if kind != TYPE_REPLY {
            return Ok(());
        }
        let Some(waiting) = self.shared.take(serial) else {
            return Ok(());
        };
        let answer = if status == 0 {
            Ok(reader.rest().to_vec())
        } else {
            Err(native(&mut reader).unwrap_or_else(RpcError::Malformed))
        };
        // The caller may have stopped waiting.
        drop(waiting.answer.send(answer));
        Ok(())
    }
}

/// The start of libvirt's `remote_error`: code, domain, message.
fn native(reader: &mut Reader<'_>) -> Result<RpcError, XdrError> {
    let (code, _domain) = (reader.u32()?, reader.u32()?);
    let message = reader.optional_string()?.unwrap_or_default();
    Ok(RpcError::Native { code, message })
}

fn frame(
    program: u32,
    procedure: u32,
    kind: u32,
    serial: u32,
    body: &[u8],
) -> Result<Vec<u8>, XdrError> {
    let bytes = u32::try_from(body.len())
        .ok()
        .and_then(|bytes| bytes.checked_add(HEAD_BYTES))
        .filter(|bytes| *bytes <= FRAME_BYTES_MAX)
        .ok_or(XdrError::LongString(u32::MAX))?;
    let head = Writer::default()
        .u32(bytes)
        .u32(program)
        .u32(1)
        .u32(procedure)
        .u32(kind)
        .u32(serial)
        .u32(0);
    Ok(head.fixed(body).into_bytes())
}
