//! libvirt's own numbers and values: procedures, error numbers, VMs and snapshots as they travel.
//!
//! Source: libvirt's `remote_protocol.x`, `qemu_protocol.x` and `virterror.h`.

use crate::adapters::libvirt::rpc::RpcError;
use crate::adapters::libvirt::xdr::Reader;
use crate::adapters::libvirt::xdr::Writer;
use crate::adapters::libvirt::xdr::XdrError;

/// Procedures of the remote program.
pub(super) mod procedure {
    pub(crate) const TYPE: u32 = 3;
    pub(crate) const VERSION: u32 = 4;
    pub(crate) const DOMAIN_DESTROY: u32 = 12;
    pub(crate) const DOMAIN_XML: u32 = 14;
    pub(crate) const DOMAIN_BY_NAME: u32 = 23;
    pub(crate) const DOMAIN_BY_UUID: u32 = 24;
    pub(crate) const NETWORK_BY_NAME: u32 = 46;
    pub(crate) const POOL_BY_VOLUME: u32 = 86;
    pub(crate) const VOLUME_BY_PATH: u32 = 97;
    pub(crate) const VOLUME_XML: u32 = 99;
    pub(crate) const DOMAIN_IS_PERSISTENT: u32 = 151;
    pub(crate) const NETWORK_IS_ACTIVE: u32 = 152;
    pub(crate) const LIBRARY_VERSION: u32 = 157;
    pub(crate) const JOB_INFO: u32 = 163;
    pub(crate) const HAS_MANAGED_SAVE: u32 = 183;
    pub(crate) const REMOVE_MANAGED_SAVE: u32 = 184;
    pub(crate) const SNAPSHOT_CREATE: u32 = 185;
    pub(crate) const SNAPSHOT_XML: u32 = 186;
    pub(crate) const SNAPSHOT_BY_NAME: u32 = 189;
    pub(crate) const SNAPSHOT_CURRENT: u32 = 191;
    pub(crate) const SNAPSHOT_REVERT: u32 = 192;
    pub(crate) const SNAPSHOT_DELETE: u32 = 193;
    pub(crate) const BLOCK_INFO: u32 = 194;
    pub(crate) const DOMAIN_STATE: u32 = 212;
    pub(crate) const DOMAINS: u32 = 273;
    pub(crate) const SNAPSHOTS: u32 = 274;
    pub(crate) const VOLUMES: u32 = 282;
    pub(crate) const CHECKPOINTS: u32 = 413;
    /// The one call of the QEMU program.
    pub(crate) const MONITOR: u32 = 1;
}

/// libvirt's error numbers that are distinguished.
pub(crate) mod error_code {
    pub(crate) const INTERNAL: u32 = 1;
    pub(crate) const NO_SUPPORT: u32 = 3;
    pub(crate) const NO_CONNECT: u32 = 5;
    pub(crate) const ACCESS_DENIED: u32 = 88;
    pub(crate) const AUTH_CANCELLED: u32 = 79;
    pub(crate) const AUTH_FAILED: u32 = 45;
    pub(crate) const AUTH_UNAVAILABLE: u32 = 94;
    pub(crate) const CONFIG_UNSUPPORTED: u32 = 67;
    pub(crate) const SYSTEM_ERROR: u32 = 38;
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
    pub(crate) const NO_NETWORK: u32 = 43;
    pub(crate) const NO_STORAGE_POOL: u32 = 49;
    pub(crate) const NO_STORAGE_VOL: u32 = 50;
}

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
    /// Adds it to the arguments of a call.
    ///
    /// # Errors
    /// [`RpcError::Arguments`] when its name is too long.
    pub(super) fn write(&self, writer: Writer) -> Result<Writer, RpcError> {
        Ok(writer
            .string(&self.name)
            .map_err(RpcError::Arguments)?
            .fixed(&self.uuid)
            .i32(self.id))
    }

    /// Reads one from an answer.
    ///
    /// # Errors
    /// [`XdrError`].
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, XdrError> {
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
    /// The arguments of a call about it.
    ///
    /// # Errors
    /// [`RpcError::Arguments`] when a name is too long.
    pub(super) fn arguments(&self) -> Result<Writer, RpcError> {
        let name = Writer::default()
            .string(&self.name)
            .map_err(RpcError::Arguments)?;
        self.domain.write(name)
    }

    /// Reads one from an answer.
    ///
    /// # Errors
    /// [`XdrError`].
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, XdrError> {
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
    /// The flags of `virDomainRevertToSnapshot`.
    pub(super) const fn flags(self) -> u32 {
        match self {
            Self::AsSaved => 0,
            Self::Running => 1,
            Self::Paused => 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
