//! The kernel's events about watched files and directories, without a look at these.
//!
//! It queues an event before the call that made the change returns. So nothing in the queue means that nothing was changed
//! (`inotify(7)`, `proc_pid_mountinfo(5)`), and one empty look at an epoll descriptor shows that for all of them.

use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::event::Timespec;
use rustix::event::epoll;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::fs::inotify;
use rustix::fs::inotify::ReadFlags;
use rustix::fs::inotify::WatchFlags;
use rustix::io::Errno;

use crate::adapters::files::dir_fd::Dir;
use crate::adapters::files::failpoints::Failpoints;

const INOTIFY: u64 = 0;
const MOUNTS: u64 = 1;
/// Room for the events of one look in bytes; one takes at most 272. Small, for requests wait meanwhile.
const EVENTS_BYTES: usize = 1024;
/// What an entry of a directory goes through without being opened: it, and the directory itself.
const DIRECTORY: WatchFlags = WatchFlags::MOVE_SELF
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::MOVE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::ONLYDIR);
/// Whatever happens to a file under any of its names. Changes through a memory map are reported when it is closed.
const FILE: WatchFlags = WatchFlags::MOVE_SELF
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::MODIFY)
    .union(WatchFlags::CLOSE_WRITE);
/// What happens in a folder whose files matter: to it, to its names, and to what these are.
const CONTENTS: WatchFlags = DIRECTORY
    .union(WatchFlags::CREATE)
    .union(WatchFlags::MODIFY)
    .union(WatchFlags::CLOSE_WRITE);
/// A link is not followed, and what is watched already is refused: its events are about something else.
const ALWAYS: WatchFlags = WatchFlags::DONT_FOLLOW.union(WatchFlags::MASK_CREATE);

/// One thing that is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Watch(i32);

/// That something happened to what is watched or, with a name, to what has that name in it.
#[derive(Debug)]
pub(super) struct Event {
    /// What is watched. The kernel may report it after the watch was removed.
    pub(super) at: Watch,
    /// A name in it.
    pub(super) name: Option<Vec<u8>>,
}

/// The events since the last look.
#[derive(Debug)]
pub(super) enum WatchNews {
    /// Nothing whatsoever.
    Nothing,
    /// This, and perhaps more.
    Events(Vec<Event>),
    /// The kernel lost count, or the table of mounts was changed.
    Anything,
}

/// Watches files, directories and the table of mounts.
#[derive(Debug)]
pub(super) struct Watcher {
    inotify: OwnedFd,
    _mounts: OwnedFd,
    ready: OwnedFd,
    failpoints: Failpoints,
}

impl Watcher {
    /// Watches the table of mounts from now on.
    ///
    /// # Errors
    /// `MFILE` when there are too many, or too many open files; `NOSYS` without `/proc`.
    pub(super) fn new(failpoints: &Failpoints) -> Result<Self, Errno> {
        failpoints.hit("watch")?;
        let inotify =
            inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let mounts = rustix::fs::open("/proc/self/mountinfo", flags, Mode::empty());
        let mounts = mounts.map_err(|error| {
            if error == Errno::NOENT {
                Errno::NOSYS
            } else {
                error
            }
        })?;
        let ready = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let data = epoll::EventData::new_u64;
        epoll::add(&ready, &inotify, data(INOTIFY), epoll::EventFlags::IN)?;
        epoll::add(&ready, &mounts, data(MOUNTS), epoll::EventFlags::PRI)?;
        Ok(Self {
            inotify,
            _mounts: mounts,
            ready,
            failpoints: failpoints.clone(),
        })
    }

    /// Watches the directory of that path and the names in it.
    ///
    /// # Errors
    /// `NOSPC` when the user has too many, `ACCESS` when its names must not be listed, `EXIST` when it is watched.
    pub(super) fn directory(&self, path: &Path) -> Result<Watch, Errno> {
        self.add(path, DIRECTORY)
    }

    /// The same of a directory that is open, wherever it is by now.
    ///
    /// # Errors
    /// As for [`Watcher::directory`].
    pub(super) fn open_directory(&self, dir: &Dir) -> Result<Watch, Errno> {
        self.add(within(dir, "."), DIRECTORY)
    }

    /// Watches a folder that is open, the names in it, and the contents of the files that have these names.
    ///
    /// # Errors
    /// As for [`Watcher::directory`].
    pub(super) fn folder_contents(&self, dir: &Dir) -> Result<Watch, Errno> {
        self.add(within(dir, "."), CONTENTS)
    }

    /// Watches the file of that name, whatever other names it has.
    ///
    /// # Errors
    /// As for [`Watcher::directory`].
    pub(super) fn file(&self, dir: &Dir, name: &str) -> Result<Watch, Errno> {
        self.add(within(dir, name), FILE)
    }

    fn add(&self, path: impl AsRef<Path>, flags: WatchFlags) -> Result<Watch, Errno> {
        self.failpoints.hit("watch")?;
        inotify::add_watch(&self.inotify, path.as_ref(), flags | ALWAYS).map(Watch)
    }

    /// Does not watch that any longer.
    pub(super) fn remove(&self, watch: Watch) {
        if let Err(errno) = inotify::remove_watch(&self.inotify, watch.0) {
            tracing::trace!(%errno, "what was watched is gone already");
        }
    }

    /// What has happened. Does not wait, and does not look at any file.
    pub(super) fn pending_events(&self) -> WatchNews {
        let mut room = [MaybeUninit::uninit(); 2];
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        match epoll::wait(&self.ready, &mut room, Some(&at_once)) {
            Ok(([], _)) => WatchNews::Nothing,
            Ok((ready, _)) if ready.iter().all(|event| event.data.u64() == INOTIFY) => {
                self.events()
            }
            Ok(_) | Err(_) => WatchNews::Anything,
        }
    }

    fn events(&self) -> WatchNews {
        let mut room = [MaybeUninit::uninit(); EVENTS_BYTES];
        let mut reader = inotify::Reader::new(&self.inotify, &mut room);
        let mut events = Vec::new();
        loop {
            match reader.next() {
                Ok(event) => {
                    let unclear = ReadFlags::QUEUE_OVERFLOW | ReadFlags::UNMOUNT;
                    if event.events().intersects(unclear) {
                        return WatchNews::Anything;
                    }
                    events.push(Event {
                        at: Watch(event.wd()),
                        name: event.file_name().map(|name| name.to_bytes().to_vec()),
                    });
                }
                Err(Errno::AGAIN) => return WatchNews::Events(events),
                Err(_) => return WatchNews::Anything,
            }
            if reader.is_buffer_empty() {
                return WatchNews::Events(events);
            }
        }
    }
}

fn within(dir: &Dir, name: &str) -> String {
    format!("/proc/self/fd/{}/{name}", dir.as_fd().as_raw_fd())
}
