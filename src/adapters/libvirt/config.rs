//! Where a libvirtd is, and how it is used.

use std::path::PathBuf;
use std::time::Duration;

/// What a VM does after a restore.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AfterRestore {
    /// What it did before: it runs, is paused, or is off.
    #[default]
    AsBefore,
    /// It runs; from a backup without memory it is started.
    Running,
    /// It is paused in memory.
    Paused,
    /// What it did when the backup was made.
    AsSaved,
}

impl AfterRestore {
    /// Every choice, in the order of the documentation.
    pub const ALL: [Self; 4] = [Self::AsBefore, Self::Running, Self::Paused, Self::AsSaved];

    /// The word used in the configuration and in restore requests.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AsBefore => "as-before",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::AsSaved => "as-saved",
        }
    }

    /// The choice of this word; `None` when there is none.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|it| it.as_str() == word)
    }
}

/// What a restore does about memory that libvirt keeps for the VM's next start (`virsh managedsave`).
///
/// That memory belongs to the disks as they are now. A VM that resumed it on restored disks would destroy its file systems.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ManagedSave {
    /// The restore is refused.
    #[default]
    Refuse,
    /// The saved memory is removed right before the restore.
    Discard,
}

impl ManagedSave {
    /// Every choice, in the order of the documentation.
    pub const ALL: [Self; 2] = [Self::Refuse, Self::Discard];

    /// The word used in the configuration and in restore requests.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Refuse => "refuse",
            Self::Discard => "discard",
        }
    }

    /// The choice of this word; `None` when there is none.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|policy| policy.as_str() == word)
    }
}

/// Where a libvirtd is, and how it is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The socket of the daemon.
    pub socket: PathBuf,
    /// The driver to open there, for instance `qemu:///system`.
    pub uri: String,
    /// What a VM does after a restore, unless the request says otherwise.
    pub after_restore: AfterRestore,
    /// What a restore does about memory that libvirt keeps for the VM's next start, unless the request says otherwise.
    pub managed_save: ManagedSave,
    /// Whether QEMU and the disk images are looked at before a restore or delete: whether every disk holds the snapshot,
    /// is the one in use and can be written to. QEMU is asked through libvirt's monitor call, for which libvirt marks the
    /// VM as tainted.
    pub inspect_disks: bool,
    /// How often the daemon is asked for a sign of life; after four without one the connection counts as lost.
    pub keepalive: Duration,
    /// How long one create, restore or delete may take before its outcome counts as unknown.
    pub operation_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            socket: PathBuf::from("/run/libvirt/libvirt-sock"),
            uri: "qemu:///system".to_owned(),
            after_restore: AfterRestore::default(),
            managed_save: ManagedSave::default(),
            inspect_disks: true,
            keepalive: Duration::from_secs(5),
            operation_timeout: Duration::from_secs(3600),
        }
    }
}
