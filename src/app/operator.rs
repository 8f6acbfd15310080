//! What operators may do while the gateway runs, and the file by which they find it.
//!
//! Whoever may read the store of operations may do with a stopped gateway what this offers of a running one. The file
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

use async_trait::async_trait;
use serde::Deserialize;
use serde::Serialize;
use serde_json::Value;
use serde_json::json;
use subtle::ConstantTimeEq;

use crate::listener::Operator;
use crate::listener::OperatorError;
use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::Secret;
use crate::model::Showing;
use crate::operations::DeskError;
use crate::operations::Operations;
use crate::operations::View;
use crate::runtime::Clock;
use crate::telemetry;
use crate::telemetry::AuditRecord;

/// Where a gateway at work is spoken to, and by what right.
#[derive(Debug)]
pub struct OperatorAccess {
    /// The admin port.
    pub address: SocketAddr,
    /// The token of the process.
    pub token: Secret,
}

#[derive(Serialize, Deserialize)]
struct Written {
    address: SocketAddr,
    token: String,
}

impl OperatorAccess {
    /// Reads what the gateway at work wrote.
    ///
    /// # Errors
    /// When there is no such file, it may not be read, or it is something else.
    pub fn read(file: &Path) -> io::Result<Self> {
        let text = std::fs::read_to_string(file)?;
        let it: Written = serde_json::from_str(&text)?;
        Ok(Self {
            address: it.address,
            token: Secret::new(it.token),
        })
    }

    /// Readable by this user alone from its first byte on, and whole or not there.
    fn write(&self, file: &Path) -> io::Result<()> {
        let mut new = file.as_os_str().to_owned();
        new.push(".new");
        let new = PathBuf::from(new);
        let written = Written {
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
pub(crate) struct Bench {
    operations: Arc<Operations>,
    clock: Arc<dyn Clock>,
    token: Secret,
    file: PathBuf,
}

impl Bench {
    /// Draws a token.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub(crate) fn new(
        operations: Arc<Operations>,
        clock: Arc<dyn Clock>,
        file: PathBuf,
    ) -> Result<Self, getrandom::Error> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed)?;
        Ok(Self {
            operations,
            clock,
            token: Secret::new(blake3::Hash::from_bytes(seed).to_hex().to_string()),
            file,
        })
    }

    /// Tells operators where to ask. A gateway that cannot (its disk is full, say) works all the same.
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
            tracing::warn!(%error, file = %self.file.display(), "operators cannot be told where to ask");
        }
    }

    /// Nobody is to be found here any more.
    pub(crate) fn close(&self) {
        if let Err(error) = std::fs::remove_file(&self.file) {
            tracing::debug!(%error, "file for operators not removed");
        }
    }
}

fn told(error: &DeskError) -> OperatorError {
    let text = error.to_string();
    match error {
        DeskError::NoSuchOperation(_) => OperatorError::NoSuchOperation(text),
        DeskError::NotUnknown(..) | DeskError::NotCancellable(..) => OperatorError::Conflict(text),
        DeskError::Absent(_) | DeskError::Open(_) | DeskError::Store(_) => {
            OperatorError::Unavailable(text)
        }
    }
}

fn shown(operation: &Operation) -> Value {
    json!(View::from(operation))
}

/// The record of an operator's decision in the audit trail. Its author is known only as one who may read the store.
pub fn trail_decision(clock: &dyn Clock, action: &'static str, operation: &Operation) {
    telemetry::audit(&AuditRecord {
        time: clock.now(),
        principal: None,
        token: None,
        client: None,
        action,
        backend: Some(operation.backend.as_str()),
        vm: operation.target().vm.as_str(),
        backup: Some(operation.target().backup.as_str()),
        note: None,
        outcome: "accepted",
        code: None,
        operation: Some(operation.seq.number()),
        request: "",
    });
}

#[async_trait]
impl Operator for Bench {
    fn is_token(&self, token: &[u8]) -> bool {
        self.token.reveal().as_bytes().ct_eq(token).into()
    }

    async fn list(
        &self,
        showing: Showing,
        before: Option<OperationSeq>,
        limit: u16,
    ) -> Result<Vec<Value>, OperatorError> {
        let found = self.operations.look(showing, before, limit.into()).await;
        let found = found.map_err(|it| told(&it))?;
        Ok(found.iter().map(|it| shown(it)).collect())
    }

    async fn show(&self, seq: OperationSeq) -> Result<Value, OperatorError> {
        let found = self.operations.show(seq).await.map_err(|it| told(&it))?;
        Ok(shown(&found))
    }

    async fn acknowledge(&self, seq: OperationSeq) -> Result<Value, OperatorError> {
        let done = self
            .operations
            .acknowledge(seq)
            .await
            .map_err(|it| told(&it))?;
        if done.is_new {
            trail_decision(&*self.clock, "acknowledge", &done.operation);
        }
        Ok(shown(&done.operation))
    }

    async fn cancel(&self, seq: OperationSeq) -> Result<Value, OperatorError> {
        let done = self
            .operations
            .cancel_by_operator(seq)
            .await
            .map_err(|error| told(&error))?;
        if done.is_new {
            trail_decision(&*self.clock, "cancel", &done.operation);
        }
        Ok(shown(&done.operation))
    }
}
