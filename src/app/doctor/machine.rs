//! Checks of the machine: room on disks, the kind of file system under the store, the clock.

use std::collections::BTreeSet;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use crate::app::doctor::finding::Finding;
use crate::config::Settings;
use crate::model::Timestamp;

pub(super) const DISK: &str = "disk";
pub(super) const CLOCK: &str = "clock";
pub(super) const STORE: &str = "store";

/// Less free space than one part in so many is too little.
const FREE_PARTS: u64 = 20;
/// Less free space than this is too little for the store and the audit trail, however small the disk is.
const FREE_BYTES_MIN: u64 = 256 * 1024 * 1024;
/// A time this far in the future was written by a clock that went back since.
const AHEAD_MAX: Duration = Duration::from_secs(10);

/// A folder that the gateway writes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WrittenFolder {
    /// Where it is.
    pub(crate) path: PathBuf,
    /// The configuration key that names it.
    pub(crate) key: String,
    /// Whether the gateway itself keeps its records there.
    pub(crate) is_own: bool,
}

/// Every folder that the gateway writes to.
pub(crate) fn written_folders(settings: &Settings) -> Vec<WrittenFolder> {
    let parent = |file: &Path| match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        Some(_) | None => PathBuf::from("."),
    };
    let own = |key: &str, file: &Path| WrittenFolder {
        path: parent(file),
        key: key.to_owned(),
        is_own: true,
    };
    let operations = &settings.operations;
    let mut all = match operations.store.file() {
        Some(store) => vec![own("operations.store", store)],
        None => vec![own("operations.operator_file", &operations.operator_file())],
    };
    if let Some(audit) = &settings.logging.audit {
        all.push(own("log.audit", audit));
    }
    for (index, backend) in settings.backends.iter().enumerate() {
        for folder in backend.config.folders() {
            all.push(WrittenFolder {
                path: folder.path.to_owned(),
                key: format!("backend[{index}].{}.{}", backend.config.kind(), folder.key),
                is_own: false,
            });
        }
    }
    all
}

/// Disks that are nearly full. Each file system is reported once.
pub(super) fn check_disks(folders: &[WrittenFolder]) -> Vec<Finding> {
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for folder in folders {
        let path = &folder.path;
        // A folder that is missing is a finding of the backend.
        let Ok(about) = rustix::fs::statvfs(path) else {
            continue;
        };
        if !seen.insert((about.f_fsid, folder.is_own)) {
            continue;
        }
        let why = if folder.is_own {
            "Changes are refused while the disk is full: the gateway cannot record them."
        } else {
            "Backups and restores fail when the disk is full."
        };
        let remedy = format!(
            "Free space on the disk, or move {} to a larger one.",
            folder.key
        );
        let (free, size) = (
            about.f_bavail.saturating_mul(about.f_frsize),
            about.f_blocks.saturating_mul(about.f_frsize),
        );
        let is_small = folder.is_own && free < FREE_BYTES_MIN;
        if is_small || free.saturating_mul(FREE_PARTS) < size {
            let what = format!(
                "{}: {} of {} are free",
                path.display(),
                bytesize::ByteSize(free),
                bytesize::ByteSize(size)
            );
            found.push(Finding::new(DISK, what, why, remedy.clone()));
        }
        // File systems without a fixed number of files report zero of both.
        if about.f_favail.saturating_mul(FREE_PARTS) < about.f_files {
            let what = format!(
                "{}: {} of {} possible files are left",
                path.display(),
                about.f_favail,
                about.f_files
            );
            found.push(Finding::new(DISK, what, why, remedy));
        }
    }
    found
}

/// A store on a file system that does not keep what was written.
pub(super) fn check_store_file_system(store: &Path) -> Option<Finding> {
    /// Magic numbers of file systems (statfs(2)).
    const TMPFS: u32 = 0x0102_1994;
    const RAMFS: u32 = 0x8584_58f6;
    const NFS: u32 = 0x6969;
    const CIFS: u32 = 0xff53_4d42;
    const SMB2: u32 = 0xfe53_4d42;
    let folder = store
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let about = rustix::fs::statfs(folder.unwrap_or_else(|| Path::new("."))).ok()?;
    // The width of the field differs between architectures; the numbers have 32 bits.
    let magic = u32::try_from(about.f_type & 0xffff_ffff).ok()?;
    let (what, why) = match magic {
        TMPFS | RAMFS => (
            "is in memory",
            "A restart of the machine loses every Status, and running operations are not followed.",
        ),
        NFS | CIFS | SMB2 => (
            "is on a network file system",
            "Locks and durable writes of network file systems are not reliable enough for a database.",
        ),
        _ => return None,
    };
    Some(Finding::new(
        STORE,
        format!("{} {what}", store.display()),
        why,
        "Move operations.store to a local disk while the gateway is stopped.",
    ))
}

/// A clock that is behind what was written earlier. `written` are the times of records and files, with their names.
pub(super) fn check_clock(now: Timestamp, written: &[(String, Timestamp)]) -> Vec<Finding> {
    let limit = now.plus(AHEAD_MAX);
    let ahead = written.iter().filter(|(_, time)| *time > limit);
    ahead
        .map(|(name, time)| {
            Finding::new(
                CLOCK,
                format!("the clock is at {now}, but {name} is from {time}"),
                "Lifetimes of Statuses and tokens, certificates and limits of time are judged wrongly while the clock is wrong.",
                "Synchronize the clock, for instance with chrony or systemd-timesyncd.",
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_behind_a_record_is_found() {
        let now = Timestamp::from_millis(1_000_000);
        let record = |millis| {
            (
                "the newest operation".to_owned(),
                Timestamp::from_millis(millis),
            )
        };
        assert!(
            check_clock(now, &[record(1_009_000)]).is_empty(),
            "a little"
        );
        let found = check_clock(now, &[record(999_000), record(1_011_000)]);
        assert_eq!(found.len(), 1, "one is ahead: {found:?}");
        assert!(found[0].what.contains("the newest operation"), "{found:?}");
    }

    #[test]
    fn folders_that_do_not_exist_are_no_finding_of_the_disk() {
        let folder = WrittenFolder {
            path: PathBuf::from("/no/such/folder"),
            key: "operations.store".to_owned(),
            is_own: true,
        };
        assert!(check_disks(&[folder]).is_empty(), "not this check");
        assert_eq!(check_store_file_system(Path::new("/no/such/file")), None);
    }

    #[test]
    fn a_store_in_memory_is_found() {
        let store = Path::new("/dev/shm/operations.db");
        let is_tmpfs = std::fs::read_to_string("/proc/mounts")
            .is_ok_and(|mounts| mounts.contains(" /dev/shm tmpfs "));
        let found = check_store_file_system(store);
        assert_eq!(found.is_some(), is_tmpfs, "{found:?}");
    }
}
