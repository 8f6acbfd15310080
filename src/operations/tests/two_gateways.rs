//! Two gateways on one store, one after the other: the first is stopped between its last durable write and the call, and goes on when
//! the second has taken over.

use std::sync::Arc;
use std::time::Duration;

use super::wait_until;
use crate::adapters::adapter::Adapter;
use crate::adapters::adapter::Recovery;
use crate::adapters::layers::Call;
use crate::adapters::layers::Chaos;
use crate::adapters::layers::InjectedFault;
use crate::adapters::layers::Leased;
use crate::adapters::layers::Script;
use crate::model::Operation;
use crate::model::Phase;
use crate::model::Precondition;
use crate::operations::BackendHandle;
use crate::operations::Operations;
use crate::operations::OperationsApi;
use crate::operations::WaitFor;
use crate::operations::core::Shared;
use crate::operations::store::SqliteStore;
use crate::operations::store::Store;
use crate::operations::testing;
use crate::operations::testing::Reply;
use crate::operations::testing::ScriptedAdapter;
use crate::operations::testing::TestSetup;
use crate::operations::testing::permit;
use crate::operations::testing::restore;
use crate::operations::testing::submission;
use crate::operations::testing::test_deadline;
use crate::runtime::Clock;
use crate::runtime::Lease;
use crate::runtime::Tasks;

/// How long the first gateway is stopped: the second one takes over meanwhile.
const STOPPED: Duration = Duration::from_millis(400);

async fn open(
    setup: &TestSetup,
    store: &Arc<SqliteStore>,
    adapter: Arc<dyn Adapter>,
    lease: Lease,
) -> Arc<Operations> {
    let shared = Shared {
        clock: Arc::<crate::runtime::ManualClock>::clone(&setup.clock),
        metrics: setup.metrics.clone(),
        tasks: Tasks::default(),
        lease: lease.clone(),
    };
    let handle = BackendHandle {
        name: testing::backend("one"),
        adapter: Arc::new(Leased::new(adapter, lease)),
        concurrency: 4,
    };
    let store: Arc<dyn Store> = Arc::<SqliteStore>::clone(store);
    let opened = Operations::start_on(store, setup.config.clone(), vec![handle], shared);
    opened.await.unwrap()
}

/// What the second gateway says about the operation, and how often the VM manager was called. The first one has a lease of ten
/// seconds, or one that does not end.
async fn run(is_leased: bool) -> (Arc<Operation>, usize) {
    let folder = tempfile::tempdir().unwrap();
    let scripted = ScriptedAdapter::new(Recovery::Listable);
    scripted.set_backup_ids(&["b"]);
    scripted.set_find_replies(&[Reply::NotBegun]);
    let setup = TestSetup::new(folder.path(), &scripted);
    let file = setup.config.store.file().unwrap().to_owned();
    let clock: Arc<dyn Clock> = Arc::<crate::runtime::ManualClock>::clone(&setup.clock);
    let store = SqliteStore::open(file, Arc::clone(&clock), setup.metrics.clone());
    let store = Arc::new(store.unwrap());
    let lease = if is_leased {
        Lease::until(Duration::from_secs(10), Arc::clone(&clock))
    } else {
        Lease::unlimited()
    };
    // The precondition is read when the operation leaves its queue, and again when SUBMITTING is durable: the last moment before
    // the call.
    let faults = Script::default();
    faults.add(Call::Read, InjectedFault::Delay(Duration::ZERO));
    faults.add(Call::Read, InjectedFault::Delay(STOPPED));
    let manager: Arc<dyn Adapter> = Arc::<ScriptedAdapter>::clone(&scripted);
    let stoppable = Chaos::new(Arc::clone(&manager), faults.clone());
    let first = open(&setup, &store, Arc::new(stoppable), lease).await;
    let intent = restore("vm", "b");
    let seq = first.reserve();
    let mut submitted = submission(seq, intent.clone());
    submitted.preconditions = vec![Precondition::BackupPresent];
    let accepted = first.accept(permit(&intent, "one"), submitted).await;
    accepted.expect("accepted");
    wait_until("the first gateway is stopped before the call", || async {
        let now = first.operation(seq).await.unwrap().unwrap();
        now.phase == Phase::Submitting && faults.is_empty()
    })
    .await;
    assert!(scripted.begun_operations().is_empty(), "not called yet");
    setup.clock.advance(Duration::from_secs(10));
    let second = open(&setup, &store, manager, Lease::unlimited()).await;
    let end = second.wait(seq, WaitFor::End, test_deadline()).await;
    let end = end.unwrap().unwrap();
    // The first one wakes up.
    tokio::time::sleep(STOPPED.saturating_mul(2)).await;
    let calls = scripted.begun_operations().len();
    first.core.stop_tasks().await;
    second.stop().await;
    (end, calls)
}

#[tokio::test]
async fn a_gateway_that_wakes_up_after_its_lease_calls_nothing() {
    let (end, calls) = run(true).await;
    assert_eq!(end.phase, Phase::NotExecuted, "{end:?}");
    assert_eq!(calls, 0, "what the Status says is true");
}

#[tokio::test]
async fn without_a_look_at_the_lease_the_call_is_made_and_caught() {
    let (end, calls) = run(false).await;
    assert_eq!(
        end.phase,
        Phase::NotExecuted,
        "the evidence was right then: {end:?}"
    );
    assert_eq!(
        calls, 1,
        "and is wrong now: this is what the lease prevents"
    );
}
