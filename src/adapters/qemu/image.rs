//! Images of stopped VMs through `qemu-img`, which guards them against a QEMU that runs.

use std::ffi::OsString;
use std::fmt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Output;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::AsyncBufReadExt;
use tokio::io::AsyncWriteExt;
use tokio::io::BufReader;
use tokio::process::Child;
use tokio::process::Command;
use tokio::time::timeout;

use crate::adapters::qemu::disk::Disk;
use crate::adapters::qemu::disk::Snapshot;
use crate::adapters::qemu::disk::file_name;
use crate::adapters::qemu::error::QemuError;
use crate::adapters::qemu::qcow2;

/// What is done to one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SnapshotAction {
    Create,
    Apply,
    Delete,
}

impl SnapshotAction {
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
pub(super) enum ImageLocking {
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
pub(super) struct DiskMark(u64);

impl DiskMark {
    /// One that was never there before.
    pub(super) fn new() -> Result<Self, QemuError> {
        let random =
            getrandom::u64().map_err(|error| QemuError::ConnectionLost(error.to_string()))?;
        Ok(Self(random))
    }

    /// The commands for `qemu-io`. Where they write does not matter, only that the disk's L1 table changes.
    fn writes(self) -> impl Iterator<Item = String> {
        let bytes = self.0.to_be_bytes();
        bytes.into_iter().enumerate().map(|(number, byte)| {
            let at = number.saturating_mul(SECTOR);
            format!("write -q -b -P {byte} {at} {SECTOR}")
        })
    }
}

impl fmt::Display for DiskMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The programs that read and change images.
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
        locking: ImageLocking,
        within: Duration,
    ) -> Result<Vec<Disk>, QemuError> {
        let mut found = Vec::with_capacity(images.len());
        for (number, image) in images.iter().enumerate() {
            if !qcow2::is_qcow2(image).await? {
                found.push(raw_disk(number, image));
                continue;
            }
            let mut command = Command::new(&self.img);
            command.args(["info", "--output=json", "-f", "qcow2"]);
            if locking == ImageLocking::Shared {
                command.arg("-U");
            }
            command.arg(image);
            let text = run(command, within).await?;
            let info: ImageInfo = serde_json::from_slice(&text)
                .map_err(|error| QemuError::UnexpectedAnswer(error.to_string()))?;
            found.push(info.disk(number, image));
        }
        Ok(found)
    }

    /// Opens the image for writing and keeps it open, so that no other program can, until it is released.
    ///
    /// # Errors
    /// When it cannot be written, or another program has it open.
    pub(super) async fn hold(
        &self,
        image: &Path,
        within: Duration,
    ) -> Result<HeldImage, QemuError> {
        let mut command = Command::new(&self.io);
        command.args(["-f", "qcow2"]).arg(image);
        command
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| not_run(&error))?;
        let opened = timeout(within, opened(&mut child)).await;
        if opened.map_err(|_late| QemuError::TimedOut)? {
            return Ok(HeldImage(child));
        }
        let output = timeout(within, child.wait_with_output()).await;
        let output = output
            .map_err(|_late| QemuError::TimedOut)?
            .map_err(|error| QemuError::ConnectionLost(error.to_string()))?;
        Err(failure_of_program(&output))
    }

    /// Makes, applies or deletes the snapshot of that tag on one image. To apply one, its number may be given instead.
    pub(super) async fn apply_snapshot_action(
        &self,
        action: SnapshotAction,
        tag: &str,
        image: &Path,
        within: Duration,
    ) -> Result<(), QemuError> {
        let mut command = Command::new(&self.img);
        command
            .args(["snapshot", "-q", action.flag(), tag])
            .arg(image);
        run(command, within).await.map(|_output| ())
    }

    /// Marks the disk in the image.
    pub(super) async fn mark(
        &self,
        mark: DiskMark,
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

/// The output of `qemu-img info`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct ImageInfo {
    #[serde(default)]
    snapshots: Vec<Snapshot>,
    #[serde(default)]
    virtual_size: Option<u64>,
    format: String,
    format_specific: Option<FormatSpecific>,
}

