//! Which backups of a VM a list has, in which order, and where it starts.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use crate::model::Backup;
use crate::model::BackupId;
use crate::model::BackupState;
use crate::model::Tag;
use crate::model::Timestamp;
use crate::model::limits;

/// Names that are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NameFilter {
    /// This name.
    Exact(String),
    /// Every name that begins so.
    Prefix(String),
}

impl NameFilter {
    /// Whether the name is wanted.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::Exact(wanted) => name == wanted,
            Self::Prefix(wanted) => name.starts_with(wanted),
        }
    }
}

/// Decides which backups exist at all for the caller of a list.
#[derive(Clone)]
pub struct BackupVisibility(Arc<dyn Fn(&BackupId) -> bool + Send + Sync>);

impl BackupVisibility {
    /// Decides by this function.
    pub fn new(is_visible: impl Fn(&BackupId) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(is_visible))
    }

    /// Whether the backup exists for the caller.
    #[must_use]
    pub fn allows(&self, id: &BackupId) -> bool {
        (self.0)(id)
    }
}

impl fmt::Debug for BackupVisibility {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BackupVisibility")
    }
}

/// What a backup must be to be listed. Everything that is given must hold.
#[derive(Clone, Debug, Default)]
pub struct BackupFilter {
    /// Its name.
    pub name: Option<NameFilter>,
    /// All of these are among its tags.
    pub tags: Vec<Tag>,
    /// Its state.
    pub state: Option<BackupState>,
    /// Created at this time or later.
    pub since: Option<Timestamp>,
    /// Created earlier than this.
    pub before: Option<Timestamp>,
    /// Whether it is protected.
    pub protected: Option<bool>,
    /// None of these.
    pub hidden: BTreeSet<BackupId>,
    /// What the caller may see; `None` for everything.
    pub visible: Option<BackupVisibility>,
}

impl BackupFilter {
    /// Whether the backup is listed.
    #[must_use]
    pub fn matches(&self, backup: &Backup) -> bool {
        // The cheap conditions first: patterns of grants cost more than all others.
        self.since.is_none_or(|since| backup.created >= since)
            && self.before.is_none_or(|before| backup.created < before)
            && self.state.is_none_or(|state| backup.state == state)
            && self
                .protected
                .is_none_or(|protected| backup.protected == protected)
            && self
                .name
                .as_ref()
                .is_none_or(|name| name.matches(backup.name.as_str()))
            && self.tags.iter().all(|tag| backup.tags.contains(tag))
            && !self.hidden.contains(&backup.id)
            && self
                .visible
                .as_ref()
                .is_none_or(|visible| visible.allows(&backup.id))
    }

    /// Whether every backup exists for the caller, but for a few that are hidden.
    #[must_use]
    pub const fn shows_all_but_hidden(&self) -> bool {
        self.visible.is_none()
    }
}

/// By what backups are sorted. Those that are equal in it are in order of their ids.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackupSortKey {
    /// Their ids, byte-wise.
    #[default]
    Id,
    /// Their names, byte-wise.
    Name,
    /// When they were taken.
    Created,
    /// Their sizes; those of unknown size come before all others.
    Size,
}

impl BackupSortKey {
    /// Every key, in the order of the documentation.
    pub const ALL: [Self; 4] = [Self::Id, Self::Name, Self::Created, Self::Size];

    /// The word used on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Id => "id",
            Self::Name => "name",
            Self::Created => "created",
            Self::Size => "size",
        }
    }

    /// How two backups of one VM are ordered. Never equal for two different ids.
    #[must_use]
    pub fn compare(self, one: &Backup, other: &Backup) -> Ordering {
        let by_key = match self {
            Self::Id => Ordering::Equal,
            Self::Name => one.name.as_str().cmp(other.name.as_str()),
            Self::Created => one.created.cmp(&other.created),
            Self::Size => one.size.cmp(&other.size),
        };
        by_key.then_with(|| one.id.cmp(&other.id))
    }

    /// The place of a backup in this order.
    #[must_use]
    pub fn position_of(self, backup: &Backup) -> BackupPosition {
        let value = match self {
            Self::Id => SortValue::Id,
            Self::Name => SortValue::Name(backup.name.as_str().to_owned()),
            Self::Created => SortValue::Created(backup.created),
            Self::Size => SortValue::Size(backup.size),
        };
        BackupPosition {
            value,
            id: backup.id.clone(),
        }
    }
}

