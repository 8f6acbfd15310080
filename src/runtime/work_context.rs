//! What the running task works for: the request, its trace, and the operation. Log lines name them.
//!
//! The context is local to its task, so that a line that is written deep in an adapter has it without a parameter in every
//! call. A new task has none: where it works for the same, spawn [`inherit`]`(work)`. Tasks that serve many requests, such as the
//! reader of a connection, must not inherit the one that happened to come first.

use std::future::Future;

use crate::model::OperationSeq;
use crate::model::RequestId;
use crate::model::TraceContext;

tokio::task_local! {
    static CONTEXT: WorkContext;
}

/// What a task works for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkContext {
    /// The request.
    pub request: Option<RequestId>,
    /// Where the work stands in a distributed trace.
    pub trace: Option<TraceContext>,
    /// The operation.
    pub operation: Option<OperationSeq>,
}

/// Runs the work for this.
pub fn within<F: Future>(context: WorkContext, work: F) -> impl Future<Output = F::Output> {
    CONTEXT.scope(context, work)
}

/// Runs the work for what the present task works for, whichever task runs it.
pub fn inherit<F: Future>(work: F) -> impl Future<Output = F::Output> {
    within(current(), work)
}

/// Runs a function for this.
pub fn run_within<T>(context: WorkContext, work: impl FnOnce() -> T) -> T {
    CONTEXT.sync_scope(context, work)
}

/// What the present task works for; empty outside of requests and operations.
#[must_use]
pub fn current() -> WorkContext {
    CONTEXT.try_with(Clone::clone).unwrap_or_default()
}

/// The place of the present task in a trace.
#[must_use]
pub fn current_trace() -> Option<TraceContext> {
    read(|context| context.trace)?
}

/// Reads what the present task works for without a copy; `None` outside of requests and operations.
pub fn read<T>(look: impl FnOnce(&WorkContext) -> T) -> Option<T> {
    CONTEXT.try_with(look).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Tasks;

    #[tokio::test]
    async fn a_context_is_visible_to_its_work_and_to_what_inherits_it() {
        let context = WorkContext {
            request: RequestId::new("r-1").ok(),
            trace: None,
            operation: OperationSeq::new(7),
        };
        let tasks = Tasks::default();
        let expected = context.clone();
        within(context, async {
            assert_eq!(current(), expected, "within");
            let alone = tasks.spawn(async { current() });
            assert_eq!(alone.await.unwrap(), WorkContext::default(), "a new task");
            let heir = tasks.spawn(inherit(async { current() }));
            assert_eq!(heir.await.unwrap(), expected, "an heir");
            let other = WorkContext::default();
            assert_eq!(run_within(other.clone(), current), other, "an inner one");
        })
        .await;
        assert_eq!(current(), WorkContext::default(), "outside");
        assert_eq!(current_trace(), None, "outside");
    }
}
