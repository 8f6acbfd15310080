//! Names that the gateway gives to what it leaves in QEMU and in images, so that they are recognized later.

/// Starts the ids of our jobs and the tags of our backups; the number of an operation follows.
pub(super) const OWN_PREFIX: &str = "snapgate-";

/// Starts the tags of the snapshots that mark disks before a restore (see `restore_markers.rs`). These are no backups.
pub(super) const OWN_SNAPSHOT_PREFIX: &str = "snapgate-before-";

/// Starts the id of the object that distinguishes a QEMU process from the next one; random digits follow.
pub(super) const PROCESS_MARKER: &str = "snapgate-life-";
