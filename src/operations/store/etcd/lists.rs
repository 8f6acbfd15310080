//! Lists of operations and of changes.
//!
//! As in every engine a list walks one index; see `list_index.rs`. The entries of an index hold what never changes about an
//! operation, so that most of what filters leave out is not read. The phase is read with the record, where a filter asks for it.

use std::collections::VecDeque;

use crate::model::OperationSeq;
use crate::model::Phase;
use crate::model::Timestamp;
use crate::model::limits;
use crate::operations::api::ChangePage;
use crate::operations::api::ChangePart;
use crate::operations::api::ChangeQuery;
use crate::operations::change_feed::DurableChange;
use crate::operations::list_query::ListCount;
use crate::operations::list_query::ListOrder;
use crate::operations::list_query::ListPage;
use crate::operations::list_query::ListPosition;
use crate::operations::list_query::ListQuery;
use crate::operations::list_query::ListStart;
use crate::operations::store::error::StoreError;
use crate::operations::store::etcd::entries::Entry;
use crate::operations::store::etcd::errors::unavailable;
use crate::operations::store::etcd::keys::number_at_end;
use crate::operations::store::etcd::keys::seq_at_end;
use crate::operations::store::etcd::reader::Reader;
use crate::operations::store::etcd::reader::StoredRow;
use crate::operations::store::etcd::walk::Direction;
use crate::operations::store::etcd::walk::Walk;
use crate::operations::store::list_index::ListIndex;
use crate::operations::store::row::ListedParts;
use crate::operations::store::row::RowHeader;
use crate::operations::store::row::StoredParts;

/// Records that are read at once where a filter needs the phase: most of them may be left out.
const ROWS_WITH_PHASE: usize = 100;

/// A place in an index as a number: the time of acceptance, then the number of the operation.
fn place(created: u64, seq: u64) -> u128 {
    (u128::from(created) << 64) | u128::from(seq)
}

fn millis(time: Timestamp) -> u64 {
    // What fits the other engine: so large a time is that of no operation.
    time.as_millis().min(i64::MAX.cast_unsigned())
}

fn parts_of(place: u128) -> (u64, u64) {
    let low = place & u128::from(u64::MAX);
    let half = |number: u128| u64::try_from(number).unwrap_or(u64::MAX);
    (half(place >> 64), half(low))
}

/// An entry of an index.
struct Indexed {
    created: u64,
    seq: u64,
    entry: Option<Entry>,
}

impl Indexed {
    /// What filters look at, in a phase.
    fn listed(&self, phase: &str) -> Option<ListedParts> {
        let Entry(principal, verb, vm, backup) = self.entry.as_ref()?;
        ListedParts::parse(&StoredParts {
            seq: self.seq,
            created: self.created,
            principal,
            verb,
            vm,
            backup,
            phase,
        })
    }

    fn position(&self) -> Option<ListPosition> {
        Some(ListPosition {
            created: Timestamp::from_millis(self.created),
            seq: OperationSeq::new(self.seq)?,
        })
    }
}

fn listed_of(row: &StoredRow) -> Option<ListedParts> {
    let header: &RowHeader = &row.row.header;
    ListedParts::parse(&StoredParts {
        seq: row.row.seq,
        created: header.created,
        principal: &header.principal,
        verb: &header.verb,
        vm: &header.vm,
        backup: &header.backup,
        phase: &header.phase,
    })
}

/// Whether only the record says if an operation is listed.
const fn needs_phase(query: &ListQuery) -> bool {
    query.state.is_some() || query.unfinished.is_some()
}

/// A query without what only the phase decides.
fn without_phase(query: &ListQuery) -> ListQuery {
    ListQuery {
        state: None,
        unfinished: None,
        ..query.clone()
    }
}

/// Walks the index of a query, entry by entry, and reads the records of those that may be listed a group at a time.
struct ListWalk<'a> {
    reader: &'a Reader,
    query: &'a ListQuery,
    /// The same query, as far as entries of the index decide it.
    by_entry: ListQuery,
    walk: Walk<'a>,
    entries: VecDeque<Indexed>,
    /// Records that were read ahead, in the order of the entries.
    rows: VecDeque<StoredRow>,
    /// Up to which entry records were read: so many of `entries` from the front.
    read_ahead: usize,
}

/// What the walk comes to next.
enum Next {
    /// An operation that is not listed, and where it is.
    PassedOver(Option<ListPosition>),
    /// One that is.
    Listed(Box<StoredRow>, ListPosition),
    /// It vanished while the list was read.
    Gone,
    /// There are no more.
    End,
}

