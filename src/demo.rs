//! A folder with two small VMs to try everything on, and the configuration that serves it.

use std::fs;
use std::fs::TryLockError;
use std::io;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::adapters::adapter::Adapter;
use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::BeginOutcome;
use crate::adapters::adapter::TaskState;
use crate::adapters::files;
use crate::adapters::files::Files;
use crate::model::BackupId;
use crate::model::BackupName;
use crate::model::Change;
use crate::model::Intent;
use crate::model::NewBackup;
use crate::model::OperationSeq;
use crate::model::RequestKey;
use crate::model::Target;
use crate::model::Timestamp;
use crate::model::VmId;
use crate::runtime::Clock;
use crate::runtime::Tasks;

/// Bytes of each disk image.
pub const IMAGE_BYTES: usize = 16 * 1024 * 1024;
/// The backup that each VM has from the start.
pub const BACKUP: &str = "456";
/// The VMs: id, name. The specification's examples use both ids.
pub const VMS: [(&str, &str); 2] = [("33333", "web01"), ("333333", "web01-copy")];
/// The user.
pub const USER: &str = "demo";
/// The password of the user.
pub const PASSWORD: &str = "demo";

const BLOCK_BYTES: usize = 64;
/// The first line of a demo's configuration.
const HEADING: &str = "# The configuration of `snapgate demo`.";
/// Written first: what is in a folder that has it may be made anew.
const MARKER: &str = ".snapgate-demo";
const MARKED: &[u8] = b"made by `snapgate demo`\n";
/// The password for a client, so that it stands on no command line.
const PASSWORD_FILE: &str = "client-password";
/// The store of operations.
const STORE: &str = "operations.db";

/// The folder could not be made ready.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// A file or folder could not be made.
    #[error("cannot write {path}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It holds something else, which would be overwritten or served.
    #[error("{0} is not empty and was not created by the demo; choose another folder with --dir")]
    Foreign(PathBuf),
    /// A reset was asked for where there is no demo.
    #[error("{0} is not a demo folder; nothing was changed")]
    Absent(PathBuf),
    /// A reset was asked for while a gateway runs on the folder.
    #[error("a gateway is running on {0}; nothing was changed; stop it before the reset")]
    Running(PathBuf),
    /// The first backup could not be made.
    #[error("cannot make the first backup: {0}")]
    Backup(String),
}

