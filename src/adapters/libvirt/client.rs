//! libvirt's own calls, typed. Numbers and layouts: libvirt's `remote_protocol.x` and `qemu_protocol.x`.

use std::sync::Arc;

use crate::adapters::libvirt::config::Config;
use crate::adapters::libvirt::link::Link;
use crate::adapters::libvirt::rpc::Program;
use crate::adapters::libvirt::rpc::RpcError;
use crate::adapters::libvirt::xdr::Reader;
use crate::adapters::libvirt::xdr::Writer;
use crate::adapters::libvirt::xdr::XdrError;
use crate::model::Deadline;
use crate::runtime::Clock;
use crate::runtime::Tasks;

/// Procedures of the remote program.
mod procedure {
    pub(super) const TYPE: u32 = 3;
    pub(super) const VERSION: u32 = 4;
    pub(super) const DOMAIN_DESTROY: u32 = 12;
    pub(super) const DOMAIN_XML: u32 = 14;
    pub(super) const DOMAIN_BY_NAME: u32 = 23;
    pub(super) const DOMAIN_BY_UUID: u32 = 24;
    pub(super) const LIBRARY_VERSION: u32 = 157;
    pub(super) const JOB_INFO: u32 = 163;
    pub(super) const SNAPSHOT_CREATE: u32 = 185;
    pub(super) const SNAPSHOT_XML: u32 = 186;
    pub(super) const SNAPSHOT_BY_NAME: u32 = 189;
    pub(super) const SNAPSHOT_CURRENT: u32 = 191;
    pub(super) const SNAPSHOT_REVERT: u32 = 192;
    pub(super) const SNAPSHOT_DELETE: u32 = 193;
    pub(super) const DOMAIN_STATE: u32 = 212;
    pub(super) const SNAPSHOTS: u32 = 274;
    pub(super) const CHECKPOINTS: u32 = 413;
    /// The one call of the QEMU program.
    pub(super) const MONITOR: u32 = 1;
}

/// libvirt's error numbers that are told apart.
pub(crate) mod code {
    pub(crate) const INTERNAL: u32 = 1;
    pub(crate) const NO_SUPPORT: u32 = 3;
    pub(crate) const NO_CONNECT: u32 = 5;
    pub(crate) const ACCESS_DENIED: u32 = 88;
    pub(crate) const AUTH_CANCELLED: u32 = 79;
    pub(crate) const AUTH_FAILED: u32 = 45;
    pub(crate) const AUTH_UNAVAILABLE: u32 = 94;
    pub(crate) const CONFIG_UNSUPPORTED: u32 = 67;
    pub(crate) const NO_DOMAIN: u32 = 42;
    pub(crate) const NO_SNAPSHOT: u32 = 72;
    pub(crate) const OPERATION_DENIED: u32 = 29;
    pub(crate) const OPERATION_FAILED: u32 = 9;
    pub(crate) const OPERATION_INVALID: u32 = 55;
    pub(crate) const OPERATION_TIMEOUT: u32 = 68;
    pub(crate) const BLOCK_COPY_ACTIVE: u32 = 83;
    pub(crate) const OPERATION_UNSUPPORTED: u32 = 84;
    pub(crate) const RESOURCE_BUSY: u32 = 87;
    pub(crate) const REVERT_RISKY: u32 = 77;
}

/// Most snapshots libvirt lists of one VM (its `REMOTE_DOMAIN_SNAPSHOT_LIST_MAX`).
const SNAPSHOTS_MAX: u32 = 16_384;

/// Hands out the password of a display or a disk with the XML, so that it is not lost when it is written back.
const XML_SECURE: u32 = 1;

/// A VM as libvirt names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Domain {
    /// Its name.
    pub(crate) name: String,
    /// Its UUID.
    pub(crate) uuid: [u8; 16],
    /// Its number since the daemon first saw it run; another one after each start, -1 while it is off.
    pub(crate) id: i32,
}

