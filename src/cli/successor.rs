//! SIGUSR2: the program file is started anew in place of the process, on the same listening sockets.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;

use crate::cli::CliError;
use crate::listener::Sockets;
use crate::runtime::Program;

/// What the next program needs, kept from the start on.
#[derive(Debug)]
pub(super) struct Successor {
    program: Program,
    trial: Vec<OsString>,
    sockets: Vec<(&'static str, OwnedFd)>,
}

impl Successor {
    /// `trial` are the arguments with which the next program is tried first.
    pub(super) fn new(sockets: &Sockets, trial: Vec<OsString>) -> io::Result<Self> {
        Ok(Self {
            program: Program::of_this_process()?,
            trial,
            sockets: sockets.copy_for_successor()?,
        })
    }

    /// Whether the program file as it is now starts and accepts the configuration. Nothing ends before that is known.
    pub(super) async fn is_usable(&self) -> bool {
        let file = self.program.file().display();
        match self.program.try_run(&self.trial).await {
            Ok(()) => {
                tracing::info!(%file, "replacing this process");
                true
            }
            Err(reason) => {
                tracing::error!(%file, reason, "process not replaced, the new program does not start");
                false
            }
        }
    }

    /// Becomes the next program. Everything of this one has ended: the store has one owner at a time.
    pub(super) fn take_over(self) -> CliError {
        let file = self.program.file().display().to_string();
        let error = self.program.replace_process(self.sockets);
        CliError::Other(format!("cannot start {file}: {error}"))
    }
}
