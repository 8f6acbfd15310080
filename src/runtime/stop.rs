//! The signal to stop: one hand gives it, many wait for it.

use tokio::sync::watch;

/// Gives the signal. Dropping it gives the signal too.
#[derive(Debug)]
pub struct Stopper(watch::Sender<bool>);

/// Waits for the signal.
#[derive(Clone, Debug)]
pub struct Stop(watch::Receiver<bool>);

/// A signal that has not been given yet.
#[must_use]
pub fn stop_pair() -> (Stopper, Stop) {
    let (sender, receiver) = watch::channel(false);
    (Stopper(sender), Stop(receiver))
}

impl Stopper {
    /// Gives the signal; giving it twice is the same as once.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

impl Stop {
    /// Whether the signal was given.
    #[must_use]
    pub fn is_given(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns once the signal was given. Safe to drop and call again.
    pub async fn given(&self) {
        let mut receiver = self.0.clone();
        // An error means that the stopper is gone, which is the signal as well.
        drop(receiver.wait_for(|given| *given).await);
    }

    /// The receiver underneath, for libraries that want one.
    #[must_use]
    pub fn receiver(&self) -> watch::Receiver<bool> {
        self.0.clone()
    }
}
