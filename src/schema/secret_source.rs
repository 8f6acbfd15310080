//! What a configuration reads from outside: its files and their hash, the environment, and secrets.

use std::cell::RefCell;
use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;

/// No file of a configuration is larger: 100,000 users with room to spare.
const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// A file that only the gateway's user and its group should be able to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretFile {
    /// Where it is.
    pub path: PathBuf,
    /// The secret in it, in words: `a private key`.
    pub holds: &'static str,
}

/// Reads files and secrets, and remembers which files were read and which hold secrets.
pub(crate) struct SecretSource<'a> {
    env: &'a dyn Fn(&str) -> Option<String>,
    read_files: RefCell<Vec<(PathBuf, Option<Vec<u8>>)>>,
    secrets: RefCell<Vec<SecretFile>>,
}

impl<'a> SecretSource<'a> {
    pub(crate) const fn new(env: &'a dyn Fn(&str) -> Option<String>) -> Self {
        let read_files = RefCell::new(Vec::new());
        let secrets = RefCell::new(Vec::new());
        Self {
            env,
            read_files,
            secrets,
        }
    }

    /// Remembers that a file holds a secret.
    pub(crate) fn mark_secret_file(&self, path: &Path, holds: &'static str) {
        let path = path.to_owned();
        let file = SecretFile { path, holds };
        let mut secrets = self.secrets.borrow_mut();
        if !secrets.iter().any(|known| known.path == file.path) {
            secrets.push(file);
        }
    }

    /// The files that hold secrets, each once.
    pub(crate) fn secret_files(&self) -> Vec<SecretFile> {
        self.secrets.borrow().clone()
    }

    /// The files read so far, in the order of reading.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let read_files = self.read_files.borrow();
        read_files.iter().map(|(path, _)| path.clone()).collect()
    }

    /// The text of a file.
    ///
    /// # Errors
    /// `cannot read PATH: REASON`.
    pub(crate) fn read(&self, path: &Path) -> Result<String, String> {
        let text = self.read_or_reason(path);
        text.map_err(|reason| format!("cannot read {}: {reason}", path.display()))
    }

    /// The text of a file.
    ///
    /// # Errors
    /// The reason alone, for messages that name the file themselves.
    pub(crate) fn read_or_reason(&self, path: &Path) -> Result<String, String> {
        let bytes = bytes_of(path);
        let contents = bytes.as_ref().ok().cloned();
        let mut files = self.read_files.borrow_mut();
        files.push((path.to_owned(), contents));
        let bytes = bytes.map_err(|error| io_reason(&error))?;
        String::from_utf8(bytes).map_err(|error| {
            let valid = error.utf8_error().valid_up_to();
            format!("invalid UTF-8 at byte {valid}")
        })
    }

    /// The text of a file that may be absent.
    pub(crate) fn read_if_exists(&self, path: &Path) -> Result<Option<String>, String> {
        if path.exists() {
            return self.read(path).map(Some);
        }
        // Remembered, so that its creation triggers a reload.
        self.read_files.borrow_mut().push((path.to_owned(), None));
        Ok(None)
    }

    /// The secret that a value names with `file:PATH` or `env:NAME`, or that it is. Relative paths start from `folder`.
    ///
    /// # Errors
    /// Why it cannot be read, as a sentence without the secret.
    pub(crate) fn resolve(&self, text: &str, folder: &Path) -> Result<String, String> {
        if let Some(path) = text.strip_prefix("file:") {
            let path = folder.join(path);
            self.mark_secret_file(&path, "a password, token or hash");
            let found = self.read(&path)?;
            return Ok(found.trim_end_matches(['\r', '\n']).to_owned());
        }
        if let Some(name) = text.strip_prefix("env:") {
            let found = (self.env)(name).filter(|value| !value.is_empty());
            return found.ok_or_else(|| format!("environment variable {name} is not set"));
        }
        Ok(text.to_owned())
    }

    /// The files read, each once, and the hash over their contents.
    pub(crate) fn finish(self) -> (Vec<PathBuf>, String) {
        let mut read_files = self.read_files.into_inner();
        let mut files: Vec<PathBuf> = Vec::new();
        read_files.retain(|(path, _)| {
            let new = !files.contains(path);
            if new {
                files.push(path.clone());
            }
            new
        });
        let hash = hash_of(read_files.iter().map(|(_, contents)| contents.as_deref()));
        (files, hash)
    }
}

/// The hash over the present contents of files, as in [`Settings::hash`](crate::config::Settings::hash).
pub(crate) fn hash_files(files: &[PathBuf]) -> String {
    let contents: Vec<Option<Vec<u8>>> = files.iter().map(|file| bytes_of(file).ok()).collect();
    hash_of(contents.iter().map(Option::as_deref))
}

fn hash_of<'c>(contents: impl Iterator<Item = Option<&'c [u8]>>) -> String {
    let mut hasher = blake3::Hasher::new();
    for bytes in contents {
        let length = bytes.map_or(u64::MAX, |bytes| {
            u64::try_from(bytes.len()).unwrap_or(u64::MAX)
        });
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

/// The reason of an I/O error, without numbers that differ between systems.
pub(crate) fn io_reason(error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::Unsupported {
        return "not a regular file".to_owned();
    }
    if error.kind() == io::ErrorKind::NotFound {
        return "no such file".to_owned();
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