impl Domain {
    fn write(&self, writer: Writer) -> Result<Writer, RpcError> {
        Ok(writer
            .string(&self.name)
            .map_err(RpcError::Arguments)?
            .fixed(&self.uuid)
            .i32(self.id))
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, XdrError> {
        Ok(Self {
            name: reader.string()?,
            uuid: reader.array()?,
            id: reader.i32()?,
        })
    }
}

/// A snapshot as libvirt names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// Its name within the VM.
    pub(crate) name: String,
    /// Its VM.
    pub(crate) domain: Domain,
}

impl Snapshot {
    fn arguments(&self) -> Result<Writer, RpcError> {
        let name = Writer::default()
            .string(&self.name)
            .map_err(RpcError::Arguments)?;
        self.domain.write(name)
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, XdrError> {
        Ok(Self {
            name: reader.string()?,
            domain: Domain::read(reader)?,
        })
    }
}

/// What a VM does and why, in libvirt's numbers (`virDomainState` and its reasons).
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct DomainState {
    /// What it does.
    pub(crate) state: i32,
    /// Why; what a number means depends on the state.
    pub(crate) reason: i32,
}

/// How a snapshot is reverted to, beside what it says itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RevertTo {
    /// The VM does what it did when the snapshot was made.
    AsSaved,
    /// It runs.
    Running,
    /// It is paused.
    Paused,
}

impl RevertTo {
    const fn flags(self) -> u32 {
        match self {
            Self::AsSaved => 0,
            Self::Running => 1,
            Self::Paused => 2,
        }
    }
}

/// The calls. Each kind has a connection of its own, so that long calls leave room for reads.
#[derive(Debug)]
pub(crate) struct Client {
    reads: Link,
    changes: Link,
    /// For the one question that waits for a VM to be free.
    waits: Link,
}

impl Client {
    /// Not connected yet.
    pub(crate) fn new(config: &Config, clock: &Arc<dyn Clock>, tasks: &Tasks) -> Self {
        let link = || Link::new(config.clone(), Arc::clone(clock), tasks.clone());
        Self {
            reads: link(),
            changes: link(),
            waits: link(),
        }
    }

    /// The driver's product and version, and the library's version.
    pub(crate) async fn product(&self, by: Deadline) -> Result<String, RpcError> {
        let kind = self.read(procedure::TYPE, Writer::default(), by).await?;
        let kind = Reader::new(&kind).string()?;
        let library = self
            .read(procedure::LIBRARY_VERSION, Writer::default(), by)
            .await?;
        let library = version(Reader::new(&library).u64()?);
        let driver = self.read(procedure::VERSION, Writer::default(), by).await?;
        let driver = version(Reader::new(&driver).u64()?);
        Ok(format!("{kind} {driver}, libvirt {library}"))
    }

    /// The VM of this name.
    pub(crate) async fn by_name(&self, name: &str, by: Deadline) -> Result<Domain, RpcError> {
        let name = Writer::default()
            .string(name)
            .map_err(RpcError::Arguments)?;
        let reply = self.read(procedure::DOMAIN_BY_NAME, name, by).await?;
        Ok(Domain::read(&mut Reader::new(&reply))?)
    }

    /// The VM of this UUID.
    pub(crate) async fn by_uuid(&self, uuid: [u8; 16], by: Deadline) -> Result<Domain, RpcError> {
        let uuid = Writer::default().fixed(&uuid);
        let reply = self.read(procedure::DOMAIN_BY_UUID, uuid, by).await?;
        Ok(Domain::read(&mut Reader::new(&reply))?)
    }

    /// What the VM does.
    pub(crate) async fn state(&self, of: &Domain, by: Deadline) -> Result<DomainState, RpcError> {
        let arguments = of.write(Writer::default())?.u32(0);
        let reply = self.read(procedure::DOMAIN_STATE, arguments, by).await?;
        let mut reader = Reader::new(&reply);
        Ok(DomainState {
            state: reader.i32()?,
            reason: reader.i32()?,
        })
    }

