//! Where the disk images and their backups are.

use std::path::PathBuf;

/// Where the disk images and their backups are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// One directory per VM below this, named by the id of the VM, with its disk images in it.
    pub root: PathBuf,
    /// Where backups are kept, one directory per VM. Must not be below `root`.
    pub backups: PathBuf,
    /// Whether folders that are empty and bear no mark of ours are used. Otherwise they may be mount points whose file system is
    /// not mounted, and are refused.
    pub new_folders: bool,
}
