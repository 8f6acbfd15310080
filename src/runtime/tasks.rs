//! Tracked tasks: nothing is spawned that cannot be waited for.
//!
//! A [`Tasks`] is handed to whatever spawns tasks, and its owner waits for all of them when it stops, with a deadline of its
//! own: `tokio::time::timeout(patience, tasks.ended())`. A task that panics counts as ended.

use std::future::Future;

use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// Spawns tasks and tracks them until they end. Clones share the same tasks.
///
/// ```
/// use snapgate::runtime::Tasks;
///
/// # let runtime = tokio::runtime::Builder::new_current_thread().build()?;
/// # runtime.block_on(async {
/// let tasks = Tasks::default();
/// let task = tasks.spawn(async { 6 * 7 });
/// tasks.ended().await;
/// assert_eq!(tasks.count(), 0);
/// assert_eq!(task.await.ok(), Some(42));
/// # });
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Tasks(TaskTracker);

impl Tasks {
    /// Spawns the future as a task on the runtime it is called on.
    pub fn spawn<F>(&self, work: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.0.spawn(work)
    }

    /// The same future, tracked until it ends or is dropped, for a task that another [`Tasks`] spawns.
    pub fn track<F: Future>(&self, work: F) -> impl Future<Output = F::Output> + use<F> {
        self.0.track_future(work)
    }

    /// Counts as a task until it is dropped, for work that has no task of its own.
    #[must_use]
    pub fn token(&self) -> TaskToken {
        TaskToken(self.0.token())
    }

    /// How many tasks have not ended.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Returns once no task is left. Tasks may still be spawned meanwhile and afterwards. Cancel-safe.
    pub async fn ended(&self) {
        // A tracker can be waited for only once it is closed. It still spawns and tracks tasks then.
        self.0.close();
        self.0.wait().await;
    }
}

/// Counts as a task until it is dropped.
#[derive(Debug)]
pub struct TaskToken(#[expect(dead_code, reason = "it counts by being there")] TaskTrackerToken);

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn ended_waits_for_every_task_and_a_panic_ends_one() {
        let tasks = Tasks::default();
        let (go, wait) = tokio::sync::oneshot::channel::<()>();
        let slow = tasks.spawn(async move { wait.await.is_ok() });
        let bad = tasks.spawn(async { panic!("meant to") });
        assert!(bad.await.is_err(), "the panic stays in its task");
        assert_eq!(tasks.count(), 1, "the slow one is left");
        let early = tokio::time::timeout(Duration::from_millis(1), tasks.ended());
        assert!(early.await.is_err(), "not while a task runs");
        go.send(()).unwrap();
        tasks.ended().await;
        assert!(slow.await.unwrap(), "it ran to its end");
    }

    #[tokio::test]
    async fn tasks_spawned_after_a_wait_are_waited_for_as_well() {
        let tasks = Tasks::default();
        tasks.ended().await;
        let (go, wait) = tokio::sync::oneshot::channel::<()>();
        let task = tasks.spawn(tasks.track(async move { wait.await.is_ok() }));
        assert_eq!(tasks.count(), 2, "tracked twice");
        let early = tokio::time::timeout(Duration::from_millis(1), tasks.ended());
        assert!(early.await.is_err(), "not while a task runs");
        go.send(()).unwrap();
        tasks.ended().await;
        assert!(task.await.unwrap(), "it ran to its end");
    }
}