    /// The VM's definition as it is now.
    pub(crate) async fn domain_xml(&self, of: &Domain, by: Deadline) -> Result<String, RpcError> {
        let arguments = of.write(Writer::default())?.u32(0);
        let reply = self.read(procedure::DOMAIN_XML, arguments, by).await?;
        Ok(Reader::new(&reply).string()?)
    }

    /// All snapshots of the VM, in no order. One that is being made may be among them.
    pub(crate) async fn snapshots(
        &self,
        of: &Domain,
        by: Deadline,
    ) -> Result<Vec<Snapshot>, RpcError> {
        let arguments = of.write(Writer::default())?.u32(1).u32(0);
        let reply = self.read(procedure::SNAPSHOTS, arguments, by).await?;
        let mut reader = Reader::new(&reply);
        let count = reader.count(SNAPSHOTS_MAX)?;
        let all: Result<Vec<_>, _> = (0..count).map(|_| Snapshot::read(&mut reader)).collect();
        Ok(all?)
    }

    /// The snapshot of this name.
    pub(crate) async fn snapshot(
        &self,
        of: &Domain,
        name: &str,
        by: Deadline,
    ) -> Result<Snapshot, RpcError> {
        let arguments = of
            .write(Writer::default())?
            .string(name)
            .map_err(RpcError::Arguments)?
            .u32(0);
        let reply = self
            .read(procedure::SNAPSHOT_BY_NAME, arguments, by)
            .await?;
        Ok(Snapshot::read(&mut Reader::new(&reply))?)
    }

