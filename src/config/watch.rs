//! Notices changed files by looking at them now and then: works with editors that rename, and with links that are swapped.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use crate::schema::hash_files;

/// Device, inode, size and times of what a path leads to; `None` when it leads nowhere.
type Stamp = Option<(u64, u64, u64, (i64, i64), (i64, i64))>;

/// Watches some files.
#[derive(Debug)]
pub struct Watch {
    files: Vec<PathBuf>,
    /// The hash that was loaded; `None` once it was compared.
    loaded: Option<String>,
    seen: Vec<Stamp>,
}

impl Watch {
    /// Watches the files whose contents had that hash when they were loaded, so that no change in between is missed.
    #[must_use]
    pub const fn new(files: Vec<PathBuf>, hash: String) -> Self {
        let loaded = Some(hash);
        let seen = Vec::new();
        Self {
            files,
            loaded,
            seen,
        }
    }

    /// Watches these files from now on, for instance those of a configuration that could not be loaded.
    ///
    /// Does blocking reads of metadata.
    #[must_use]
    pub fn from_now(files: Vec<PathBuf>) -> Self {
        let seen = files.iter().map(|file| stamp(file)).collect();
        Self {
            files,
            loaded: None,
            seen,
        }
    }

    /// Looks once, with blocking reads: whether anything changed since the last look.
    pub fn look(&mut self) -> bool {
        let now: Vec<Stamp> = self.files.iter().map(|file| stamp(file)).collect();
        let changed = self
            .loaded
            .take()
            .map_or_else(|| now != self.seen, |hash| hash_files(&self.files) != hash);
        self.seen = now;
        changed
    }

    /// Looks again and again with this pause, and returns itself once anything changed.
    pub async fn changed(mut self, pause: Duration) -> Self {
        let files = self.files.clone();
        loop {
            let looked = tokio::task::spawn_blocking(move || {
                let changed = self.look();
                (self, changed)
            });
            match looked.await {
                Ok((watch, true)) => return watch,
                Ok((watch, false)) => self = watch,
                // The runtime is ending, or a look failed: begin anew.
                Err(_) => {
                    self = Self {
                        files: files.clone(),
                        loaded: None,
                        seen: Vec::new(),
                    };
                }
            }
            tokio::time::sleep(pause).await;
        }
    }
}

fn stamp(path: &Path) -> Stamp {
    let about = fs::metadata(path).ok()?;
    let modified = (about.mtime(), about.mtime_nsec());
    let changed = (about.ctime(), about.ctime_nsec());
    Some((about.dev(), about.ino(), about.len(), modified, changed))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn every_way_of_changing_a_file_is_noticed_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("one"), "1").unwrap();
        fs::write(path("two"), "2").unwrap();
        symlink(path("one"), path("link")).unwrap();
        let mut watch = Watch::from_now(vec![path("link"), path("absent")]);
        assert!(!watch.look(), "nothing yet");
        fs::write(path("one"), "longer").unwrap();
        assert!(watch.look(), "written in place");
        assert!(!watch.look(), "told once");
        symlink(path("two"), path("new")).unwrap();
        fs::rename(path("new"), path("link")).unwrap();
        assert!(watch.look(), "link swapped");
        fs::write(path("absent"), "").unwrap();
        assert!(watch.look(), "appeared");
        fs::remove_file(path("absent")).unwrap();
        assert!(watch.look(), "vanished");
        assert!(!watch.look(), "quiet again");
    }

    #[test]
    fn a_change_between_load_and_watch_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let files = vec![folder.path().join("one")];
        fs::write(&files[0], "1").unwrap();
        let hash = hash_files(&files);
        assert!(
            !Watch::new(files.clone(), hash.clone()).look(),
            "same contents"
        );
        fs::write(&files[0], "2").unwrap();
        assert!(
            Watch::new(files, hash).look(),
            "other contents of the same length"
        );
    }

    #[tokio::test]
    async fn the_loop_returns_with_the_change() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("one");
        fs::write(&file, "1").unwrap();
        let watch = Watch::from_now(vec![file.clone()]);
        fs::write(&file, "12").unwrap();
        let found = watch.changed(Duration::from_millis(1));
        let found = tokio::time::timeout(Duration::from_secs(10), found).await;
        assert!(found.is_ok(), "noticed");
    }
}
