//! The program of this process: tried beforehand, and started in place of the process with its listening sockets.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;

use command_fds::CommandFdExt;
use command_fds::FdMapping;

/// The descriptor of the first socket that a service manager passes on, as `sd_listen_fds` defines it.
const FIRST_SOCKET: i32 = 3;
/// Time for the program to validate a configuration.
const TRIAL_TIME_MAX: Duration = Duration::from_secs(30);

/// The file and the arguments of this process.
#[derive(Clone, Debug)]
pub struct Program {
    file: PathBuf,
    arguments: Vec<OsString>,
}

impl Program {
    /// Reads them. Call it at the start: after an upgrade the system only knows the deleted file.
    ///
    /// # Errors
    /// When the system does not say which file this process runs.
    pub fn of_this_process() -> io::Result<Self> {
        let mut arguments = std::env::args_os();
        let called = arguments.next().unwrap_or_default();
        // The name as it was called leads through symbolic links, by which versions are often switched.
        let file = if Path::new(&called).components().count() > 1 {
            std::path::absolute(&called)?
        } else {
            std::env::current_exe()?
        };
        Ok(Self {
            file,
            arguments: arguments.collect(),
        })
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Runs the file as it is now, with other arguments, to its end.
    ///
    /// # Errors
    /// What it printed to standard error, unless it ended with status 0 in time.
    pub async fn try_run(&self, arguments: &[OsString]) -> Result<(), String> {
        let mut trial = tokio::process::Command::new(&self.file);
        trial
            .args(arguments)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let ended = tokio::time::timeout(TRIAL_TIME_MAX, trial.output()).await;
        match ended {
            Ok(Ok(output)) if output.status.success() => Ok(()),
            Ok(Ok(output)) => {
                let said = String::from_utf8_lossy(&output.stderr);
                Err(format!("{}: {}", output.status, said.trim_end()))
            }
            Ok(Err(error)) => Err(error.to_string()),
            Err(_elapsed) => Err(format!("no end within {TRIAL_TIME_MAX:?}")),
        }
    }

    /// Replaces this process by the file as it is now, with the same arguments and process id. It finds the sockets as those of a
    /// service manager, under these names. Everything else of this process ends, as at its exit.
    ///
    /// Returns only when that fails. Writes to closed pipes end the process from then on: SIGPIPE has its default.
    pub fn replace_process(self, sockets: Vec<(&'static str, OwnedFd)>) -> io::Error {
        let names: Vec<&str> = sockets.iter().map(|(name, _)| *name).collect();
        let mut successor = Command::new(&self.file);
        successor
            .args(&self.arguments)
            .env("LISTEN_PID", std::process::id().to_string())
            .env("LISTEN_FDS", sockets.len().to_string())
            .env("LISTEN_FDNAMES", names.join(":"));
        let numbered = (FIRST_SOCKET..).zip(sockets);
        let mappings = numbered.map(|(child_fd, (_, parent_fd))| FdMapping {
            parent_fd,
            child_fd,
        });
        match successor.fd_mappings(mappings.collect()) {
            Ok(successor) => successor.exec(),
            Err(collision) => io::Error::other(collision),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell() -> Program {
        Program {
            file: PathBuf::from("/bin/sh"),
            arguments: Vec::new(),
        }
    }

    fn script(text: &str) -> [OsString; 2] {
        ["-c".into(), text.into()]
    }

    #[test]
    fn the_program_of_this_process_is_a_file() {
        let program = Program::of_this_process().unwrap();
        assert!(program.file().is_file(), "{program:?}");
    }

    #[tokio::test]
    async fn a_trial_succeeds_only_with_status_zero() {
        assert_eq!(shell().try_run(&script("exit 0")).await, Ok(()), "zero");
        let refused = shell().try_run(&script("echo why >&2; exit 78")).await;
        let text = refused.expect_err("78");
        assert!(text.contains("78") && text.contains("why"), "{text}");
        let absent = Program {
            file: PathBuf::from("/nonexistent/snapgate"),
            arguments: Vec::new(),
        };
        assert!(absent.try_run(&[]).await.is_err(), "no such file");
    }

    #[test]
    fn a_process_that_cannot_be_replaced_continues() {
        const MARK: &str = "SNAPGATE_TEST_REPLACES_ITSELF";
        if std::env::var_os(MARK).is_none() {
            // In a process of its own: a failed exec leaves SIGPIPE at its default, which would end the other tests with it.
            let itself = "runtime::program::tests::a_process_that_cannot_be_replaced_continues";
            let mut alone = Command::new(std::env::current_exe().unwrap());
            let ended = alone.args(["--exact", itself]).env(MARK, "1").output();
            let ended = ended.unwrap();
            let said = String::from_utf8_lossy(&ended.stdout);
            assert!(
                ended.status.success() && said.contains("1 passed"),
                "{said}"
            );
            return;
        }
        let absent = Program {
            file: PathBuf::from("/nonexistent/snapgate"),
            arguments: Vec::new(),
        };
        let error = absent.replace_process(Vec::new());
        assert_eq!(error.kind(), io::ErrorKind::NotFound, "{error}");
    }
}
