//! The backups of one VM in memory, sorted in every order that lists have.

use std::sync::Arc;

use crate::model::Backup;
use crate::model::BackupFilter;
use crate::model::BackupId;
use crate::model::BackupQuery;
use crate::model::BackupSelection;
use crate::model::BackupSortKey;
use crate::model::NameFilter;
use crate::model::Tag;

/// Bytes of one backup in memory beside its texts: the value, and its place in each order.
const BACKUP_BYTES: usize = 400;
/// Bytes of one text in memory beside its characters.
const TEXT_BYTES: usize = 40;

/// The backups, once in each order: a pointer for each, so that an insert in the middle moves some ten kilobytes.
#[derive(Debug, Default)]
pub(super) struct BackupIndex {
    by_id: Vec<Arc<Backup>>,
    by_name: Vec<Arc<Backup>>,
    by_created: Vec<Arc<Backup>>,
    by_size: Vec<Arc<Backup>>,
    bytes: usize,
}

impl BackupIndex {
    fn sorted(&self, key: BackupSortKey) -> &[Arc<Backup>] {
        match key {
            BackupSortKey::Id => &self.by_id,
            BackupSortKey::Name => &self.by_name,
            BackupSortKey::Created => &self.by_created,
            BackupSortKey::Size => &self.by_size,
        }
    }

    fn sorted_mut(&mut self, key: BackupSortKey) -> &mut Vec<Arc<Backup>> {
        match key {
            BackupSortKey::Id => &mut self.by_id,
            BackupSortKey::Name => &mut self.by_name,
            BackupSortKey::Created => &mut self.by_created,
            BackupSortKey::Size => &mut self.by_size,
        }
    }

    /// Bytes that it takes, estimated.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds a backup whose id is not there.
    pub(super) fn insert(&mut self, backup: Backup) {
        let backup = Arc::new(backup);
        self.bytes = self.bytes.saturating_add(bytes_of(&backup));
        for key in BackupSortKey::ALL {
            let sorted = self.sorted_mut(key);
            let place = sorted.partition_point(|other| key.compare(other, &backup).is_lt());
            sorted.insert(place, Arc::clone(&backup));
        }
    }

    /// Removes the backup of that id, if it is there.
    pub(super) fn remove(&mut self, id: &BackupId) {
        let place = self.by_id.binary_search_by(|other| other.id.cmp(id));
        let Some(backup) = place.ok().and_then(|place| self.by_id.get(place)) else {
            return;
        };
        let backup = Arc::clone(backup);
        self.bytes = self.bytes.saturating_sub(bytes_of(&backup));
        for key in BackupSortKey::ALL {
            let sorted = self.sorted_mut(key);
            let place = sorted.binary_search_by(|other| key.compare(other, &backup));
            if let Ok(place) = place {
                sorted.remove(place);
            }
        }
    }

    /// Whether a backup other than this has the name.
    pub(super) fn has_name(&self, name: &str, except: &BackupId) -> bool {
        let mut named = self.named(name).iter();
        named.any(|backup| backup.id != *except)
    }

    /// All of that name.
    fn named(&self, name: &str) -> &[Arc<Backup>] {
        let from = |backup: &Arc<Backup>| backup.name.as_str() < name;
        let first = self.by_name.partition_point(from);
        let rest = self.by_name.get(first..).unwrap_or_default();
        let end = rest.partition_point(|backup| backup.name.as_str() == name);
        rest.get(..end).unwrap_or_default()
    }

    /// The answer to a query.
    pub(super) fn select(&self, query: &BackupQuery) -> BackupSelection {
        if let Some(NameFilter::Exact(name)) = &query.filter.name {
            let named = self.named(name).iter();
            return query.select(named.map(|backup| Backup::clone(backup)));
        }
        let sorted = self.sorted(query.order.key);
        let place = query.after.as_ref().map(|after| {
            let before = sorted.partition_point(|backup| after.compare_with(backup).is_lt());
            let up_to = sorted.partition_point(|backup| after.compare_with(backup).is_le());
            (before, up_to)
        });
        if query.order.descending {
            let end = place.map_or(sorted.len(), |(before, _)| before);
            let rest = sorted.get(..end).unwrap_or_default();
            self.take_page(query, rest.iter().rev())
        } else {
            let start = place.map_or(0, |(_, up_to)| up_to);
            let rest = sorted.get(start..).unwrap_or_default();
            self.take_page(query, rest.iter())
        }
    }

