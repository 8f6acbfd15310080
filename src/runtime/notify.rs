//! Notifies the service manager (systemd, `Type=notify` or `notify-reload`) of the state of the process.
//!
//! Without a service manager (no `NOTIFY_SOCKET` in the environment) nothing happens.

use std::io;
use std::os::fd::BorrowedFd;

use sd_notify::NotifyState;

/// The state of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// It serves. Also sent after a reload, successful or not.
    Ready,
    /// It reloads its configuration; [`Notice::Ready`] must follow.
    Reloading,
    /// It shuts down.
    Stopping,
}

/// Sends the state to the service manager, if there is one. One small datagram.
///
/// # Errors
/// When the service manager cannot be reached. Only its view of the process is out of date then.
pub fn notify(notice: Notice) -> io::Result<()> {
    match notice {
        Notice::Ready => sd_notify::notify(&[NotifyState::Ready]),
        Notice::Reloading => {
            sd_notify::notify(&[NotifyState::Reloading, NotifyState::monotonic_usec_now()?])
        }
        Notice::Stopping => sd_notify::notify(&[NotifyState::Stopping]),
    }
}

/// Hands a copy of a socket to the service manager, which passes it to the next process of this unit under that name. Does
/// nothing without a service manager; one without room for it (`FileDescriptorStoreMax=`) ignores it.
///
/// # Errors
/// When there is a service manager that cannot be reached.
pub fn keep_socket(name: &str, socket: BorrowedFd<'_>) -> io::Result<()> {
    sd_notify::notify_with_fds(
        &[NotifyState::FdStore, NotifyState::FdName(name)],
        &[socket],
    )
}

/// Makes the service manager close the sockets that it keeps under that name.
///
/// # Errors
/// When there is a service manager that cannot be reached.
pub fn forget_socket(name: &str) -> io::Result<()> {
    sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)])
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::process::Command;
    use std::time::Duration;

    use super::*;

    /// Run by the test below with a service manager, and by itself without one.
    #[test]
    fn notices_are_sent() {
        for notice in [Notice::Ready, Notice::Reloading, Notice::Stopping] {
            notify(notice).unwrap_or_else(|error| panic!("{notice:?}: {error}"));
        }
    }

    #[test]
    fn the_service_manager_receives_the_notices() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "runtime::notify::tests::notices_are_sent"])
            .env("NOTIFY_SOCKET", &path)
            .output()
            .unwrap();
        assert!(child.status.success(), "the child ran: {child:?}");
        for expected in ["READY=1\n", "RELOADING=1\nMONOTONIC_USEC=", "STOPPING=1\n"] {
            let mut buffer = [0; 256];
            let length = socket.recv(&mut buffer).unwrap();
            let text = String::from_utf8_lossy(&buffer[..length]);
            assert!(text.starts_with(expected), "{expected:?} in {text:?}");
        }
    }
}
