//! Deviation D32: the query of a list of backups: filters, order, pages and counts.

use crate::gate::links;
use crate::gate::list_query::ListLink;
use crate::gate::list_query::ListParameters;
use crate::gate::list_query::malformed_cursor;
use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::model::Backup;
use crate::model::BackupFilter;
use crate::model::BackupId;
use crate::model::BackupOrder;
use crate::model::BackupPosition;
use crate::model::BackupQuery;
use crate::model::BackupSortKey;
use crate::model::BackupState;
use crate::model::NameFilter;
use crate::model::SortValue;
use crate::model::Tag;
use crate::model::Timestamp;
use crate::model::VmId;
use crate::model::limits;
use crate::public_text;

/// `after` is the cursor of the first edition: an id.
const KNOWN: &[&str] = &[
    "name",
    "tag",
    "state",
    "since",
    "before",
    "protected",
    "sort",
    "limit",
    "cursor",
    "count",
    "after",
];

/// The words of `sort`, each once ascending and once descending.
const SORTS: [(&str, BackupOrder); 8] = {
    const fn order(key: BackupSortKey, descending: bool) -> BackupOrder {
        BackupOrder { key, descending }
    }
    [
        ("id", order(BackupSortKey::Id, false)),
        ("name", order(BackupSortKey::Name, false)),
        ("created", order(BackupSortKey::Created, false)),
        ("size", order(BackupSortKey::Size, false)),
        ("-id", order(BackupSortKey::Id, true)),
        ("-name", order(BackupSortKey::Name, true)),
        ("-created", order(BackupSortKey::Created, true)),
        ("-size", order(BackupSortKey::Size, true)),
    ]
};

/// Between the value by which a backup is sorted and its id; neither may contain it.
const SEPARATOR: char = '\0';

/// A query with the link that leads to its other pages.
#[derive(Debug)]
pub(super) struct ListedBackups {
    pub(super) query: BackupQuery,
    link: ListLink,
}

impl ListedBackups {
    /// Parses the query of a request for the backups of a VM.
    pub(super) fn parse(query: &str, vm: &VmId, is_strict: bool) -> Result<Self, Refusal> {
        let parameters = ListParameters::new(query, KNOWN, is_strict)?;
        let mut link = ListLink::new([&links::vm("", vm), "/backups"].concat());
        let filter = parse_filter(parameters, &mut link)?;
        let order = parameters.word("sort", &SORTS)?.unwrap_or_default();
        if order != BackupOrder::default() {
            let sign = if order.descending { "-" } else { "" };
            link.push("sort", &[sign, order.key.as_str()].concat());
        }
        let position = link.position(parameters)?;
        let position = position.map(|bytes| parse_position(&bytes, order.key));
        let after = match (position.transpose()?, parse_after(parameters)?) {
            (position, None) => position,
            (None, Some(id)) if order == BackupOrder::default() => Some(BackupPosition::of_id(id)),
            (_, Some(_)) => {
                let text = public_text!(
                    "The parameter is for lists in the order of ids, without a cursor. Use `cursor` as the link to the next page has it."
                );
                return Err(Refusal::says(Code::InvalidParameter, text).on("after"));
            }
        };
        Ok(Self {
            query: BackupQuery {
                filter,
                order,
                after,
                limit: parameters.limit()?,
                count: parameters.flag("count")?.unwrap_or_default(),
            },
            link,
        })
    }

    /// The value of `Link` that leads to the page behind a backup.
    pub(super) fn next_link(&self, last: &Backup) -> String {
        let position = self.query.order.key.position_of(last);
        let value = match &position.value {
            SortValue::Id => String::new(),
            SortValue::Name(name) => name.clone(),
            SortValue::Created(created) => created.as_millis().to_string(),
            SortValue::Size(size) => size.map(|bytes| bytes.to_string()).unwrap_or_default(),
        };
        let position = format!("{value}{SEPARATOR}{}", position.id.as_str());
        let BackupQuery { limit, count, .. } = self.query;
        self.link.next(limit, count, position.as_bytes())
    }
}

fn invalid(name: &'static str, text: impl Into<crate::model::PublicText>) -> Refusal {
    Refusal::says(Code::InvalidParameter, text.into()).on(name)
}