    fn take_page<'a>(
        &self,
        query: &BackupQuery,
        rest: impl Iterator<Item = &'a Arc<Backup>>,
    ) -> BackupSelection {
        let mut matching = rest.filter(|backup| query.filter.matches(backup));
        let page = matching.by_ref().take(query.page_length());
        let backups = page.map(|backup| Backup::clone(backup)).collect();
        BackupSelection {
            backups,
            more: matching.next().is_some(),
            count: query.count.then(|| self.count(&query.filter)),
        }
    }

    fn count(&self, filter: &BackupFilter) -> usize {
        let all = self.by_id.iter();
        all.filter(|backup| filter.matches(backup)).count()
    }
}

fn bytes_of(backup: &Backup) -> usize {
    let description = backup.description.as_ref().map_or("", |text| text.as_str());
    let texts = [
        backup.id.as_str(),
        backup.identity.as_str(),
        backup.name.as_str(),
        description,
    ];
    let tags = backup.tags.iter().map(Tag::as_str);
    let texts = texts.into_iter().chain(tags);
    texts.fold(BACKUP_BYTES, |bytes, text| {
        bytes.saturating_add(text.len()).saturating_add(TEXT_BYTES)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::model::BackupName;
    use crate::model::BackupOrder;
    use crate::model::BackupState;
    use crate::model::BackupVisibility;
    use crate::model::Identity;
    use crate::model::Timestamp;

    /// Numbers that look random and are the same in every run.
    struct Numbers(u64);

    impl Numbers {
        fn below(&mut self, most: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0.checked_rem(most).unwrap()
        }

        fn maybe<T>(&mut self, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
            (self.below(4) == 0).then(|| make(self))
        }
    }

    fn any_backup(numbers: &mut Numbers) -> Backup {
        let tag = |number: u64| Tag::new(&format!("t{number}")).unwrap();
        Backup {
            id: BackupId::new(&numbers.below(60).to_string()).unwrap(),
            identity: Identity::new("1".to_owned()),
            name: BackupName::new(&format!("n{}", numbers.below(12))).unwrap(),
            description: None,
            kind: None,
            created: Timestamp::from_millis(numbers.below(9)),
            tags: vec![tag(numbers.below(3)), tag(numbers.below(3))],
            state: [BackupState::Available, BackupState::Error]
                [usize::try_from(numbers.below(2)).unwrap()],
            size: numbers.maybe(|numbers| numbers.below(5)),
            protected: numbers.below(2) == 0,
        }
    }

    fn any_query(numbers: &mut Numbers) -> BackupQuery {
        let name = |numbers: &mut Numbers| {
            let text = format!("n{}", numbers.below(12));
            match numbers.below(2) {
                0 => NameFilter::Exact(text),
                _ => NameFilter::Prefix(text),
            }
        };
        let time = |numbers: &mut Numbers| Timestamp::from_millis(numbers.below(9));
        let key = BackupSortKey::ALL[usize::try_from(numbers.below(4)).unwrap()];
        BackupQuery {
            filter: BackupFilter {
                name: numbers.maybe(name),
                tags: numbers
                    .maybe(|_| Tag::new("t1").unwrap())
                    .into_iter()
                    .collect(),
                state: numbers.maybe(|_| BackupState::Error),
                since: numbers.maybe(time),
                before: numbers.maybe(time),
                protected: numbers.maybe(|_| true),
                hidden: numbers
                    .maybe(|_| BackupId::new("7").unwrap())
                    .into_iter()
                    .collect(),
                visible: numbers.maybe(|_| BackupVisibility::new(|id| id.as_str() > "2")),
            },
            order: BackupOrder {
                key,
                descending: numbers.below(2) == 0,
            },
            after: numbers.maybe(|numbers| key.position_of(&any_backup(numbers))),
            limit: u16::try_from(numbers.below(9).saturating_add(1)).unwrap(),
            count: true,
        }
    }

    #[test]
    fn every_query_answers_what_a_plain_filter_does() {
        let mut numbers = Numbers(0x5eed);
        let mut index = BackupIndex::default();
        let mut all = BTreeMap::new();
        for round in 0..3000 {
            let backup = any_backup(&mut numbers);
            index.remove(&backup.id);
            all.remove(&backup.id);
            if numbers.below(3) > 0 {
                all.insert(backup.id.clone(), backup.clone());
                index.insert(backup);
            }
            let query = any_query(&mut numbers);
            let expected = query.select(all.values().cloned());
            assert_eq!(index.select(&query), expected, "{round}: {query:?}");
            let name = format!("n{}", numbers.below(12));
            let except = BackupId::new(&numbers.below(60).to_string()).unwrap();
            let has_name = all
                .values()
                .any(|backup| backup.name.as_str() == name && backup.id != except);
            assert_eq!(index.has_name(&name, &except), has_name, "{round}: {name}");
        }
        let ids: Vec<BackupId> = all.into_keys().collect();
        ids.iter().for_each(|id| index.remove(id));
        assert_eq!(index.bytes(), 0, "nothing is left");
    }
}
