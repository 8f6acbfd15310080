//! What the process is told from outside: to stop, to stop at once, to reload. The only place that names signals.

use std::io;

use tokio::signal::unix;
use tokio::signal::unix::SignalKind;

/// What the process is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Stop when what runs is finished: the first SIGTERM or SIGINT.
    Stop,
    /// Stop at once: another one.
    StopNow,
    /// Read the configuration again: SIGHUP.
    Reload,
}

/// Waits for signals.
#[derive(Debug)]
pub struct Signals {
    terminate: unix::Signal,
    interrupt: unix::Signal,
    hangup: unix::Signal,
    stopping: bool,
}

impl Signals {
    /// Takes the signals over from their default action, which is to end the process, for as long as it lives.
    ///
    /// To be called on the runtime, before anything may be told to the process.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: unix::signal(SignalKind::terminate())?,
            interrupt: unix::signal(SignalKind::interrupt())?,
            hangup: unix::signal(SignalKind::hangup())?,
            stopping: false,
        })
    }

    /// The next one. Safe to drop and call again; equal signals that come faster than they are taken become one.
    pub async fn next(&mut self) -> Signal {
        let reload = tokio::select! {
            biased;
            _ = self.terminate.recv() => false,
            _ = self.interrupt.recv() => false,
            _ = self.hangup.recv() => true,
        };
        if reload {
            Signal::Reload
        } else if std::mem::replace(&mut self.stopping, true) {
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
