//! libvirt's own calls, typed. Numbers and layouts: libvirt's `remote_protocol.x` and `qemu_protocol.x`.

use std::sync::Arc;

use crate::adapters::libvirt::config::Config;
use crate::adapters::libvirt::link::ReconnectingLink;
use crate::adapters::libvirt::native::Domain;
use crate::adapters::libvirt::native::DomainState;
use crate::adapters::libvirt::native::RevertTo;
use crate::adapters::libvirt::native::Snapshot;
use crate::adapters::libvirt::native::error_code;
use crate::adapters::libvirt::native::procedure;
use crate::adapters::libvirt::rpc::Program;
use crate::adapters::libvirt::rpc::RpcError;
use crate::adapters::libvirt::xdr::Reader;
use crate::adapters::libvirt::xdr::Writer;
use crate::model::Deadline;
use crate::runtime::Clock;
use crate::runtime::Tasks;

/// Most snapshots libvirt lists of one VM (its `REMOTE_DOMAIN_SNAPSHOT_LIST_MAX`).
const SNAPSHOTS_MAX: u32 = 16_384;

/// Most VMs, pools or volumes libvirt lists (its `REMOTE_DOMAIN_LIST_MAX` and its like).
const LIST_MAX: u32 = 16_384;

/// Hands out the password of a display or a disk with the XML, so that it is not lost when it is written back.
const XML_SECURE: u32 = 1;

/// A volume of a storage pool.
#[derive(Debug)]
pub(crate) struct PoolVolume {
    /// Its name within the pool.
    pub(crate) name: String,
    /// What makes it unique: its path, where it has one.
    pub(crate) key: String,
    /// What libvirt says of it, or why it says nothing.
    pub(crate) xml: Result<String, RpcError>,
}

/// Whether libvirt answered that there is no pool to look at: there is none at that path or it was stopped since, there is no storage
/// driver, its own daemon does not run, or it does not let the gateway look.
fn has_no_pool(error: &RpcError) -> bool {
    let answers = [
        error_code::NO_SUPPORT,
        error_code::NO_CONNECT,
        error_code::SYSTEM_ERROR,
        error_code::NO_STORAGE_POOL,
        error_code::NO_STORAGE_VOL,
        error_code::OPERATION_INVALID,
        error_code::ACCESS_DENIED,
    ];
    error.code().is_some_and(|code| answers.contains(&code))
}

/// The calls. Each kind has a connection of its own, so that long calls leave room for reads.
#[derive(Debug)]
pub(crate) struct Client {
    reads: ReconnectingLink,
    changes: ReconnectingLink,
    /// For the one question that waits for a VM to be free.
    waits: ReconnectingLink,
}

