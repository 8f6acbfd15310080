//! Rows of the suite about lists of VMs: whole, in order, page by page while VMs come and go, and never empty for want of an answer.

use std::time::Duration;

use snapgate::adapters::adapter::*;
use snapgate::model::*;
use snapgate::runtime::{Clock, SystemClock};

use crate::conformance::AdapterFixture;
use crate::conformance::by;
use crate::harness::PATIENCE;

/// Every id, read in pages of this size; `between` is called after the first page.
async fn walk(adapter: &dyn Adapter, limit: u16, between: impl FnOnce()) -> Vec<VmId> {
    let (mut ids, mut after, mut between) = (Vec::new(), None, Some(between));
    loop {
        let range = VmRange { after, limit };
        let page = adapter.list_vms(&range, by()).await.unwrap();
        assert!(page.complete, "one VM manager that answers");
        assert!(page.vms.len() <= usize::from(limit), "{range:?}: too many");
        assert!(page.vms.iter().all(|vm| vm.description.is_none()), "short");
        ids.extend(page.vms.into_iter().map(|vm| vm.id));
        if let Some(change) = between.take() {
            change();
        }
        if !page.more {
            return ids;
        }
        after = ids.last().cloned();
    }
}

fn assert_in_order(ids: &[VmId]) {
    assert!(
        ids.windows(2).all(|pair| pair[0] < pair[1]),
        "in order, each once: {ids:?}"
    );
}

/// Reads the list until it has an id, or has it no more: lists may be a moment old.
async fn until(adapter: &dyn Adapter, id: &str, is_listed: bool) -> Vec<VmId> {
    let end = SystemClock.deadline(PATIENCE);
    loop {
        let ids = walk(adapter, limits::PAGE_MAX, || {}).await;
        if ids.iter().any(|found| found.as_str() == id) == is_listed {
            return ids;
        }
        assert!(
            SystemClock.instant() < end.instant(),
            "{id} listed: {is_listed}: {ids:?}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What a fixture shares with others may come and go: only VMs that are there before and after must be found in between.
pub(super) async fn lists_vms(fixture: &dyn AdapterFixture, adapter: &dyn Adapter) {
    let (name, vm) = (fixture.name(), fixture.vm());
    let before = until(adapter, vm.as_str(), true).await;
    assert_in_order(&before);
    let range = VmRange {
        after: None,
        limit: limits::PAGE_MAX,
    };
    let page = adapter.list_vms(&range, by()).await.unwrap();
    let listed = page.vms.iter().find(|listed| listed.id == vm).unwrap();
    let read = adapter.read_vm(&vm, by()).await.unwrap();
    let (known, expected) = (listed.run_state, read.run_state);
    assert!(
        known.is_none() || known == expected,
        "{name}: {known:?}, not {expected:?}"
    );
    if fixture.set_other_vm("zz-one", true) {
        fixture.set_other_vm("00-two", true);
        until(adapter, "00-two", true).await;
        let all = until(adapter, "zz-one", true).await;
        assert_in_order(&all);
        let paged = walk(adapter, 1, || {
            fixture.set_other_vm("zz-three", true);
            fixture.set_other_vm("00-two", false);
        });
        let paged = paged.await;
        assert_in_order(&paged);
        let after = until(adapter, "00-two", false).await;
        until(adapter, "zz-three", true).await;
        let stays = all.iter().filter(|id| after.contains(id));
        for id in stays {
            assert!(paged.contains(id), "{name}: {id} is missing in {paged:?}");
        }
        for other in ["zz-one", "zz-three"] {
            fixture.set_other_vm(other, false);
            until(adapter, other, false).await;
        }
    } else {
        let paged = walk(adapter, 1, || {}).await;
        assert_in_order(&paged);
        assert!(paged.contains(&vm), "{name}: {vm} is missing in {paged:?}");
    }
    let beyond = VmRange {
        after: VmId::new("\u{10ffff}").ok(),
        limit: 1,
    };
    let page = adapter.list_vms(&beyond, by()).await.unwrap();
    assert!(
        page.vms.is_empty() && !page.more,
        "{name}: after the last: {page:?}"
    );
    if let Some(unreachable) = fixture.unreachable_adapter() {
        let error = unreachable.list_vms(&range, by()).await.unwrap_err();
        assert!(
            !error.is_answer(),
            "{name}: no answer is an error: {error:?}"
        );
        assert_eq!(error.effect, Effect::None, "{name}");
    }
}

pub(super) async fn says_that_it_cannot_list(name: &str, adapter: &dyn Adapter) {
    let range = VmRange {
        after: None,
        limit: 1,
    };
    let error = adapter.list_vms(&range, by()).await.unwrap_err();
    assert_eq!(
        error.fault.kind,
        FaultKind::Unsupported,
        "{name}: {error:?}"
    );
}