/// The order of a list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackupOrder {
    /// By what it is sorted.
    pub key: BackupSortKey,
    /// Exactly the other way round.
    pub descending: bool,
}

impl BackupOrder {
    /// How two backups of one VM are ordered.
    #[must_use]
    pub fn compare(self, one: &Backup, other: &Backup) -> Ordering {
        let ascending = self.key.compare(one, other);
        if self.descending {
            ascending.reverse()
        } else {
            ascending
        }
    }
}

/// The value by which a backup is sorted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SortValue {
    /// None beside its id.
    Id,
    /// Its name.
    Name(String),
    /// When it was taken.
    Created(Timestamp),
    /// Its size.
    Size(Option<u64>),
}

/// A place in a sorted list: that of a backup, which need not exist any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupPosition {
    /// The value by which the backup is sorted.
    pub value: SortValue,
    /// Its id.
    pub id: BackupId,
}

impl BackupPosition {
    /// The place of an id in the order of ids.
    #[must_use]
    pub const fn of_id(id: BackupId) -> Self {
        Self {
            value: SortValue::Id,
            id,
        }
    }

    /// Where a backup is in ascending order, compared with this place.
    #[must_use]
    pub fn compare_with(&self, backup: &Backup) -> Ordering {
        let by_value = match &self.value {
            SortValue::Id => Ordering::Equal,
            SortValue::Name(name) => backup.name.as_str().cmp(name),
            SortValue::Created(created) => backup.created.cmp(created),
            SortValue::Size(size) => backup.size.cmp(size),
        };
        by_value.then_with(|| backup.id.cmp(&self.id))
    }
}

/// One page of the backups of a VM.
#[derive(Clone, Debug)]
pub struct BackupQuery {
    /// Which of them.
    pub filter: BackupFilter,
    /// In which order.
    pub order: BackupOrder,
    /// Only those behind this place in that order.
    pub after: Option<BackupPosition>,
    /// At most so many, 1..=[`limits::PAGE_MAX`].
    pub limit: u16,
    /// Whether all that match are counted, of every page.
    pub count: bool,
}

impl Default for BackupQuery {
    fn default() -> Self {
        Self {
            filter: BackupFilter::default(),
            order: BackupOrder::default(),
            after: None,
            limit: limits::PAGE,
            count: false,
        }
    }
}

impl BackupQuery {
    /// Whether the backup is on this page or a later one.
    #[must_use]
    pub fn is_after(&self, backup: &Backup) -> bool {
        self.after.as_ref().is_none_or(|after| {
            let place = after.compare_with(backup);
            if self.order.descending {
                place.is_lt()
            } else {
                place.is_gt()
            }
        })
    }

    /// Whether it is a walk in the order of ids: nothing to sort or count, and nothing to filter but what exists at all for
    /// the caller.
    #[must_use]
    pub fn is_walk_by_id(&self) -> bool {
        let BackupFilter {
            name,
            tags,
            state,
            since,
            before,
            protected,
            hidden: _,
            visible: _,
        } = &self.filter;
        let has_filter = name.is_some()
            || !tags.is_empty()
            || state.is_some()
            || since.is_some()
            || before.is_some()
            || protected.is_some();
        !has_filter && !self.count && self.order == BackupOrder::default()
    }

    /// How many backups the page may have.
    #[must_use]
    pub fn page_length(&self) -> usize {
        usize::from(self.limit.max(1))
    }

    /// The answer, from every backup of the VM in any order.
    pub fn select(&self, all: impl IntoIterator<Item = Backup>) -> BackupSelection {
        let matching = all.into_iter().filter(|backup| self.filter.matches(backup));
        let mut count = 0_usize;
        let mut backups: Vec<Backup> = matching
            .inspect(|_| count = count.saturating_add(1))
            .filter(|backup| self.is_after(backup))
            .collect();
        backups.sort_unstable_by(|one, other| self.order.compare(one, other));
        let more = backups.len() > self.page_length();
        backups.truncate(self.page_length());
        BackupSelection {
            backups,
            more,
            count: self.count.then_some(count),
        }
    }
}

