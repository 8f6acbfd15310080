//! Real file systems on loop devices, bind mounts and attributes of files; each is undone when it is dropped.

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use crate::runner::skip;

/// Runs a program; whether it ended well, and what it said.
pub(crate) fn ran(program: &str, arguments: &[&str]) -> (bool, String) {
    match Command::new(program).args(arguments).output() {
        Ok(output) => {
            let said = [output.stdout, output.stderr].concat();
            (
                output.status.success(),
                String::from_utf8_lossy(&said).into_owned(),
            )
        }
        Err(error) => (false, format!("{program}: {error}")),
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A file system of its own.
pub(crate) struct Volume {
    at: PathBuf,
    /// With the file that the file system is in.
    folder: TempDir,
    is_mounted: bool,
}

impl Volume {
    /// Skips the test where that is not possible.
    pub(crate) fn new(kind: &str, at: &Path, mebibytes: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("volume");
        fs::File::create(&image)
            .unwrap()
            .set_len(mebibytes << 20)
            .unwrap();
        let force = if kind == "ext4" { "-F" } else { "-f" };
        let (made, said) = ran(&format!("mkfs.{kind}"), &["-q", force, text(&image)]);
        if !made {
            skip(&format!("mkfs.{kind}: {}", said.trim()));
        }
        let mut volume = Self {
            at: at.to_owned(),
            folder,
            is_mounted: false,
        };
        fs::create_dir_all(at).unwrap();
        if !volume.try_mount() {
            skip("no right to mount a loop device");
        }
        volume
    }

    fn try_mount(&mut self) -> bool {
        let (mounted, _) = ran(
            "mount",
            &[
                "-o",
                "loop",
                text(&self.folder.path().join("volume")),
                text(&self.at),
            ],
        );
        self.is_mounted = mounted;
        mounted
    }

    pub(crate) fn mount(&mut self) {
        assert!(self.try_mount(), "mounted again");
    }

    pub(crate) fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        let (done, said) = ran("mount", &["-o", &options, text(&self.at)]);
        assert!(done, "{options}: {said}");
    }

    /// Unmounts it even while it is in use, and leaves the empty folder.
    pub(crate) fn unmount(&mut self) {
        let (done, said) = ran("umount", &["-l", text(&self.at)]);
        assert!(done, "unmounted: {said}");
        self.is_mounted = false;
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if self.is_mounted {
            self.unmount();
        }
    }
}

/// A file or folder that is seen elsewhere too.
pub(crate) struct Bind(PathBuf);

impl Bind {
    /// Skips the test where that is not permitted.
    pub(crate) fn new(from: &Path, at: &Path) -> Self {
        let (done, said) = ran("mount", &["--bind", text(from), text(at)]);
        if !done {
            skip(&format!("no right to bind a mount: {}", said.trim()));
        }
        Self(at.to_owned())
    }
}

impl Drop for Bind {
    fn drop(&mut self) {
        drop(ran("umount", &["-l", text(&self.0)]));
    }
}

/// An attribute of `chattr`, for instance `i`.
pub(crate) struct Attribute(PathBuf, &'static str);

impl Attribute {
    /// Skips the test where that is not permitted.
    pub(crate) fn set(path: &Path, flag: &'static str) -> Self {
        let (done, said) = ran("chattr", &[&format!("+{flag}"), text(path)]);
        if !done {
            skip(&format!("no right to change attributes: {}", said.trim()));
        }
        Self(path.to_owned(), flag)
    }
}

impl Drop for Attribute {
    fn drop(&mut self) {
        drop(ran("chattr", &[&format!("-{}", self.1), text(&self.0)]));
    }
}

/// A loop device on an image.
pub(crate) struct Loop(String);

impl Loop {
    /// Skips the test where that is not permitted.
    pub(crate) fn new(image: &Path, reads_only: bool) -> Self {
        let mut arguments = vec!["--find", "--show"];
        if reads_only {
            arguments.push("--read-only");
        }
        arguments.push(text(image));
        let (done, said) = ran("losetup", &arguments);
        if !done {
            skip(&format!(
                "no right to attach a loop device: {}",
                said.trim()
            ));
        }
        Self(said.trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        drop(ran("losetup", &["-d", &self.0]));
    }
}
