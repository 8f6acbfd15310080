//! The signal to stop: given once, seen by any number of tasks.
//!
//! [`stop_pair`] makes a signal. The owner keeps the [`Stopper`], and every task that must end gets a clone of the [`Stop`]:
//!
//! ```
//! use snapgate::runtime::stop_pair;
//!
//! # let runtime = tokio::runtime::Builder::new_current_thread().build()?;
//! # runtime.block_on(async {
//! let (stopper, stop) = stop_pair();
//! assert!(!stop.is_given());
//! stopper.stop();
//! stop.given().await;
//! # });
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! It is a watch channel and not a `tokio_util` cancellation token, because Pingora takes its signal to shut down as a watch
//! receiver ([`Stop::receiver`]), and a token cannot be turned into one without a task that carries it over.

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
    /// Gives the signal. Giving it again has no effect.
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

    /// Returns once the signal was given. Cancel-safe.
    pub async fn given(&self) {
        let mut receiver = self.0.clone();
        // An error means that the stopper was dropped, which is the signal as well.
        drop(receiver.wait_for(|given| *given).await);
    }

    /// The underlying receiver, for libraries that take one.
    #[must_use]
    pub fn receiver(&self) -> watch::Receiver<bool> {
        self.0.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dropped_stopper_gives_the_signal() {
        let (stopper, stop) = stop_pair();
        drop(stopper);
        stop.given().await;
    }
}
