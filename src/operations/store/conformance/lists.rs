//! Lists: every query answers what a plain filter over all records does, page by page, with limited work.
#![expect(
    clippy::arithmetic_side_effects,
    reason = "what a test counts is small"
)]

use std::sync::Arc;

use futures_util::future::join_all;

use crate::model::Operation;
use crate::model::OperationState;
use crate::model::Phase;
use crate::model::PrincipalName;
use crate::model::Timestamp;
use crate::model::Verb;
use crate::model::limits;
use crate::operations::ListCount;
use crate::operations::ListOrder;
use crate::operations::ListPosition;
use crate::operations::ListQuery;
use crate::operations::ListStart;
use crate::operations::OperationVisibility;
use crate::operations::Selector;
use crate::operations::store::Store;
use crate::operations::store::conformance::Bed;
use crate::operations::store::conformance::seq;
use crate::operations::testing::NOW;
use crate::operations::testing::delete;
use crate::operations::testing::operation;
use crate::operations::testing::target;
use crate::operations::testing::update;

/// Numbers that look random and are the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % most
    }

    fn index(&mut self, most: u64) -> usize {
        usize::try_from(self.below(most)).unwrap()
    }

    fn maybe<T>(&mut self, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
        (self.below(3) == 0).then(|| make(self))
    }
}

/// Times that lie close together, and far apart.
fn time(number: u64) -> Timestamp {
    let far = if number.is_multiple_of(5) {
        40_000_000_000
    } else {
        0
    };
    Timestamp::from_millis(NOW.as_millis() + number + far * (number / 5))
}

fn any_operation(numbers: &mut Numbers, number: u64) -> Operation {
    let vm = format!("vm{}", numbers.below(3));
    let backup = format!("b{}", numbers.below(3));
    let mut made = operation(number, &vm, &backup);
    made.intent = match numbers.below(3) {
        0 => made.intent,
        1 => delete(&vm, &backup),
        _ => update(&vm, &backup),
    };
    made.principal = PrincipalName::new(["ada", "bob"][numbers.index(2)]).unwrap();
    // Times repeat, and do not rise with the numbers.
    made.created = time(numbers.below(20));
    made.phase = Phase::ALL[numbers.index(9)];
    made
}

fn any_query(numbers: &mut Numbers) -> ListQuery {
    ListQuery {
        principal: numbers.maybe(|_| PrincipalName::new("bob").unwrap()),
        selector: Selector {
            verb: numbers.maybe(|_| Verb::Delete),
            vm: numbers.maybe(|_| target("vm1", "b").vm),
            backup: numbers.maybe(|_| target("vm", "b2").backup),
        },
        state: numbers.maybe(|numbers| OperationState::ALL[numbers.index(6)]),
        unfinished: numbers.maybe(|numbers| numbers.below(2) == 0),
        since: numbers.maybe(|numbers| time(numbers.below(20))),
        before: numbers.maybe(|numbers| time(numbers.below(20))),
        visible: numbers.maybe(|_| {
            OperationVisibility::new(|name, target| {
                name.as_str() == "ada" || target.vm.as_str() == "vm2"
            })
        }),
        order: [ListOrder::NewestFirst, ListOrder::OldestFirst][numbers.index(2)],
        start: numbers.maybe(|numbers| {
            let seq = seq(1 + numbers.below(90));
            if numbers.below(2) == 0 {
                ListStart::AfterOperation(seq)
            } else {
                ListStart::After(ListPosition {
                    created: time(numbers.below(20)),
                    seq,
                })
            }
        }),
        limit: u16::try_from(1 + numbers.below(9)).unwrap(),
        count: true,
    }
}

pub(super) async fn every_query_answers_what_a_plain_filter_does(bed: &Bed) {
    let store = bed.open().await;
    let mut numbers = Numbers(0x5eed);
    // Some numbers are missing.
    let all: Vec<Arc<Operation>> = (1..=80)
        .filter(|number| number % 7 != 0)
        .map(|number| Arc::new(any_operation(&mut numbers, number)))
        .collect();
    let made = join_all(all.iter().map(|made| store.create(Arc::clone(made)))).await;
    assert!(made.iter().all(Result::is_ok), "stored: {made:?}");
    for round in 0..600 {
        let mut query = any_query(&mut numbers);
        loop {
            let expected = query.select(all.iter().cloned());
            let found = store.list(&query).await.unwrap();
            assert_eq!(found.operations, expected.operations, "{round}: {query:?}");
            assert_eq!(found.count, expected.count, "{round}: {query:?}");
            assert_eq!(found.next, expected.next, "{round}: {query:?}");
            let Some(next) = found.next else {
                break;
            };
            query.start = Some(ListStart::After(next));
        }
    }
    store.close().await;
}

/// The pages of a query: how many operations each has, and where the next one starts.
async fn pages(store: &dyn Store, mut query: ListQuery) -> Vec<(usize, Option<u64>)> {
    let mut found = Vec::new();
    loop {
        let page = store.list(&query).await.unwrap();
        let next = page.next.map(|next| next.seq.number());
        found.push((page.operations.len(), next));
        let Some(next) = page.next else {
            return found;
        };
        query.start = Some(ListStart::After(next));
    }
}

pub(super) async fn the_work_for_a_page_and_for_a_count_is_limited(bed: &Bed) {
    const RECORDS: u64 = 4100;
    let store = bed.open().await;
    for first in (1..=RECORDS).step_by(512) {
        let some = (first..RECORDS.min(first + 511) + 1).map(|number| {
            let mut made = operation(number, "vm", "b");
            // All of the first thousand at one moment.
            made.created = Timestamp::from_millis(NOW.as_millis() + number.saturating_sub(1000));
            store.create(Arc::new(made))
        });
        assert!(join_all(some).await.iter().all(Result::is_ok), "stored");
    }
    let none = OperationVisibility::new(|_, target| target.vm.as_str() == "none");
    let mut query = ListQuery {
        visible: Some(none),
        limit: 10,
        ..ListQuery::default()
    };
    let most = u64::try_from(limits::LIST_WORK_MAX).unwrap();
    let (first, second) = (RECORDS - most + 1, RECORDS - 2 * most + 1);
    let expected = vec![(0, Some(first)), (0, Some(second)), (0, None)];
    assert_eq!(
        pages(&*store, query.clone()).await,
        expected,
        "newest first"
    );
    query.order = ListOrder::OldestFirst;
    let expected = vec![(0, Some(most)), (0, Some(2 * most)), (0, None)];
    assert_eq!(
        pages(&*store, query.clone()).await,
        expected,
        "oldest first"
    );
    // The filter asks for the phase, which no index of VMs knows.
    query = ListQuery {
        limit: 10,
        unfinished: Some(false),
        selector: Selector {
            vm: Some(target("vm", "b").vm),
            ..Selector::default()
        },
        ..ListQuery::default()
    };
    let expected = vec![(0, Some(first)), (0, Some(second)), (0, None)];
    assert_eq!(pages(&*store, query.clone()).await, expected, "by phase");
    query = ListQuery {
        limit: 1000,
        count: true,
        ..ListQuery::default()
    };
    let page = store.list(&query).await.unwrap();
    let all = usize::try_from(RECORDS).unwrap();
    assert_eq!(page.count, Some(ListCount::Exact(all)), "counted");
    let numbers: Vec<u64> = page
        .operations
        .iter()
        .map(|found| found.seq.number())
        .collect();
    let expected: Vec<u64> = (RECORDS - 999..=RECORDS).rev().collect();
    assert_eq!(numbers, expected, "the newest, in order");
    store.close().await;
}