fn parse_filter(
    parameters: ListParameters<'_>,
    link: &mut ListLink,
) -> Result<BackupFilter, Refusal> {
    let name = match parameters.text("name")? {
        Some(text) => {
            link.push("name", &text);
            Some(parse_name(&text)?)
        }
        None => None,
    };
    let texts = parameters.texts("tag")?;
    if texts.len() > limits::FILTER_TAGS_MAX {
        let most = limits::FILTER_TAGS_MAX;
        let text = public_text!("The parameter may be given {most} times at most.");
        return Err(invalid("tag", text));
    }
    let mut tags = Vec::with_capacity(texts.len());
    for text in texts {
        let tag = Tag::new(&text)
            .map_err(|error| Refusal::invalid_text(Code::InvalidParameter, "tag", &error))?;
        link.push("tag", &text);
        tags.push(tag);
    }
    let states = BackupState::ALL.map(|state| (state.as_str(), state));
    let state = parameters.word("state", &states)?;
    if let Some(state) = state {
        link.push("state", state.as_str());
    }
    let mut time = |name: &'static str| -> Result<Option<Timestamp>, Refusal> {
        let text = parameters.text(name)?;
        let time = parameters.time(name)?;
        if let Some(text) = text {
            link.push(name, &text);
        }
        Ok(time)
    };
    let (since, before) = (time("since")?, time("before")?);
    let protected = parameters.flag("protected")?;
    if let Some(protected) = protected {
        link.push("protected", if protected { "true" } else { "false" });
    }
    Ok(BackupFilter {
        name,
        tags,
        state,
        since,
        before,
        protected,
        ..BackupFilter::default()
    })
}

/// A name, or what names begin with and one `*`.
fn parse_name(text: &str) -> Result<NameFilter, Refusal> {
    let (name, is_prefix) = match text.strip_suffix('*') {
        Some(prefix) => (prefix, true),
        None => (text, false),
    };
    if name.contains('*') {
        let text = public_text!("The value may have one `*`, at its end.");
        return Err(invalid("name", text));
    }
    if name.len() > limits::BACKUP_NAME_BYTES_MAX || (name.is_empty() && !is_prefix) {
        let most = limits::BACKUP_NAME_BYTES_MAX;
        let text = public_text!("The value must have from 1 to {most} bytes.");
        return Err(invalid("name", text));
    }
    Ok(if is_prefix {
        NameFilter::Prefix(name.to_owned())
    } else {
        NameFilter::Exact(name.to_owned())
    })
}

fn parse_after(parameters: ListParameters<'_>) -> Result<Option<BackupId>, Refusal> {
    let after = parameters.text("after")?;
    let after = after.map(|id| BackupId::new(&id)).transpose();
    after.map_err(|error| Refusal::invalid_text(Code::InvalidParameter, "after", &error))
}