impl<'a> ListWalk<'a> {
    fn new(reader: &'a Reader, query: &'a ListQuery, start: Option<ListPosition>) -> Self {
        let index = ListIndex::of_query(query);
        let prefix = reader.keys.index(&index);
        let since = query.since.map_or(0, millis);
        let before = query.before.map_or(i64::MAX.cast_unsigned(), millis);
        // No number is below 1, so (time, 0) is right before the first operation of that time.
        let (first, end) = (place(since, 0), place(before, 0));
        let start = start.map(|start| place(millis(start.created), start.seq.number()));
        let (direction, left) = match query.order {
            ListOrder::NewestFirst => {
                let end = start.map_or(end, |start| start.min(end));
                (Direction::Downwards, (first, end))
            }
            ListOrder::OldestFirst => {
                let after = start.map_or(0, |start| start.saturating_add(1));
                (Direction::Upwards, (first.max(after), end))
            }
        };
        Self {
            reader,
            query,
            by_entry: without_phase(query),
            walk: Walk::along_positions(&reader.connection, prefix, direction, left)
                // Hardly anything is later than the newest record: the walk begins there.
                .starting_near(place(reader.newest_created().saturating_add(1), 0)),
            entries: VecDeque::new(),
            rows: VecDeque::new(),
            read_ahead: 0,
        }
    }

    /// Whether an entry alone shows that it is not listed.
    fn is_out(&self, entry: &Indexed) -> bool {
        // Any phase: the query that it is compared with does not ask for one.
        let listed = entry.listed(Phase::Accepted.as_str());
        !listed.is_some_and(|listed| listed.is_listed(&self.by_entry))
    }

    /// The next operation. `wanted` is how many more the caller expects to list: so many are read at once.
    async fn next(&mut self, wanted: usize) -> Result<Next, StoreError> {
        if self.entries.is_empty() && !self.fill().await? {
            return Ok(Next::End);
        }
        if self.read_ahead == 0 {
            self.read_rows(wanted).await?;
        }
        let Some(entry) = self.entries.pop_front() else {
            return Ok(Next::End);
        };
        self.read_ahead = self.read_ahead.saturating_sub(1);
        let position = entry.position();
        let Some(position) = position.filter(|_| !self.is_out(&entry)) else {
            return Ok(Next::PassedOver(position));
        };
        let is_read = self
            .rows
            .front()
            .is_some_and(|row| row.row.seq == entry.seq);
        let row = if is_read { self.rows.pop_front() } else { None };
        let Some(row) = row else {
            return Ok(Next::Gone);
        };
        let is_listed = listed_of(&row).is_some_and(|listed| listed.is_listed(self.query));
        Ok(if is_listed {
            Next::Listed(Box::new(row), position)
        } else {
            Next::PassedOver(Some(position))
        })
    }

    async fn fill(&mut self) -> Result<bool, StoreError> {
        let step = self
            .walk
            .step()
            .await
            .map_err(|error| unavailable(&error))?;
        let Some(step) = step else {
            return Ok(false);
        };
        self.entries.extend(step.iter().filter_map(|stored| {
            let (created, seq) = parts_of(number_at_end(stored.key(), 32)?);
            let entry = serde_json::from_slice(stored.value()).ok();
            Some(Indexed {
                created,
                seq,
                entry,
            })
        }));
        Ok(true)
    }

    /// Reads the records of the next entries that may be listed, and of no more than are wanted.
    async fn read_rows(&mut self, wanted: usize) -> Result<(), StoreError> {
        let mut seqs = Vec::new();
        for entry in &self.entries {
            if !self.is_out(entry) {
                if seqs.len() >= wanted.max(1) {
                    break;
                }
                seqs.push(entry.seq);
            }
            self.read_ahead = self.read_ahead.saturating_add(1);
        }
        self.rows = self.reader.rows(&seqs).await?.into();
        Ok(())
    }
}

impl Reader {
    pub(super) async fn list(&self, query: &ListQuery) -> Result<ListPage, StoreError> {
        let mut page = self.walk_page(query).await?;
        if query.count {
            page.count = Some(self.count_matches(query).await?);
        }
        Ok(page)
    }

    /// One page, or what could be found of it within the limit of work.
    async fn walk_page(&self, query: &ListQuery) -> Result<ListPage, StoreError> {
        let start = self.find_start(query.start).await?;
        let mut walk = ListWalk::new(self, query, start);
        let limit = usize::from(query.limit.clamp(1, limits::PAGE_MAX));
        let needs_phase = needs_phase(query);
        let mut page = ListPage::default();
        let (mut passed_over, mut last, mut last_listed) = (0_usize, None, None);
        loop {
            // One more than the page has shows whether there is a next page.
            let missing = limit
                .saturating_sub(page.operations.len())
                .saturating_add(1);
            let wanted = missing.max(if needs_phase { ROWS_WITH_PHASE } else { 0 });
            let next = walk.next(wanted).await?;
            if passed_over == limits::LIST_WORK_MAX && !matches!(next, Next::End) {
                page.next = last;
                return Ok(page);
            }
            match next {
                Next::End => {
                    let stopped = walk.walk.stopped_at();
                    page.next = stopped.and(last);
                    return Ok(page);
                }
                Next::Gone => {}
                Next::PassedOver(position) => {
                    last = position.or(last);
                    passed_over = passed_over.saturating_add(1);
                }
                Next::Listed(_, _) if page.operations.len() == limit => {
                    page.next = last_listed;
                    return Ok(page);
                }
                Next::Listed(row, position) => {
                    last = Some(position);
                    match self.decode(&row.row) {
                        Ok(operation) => {
                            last_listed = last;
                            page.operations.push(operation);
                        }
                        Err(_) => passed_over = passed_over.saturating_add(1),
                    }
                }
            }
        }
    }

