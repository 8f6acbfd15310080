//! Which paths of a configuration lead to the same file or folder, or one into the other.
//!
//! Compared are canonical paths, and device and inode: links, bind mounts and other spellings do not hide that two folders
//! are one.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;

/// How two paths overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Overlap {
    /// They are one file or folder.
    Same,
    /// The first is below the second.
    Below,
    /// The first is above the second.
    Above,
}

impl Overlap {
    /// For a message about two folders: `is the same folder as`.
    pub(crate) const fn describe(self) -> &'static str {
        match self {
            Self::Same => "is the same folder as",
            Self::Below => "is below",
            Self::Above => "is above",
        }
    }
}

/// Device and inode.
type FileId = (u64, u64);

/// Where a path leads, as far as it exists.
struct ResolvedPath {
    path: PathBuf,
    /// `None` where nothing exists yet.
    id: Option<FileId>,
    /// The ids of the folders above it.
    ids_above: Vec<FileId>,
}

impl ResolvedPath {
    fn resolve(path: &Path) -> Self {
        let id = |path: &Path| {
            fs::metadata(path)
                .ok()
                .map(|about| (about.dev(), about.ino()))
        };
        let path = canonicalize_existing(path);
        let ids_above = path.ancestors().skip(1).filter_map(id).collect();
        Self {
            id: id(&path),
            ids_above,
            path,
        }
    }

    fn is_same_as(&self, other: &Self) -> bool {
        self.path == other.path || (self.id.is_some() && self.id == other.id)
    }

    fn is_below(&self, other: &Self) -> bool {
        self.path.starts_with(&other.path)
            || other.id.is_some_and(|id| self.ids_above.contains(&id))
    }
}

/// How two paths overlap; `None` when they do not.
pub(crate) fn overlap(one: &Path, two: &Path) -> Option<Overlap> {
    let (one, two) = (ResolvedPath::resolve(one), ResolvedPath::resolve(two));
    if one.is_same_as(&two) {
        Some(Overlap::Same)
    } else if one.is_below(&two) {
        Some(Overlap::Below)
    } else if two.is_below(&one) {
        Some(Overlap::Above)
    } else {
        None
    }
}

/// The absolute path without links and dots, as far as it exists.
fn canonicalize_existing(path: &Path) -> PathBuf {
    if let Ok(found) = path.canonicalize() {
        return found;
    }
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) if parent.as_os_str().is_empty() => {
            canonicalize_existing(Path::new(".")).join(name)
        }
        (Some(parent), Some(name)) => canonicalize_existing(parent).join(name),
        (Some(_) | None, Some(_) | None) => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_and_other_spellings_do_not_hide_an_overlap() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("vms/web")).unwrap();
        fs::create_dir(at("backups")).unwrap();
        symlink(at("vms"), at("link")).unwrap();
        symlink(at("vms/web"), at("backups/web")).unwrap();
        fs::write(at("store"), "").unwrap();
        fs::hard_link(at("store"), at("log")).unwrap();
        let rows = [
            ("vms", "backups", None),
            ("vms", "vms-of-others", None),
            ("vms", "vms", Some(Overlap::Same)),
            ("vms", "link", Some(Overlap::Same)),
            ("vms", "backups/../vms/", Some(Overlap::Same)),
            ("store", "log", Some(Overlap::Same)),
            ("absent", "./absent", Some(Overlap::Same)),
            ("link/web", "vms", Some(Overlap::Below)),
            ("backups/web", "link", Some(Overlap::Below)),
            ("link/absent/deeper", "vms", Some(Overlap::Below)),
            ("vms", "link/absent", Some(Overlap::Above)),
        ];
        for (one, two, expected) in rows {
            assert_eq!(overlap(&at(one), &at(two)), expected, "{one} and {two}");
        }
    }
}