/// The files of a demo folder.
#[derive(Clone, Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// The folder at this path, which need not exist.
    #[must_use]
    pub const fn at(path: PathBuf) -> Self {
        Self(path)
    }

    /// The configuration file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.0.join("snapgate.toml")
    }

    /// Writes the file that the printed line of `snapgate backup` reads the password from, unless it is there, and says where it is.
    ///
    /// # Errors
    /// [`DemoError::Io`].
    pub fn password_file(&self) -> Result<PathBuf, DemoError> {
        let path = self.0.join(PASSWORD_FILE);
        if !path.exists() {
            write_private(&path, format!("{PASSWORD}\n").as_bytes())?;
        }
        let failed = |source| DemoError::Io {
            path: path.clone(),
            source,
        };
        // Whole, so that the line works in every folder.
        std::path::absolute(&path).map_err(failed)
    }

    /// The disk image of a VM.
    #[must_use]
    pub fn image(&self, vm: &str) -> PathBuf {
        self.0.join("vms").join(vm).join("disk.img")
    }

    /// Removes what the demo made, so that [`Self::prepare`] makes it anew. Other files and VMs in the folder stay.
    ///
    /// # Errors
    /// [`DemoError::Absent`] and [`DemoError::Running`]: nothing was changed. Otherwise what is left is removed the next time.
    pub fn reset(&self) -> Result<(), DemoError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            |source| DemoError::Io { path, source }
        };
        let heads_config = |text: String| text.starts_with(HEADING);
        let is_ours = self.0.join(MARKER).exists()
            || fs::read_to_string(self.config()).is_ok_and(heads_config);
        if !is_ours {
            return Err(DemoError::Absent(self.0.clone()));
        }
        let lock = self.0.join(format!("{STORE}.lock"));
        let lock_file = fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock)
            .map_err(failed(&lock))?;
        match lock_file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(DemoError::Running(self.0.clone())),
            Err(TryLockError::Error(source)) => return Err(failed(&lock)(source)),
        }
        // First the marker, which the remains are known by, and the configuration, which says that the folder is complete.
        write(&self.0.join(MARKER), MARKED)?;
        let files = ["", "-wal", "-shm", ".operator"].map(|ending| format!("{STORE}{ending}"));
        let files = files.iter().map(|name| self.0.join(name));
        let named = [self.config(), self.0.join(PASSWORD_FILE)];
        for path in named.into_iter().chain(files) {
            remove(fs::remove_file(&path)).map_err(failed(&path))?;
        }
        for (vm, _) in VMS {
            for kept in ["vms", "backups"] {
                let path = self.0.join(kept).join(vm);
                remove(fs::remove_dir_all(&path)).map_err(failed(&path))?;
            }
        }
        Ok(())
    }

    /// Makes whatever is missing, and leaves alone what is there. Returns whether anything was made.
    ///
    /// # Errors
    /// [`DemoError`]; what was made so far stays and is completed the next time.
    pub async fn prepare(
        &self,
        password_hash: &str,
        clock: &Arc<dyn Clock>,
    ) -> Result<bool, DemoError> {
        let config = self.config();
        // Written last: a folder that has it is complete.
        match fs::read_to_string(&config) {
            Ok(text) if text.starts_with(HEADING) || self.0.join(MARKER).exists() => {
                return Ok(false);
            }
            Ok(_foreign) => return Err(DemoError::Foreign(self.0.clone())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => {
                let path = config;
                return Err(DemoError::Io { path, source });
            }
        }
        make_folder(&self.0)?;
        let is_empty = fs::read_dir(&self.0).is_ok_and(|mut entries| entries.next().is_none());
        if !is_empty && !self.0.join(MARKER).exists() {
            return Err(DemoError::Foreign(self.0.clone()));
        }
        write(&self.0.join(MARKER), MARKED)?;
        for folder in ["vms", "backups"] {
            make_folder(&self.0.join(folder))?;
        }
        for (vm, name) in VMS {
            make_folder(&self.0.join("vms").join(vm))?;
            write(
                &self.0.join("vms").join(vm).join("vm.json"),
                format!("{{\"name\": \"{name}\"}}\n").as_bytes(),
            )?;
            write(&self.image(vm), &content(vm, "as it was backed up"))?;
        }
        self.first_backups(clock).await?;
        for (vm, _) in VMS {
            write(&self.image(vm), &content(vm, "changed after the backup"))?;
        }
        write_private(&config, settings(password_hash).as_bytes())?;
        Ok(true)
    }

    async fn first_backups(&self, clock: &Arc<dyn Clock>) -> Result<(), DemoError> {
        let failed = |error: AdapterError| {
            DemoError::Backup(format!("{}: {}", error.fault.text, error.private()))
        };
        let folders = files::Config {
            root: self.0.join("vms"),
            backups: self.0.join("backups"),
            new_folders: true,
        };
        let adapter = Files::new(folders, Arc::clone(clock), Tasks::default())
            .map_err(|error| DemoError::Backup(error.to_string()))?;
        for ((vm, _), number) in VMS.into_iter().zip(1..) {
            let (intent, key) = first_backup(vm, number, clock.now())?;
            let by = || clock.deadline(Duration::from_secs(60));
            if adapter.read_backup(&intent.target, by()).await.is_ok() {
                continue;
            }
            let begun = adapter.begin(&intent, key, None, by()).await;
            let BeginOutcome::Task(task) = begun.map_err(failed)? else {
                continue;
            };
            loop {
                match adapter.poll(&task, by()).await.map_err(failed)? {
                    TaskState::Running(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                    TaskState::Done(_) => break,
                    TaskState::Failed(fault) => return Err(DemoError::Backup(fault.text.into())),
                    TaskState::Cancelled | TaskState::Gone => {
                        return Err(DemoError::Backup("it was interrupted".to_owned()));
                    }
                }
            }
        }
        Ok(())
    }
}

fn first_backup(vm: &str, number: u64, now: Timestamp) -> Result<(Intent, RequestKey), DemoError> {
    let invalid = |error| DemoError::Backup(format!("{error}"));
    // 2026-11-24T01:02:03Z -> 20261124
    let date: String = now
        .to_string()
        .chars()
        .take(10)
        .filter(|character| *character != '-')
        .collect();
    let new = NewBackup {
        name: BackupName::new(&format!("web01_{date}")).map_err(invalid)?,
        description: None,
        kind: None,
        tags: Vec::new(),
        protected: false,
    };
    let target = Target {
        vm: VmId::new(vm).map_err(invalid)?,
        backup: BackupId::new(BACKUP).map_err(invalid)?,
    };
    let seq = OperationSeq::new(number)
        .ok_or_else(|| DemoError::Backup("no number is left".to_owned()))?;
    let intent = Intent {
        target,
        identity: None,
        change: Change::Create(new),
    };
    Ok((intent, RequestKey(seq)))
}

/// An image of numbered lines of 64 bytes, so that `head -c 64` shows which content it is.
fn content(vm: &str, what: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(IMAGE_BYTES);
    for block in 0..IMAGE_BYTES / BLOCK_BYTES {
        let line = format!("VM {vm} block {block:07} {what}");
        bytes.extend_from_slice(format!("{line:<63.63}\n").as_bytes());
    }
    bytes
}

fn settings(password_hash: &str) -> String {
    format!(
        r#"{HEADING} Change it as you like: it is read again when it changes.
# config/reference.toml describes every key.

[server]
page = true

[operations]
store = "{STORE}"

[[backend]]
name = "demo-disks"
kind = "files"
vms = ["*"]

[backend.files]
root = "vms"
backups = "backups"

[[user]]
name = "{USER}"
password_hash = "{password_hash}"

[[grant]]
to = ["user:{USER}"]
actions = ["read", "create", "update", "protect", "delete", "restore", "observe"]
vms = ["*"]
backups = ["*"]
"#
    )
}

fn make_folder(path: &Path) -> Result<(), DemoError> {
    fs::create_dir_all(path).map_err(|source| DemoError::Io {
        path: path.to_owned(),
        source,
    })
}

/// A file or folder that is gone already needs no removing.
fn remove(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Writes a file that only its owner may read, because it holds the hash of a password.
fn write_private(path: &Path, bytes: &[u8]) -> Result<(), DemoError> {
    let made = fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path);
    let written = made.and_then(|mut file| {
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.map_err(|source| DemoError::Io {
        path: path.to_owned(),
        source,
    })
}

/// Writes the whole file and waits until it is on disk.
fn write(path: &Path, bytes: &[u8]) -> Result<(), DemoError> {
    let written = fs::File::create(path).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.map_err(|source| DemoError::Io {
        path: path.to_owned(),
        source,
    })
}
