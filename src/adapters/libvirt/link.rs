//! A connection that is made when it is needed, and made again, with growing pauses, when it was lost.

use std::time::Duration;
use std::time::Instant;

use std::sync::Arc;

use tokio::sync::Mutex;

use crate::adapters::libvirt::config::Config;
use crate::adapters::libvirt::rpc::Connection;
use crate::adapters::libvirt::rpc::Program;
use crate::adapters::libvirt::rpc::RpcError;
use crate::adapters::libvirt::xdr::Reader;
use crate::adapters::libvirt::xdr::Writer;
use crate::model::Deadline;
use crate::runtime::Clock;
use crate::runtime::Tasks;

/// Time to connect and open: a daemon that is alive needs milliseconds.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after the first attempt that failed; doubled after each further one.
const PAUSE: Duration = Duration::from_millis(50);
/// Longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Most kinds of authentication a daemon offers (its `REMOTE_AUTH_TYPE_LIST_MAX`).
const AUTH_KINDS_MAX: u32 = 20;
const AUTH_NONE: u32 = 0;
const AUTH_POLKIT: u32 = 2;

const OPEN: u32 = 1;
const AUTH_LIST: u32 = 66;
const POLKIT: u32 = 70;

/// A connection that is made when it is needed.
#[derive(Debug)]
pub(crate) struct ReconnectingLink {
    config: Config,
    clock: Arc<dyn Clock>,
    tasks: Tasks,
    state: Mutex<LinkState>,
}

#[derive(Debug, Default)]
struct LinkState {
    connection: Option<Arc<Connection>>,
    failures: u32,
    not_before: Option<Instant>,
    why: String,
}

impl ReconnectingLink {
    /// Not connected yet.
    pub(crate) fn new(config: Config, clock: Arc<dyn Clock>, tasks: Tasks) -> Self {
        Self {
            config,
            clock,
            tasks,
            state: Mutex::default(),
        }
    }

    /// Makes one call, on a new connection if need be. A call that was sent is never sent again.
    ///
    /// # Errors
    /// [`RpcError`].
    pub(crate) async fn call(
        &self,
        program: Program,
        procedure: u32,
        arguments: &[u8],
        by: Deadline,
    ) -> Result<Vec<u8>, RpcError> {
        let at = tokio::time::Instant::from_std(by.instant());
        let connection = tokio::time::timeout_at(at, self.connection())
            .await
            .unwrap_or(Err(RpcError::NotSent))?;
        connection.call(program, procedure, arguments, by).await
    }

    /// Whether the daemon itself is at the other end of the socket, on this host.
    pub(crate) async fn is_local(&self, by: Deadline) -> Result<bool, RpcError> {
        let at = tokio::time::Instant::from_std(by.instant());
        let connection = tokio::time::timeout_at(at, self.connection())
            .await
            .unwrap_or(Err(RpcError::NotSent))?;
        Ok(connection.is_local())
    }

    async fn connection(&self) -> Result<Arc<Connection>, RpcError> {
        let mut state = self.state.lock().await;
        if let Some(connection) = state
            .connection
            .as_ref()
            .filter(|connection| connection.is_open())
        {
            return Ok(Arc::clone(connection));
        }
        state.connection = None;
        let now = self.clock.instant();
        if state.not_before.is_some_and(|not_before| now < not_before) {
            return Err(RpcError::Unreachable(state.why.clone()));
        }
        match self.open().await {
            Ok(connection) => {
                let connection = Arc::new(connection);
                *state = LinkState {
                    connection: Some(Arc::clone(&connection)),
                    ..LinkState::default()
                };
                Ok(connection)
            }
            Err(error) => {
                let pause = PAUSE
                    .saturating_mul(1 << state.failures.min(8))
                    .min(PAUSE_MAX);
                state.failures = state.failures.saturating_add(1);
                state.not_before = self.clock.instant().checked_add(pause);
                state.why = error.to_string();
                Err(error)
            }
        }
    }

    /// Connects, authenticates and opens the driver. Whatever fails here was not the call itself.
    async fn open(&self) -> Result<Connection, RpcError> {
        let by = self.clock.deadline(OPEN_TIMEOUT);
        let config = &self.config;
        let connection = Connection::open(&config.socket, config.keepalive, &self.tasks)
            .await
            .map_err(|error| RpcError::Unreachable(error.to_string()))?;
        self.greet(&connection, by)
            .await
            .map_err(|error| match error {
                RpcError::NotSent
                | RpcError::TimedOut
                | RpcError::Lost(_)
                | RpcError::Malformed(_) => RpcError::Unreachable(error.to_string()),
                RpcError::Unreachable(_)
                | RpcError::Authentication(_)
                | RpcError::Arguments(_)
                | RpcError::Native { .. } => error,
            })?;
        Ok(connection)
    }

    async fn greet(&self, connection: &Connection, by: Deadline) -> Result<(), RpcError> {
        let kinds = connection.call(Program::Remote, AUTH_LIST, &[], by).await?;
        let mut reader = Reader::new(&kinds);
        let mut offered = Vec::new();
        for _ in 0..reader.count(AUTH_KINDS_MAX)? {
            offered.push(reader.u32()?);
        }
        if !offered.is_empty() && !offered.contains(&AUTH_NONE) {
            if !offered.contains(&AUTH_POLKIT) {
                let kind = offered.first().copied().unwrap_or_default();
                return Err(RpcError::Authentication(kind));
            }
            connection.call(Program::Remote, POLKIT, &[], by).await?;
        }
        let uri = Writer::default()
            .u32(1)
            .string(&self.config.uri)
            .map_err(RpcError::Arguments)?
            .u32(0)
            .into_bytes();
        connection.call(Program::Remote, OPEN, &uri, by).await?;
        Ok(())
    }
}