/// The answer to a [`BackupQuery`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackupSelection {
    /// The backups of the page, in its order.
    pub backups: Vec<Backup>,
    /// Whether more follow the last of these.
    pub more: bool,
    /// How many match in all; `None` unless that was asked for.
    pub count: Option<usize>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::BackupName;
    use crate::model::Identity;

    fn backup(id: &str, name: &str, created: u64, size: Option<u64>) -> Backup {
        Backup {
            id: BackupId::new(id).unwrap(),
            identity: Identity::new(id.to_owned()),
            name: BackupName::new(name).unwrap(),
            description: None,
            kind: None,
            created: Timestamp::from_millis(created),
            tags: vec![Tag::new("t").unwrap(), Tag::new(name).unwrap()],
            state: BackupState::Available,
            size,
            protected: id == "b",
        }
    }

    fn all() -> [Backup; 4] {
        [
            backup("d", "web", 3, None),
            backup("a", "web-2", 1, Some(9)),
            backup("c", "web", 2, Some(9)),
            backup("b", "db", 2, Some(1)),
        ]
    }

    fn ids(found: &BackupSelection) -> String {
        let ids = found.backups.iter().map(|backup| backup.id.as_str());
        ids.collect()
    }

    #[test]
    #[expect(clippy::too_many_lines, reason = "it is a table")]
    fn every_condition_must_hold() {
        let filter = BackupFilter::default;
        let time = |millis| Some(Timestamp::from_millis(millis));
        let tags = |names: &[&str]| names.iter().map(|name| Tag::new(name).unwrap()).collect();
        let exact = |name: &str| Some(NameFilter::Exact(name.to_owned()));
        let rows = [
            ("all", filter(), "abcd"),
            (
                "name",
                BackupFilter {
                    name: exact("web"),
                    ..filter()
                },
                "cd",
            ),
            (
                "prefix",
                BackupFilter {
                    name: Some(NameFilter::Prefix("web".to_owned())),
                    ..filter()
                },
                "acd",
            ),
            (
                "one tag",
                BackupFilter {
                    tags: tags(&["t"]),
                    ..filter()
                },
                "abcd",
            ),
            (
                "two tags",
                BackupFilter {
                    tags: tags(&["t", "db"]),
                    ..filter()
                },
                "b",
            ),
            (
                "since is inclusive",
                BackupFilter {
                    since: time(2),
                    ..filter()
                },
                "bcd",
            ),
            (
                "before is not",
                BackupFilter {
                    before: time(2),
                    ..filter()
                },
                "a",
            ),
            (
                "protected",
                BackupFilter {
                    protected: Some(true),
                    ..filter()
                },
                "b",
            ),
            (
                "not protected",
                BackupFilter {
                    protected: Some(false),
                    ..filter()
                },
                "acd",
            ),
            (
                "state",
                BackupFilter {
                    state: Some(BackupState::Error),
                    ..filter()
                },
                "",
            ),
            (
                "hidden",
                BackupFilter {
                    hidden: BTreeSet::from([BackupId::new("a").unwrap()]),
                    ..filter()
                },
                "bcd",
            ),
            (
                "visible",
                BackupFilter {
                    visible: Some(BackupVisibility::new(|id| id.as_str() > "b")),
                    ..filter()
                },
                "cd",
            ),
            (
                "two at once",
                BackupFilter {
                    name: exact("web"),
                    since: time(3),
                    ..filter()
                },
                "d",
            ),
        ];
        for (name, filter, expected) in rows {
            let query = BackupQuery {
                filter,
                count: true,
                ..BackupQuery::default()
            };
            let found = query.select(all());
            assert_eq!(ids(&found), expected, "{name}");
            assert_eq!(found.count, Some(expected.len()), "{name}: count");
        }
    }

    #[test]
    fn pages_of_every_order_fit_together() {
        let rows = [
            (BackupSortKey::Id, "abcd"),
            (BackupSortKey::Name, "bcda"),
            (BackupSortKey::Created, "abcd"),
            (BackupSortKey::Size, "dbac"),
        ];
        for (key, ascending) in rows {
            let descending: String = ascending.chars().rev().collect();
            for (is_descending, expected) in [(false, ascending), (true, &descending)] {
                for limit in 1..=5 {
                    let mut query = BackupQuery {
                        order: BackupOrder {
                            key,
                            descending: is_descending,
                        },
                        limit,
                        ..BackupQuery::default()
                    };
                    let mut seen = String::new();
                    loop {
                        let found = query.select(all());
                        seen.push_str(&ids(&found));
                        query.after = found.backups.last().map(|last| key.position_of(last));
                        if !found.more {
                            break;
                        }
                    }
                    assert_eq!(seen, expected, "{key:?} {is_descending} {limit}");
                }
            }
        }
    }
}