impl Client {
    /// Not connected yet.
    pub(crate) fn new(config: &Config, clock: &Arc<dyn Clock>, tasks: &Tasks) -> Self {
        let link = || ReconnectingLink::new(config.clone(), Arc::clone(clock), tasks.clone());
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

    /// The VM's definition as it will be after its next start.
    pub(crate) async fn persistent_xml(
        &self,
        of: &Domain,
        by: Deadline,
    ) -> Result<String, RpcError> {
        const INACTIVE: u32 = 2;
        let arguments = of.write(Writer::default())?.u32(INACTIVE);
        let reply = self.read(procedure::DOMAIN_XML, arguments, by).await?;
        Ok(Reader::new(&reply).string()?)
    }

    /// Whether libvirt keeps the VM when it is off.
    pub(crate) async fn is_persistent(&self, of: &Domain, by: Deadline) -> Result<bool, RpcError> {
        let arguments = of.write(Writer::default())?;
        let reply = self
            .read(procedure::DOMAIN_IS_PERSISTENT, arguments, by)
            .await?;
        Ok(Reader::new(&reply).i32()? != 0)
    }

    /// Whether libvirt keeps the memory of the VM for its next start; no where the driver knows no such thing.
    pub(crate) async fn has_managed_save(
        &self,
        of: &Domain,
        by: Deadline,
    ) -> Result<bool, RpcError> {
        let arguments = of.write(Writer::default())?.u32(0);
        match self.read(procedure::HAS_MANAGED_SAVE, arguments, by).await {
            Ok(reply) => Ok(Reader::new(&reply).i32()? != 0),
            Err(error) if error.code() == Some(error_code::NO_SUPPORT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Throws away the memory that libvirt keeps for the VM's next start.
    pub(crate) async fn remove_managed_save(
        &self,
        of: &Domain,
        by: Deadline,
    ) -> Result<(), RpcError> {
        let arguments = of.write(Writer::default())?.u32(0);
        self.change(procedure::REMOVE_MANAGED_SAVE, arguments, by)
            .await
    }

    /// Has libvirt open the image of a disk of a VM that is off; an error says that it cannot.
    pub(crate) async fn open_disk(
        &self,
        of: &Domain,
        target: &str,
        by: Deadline,
    ) -> Result<(), RpcError> {
        let arguments = of
            .write(Writer::default())?
            .string(target)
            .map_err(RpcError::Arguments)?
            .u32(0);
        self.read(procedure::BLOCK_INFO, arguments, by)
            .await
            .map(drop)
    }

    /// All VMs of this libvirtd, those that are off included.
    pub(crate) async fn domains(&self, by: Deadline) -> Result<Vec<Domain>, RpcError> {
        let arguments = Writer::default().i32(1).u32(0);
        let reply = self.read(procedure::DOMAINS, arguments, by).await?;
        let mut reader = Reader::new(&reply);
        let count = reader.count(LIST_MAX)?;
        let all: Result<Vec<_>, _> = (0..count).map(|_| Domain::read(&mut reader)).collect();
        Ok(all?)
    }

    /// Whether a network of this name is active; `None` where there are no networks to ask about.
    pub(crate) async fn is_network_active(
        &self,
        name: &str,
        by: Deadline,
    ) -> Result<Option<bool>, RpcError> {
        let arguments = Writer::default()
            .string(name)
            .map_err(RpcError::Arguments)?;
        let found = match self.read(procedure::NETWORK_BY_NAME, arguments, by).await {
            Ok(found) => found,
            Err(error) if error.code() == Some(error_code::NO_NETWORK) => return Ok(Some(false)),
            // The network driver is not there, or is a daemon of its own.
            Err(error) if error.code().is_some() => return Ok(None),
            Err(error) => return Err(error),
        };
        let network = Writer::default().fixed(&found);
        let reply = self.read(procedure::NETWORK_IS_ACTIVE, network, by).await?;
        Ok(Some(Reader::new(&reply).i32()? != 0))
    }

    /// Every volume of the pool in which this path is; none where it is in no pool, or the gateway may not look at pools.
    pub(crate) async fn volumes_beside(
        &self,
        path: &str,
        by: Deadline,
    ) -> Result<Vec<PoolVolume>, RpcError> {
        let path = Writer::default()
            .string(path)
            .map_err(RpcError::Arguments)?;
        let mut answer = self.read(procedure::VOLUME_BY_PATH, path, by).await;
        if let Ok(volume) = answer {
            let volume = Writer::default().fixed(&volume);
            answer = self.read(procedure::POOL_BY_VOLUME, volume, by).await;
        }
        match answer {
            Ok(pool) => self.volumes_of(Writer::default().fixed(&pool), by).await,
            Err(error) if has_no_pool(&error) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    async fn volumes_of(&self, pool: Writer, by: Deadline) -> Result<Vec<PoolVolume>, RpcError> {
        let mut found = Vec::new();
        let reply = match self.read(procedure::VOLUMES, pool.i32(1).u32(0), by).await {
            Ok(reply) => reply,
            Err(error) if has_no_pool(&error) => return Ok(found),
            Err(error) => return Err(error),
        };
        let mut reader = Reader::new(&reply);
        for _ in 0..reader.count(LIST_MAX)? {
            let parts = [reader.string()?, reader.string()?, reader.string()?];
            let mut volume = Writer::default();
            for part in &parts {
                volume = volume.string(part).map_err(RpcError::Arguments)?;
            }
            let [_pool, name, key] = parts;
            let xml = match self.read(procedure::VOLUME_XML, volume.u32(0), by).await {
                Ok(reply) => Ok(Reader::new(&reply).string()?),
                Err(error) if error.code() == Some(error_code::NO_STORAGE_VOL) => continue,
                Err(error) if error.code().is_some() => Err(error),
                Err(error) => return Err(error),
            };
            found.push(PoolVolume { name, key, xml });
        }
        Ok(found)
    }

    /// The version of libvirt, as one number: millions, thousands, ones.
    pub(crate) async fn libvirt_version(&self, by: Deadline) -> Result<u64, RpcError> {
        let reply = self
            .read(procedure::LIBRARY_VERSION, Writer::default(), by)
            .await?;
        Ok(Reader::new(&reply).u64()?)
    }

    /// Whether libvirtd itself is on this host, and not at the other end of a forwarded socket.
    pub(crate) async fn is_local(&self, by: Deadline) -> Result<bool, RpcError> {
        self.reads.is_local(by).await
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
            Err(error) if error.code() == Some(error_code::NO_SNAPSHOT) => Ok(None),
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

    /// The names of the VM's checkpoints; none where the driver knows no checkpoints.
    pub(crate) async fn checkpoints(
        &self,
        of: &Domain,
        by: Deadline,
    ) -> Result<Vec<String>, RpcError> {
        let arguments = of.write(Writer::default())?.i32(1).u32(0);
        match self.read(procedure::CHECKPOINTS, arguments, by).await {
            Ok(reply) => {
                let mut reader = Reader::new(&reply);
                // A checkpoint is written as a snapshot is: its name and its VM.
                let count = reader.count(SNAPSHOTS_MAX)?;
                let all = (0..count).map(|_| Ok(Snapshot::read(&mut reader)?.name));
                all.collect()
            }
            Err(error) if error.code() == Some(error_code::NO_SUPPORT) => Ok(Vec::new()),
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
            // Not for a VM that is off.
            Err(error) if error.code() == Some(error_code::OPERATION_INVALID) => {
                self.wait_for_jobs(of, by).await.map(|()| false)
            }
            // Nor for a driver without jobs.
            Err(error) if error.code() == Some(error_code::NO_SUPPORT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Returns once no job of libvirt's runs on a VM that is off.
    async fn wait_for_jobs(&self, of: &Domain, by: Deadline) -> Result<(), RpcError> {
        // A question for which libvirt takes the VM's lock of jobs; whether there is such a disk does not matter.
        let arguments = of
            .write(Writer::default())?
            .string("vda")
            .map_err(RpcError::Arguments)?
            .u32(0)
            .into_bytes();
        let reply = self
            .waits
            .call(Program::Remote, procedure::BLOCK_INFO, &arguments, by)
            .await;
        match reply {
            Ok(_) => Ok(()),
            Err(error) if error.code() == Some(error_code::OPERATION_TIMEOUT) => {
                Err(RpcError::TimedOut)
            }
            Err(error) if error.code().is_some() => Ok(()),
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
    pub(crate) async fn delete(&self, snapshot: &Snapshot, by: Deadline) -> Result<(), RpcError> {
        let arguments = snapshot.arguments()?.u32(0);
        self.change(procedure::SNAPSHOT_DELETE, arguments, by).await
    }

    /// Switches the VM off at once.
    pub(crate) async fn destroy(&self, domain: &Domain, by: Deadline) -> Result<(), RpcError> {
        let arguments = domain.write(Writer::default())?;
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
}
