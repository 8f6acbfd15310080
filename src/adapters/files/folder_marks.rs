//! A mark in each of the two folders, by which a folder that is not mounted differs from one that is empty.
//!
//! The mark of `backups` names that of `root`: once both are written, neither folder is used without its mark, nor with that of
//! another one. They are written in an order in which every state between is recognised.

use std::fmt;

use rustix::io::Errno;
use serde::Deserialize;
use serde::Serialize;

use crate::adapters::files::dir_fd::Dir;
use crate::adapters::files::dir_fd::is_visible;
use crate::adapters::files::error::Problem;
use crate::adapters::files::error::io_error;
use crate::adapters::files::manifest::MANIFEST;
use crate::model::FaultKind;
use crate::model::PublicText;
use crate::public_text;

/// The file with the mark, in both folders.
pub(super) const MARK: &str = ".snapgate-folder.json";
/// The lock that versions without marks made in `backups`.
pub(super) const LOCK: &str = ".snapgate-lock";
const FORMAT: u32 = 1;
const BYTES_MAX: u64 = 64 << 10;

/// Which of the two folders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Role {
    /// The VMs.
    Root,
    /// The backups.
    Backups,
}

impl Role {
    /// The key of the configuration.
    pub(super) const fn key(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Backups => "backups",
        }
    }
}

/// Which folders without a mark are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnmarkedFolders {
    /// Those that versions without marks have used.
    Used,
    /// Those, and empty ones.
    Empty,
    /// Any, and folders that belonged to others before.
    Any,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    format: u32,
    role: Role,
    id: String,
    /// In `backups`: the mark of the `root` that it belongs to, unless that cannot be written to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    root: Option<String>,
}

fn unavailable(text: PublicText) -> Problem {
    Problem::new(FaultKind::Unavailable, text)
}

fn mark_missing(role: Role) -> Problem {
    unavailable(public_text!(
        "The directory in `{}` lacks the gateway's mark. Mount its file system; if the directory is new, run the gateway's `init` command.",
        role.key()
    ))
}

fn not_marked(role: Role, cause: impl fmt::Display) -> Problem {
    let text = public_text!(
        "The directory in `{}` could not be marked as the gateway's. Try again later.",
        role.key()
    );
    Problem::new(FaultKind::Unavailable, text).because(cause)
}

impl Mark {
    fn new(role: Role) -> Result<Self, Problem> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(|error| not_marked(role, error))?;
        Ok(Self {
            format: FORMAT,
            role,
            id: format!("{:032x}", u128::from_le_bytes(bytes)),
            root: None,
        })
    }

    fn read(dir: &Dir, role: Role) -> Result<Option<Self>, Problem> {
        let damaged = || {
            unavailable(public_text!(
                "The directory in `{}` has an unreadable mark. Run the gateway's `init` command, which prints the details.",
                role.key()
            ))
        };
        let read = dir.read_small(MARK, BYTES_MAX);
        let Some(bytes) = read.map_err(|errno| damaged().because(errno))? else {
            return Ok(None);
        };
        let mark: Self =
            serde_json::from_slice(&bytes).map_err(|error| damaged().because(error))?;
        if mark.format != FORMAT {
            return Err(damaged().because("written by another version"));
        }
        if mark.role != role {
            return Err(unavailable(public_text!(
                "The directory in `{}` was used as `{}` before. Correct the configuration, or remove its mark `{MARK}`.",
                role.key(),
                mark.role.key()
            )));
        }
        Ok(Some(mark))
    }

    fn write(&self, dir: &Dir) -> Result<(), Problem> {
        let text = serde_json::to_vec_pretty(self).map_err(|error| not_marked(self.role, error))?;
        dir.replace(MARK, &text)
    }
}

/// Whether there is nothing in a folder but hidden names and what file systems make by themselves.
fn is_empty(dir: &Dir) -> Result<bool, Errno> {
    let names = dir.names()?;
    let is_visible = |name: &std::ffi::CString| name.to_str().map_or(true, is_visible);
    Ok(!names.iter().any(is_visible))
}

/// Whether there is nothing in the folder of the backups but folders for VMs that are empty too, for instance mounted in advance.
fn has_no_backups(backups: &Dir) -> Result<bool, Errno> {
    for name in backups.names()? {
        match name.to_str() {
            Ok(name) if !is_visible(name) => {}
            Ok(name)
                if backups
                    .dir(name)
                    .is_ok_and(|vm_backups| is_empty(&vm_backups) == Ok(true)) => {}
            Ok(_) | Err(_) => return Ok(false),
        }
    }
    Ok(true)
}

