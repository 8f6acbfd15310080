//! The signals of the process: stop, stop at once, reload, replace. The only place that names them.
//!
//! The first SIGTERM or SIGINT starts the drain, and a second one of either kind cuts it short; SIGHUP reloads; SIGUSR2 starts
//! the program file in place of the process.

use std::io;

use tokio::signal::unix;
use tokio::signal::unix::SignalKind;

/// What a signal asks of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Finish the requests in flight, then stop: the first SIGTERM or SIGINT.
    Stop,
    /// Stop at once: a further SIGTERM or SIGINT.
    StopNow,
    /// Reload the configuration: SIGHUP.
    Reload,
    /// Drain, and start the program file in place of this process: SIGUSR2.
    Replace,
}

/// Waits for signals.
#[derive(Debug)]
pub struct Signals {
    terminate: unix::Signal,
    interrupt: unix::Signal,
    hangup: unix::Signal,
    replace: unix::Signal,
    stopping: bool,
}

impl Signals {
    /// Replaces the default action of the signals, which is to end the process, until the process ends.
    ///
    /// Call it on the runtime, before the process may receive a signal.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: unix::signal(SignalKind::terminate())?,
            interrupt: unix::signal(SignalKind::interrupt())?,
            hangup: unix::signal(SignalKind::hangup())?,
            replace: unix::signal(SignalKind::user_defined2())?,
            stopping: false,
        })
    }

    /// The next signal. Cancel-safe; equal signals that arrive before this is called again count as one.
    pub async fn next(&mut self) -> Signal {
        tokio::select! {
            biased;
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.hangup.recv() => return Signal::Reload,
            _ = self.replace.recv() => return Signal::Replace,
        }
        if std::mem::replace(&mut self.stopping, true) {
            Signal::StopNow
        } else {
            Signal::Stop
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::Signal as Raw;
    use rustix::process::getpid;
    use rustix::process::kill_process;

    use super::*;

    #[tokio::test]
    async fn each_signal_has_its_meaning() {
        let mut signals = Signals::new().unwrap();
        let rows = [
            ("hangup", Raw::HUP, Signal::Reload),
            ("user-defined 2", Raw::USR2, Signal::Replace),
            ("first", Raw::TERM, Signal::Stop),
            ("hangup while stopping", Raw::HUP, Signal::Reload),
            ("second, of the other kind", Raw::INT, Signal::StopNow),
            ("third", Raw::TERM, Signal::StopNow),
        ];
        for (name, raw, expected) in rows {
            kill_process(getpid(), raw).unwrap();
            let got = tokio::time::timeout(std::time::Duration::from_secs(5), signals.next()).await;
            assert_eq!(got, Ok(expected), "{name}");
        }
    }
}
