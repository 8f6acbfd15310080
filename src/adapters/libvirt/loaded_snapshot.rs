//! A snapshot with everything that was read of it.

use crate::adapters::libvirt::native::Snapshot;
use crate::adapters::libvirt::snapshot_xml::SnapshotXml;
use crate::model::Backup;

/// A snapshot with everything that was read of it.
#[derive(Debug)]
pub(super) struct LoadedSnapshot {
    pub(super) snapshot: Snapshot,
    /// The XML as libvirt wrote it, so that it can be written back unchanged.
    pub(super) text: String,
    pub(super) xml: SnapshotXml,
    pub(super) backup: Backup,
}