#[derive(Clone, Debug, Deserialize)]
struct FormatSpecific {
    #[serde(default)]
    data: FormatData,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct FormatData {
    #[serde(default)]
    bitmaps: Vec<serde_json::Value>,
}

impl ImageInfo {
    fn disk(self, number: usize, image: &Path) -> Disk {
        let has_bitmaps = self
            .format_specific
            .map(|format_specific| format_specific.data.bitmaps);
        Disk {
            node: number.to_string(),
            label: file_name(image),
            file: Some(image.to_owned()),
            obstacle: None,
            snapshots: self.snapshots,
            has_bitmaps: has_bitmaps.is_some_and(|bitmap| !bitmap.is_empty()),
            can_snapshot: self.format == "qcow2",
            guest_bytes: self.virtual_size,
        }
    }
}

/// A disk in an image that holds no snapshots, whatever its format.
fn raw_disk(number: usize, image: &Path) -> Disk {
    Disk {
        node: number.to_string(),
        label: file_name(image),
        file: Some(image.to_owned()),
        obstacle: None,
        snapshots: Vec::new(),
        has_bitmaps: false,
        can_snapshot: false,
        guest_bytes: None,
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
        .map_err(|_late| QemuError::TimedOut)?
        .map_err(|error| not_run(&error))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(failure_of_program(&output))
}

fn not_run(error: &std::io::Error) -> QemuError {
    QemuError::AccessDenied(format!("qemu-img or qemu-io: {error}"))
}

/// What a program that failed said. `qemu-io` writes its errors to either stream.
fn failure_of_program(output: &Output) -> QemuError {
    let said = [&output.stderr, &output.stdout].map(|stream| {
        let text = String::from_utf8_lossy(stream);
        text.trim().to_owned()
    });
    let text = said.join(" ").trim().to_owned();
    if text.contains("No such file or directory") && text.contains("Could not open") {
        return QemuError::ImageMissing(text);
    }
    if text.is_empty() {
        return QemuError::Refused(format!("ended with {} and said nothing", output.status));
    }
    QemuError::Refused(text)
}

/// An image that is open for writing in a `qemu-io` of ours, which holds QEMU's lock on it.
///
/// It closes the image properly and ends when its commands do: on release, when dropped, and when the gateway dies.
#[derive(Debug)]
pub(super) struct HeldImage(Child);

/// The images of one VM, held all together until each is worked on.
#[derive(Debug, Default)]
pub(super) struct HeldImages(Vec<(PathBuf, HeldImage)>);

impl HeldImages {
    /// Holds every image.
    ///
    /// # Errors
    /// When one of them cannot be written, or another program has it open; then none is held.
    pub(super) async fn take(
        program: &QemuImg,
        images: &[PathBuf],
        within: Duration,
    ) -> Result<Self, QemuError> {
        let mut holds = Self::default();
        for image in images {
            match program.hold(image, within).await {
                Ok(held) => holds.0.push((image.clone(), held)),
                Err(error) => {
                    holds.release_all(within).await;
                    return Err(error);
                }
            }
        }
        Ok(holds)
    }

    /// Lets go of one image, so that it can be worked on.
    pub(super) async fn release(&mut self, image: &Path, within: Duration) {
        let (these, others) = std::mem::take(&mut self.0)
            .into_iter()
            .partition(|(held, _)| held == image);
        self.0 = others;
        Self(these).release_all(within).await;
    }

    /// Holds one image again, so that no VM starts while others are worked on. It is no harm when that fails.
    pub(super) async fn take_again(&mut self, program: &QemuImg, image: &Path, within: Duration) {
        if let Ok(held) = program.hold(image, within).await {
            self.0.push((image.to_owned(), held));
        }
    }

    /// Lets go of every image.
    pub(super) async fn release_all(self, within: Duration) {
        for (_image, held) in self.0 {
            held.release(within).await;
        }
    }
}

impl HeldImage {
    /// Closes the image. When this returns, another program can open it.
    pub(super) async fn release(mut self, within: Duration) {
        // The end of its commands ends it.
        drop(self.0.stdin.take());
        if timeout(within, self.0.wait()).await.is_err()
            && let Err(error) = self.0.kill().await
        {
            tracing::warn!(private = %error, "qemu-io did not end");
        }
    }
}

/// Whether `qemu-io` has opened its image: it then answers a command.
async fn opened(child: &mut Child) -> bool {
    let (Some(commands), Some(answers)) = (child.stdin.as_mut(), child.stdout.as_mut()) else {
        return false;
    };
    if commands.write_all(b"length\n").await.is_err() || commands.flush().await.is_err() {
        return false;
    }
    let mut line = String::new();
    let read = BufReader::new(answers).read_line(&mut line).await;
    // For instance `qemu-io> 64 MiB`.
    read.is_ok_and(|bytes| bytes > 0) && line.chars().any(|letter| letter.is_ascii_digit())
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
    async fn failures_hangs_and_a_missing_program_are_distinguished() {
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
                "an image is missing",
            ),
            ("hangs", "exec sleep 60", "no answer in time"),
            ("nonsense", "echo {", "unexpected answer"),
        ];
        for (name, body, expected) in rows {
            let program = program(script(name, body));
            let image = folder.path().join("x");
            std::fs::write(&image, 0x5146_49fb_u32.to_be_bytes()).unwrap();
            let images = [image];
            let within = Duration::from_millis(if name == "hangs" { 50 } else { 20_000 });
            let error = program.disks(&images, ImageLocking::Shared, within).await;
            let text = error.unwrap_err().to_string();
            assert!(text.starts_with(expected), "{name}: {text}");
        }
        let missing = program(folder.path().join("none"));
        let error = missing.version(Duration::from_secs(5)).await.unwrap_err();
        assert!(
            matches!(error, QemuError::AccessDenied(_)),
            "missing: {error}"
        );
    }
}
