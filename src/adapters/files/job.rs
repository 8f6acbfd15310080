//! A piece of long work: how far it is, whether it shall stop, how it ended.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use tokio::sync::watch;

use crate::adapters::files::error::Failure;
use crate::adapters::files::error::Outcome;
use crate::adapters::port::TaskState;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::Progress;

/// How a job ended.
#[derive(Clone, Debug)]
enum End {
    Done,
    Failed(Fault),
    Cancelled,
}

/// One job, shared between the thread that works and those who ask.
#[derive(Debug)]
pub(super) struct Job {
    done: AtomicU64,
    total: AtomicU64,
    stop: AtomicBool,
    /// Once set the job can no longer be stopped: it is about to show its effect.
    committed: AtomicBool,
    end: Mutex<Option<End>>,
    ended: watch::Sender<bool>,
    #[cfg(test)]
    pub(super) steps_left: Mutex<Option<u32>>,
}

impl Job {
    pub(super) fn new() -> Self {
        Self {
            done: AtomicU64::new(0),
            total: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            committed: AtomicBool::new(false),
            end: Mutex::new(None),
            ended: watch::channel(false).0,
            #[cfg(test)]
            steps_left: Mutex::new(None),
        }
    }

    /// So many bytes there are to do.
    pub(super) fn expect(&self, bytes: u64) {
        self.total.fetch_add(bytes, Ordering::Relaxed);
    }

    /// So many bytes more are done. Fails when the job shall stop.
    pub(super) fn advance(&self, bytes: u64) -> Outcome<()> {
        self.done.fetch_add(bytes, Ordering::Relaxed);
        if self.stop.load(Ordering::Relaxed) {
            return Err(Failure::Cancelled);
        }
        Ok(())
    }

    /// Passed before every step that changes something on disk, so that tests can end a job at each of them.
    pub(super) fn step(&self) -> Outcome<()> {
        #[cfg(test)]
        if let Some(left) = self.steps_left.lock().unwrap().as_mut() {
            if *left == 0 {
                return Err(Failure::Killed);
            }
            *left = left.saturating_sub(1);
        }
        Ok(())
    }

    /// From here on the job cannot be stopped. Fails when it was told to stop before.
    pub(super) fn commit(&self) -> Outcome<()> {
        self.committed.store(true, Ordering::SeqCst);
        if self.stop.load(Ordering::SeqCst) {
            return Err(Failure::Cancelled);
        }
        Ok(())
    }

    /// Tells the job to stop. `false` when it is too late for that.
    pub(super) fn cancel(&self) -> bool {
        if self.has_ended() {
            return false;
        }
        self.stop.store(true, Ordering::SeqCst);
        !self.committed.load(Ordering::SeqCst)
    }

    /// Notes how it ended and wakes those who wait.
    pub(super) fn finish(&self, outcome: &Outcome<()>) {
        let end = match outcome {
            Ok(()) => End::Done,
            Err(Failure::Cancelled) => End::Cancelled,
            Err(failure) => End::Failed(failure.fault()),
        };
        *self.end.lock().unwrap_or_else(PoisonError::into_inner) = Some(end);
        self.ended.send_replace(true);
    }

    pub(super) fn has_ended(&self) -> bool {
        *self.ended.borrow()
    }

    /// How it is.
    pub(super) fn state(&self) -> TaskState {
        let end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        match end.as_ref() {
            Some(End::Done) => TaskState::Done,
            Some(End::Failed(fault)) => TaskState::Failed(fault.clone()),
            Some(End::Cancelled) => TaskState::Cancelled,
            None => {
                let total = self.total.load(Ordering::Relaxed);
                let done = self.done.load(Ordering::Relaxed);
                TaskState::Running((total > 0).then(|| Progress::of(done.min(total), total)))
            }
        }
    }

    /// Returns when it has ended.
    pub(super) async fn ended(&self) {
        let mut ended = self.ended.subscribe();
        // The sender lives as long as this job: it cannot be gone.
        drop(ended.wait_for(|it| *it).await);
    }
}

/// Ends a job as failed when its thread ends without a word, which only a panic can do.
#[derive(Debug)]
pub(super) struct EndsSomehow(pub(super) std::sync::Arc<Job>);

impl Drop for EndsSomehow {
    fn drop(&mut self) {
        if !self.0.has_ended() {
            self.0.finish(&Err(Failure::Fault(Fault::new(
                FaultKind::BackendFailed,
                "the work ended unexpectedly; its operator finds the reason in the log",
            ))));
        }
    }
}