    /// The place where a list starts.
    async fn find_start(
        &self,
        start: Option<ListStart>,
    ) -> Result<Option<ListPosition>, StoreError> {
        let seq = match start {
            None => return Ok(None),
            Some(ListStart::After(position)) => return Ok(Some(position)),
            Some(ListStart::AfterOperation(seq)) => seq,
        };
        // The operation may have expired; the one before it was accepted no later, but for clocks that were set back.
        let left = (0, u128::from(seq.number()).saturating_add(1));
        let prefix = self.keys.operations();
        let mut walk =
            Walk::along_numbers(&self.connection, prefix, Direction::Downwards, left).keys_only();
        let step = walk.step().await.map_err(|error| unavailable(&error))?;
        let nearest = step.iter().flatten().find_map(|key| seq_at_end(key.key()));
        let created = match nearest {
            Some(nearest) => self.row(nearest).await?,
            None => None,
        };
        Ok(Some(ListPosition {
            created: Timestamp::from_millis(created.map_or(0, |found| found.row.header.created)),
            seq,
        }))
    }

    /// How many operations match, as far as the limit of work allows to know.
    async fn count_matches(&self, query: &ListQuery) -> Result<ListCount, StoreError> {
        let mut walk = ListWalk::new(self, query, None);
        let needs_phase = needs_phase(query);
        let (mut seen, mut count) = (0_usize, 0_usize);
        loop {
            let is_listed = if needs_phase {
                match walk.next(usize::from(limits::PAGE_MAX)).await? {
                    Next::End => break,
                    Next::Gone => continue,
                    Next::PassedOver(_) => false,
                    Next::Listed(..) => true,
                }
            } else {
                if walk.entries.is_empty() && !walk.fill().await? {
                    break;
                }
                match walk.entries.pop_front() {
                    Some(entry) => !walk.is_out(&entry),
                    None => break,
                }
            };
            if seen == limits::LIST_COUNT_MAX {
                return Ok(ListCount::AtLeast(count));
            }
            seen = seen.saturating_add(1);
            count = count.saturating_add(usize::from(is_listed));
        }
        Ok(match walk.walk.stopped_at() {
            Some(_) => ListCount::AtLeast(count),
            None => ListCount::Exact(count),
        })
    }

    /// Records whose last write is in a range.
    pub(super) async fn changes(&self, query: &ChangeQuery) -> Result<ChangePage, StoreError> {
        let limit = usize::from(query.limit.clamp(1, limits::PAGE_MAX));
        let mut walk = match query.part {
            ChangePart::Unfinished { after } => {
                self.walk_unfinished(after.map_or(0, OperationSeq::number))
            }
            ChangePart::Finished => {
                let from = query.after.map_or(0, |after| after.saturating_add(1));
                let left = (place(from, 0), place(query.up_to.saturating_add(1), 0));
                let prefix = self.keys.all_changed();
                Walk::along_positions(&self.connection, prefix, Direction::Upwards, left)
                    .with_window(u128::from(limits::STREAM_WINDOW) << 64)
                    .keys_only()
            }
        };
        let is_finished = query.part == ChangePart::Finished;
        let mut page = ChangePage::default();
        let mut rows_found = 0_usize;
        while let Some(step) = walk.step().await.map_err(|error| unavailable(&error))? {
            let seqs: Vec<u64> = step
                .iter()
                .filter_map(|key| seq_at_end(key.key()))
                .collect();
            for stored in self.rows(&seqs).await? {
                let header = &stored.row.header;
                if header.live == is_finished || !is_wanted(query, header) {
                    continue;
                }
                rows_found = rows_found.saturating_add(1);
                let operation = self.decode(&stored.row).ok();
                let change = operation.map(|found| DurableChange::new(header.changed, found));
                page.changes.extend(change);
                if rows_found == limit {
                    let seq = OperationSeq::new(stored.row.seq);
                    page.full_at = seq.map(|seq| (header.changed, seq));
                    return Ok(page);
                }
            }
        }
        if walk.stopped_at().is_some() {
            // A page that only seems to be the last would leave a gap.
            let why = "the changes could not be read to their end".to_owned();
            return Err(StoreError::Unavailable(why));
        }
        Ok(page)
    }
}

fn is_wanted(query: &ChangeQuery, header: &RowHeader) -> bool {
    let principal = query.principal.as_ref();
    query.after.is_none_or(|after| header.changed > after)
        && header.changed <= query.up_to
        && principal.is_none_or(|name| name.as_str() == header.principal)
        && query.verb.is_none_or(|verb| verb.as_str() == header.verb)
        && query.vm.as_ref().is_none_or(|vm| vm.as_str() == header.vm)
}
