//! Which operations a list has, in which order, and where it starts.

use std::fmt;
use std::sync::Arc;

use crate::model::BackupId;
use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::OperationState;
use crate::model::Phase;
use crate::model::PrincipalName;
use crate::model::Target;
use crate::model::Timestamp;
use crate::model::Verb;
use crate::model::VmId;

/// Selects operations of a request that does not name one by its number.
#[derive(Clone, Debug, Default)]
pub struct Selector {
    /// Only of this verb.
    pub verb: Option<Verb>,
    /// Only on this VM.
    pub vm: Option<VmId>,
    /// Only on the backup of this id.
    pub backup: Option<BackupId>,
}

type IsVisible = dyn Fn(&PrincipalName, &Target) -> bool + Send + Sync;

/// Decides which operations exist at all for the caller of a list, by their owner and target.
#[derive(Clone)]
pub struct OperationVisibility(Arc<IsVisible>);

impl OperationVisibility {
    /// Decides by this function.
    pub fn new(
        is_visible: impl Fn(&PrincipalName, &Target) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(is_visible))
    }

    /// Whether the operation exists for the caller.
    #[must_use]
    pub fn allows(&self, principal: &PrincipalName, target: &Target) -> bool {
        (self.0)(principal, target)
    }
}

impl fmt::Debug for OperationVisibility {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OperationVisibility")
    }
}

/// The order of a list: by the time of acceptance, and where that is the same, by number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ListOrder {
    /// The latest first.
    #[default]
    NewestFirst,
    /// The earliest first.
    OldestFirst,
}

/// A place in a list of operations: that of an operation, which need not exist any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ListPosition {
    /// When the operation was accepted.
    pub created: Timestamp,
    /// Its number.
    pub seq: OperationSeq,
}

impl ListPosition {
    /// The place of an operation.
    #[must_use]
    pub const fn of(operation: &Operation) -> Self {
        Self {
            created: operation.created,
            seq: operation.seq,
        }
    }
}

/// Where a list starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListStart {
    /// Behind this place.
    After(ListPosition),
    /// Behind the operation of this number, wherever it is.
    AfterOperation(OperationSeq),
}

/// Which operations to list.
#[derive(Clone, Debug, Default)]
pub struct ListQuery {
    /// Only those of this principal.
    pub principal: Option<PrincipalName>,
    /// Only those that match.
    pub selector: Selector,
    /// Only those in this state.
    pub state: Option<OperationState>,
    /// Only unfinished (`Some(true)`) or finished (`Some(false)`) ones.
    pub unfinished: Option<bool>,
    /// Only those accepted at this time or later.
    pub since: Option<Timestamp>,
    /// Only those accepted earlier than this.
    pub before: Option<Timestamp>,
    /// What the caller may see; `None` for everything.
    pub visible: Option<OperationVisibility>,
    /// In which order.
    pub order: ListOrder,
    /// Where to start; at the beginning when absent.
    pub start: Option<ListStart>,
    /// At most this many, 1..=[`crate::model::limits::PAGE_MAX`].
    pub limit: u16,
    /// Whether all that match are counted, of every page.
    pub count: bool,
}

/// What a filter looks at: the parts of an operation that are stored beside its record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ListedOperation<'a> {
    pub(crate) principal: &'a PrincipalName,
    pub(crate) verb: Verb,
    pub(crate) target: &'a Target,
    pub(crate) phase: Phase,
    pub(crate) created: Timestamp,
}

impl ListQuery {
    /// Whether the operation is listed.
    pub(crate) fn matches_listed(&self, operation: &ListedOperation<'_>) -> bool {
        let selector = &self.selector;
        let target = operation.target;
        selector.verb.is_none_or(|verb| verb == operation.verb)
            && self
                .unfinished
                .is_none_or(|unfinished| unfinished != operation.phase.is_final())
            && self
                .state
                .is_none_or(|state| state == OperationState::from(operation.phase))
            && self.since.is_none_or(|since| operation.created >= since)
            && self.before.is_none_or(|before| operation.created < before)
            && selector.vm.as_ref().is_none_or(|vm| *vm == target.vm)
            && selector
                .backup
                .as_ref()
                .is_none_or(|backup| *backup == target.backup)
            && self
                .principal
                .as_ref()
                .is_none_or(|name| name == operation.principal)
            // Last, because patterns of grants cost more than all others.
            && self
                .visible
                .as_ref()
                .is_none_or(|visible| visible.allows(operation.principal, target))
    }

    /// Whether the operation is listed.
    #[must_use]
    pub fn matches(&self, operation: &Operation) -> bool {
        self.matches_listed(&ListedOperation {
            principal: &operation.principal,
            verb: operation.verb(),
            target: operation.target(),
            phase: operation.phase,
            created: operation.created,
        })
    }

    /// The answer, from every operation in any order. What the store is compared with, and what stands in for it.
    #[must_use]
    pub fn select(&self, all: impl IntoIterator<Item = Arc<Operation>>) -> ListPage {
        let all: Vec<_> = all.into_iter().collect();
        let start = self.start.map(|start| match start {
            ListStart::After(position) => position,
            ListStart::AfterOperation(seq) => {
                let nearest = all.iter().filter(|operation| operation.seq <= seq);
                let nearest = nearest.max_by_key(|operation| operation.seq);
                let created = nearest.map(|operation| operation.created);
                ListPosition {
                    created: created.unwrap_or_default(),
                    seq,
                }
            }
        });
        let is_after = |operation: &Arc<Operation>| {
            let place = ListPosition::of(operation);
            start.is_none_or(|start| match self.order {
                ListOrder::NewestFirst => place < start,
                ListOrder::OldestFirst => place > start,
            })
        };
        let mut found: Vec<_> = all;
        found.retain(|operation| self.matches(operation));
        let count = self.count.then_some(ListCount::Exact(found.len()));
        found.retain(is_after);
        found.sort_by_key(|operation| ListPosition::of(operation));
        if self.order == ListOrder::NewestFirst {
            found.reverse();
        }
        let limit = usize::from(self.limit.max(1));
        let more = found.len() > limit;
        found.truncate(limit);
        let last = found.last().map(|last| ListPosition::of(last));
        ListPage {
            operations: found,
            next: last.filter(|_| more),
            count,
        }
    }
}

/// How many operations match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListCount {
    /// So many.
    Exact(usize),
    /// So many among those that were looked at, and perhaps more.
    AtLeast(usize),
}

/// One page of operations.
#[derive(Clone, Debug, Default)]
pub struct ListPage {
    /// The operations, in the order of the list.
    pub operations: Vec<Arc<Operation>>,
    /// Where the next page starts; `None` when there is none. A page may be short, and even empty, and not be the last: the
    /// work for one page is limited.
    pub next: Option<ListPosition>,
    /// How many match in all; `None` unless that was asked for.
    pub count: Option<ListCount>,
}
