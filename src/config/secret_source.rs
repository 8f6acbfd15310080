//! The outside of a configuration: its files, their hash, the environment and references to secrets.

use std::cell::RefCell;
use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;

use crate::config::settings::SecretFile;

/// No file of a configuration is larger: 100,000 users with room to spare.
const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Reads files and remembers which.
pub(super) struct Source<'a> {
    env: &'a dyn Fn(&str) -> Option<String>,
    seen: RefCell<Vec<(PathBuf, Option<Vec<u8>>)>>,
    secrets: RefCell<Vec<SecretFile>>,
}

impl<'a> Source<'a> {
    pub(super) const fn new(env: &'a dyn Fn(&str) -> Option<String>) -> Self {
        let seen = RefCell::new(Vec::new());
        let secrets = RefCell::new(Vec::new());
        Self { env, seen, secrets }
    }

    /// Remembers that a file holds a secret.
    pub(super) fn holds_secret(&self, path: &Path, holds: &'static str) {
        let path = path.to_owned();
        let file = SecretFile { path, holds };
        let mut secrets = self.secrets.borrow_mut();
        if !secrets.iter().any(|known| known.path == file.path) {
            secrets.push(file);
        }
    }

    /// The files that hold secrets, each once.
    pub(super) fn secrets(&self) -> Vec<SecretFile> {
        self.secrets.borrow().clone()
    }

    /// The files read so far, in the order of reading.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        let seen = self.seen.borrow();
        seen.iter().map(|(path, _)| path.clone()).collect()
    }

    /// The text of a file; what is wrong with it when it cannot be had.
    pub(super) fn read(&self, path: &Path) -> Result<String, String> {
        let bytes = bytes_of(path);
        let contents = bytes.as_ref().ok().cloned();
        self.seen.borrow_mut().push((path.to_owned(), contents));
        let bytes = bytes.map_err(|error| format!("cannot be read: {}", reason(&error)))?;
        String::from_utf8(bytes).map_err(|error| {
            let valid = error.utf8_error().valid_up_to();
            format!("is not UTF-8 text: byte {valid} cannot be decoded")
        })
    }

    /// The text of a file that may be absent.
    pub(super) fn read_if_there(&self, path: &Path) -> Result<Option<String>, String> {
        if path.exists() {
            return self.read(path).map(Some);
        }
        // Remembered, so that its making is noticed.
        self.seen.borrow_mut().push((path.to_owned(), None));
        Ok(None)
    }

    /// A value that may be `file:PATH` or `env:NAME` instead of the secret itself. The reason never holds the secret.
    pub(super) fn secret(&self, text: &str, folder: &Path) -> Result<String, String> {
        if let Some(path) = text.strip_prefix("file:") {
            let path = folder.join(path);
            self.holds_secret(&path, "a password, token or hash");
            let found = self.read(&path);
            let found = found
                .map_err(|error| format!("names the file {}, which {error}", path.display()))?;
            return Ok(found.trim_end_matches(['\r', '\n']).to_owned());
        }
        if let Some(name) = text.strip_prefix("env:") {
            let found = (self.env)(name).filter(|it| !it.is_empty());
            return found
                .ok_or_else(|| format!("names the environment variable {name}, which is not set"));
        }
        Ok(text.to_owned())
    }

    /// The files read, each once, and the hash over their contents.
    pub(super) fn finish(self) -> (Vec<PathBuf>, String) {
        let mut seen = self.seen.into_inner();
        let mut files: Vec<PathBuf> = Vec::new();
        seen.retain(|(path, _)| {
            let new = !files.contains(path);
            if new {
                files.push(path.clone());
            }
            new
        });
        let hash = hash_of(seen.iter().map(|(_, contents)| contents.as_deref()));
        (files, hash)
    }
}

/// The hash over the present contents of files, as in [`Settings::hash`](crate::config::Settings::hash).
pub(super) fn hash_files(files: &[PathBuf]) -> String {
    let contents: Vec<Option<Vec<u8>>> = files.iter().map(|file| bytes_of(file).ok()).collect();
    hash_of(contents.iter().map(Option::as_deref))
}

fn hash_of<'c>(contents: impl Iterator<Item = Option<&'c [u8]>>) -> String {
    let mut hasher = blake3::Hasher::new();
    for bytes in contents {
        let length = bytes.map_or(u64::MAX, |it| u64::try_from(it.len()).unwrap_or(u64::MAX));
        hasher.update(&length.to_le_bytes());
        hasher.update(bytes.unwrap_or_default());
    }
    hasher.finalize().to_hex().to_string()
}

fn bytes_of(path: &Path) -> io::Result<Vec<u8>> {
    let about = fs::metadata(path)?;
    if about.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    // A device or a pipe may have no end, and could not be read again to see whether it changed.
    if !about.is_file() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    if about.len() > FILE_BYTES_MAX {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    fs::read(path)
}

/// What went wrong, without numbers that differ between systems.
pub(super) fn reason(error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::Unsupported {
        return "it is a device or a pipe".to_owned();
    }
    error.kind().to_string()
}

/// The environment of the process, for [`load`](crate::config::load).
#[expect(
    clippy::disallowed_methods,
    reason = "this is where the environment is read"
)]
#[must_use]
pub fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}