/// The place in a cursor, whose binding was checked: it is of a list in this order.
fn parse_position(bytes: &[u8], key: BackupSortKey) -> Result<BackupPosition, Refusal> {
    let text = str::from_utf8(bytes).ok();
    let parts = text.and_then(|text| text.split_once(SEPARATOR));
    let position = parts.and_then(|(value, id)| {
        let number = || value.parse::<u64>().ok();
        let value = match key {
            BackupSortKey::Id => SortValue::Id,
            BackupSortKey::Name => SortValue::Name(value.to_owned()),
            BackupSortKey::Created => SortValue::Created(Timestamp::from_millis(number()?)),
            BackupSortKey::Size if value.is_empty() => SortValue::Size(None),
            BackupSortKey::Size => SortValue::Size(Some(number()?)),
        };
        let id = BackupId::new(id).ok()?;
        Some(BackupPosition { value, id })
    });
    position.ok_or_else(malformed_cursor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::BackupName;
    use crate::model::Identity;

    fn vm() -> VmId {
        VmId::new("a b").unwrap()
    }

    fn backup(name: &str, size: Option<u64>) -> Backup {
        Backup {
            id: BackupId::new("x/1").unwrap(),
            identity: Identity::new(String::new()),
            name: BackupName::new(name).unwrap(),
            description: None,
            kind: None,
            created: Timestamp::from_millis(1_795_482_123_456),
            tags: Vec::new(),
            state: BackupState::Available,
            size,
            protected: false,
        }
    }

    #[test]
    fn every_parameter_is_parsed() {
        let query = "name=web*&tag=a&tag=b%3Dc&state=ERROR&since=2026-11-24T01:02:03Z\
                     &before=2026-11-25T00:00:00%2B01:00&protected=true&sort=-size&limit=7&count=true";
        let found = ListedBackups::parse(query, &vm(), true).unwrap().query;
        let filter = &found.filter;
        assert_eq!(
            filter.name,
            Some(NameFilter::Prefix("web".to_owned())),
            "name"
        );
        let tags = ["a", "b=c"].map(|tag| Tag::new(tag).unwrap());
        assert_eq!(filter.tags, tags, "tags");
        assert_eq!(filter.state, Some(BackupState::Error), "state");
        let time = |millis| Some(Timestamp::from_millis(millis));
        assert_eq!(filter.since, time(1_795_482_123_000), "since");
        assert_eq!(filter.before, time(1_795_561_200_000), "before");
        assert_eq!(filter.protected, Some(true), "protected");
        let order = BackupOrder {
            key: BackupSortKey::Size,
            descending: true,
        };
        assert_eq!(
            (found.order, found.limit, found.count),
            (order, 7, true),
            "the rest"
        );
        let plain = ListedBackups::parse("", &vm(), true).unwrap().query;
        assert!(
            plain.is_walk_by_id() && plain.limit == limits::PAGE,
            "defaults: {plain:?}"
        );
    }

    #[test]
    fn malformed_values_are_named_in_both_profiles() {
        let rows = [
            ("name=", "name"),
            ("name=a*b", "name"),
            ("name=a**", "name"),
            ("name=a&name=b", "name"),
            ("tag=", "tag"),
            ("tag=%00", "tag"),
            ("state=error", "state"),
            ("state=QUEUED", "state"),
            ("since=today", "since"),
            ("since=2026-11-24T01:02:03+01:00", "since"),
            ("before=5", "before"),
            ("protected=1", "protected"),
            ("sort=age", "sort"),
            ("sort=", "sort"),
            ("sort=id&sort=id", "sort"),
            ("limit=0", "limit"),
            ("count=yes", "count"),
            ("cursor=x", "cursor"),
            ("after=..", "after"),
            ("after=1&sort=name", "after"),
            ("after=1&sort=-id", "after"),
        ];
        for (query, field) in rows {
            for is_strict in [false, true] {
                let found = ListedBackups::parse(query, &vm(), is_strict);
                let refusal = found.expect_err(query);
                assert_eq!(refusal.field.as_deref(), Some(field), "{query}");
                assert_eq!(refusal.code(), Code::InvalidParameter, "{query}");
            }
        }
        let many = "tag=a&".repeat(limits::FILTER_TAGS_MAX + 1);
        let refusal = ListedBackups::parse(&many, &vm(), false).expect_err("too many tags");
        assert_eq!(refusal.field.as_deref(), Some("tag"), "too many tags");
    }

    #[test]
    fn the_next_page_starts_behind_the_last_backup_of_this() {
        for sort in [
            "id", "-id", "name", "-name", "created", "-created", "size", "-size",
        ] {
            for size in [None, Some(0), Some(u64::MAX)] {
                let last = backup("web \u{e9}, 1", size);
                let query = format!("name=web*&sort={sort}&limit=7&count=true");
                let listed = ListedBackups::parse(&query, &vm(), true).unwrap();
                let link = listed.next_link(&last);
                let query = link
                    .strip_prefix("</vms/a%20b/backups?")
                    .and_then(|rest| rest.strip_suffix(">; rel=\"next\""))
                    .unwrap_or_else(|| panic!("{link}"));
                let next = ListedBackups::parse(query, &vm(), true).unwrap().query;
                let position = listed.query.order.key.position_of(&last);
                assert_eq!(next.after, Some(position), "{sort} {size:?}");
                assert_eq!(next.order, listed.query.order, "{sort}");
                assert_eq!(next.filter.name, listed.query.filter.name, "{sort}");
                assert!(next.count && next.limit == 7, "{sort}");
                let other = VmId::new("other").unwrap();
                let refusal = ListedBackups::parse(query, &other, true).expect_err("another VM");
                assert_eq!(refusal.field.as_deref(), Some("cursor"), "{sort}");
            }
        }
    }
}
