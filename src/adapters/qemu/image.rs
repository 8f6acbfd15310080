//! Images of stopped VMs through `qemu-img`, which guards them against a QEMU that runs.

use std::ffi::OsString;
use std::fmt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use crate::adapters::qemu::error::QemuError;
use crate::adapters::qemu::map::Disk;
use crate::adapters::qemu::map::ImageInfo;

/// What is done to one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    Create,
    Apply,
    Delete,
}

impl Act {
    const fn flag(self) -> &'static str {
        match self {
            Self::Create => "-c",
            Self::Apply => "-a",
            Self::Delete => "-d",
        }
    }
}

/// Whether images are looked at while a QEMU may have them open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Guard {
    /// Refused when another program has them open.
    Exclusive,
    /// In any case; what is seen may be about to change.
    Shared,
}

/// Bytes of the smallest piece of an image that can be written.
const SECTOR: usize = 512;

/// Something to know a disk's state by: written where its VM's memory would be kept, which no guest can write to, and
/// replaced when a snapshot is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark(u64);

impl Mark {
    /// One that was never there before.
    pub(super) fn new() -> Result<Self, QemuError> {
        let random = getrandom::u64().map_err(|error| QemuError::Lost(error.to_string()))?;
        Ok(Self(random))
    }

    /// What `qemu-io` is told to write; where does not matter, but that the disk's tables change.
    fn writes(self) -> impl Iterator<Item = String> {
        let bytes = self.0.to_be_bytes();
        bytes.into_iter().enumerate().map(|(number, byte)| {
            let at = number.saturating_mul(SECTOR);
            format!("write -q -b -P {byte} {at} {SECTOR}")
        })
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The programs that work on images.
#[derive(Clone, Debug)]
pub(super) struct QemuImg {
    /// `qemu-img`.
    pub(super) img: PathBuf,
    /// `qemu-io`.
    pub(super) io: PathBuf,
}

impl QemuImg {
    /// What is on the images.
    pub(super) async fn disks(
        &self,
        images: &[PathBuf],
        guard: Guard,
        within: Duration,
    ) -> Result<Vec<Disk>, QemuError> {
        let mut found = Vec::with_capacity(images.len());
        for (number, image) in images.iter().enumerate() {
            let mut command = Command::new(&self.img);
            command.args(["info", "--output=json", "-f", "qcow2"]);
            if guard == Guard::Shared {
                command.arg("-U");
            }
            command.arg(image);
            let text = run(command, within).await?;
            let info: ImageInfo = serde_json::from_slice(&text)
                .map_err(|error| QemuError::Nonsense(error.to_string()))?;
            found.push(info.disk(number));
        }
        Ok(found)
    }

    /// Makes, applies or deletes the snapshot of that tag on one image.
    pub(super) async fn act(
        &self,
        act: Act,
        tag: &str,
        image: &Path,
        within: Duration,
    ) -> Result<(), QemuError> {
        let mut command = Command::new(&self.img);
        command.args(["snapshot", "-q", act.flag(), tag]).arg(image);
        run(command, within).await.map(|_output| ())
    }

    /// Marks the disk in the image.
    pub(super) async fn mark(
        &self,
        mark: Mark,
        image: &Path,
        within: Duration,
    ) -> Result<(), QemuError> {
        let mut command = Command::new(&self.io);
        command.args(["-f", "qcow2"]);
        for write in mark.writes() {
            command.args([OsString::from("-c"), write.into()]);
        }
        command.arg(image);
        run(command, within).await.map(|_output| ())
    }

    /// For instance `qemu-img 7.2.22`; an error when one of the programs cannot be run.
    pub(super) async fn version(&self, within: Duration) -> Result<String, QemuError> {
        let mut command = Command::new(&self.io);
        command.arg("--version");
        run(command, within).await?;
        let mut command = Command::new(&self.img);
        command.arg("--version");
        let text = run(command, within).await?;
        let text = String::from_utf8_lossy(&text);
        let number = text.split_whitespace().nth(2).unwrap_or("?");
        Ok(format!("qemu-img {number}"))
    }
}

/// Runs to the end or kills it.
async fn run(mut command: Command, within: Duration) -> Result<Vec<u8>, QemuError> {
    command
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = timeout(within, command.output()).await;
    let output = output
        .map_err(|_late| QemuError::Late)?
        .map_err(|error| QemuError::Denied(format!("qemu-img or qemu-io: {error}")))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let text = text.trim();
    if text.contains("No such file or directory") && text.contains("Could not open") {
        return Err(QemuError::Absent(text.to_owned()));
    }
    Err(QemuError::Refused(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(path: PathBuf) -> QemuImg {
        QemuImg {
            img: path.clone(),
            io: path,
        }
    }

    #[tokio::test]
    async fn a_program_that_fails_hangs_or_is_missing_is_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let script = |name: &str, body: &str| {
            use std::os::unix::fs::PermissionsExt;
            let path = folder.path().join(name);
            std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            path
        };
        let locked = "echo 'qemu-img: x: Failed to get \"write\" lock' >&2; exit 1";
        let rows = [
            ("locked", locked, "refused: "),
            (
                "gone",
                "echo \"Could not open 'x': No such file or directory\" >&2; exit 1",
                "nobody",
            ),
            ("hangs", "exec sleep 60", "no answer in time"),
            ("nonsense", "echo {", "unexpected answer"),
        ];
        for (name, body, expected) in rows {
            let program = program(script(name, body));
            let images = [PathBuf::from("x")];
            let within = Duration::from_millis(if name == "hangs" { 50 } else { 20_000 });
            let error = program.disks(&images, Guard::Shared, within).await;
            let text = error.unwrap_err().to_string();
            assert!(text.starts_with(expected), "{name}: {text}");
        }
        let missing = program(folder.path().join("none"));
        let error = missing.version(Duration::from_secs(5)).await.unwrap_err();
        assert!(matches!(error, QemuError::Denied(_)), "missing: {error}");
    }
}