/// Whether an earlier version has used it for backups.
fn holds_backups(backups: &Dir) -> Result<bool, Problem> {
    if backups.stat(LOCK).is_ok() {
        return Ok(true);
    }
    let doing = io_error("listing the folder of the backups");
    for vm in backups.names().map_err(&doing)? {
        let Some(vm_backups) = vm.to_str().ok().and_then(|vm| backups.dir(vm).ok()) else {
            continue;
        };
        for id in vm_backups.names().map_err(&doing)? {
            let backup = id.to_str().ok().and_then(|id| vm_backups.dir(id).ok());
            if backup.is_some_and(|backup| backup.stat(MANIFEST).is_ok()) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Whether a folder without a mark is taken.
fn may_take(dir: &Dir, role: Role, take: UnmarkedFolders) -> Result<(), Problem> {
    let is_empty = match role {
        Role::Root => is_empty(dir),
        Role::Backups => has_no_backups(dir),
    }
    .map_err(io_error("listing a configured folder"))?;
    let is_used = match role {
        Role::Root => !is_empty,
        Role::Backups => holds_backups(dir)?,
    };
    if is_used || take == UnmarkedFolders::Any || (take == UnmarkedFolders::Empty && is_empty) {
        return Ok(());
    }
    let key = role.key();
    Err(unavailable(if is_empty {
        public_text!(
            "The directory in `{key}` is empty and was never used by a gateway. Mount its file system; if the directory is new, run the gateway's `init` command."
        )
    } else {
        public_text!(
            "The directory in `{key}` contains other files and was never used by a gateway. Correct the path; to use it anyway, run the gateway's command `init --accept-contents`."
        )
    }))
}

/// Checks the marks of both folders, which are locked, and writes those that are missing where that is right.
///
/// # Errors
/// `Unavailable` with the remedy when one of them may not be what it was.
pub(super) fn check(root: &Dir, backups: &Dir, take: UnmarkedFolders) -> Result<(), Problem> {
    let (of_root, of_backups) = (
        Mark::read(root, Role::Root)?,
        Mark::read(backups, Role::Backups)?,
    );
    let mut of_backups = match of_backups {
        Some(mark) => mark,
        None => {
            // A root that has a mark had backups with one.
            if of_root.is_some() && take == UnmarkedFolders::Used {
                return Err(mark_missing(Role::Backups));
            }
            may_take(backups, Role::Backups, take)?;
            if of_root.is_none() {
                may_take(root, Role::Root, take)?;
            }
            let mark = Mark::new(Role::Backups)?;
            mark.write(backups)?;
            mark
        }
    };
    let of_root = match of_root {
        Some(mark) => Some(mark),
        None if of_backups.root.is_some() && take == UnmarkedFolders::Used => {
            return Err(mark_missing(Role::Root));
        }
        None => {
            may_take(root, Role::Root, take)?;
            mark_root(root)?
        }
    };
    let Some(of_root) = of_root else {
        return Ok(());
    };
    match &of_backups.root {
        Some(id) if *id == of_root.id => Ok(()),
        Some(_) if take == UnmarkedFolders::Used => Err(unavailable(public_text!(
            "The directory in `backups` belongs to another directory in `root`. Mount the right ones; to use these two together from now on, run the gateway's `init` command."
        ))),
        Some(_) | None => {
            of_backups.root = Some(of_root.id);
            of_backups.write(backups)
        }
    }
}

/// Marks a root; `None` where nothing can be written to it.
fn mark_root(root: &Dir) -> Result<Option<Mark>, Problem> {
    let mark = Mark::new(Role::Root)?;
    let text = serde_json::to_vec_pretty(&mark).map_err(|error| not_marked(Role::Root, error))?;
    match root
        .prepare_replacement(&text)
        .and_then(|file| root.commit_replacement(MARK, &file))
    {
        Ok(()) => {
            root.sync()
                .map_err(io_error("syncing a configured folder"))?;
            Ok(Some(mark))
        }
        Err(errno @ (Errno::ROFS | Errno::ACCESS | Errno::PERM)) => {
            tracing::warn!(%errno, "`root` cannot be marked: should its file system not be mounted one day, that is seen only if the folder is empty");
            Ok(None)
        }
        Err(errno) => Err(io_error("marking a configured folder")(errno)),
    }
}
