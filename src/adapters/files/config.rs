//! Where the disk images and their backups are.

use std::path::PathBuf;

/// Where the disk images and their backups are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// One directory per VM below this, named by the id of the VM, with its disk images in it.
    pub root: PathBuf,
    /// Where backups are kept, one directory per VM. Must not be below `root`.
    pub backups: PathBuf,
}