    /// The snapshot the VM was last made from or put back to, if there is one.
    pub(crate) async fn current(
        &self,
        of: &Domain,
        by: Deadline,
    ) -> Result<Option<String>, RpcError> {
        let arguments = of.write(Writer::default())?.u32(0);
        match self.read(procedure::SNAPSHOT_CURRENT, arguments, by).await {
            Ok(reply) => Ok(Some(Snapshot::read(&mut Reader::new(&reply))?.name)),
            Err(error) if error.code() == Some(code::NO_SNAPSHOT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All that libvirt keeps of a snapshot.
    pub(crate) async fn snapshot_xml(
        &self,
        of: &Snapshot,
        by: Deadline,
    ) -> Result<String, RpcError> {
        let arguments = of.arguments()?.u32(XML_SECURE);
        let reply = self.read(procedure::SNAPSHOT_XML, arguments, by).await?;
        Ok(Reader::new(&reply).string()?)
    }

    /// How many checkpoints the VM has; none where the driver knows no checkpoints.
    pub(crate) async fn checkpoints(&self, of: &Domain, by: Deadline) -> Result<u32, RpcError> {
        let arguments = of.write(Writer::default())?.u32(0).u32(0);
        match self.read(procedure::CHECKPOINTS, arguments, by).await {
            Ok(reply) => {
                let mut reader = Reader::new(&reply);
                reader.count(0)?;
                Ok(reader.u32()?)
            }
            Err(error) if error.code() == Some(code::NO_SUPPORT) => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Whether a job of libvirt's runs on the VM. Answers only when no snapshot is being made or put back.
    pub(crate) async fn has_job(&self, of: &Domain, by: Deadline) -> Result<bool, RpcError> {
        const NONE: i32 = 0;
        let arguments = of.write(Writer::default())?.into_bytes();
        let reply = self
            .waits
            .call(Program::Remote, procedure::JOB_INFO, &arguments, by)
            .await;
        match reply {
            Ok(reply) => Ok(Reader::new(&reply).i32()? != NONE),
            // Not for a VM that is off, nor for a driver without jobs.
            Err(error)
                if matches!(
                    error.code(),
                    Some(code::OPERATION_INVALID | code::NO_SUPPORT)
                ) =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// What QEMU answers to a command of its own; for questions only.
    pub(crate) async fn ask_qemu(
        &self,
        of: &Domain,
        command: &str,
        by: Deadline,
    ) -> Result<String, RpcError> {
        let arguments = of
            .write(Writer::default())?
            .string(command)
            .map_err(RpcError::Arguments)?
            .u32(0)
            .into_bytes();
        let reply = self
            .reads
            .call(Program::Qemu, procedure::MONITOR, &arguments, by)
            .await?;
        Ok(Reader::new(&reply).string()?)
    }

    /// Makes a snapshot.
    pub(crate) async fn create(
        &self,
        of: &Domain,
        xml: &str,
        by: Deadline,
    ) -> Result<(), RpcError> {
        self.write_snapshot(of, xml, 0, by).await
    }

    /// Writes back what libvirt keeps of a snapshot; the snapshot itself is not touched.
    pub(crate) async fn redefine(
        &self,
        of: &Domain,
        xml: &str,
        is_current: bool,
        by: Deadline,
    ) -> Result<(), RpcError> {
        const REDEFINE: u32 = 1;
        const CURRENT: u32 = 2;
        let flags = if is_current {
            REDEFINE | CURRENT
        } else {
            REDEFINE
        };
        self.write_snapshot(of, xml, flags, by).await
    }

    /// Puts the VM back.
    pub(crate) async fn revert(
        &self,
        to: &Snapshot,
        then: RevertTo,
        by: Deadline,
    ) -> Result<(), RpcError> {
        let arguments = to.arguments()?.u32(then.flags());
        self.change(procedure::SNAPSHOT_REVERT, arguments, by).await
    }

    /// Removes the snapshot alone, not those made after it.
    pub(crate) async fn delete(&self, it: &Snapshot, by: Deadline) -> Result<(), RpcError> {
        let arguments = it.arguments()?.u32(0);
        self.change(procedure::SNAPSHOT_DELETE, arguments, by).await
    }

    /// Switches the VM off at once.
    pub(crate) async fn destroy(&self, it: &Domain, by: Deadline) -> Result<(), RpcError> {
        let arguments = it.write(Writer::default())?;
        self.change(procedure::DOMAIN_DESTROY, arguments, by).await
    }

    async fn write_snapshot(
        &self,
        of: &Domain,
        xml: &str,
        flags: u32,
        by: Deadline,
    ) -> Result<(), RpcError> {
        let arguments = of
            .write(Writer::default())?
            .string(xml)
            .map_err(RpcError::Arguments)?
            .u32(flags);
        self.change(procedure::SNAPSHOT_CREATE, arguments, by).await
    }

    async fn read(&self, what: u32, arguments: Writer, by: Deadline) -> Result<Vec<u8>, RpcError> {
        let bytes = arguments.into_bytes();
        self.reads.call(Program::Remote, what, &bytes, by).await
    }

    async fn change(&self, what: u32, arguments: Writer, by: Deadline) -> Result<(), RpcError> {
        let bytes = arguments.into_bytes();
        self.changes
            .call(Program::Remote, what, &bytes, by)
            .await
            .map(drop)
    }
}

/// libvirt's one number for a version: millions, thousands, ones.
fn version(number: u64) -> String {
    let (major, minor) = (number / 1_000_000, number / 1000 % 1000);
    format!("{major}.{minor}.{}", number % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_split_as_libvirt_packs_them() {
        let rows = [(9_000_000, "9.0.0"), (7_002_022, "7.2.22"), (0, "0.0.0")];
        for (number, expected) in rows {
            assert_eq!(version(number), expected, "{number}");
        }
    }

    #[test]
    fn a_snapshot_is_written_as_it_is_read() {
        let snapshot = Snapshot {
            name: "snapgate-7".to_owned(),
            domain: Domain {
                name: "web01".to_owned(),
                uuid: *b"0123456789abcdef",
                id: -1,
            },
        };
        let bytes = snapshot.arguments().unwrap().into_bytes();
        let mut reader = Reader::new(&bytes);
        assert_eq!(Snapshot::read(&mut reader), Ok(snapshot), "the same");
        assert!(reader.rest().is_empty(), "nothing more");
    }
}
