//! Which ids a set of patterns can reach: single ids, and everything that begins with a text.
//!
//! A list of VMs starts where the first reachable id can be, and jumps over what no pattern reaches: a caller who may read ten of ten
//! thousand VMs costs what ten VMs cost.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::Bound;

use crate::model::Pattern;
use crate::model::VmId;

/// What patterns can reach; perhaps more than they fit, never less.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct IdCover {
    /// In order; none begins with another one.
    prefixes: Vec<String>,
    /// Ids that a pattern names exactly, whether or not a prefix covers them too.
    exact: BTreeSet<String>,
}

/// Where a list goes on.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NextIds {
    /// With these single ids, in order.
    Single(Vec<VmId>),
    /// With whatever sorts after this id.
    After(Option<VmId>),
}

impl IdCover {
    /// Of these patterns.
    pub(super) fn new<'p>(patterns: impl IntoIterator<Item = &'p Pattern>) -> Self {
        let mut cover = Self::default();
        for pattern in patterns {
            let (prefix, open) = pattern.prefix();
            if open {
                cover.prefixes.push(prefix.to_owned());
            } else if VmId::new(prefix).is_ok() {
                cover.exact.insert(prefix.to_owned());
            }
        }
        cover.reduce();
        cover
    }

    /// Drops what another prefix covers.
    fn reduce(&mut self) {
        self.prefixes.sort_unstable();
        // In order, what begins with a text follows it.
        self.prefixes
            .dedup_by(|later, kept| later.starts_with(kept.as_str()));
    }

    /// What both can reach.
    pub(super) fn common(&self, other: &Self) -> Self {
        let within = |one: &Self, two: &Self| -> Vec<String> {
            let inner = one.prefixes.iter();
            inner
                .filter(|prefix| two.has_prefix_of(prefix))
                .cloned()
                .collect()
        };
        let named = |one: &Self, two: &Self| -> Vec<String> {
            let ids = one.exact.iter();
            ids.filter(|id| two.reaches(id)).cloned().collect()
        };
        let mut common = Self {
            prefixes: [within(self, other), within(other, self)].concat(),
            exact: [named(self, other), named(other, self)]
                .concat()
                .into_iter()
                .collect(),
        };
        common.reduce();
        common
    }

    /// Whether one of the prefixes begins the text: only the last that sorts before it can.
    fn has_prefix_of(&self, text: &str) -> bool {
        let after = self
            .prefixes
            .partition_point(|prefix| prefix.as_str() <= text);
        let before = after.checked_sub(1).and_then(|at| self.prefixes.get(at));
        before.is_some_and(|prefix| text.starts_with(prefix.as_str()))
    }

    fn reaches(&self, id: &str) -> bool {
        self.exact.contains(id) || self.has_prefix_of(id)
    }

    /// The same without what these refuse.
    pub(super) fn retain(
        &mut self,
        keeps_prefix: impl Fn(&str) -> bool,
        keeps_id: impl Fn(&VmId) -> bool,
    ) {
        self.prefixes.retain(|prefix| keeps_prefix(prefix));
        self.exact
            .retain(|id| VmId::new(id).is_ok_and(|id| keeps_id(&id)));
    }

    /// Adds what another one reaches.
    pub(super) fn add(&mut self, other: Self) {
        self.prefixes.extend(other.prefixes);
        self.exact.extend(other.exact);
        self.reduce();
    }

    /// Whether it reaches nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.prefixes.is_empty() && self.exact.is_empty()
    }

    /// Whether it reaches more than the ids that it names.
    pub(super) fn has_prefixes(&self) -> bool {
        !self.prefixes.is_empty()
    }

    /// The same without its prefixes.
    pub(super) fn only_exact(&self) -> Self {
        Self {
            prefixes: Vec::new(),
            exact: self.exact.clone(),
        }
    }

    /// What comes after an id: at most so many single ids, or the start of a list. `None`: nothing can.
    pub(super) fn next_after(&self, after: Option<&VmId>, most: usize) -> Option<NextIds> {
        // The first text that sorts after the id.
        let start = after.map_or_else(String::new, |id| format!("{id}\0"));
        let listed = self.first_prefixed(&start);
        let from: (Bound<&str>, Bound<&str>) = (Bound::Included(&start), Bound::Unbounded);
        let before_list =
            |id: &&String| listed.as_deref().is_none_or(|listed| id.as_str() < listed);
        let single = self.exact.range::<str, _>(from).take_while(before_list);
        let single = single.take(most.max(1)).filter_map(|id| VmId::new(id).ok());
        let single: Vec<VmId> = single.collect();
        if !single.is_empty() {
            return Some(NextIds::Single(single));
        }
        let listed = listed?;
        if listed == start {
            return Some(NextIds::After(after.cloned()));
        }
        // Never before where the list has come to.
        Some(NextIds::After(just_before(&listed).max(after.cloned())))
    }

    /// The first text from here on that one of the prefixes begins.
    fn first_prefixed<'a>(&'a self, start: &'a str) -> Option<Cow<'a, str>> {
        if self.has_prefix_of(start) {
            return Some(Cow::Borrowed(start));
        }
        let next = self
            .prefixes
            .partition_point(|prefix| prefix.as_str() <= start);
        self.prefixes
            .get(next)
            .map(|prefix| Cow::Borrowed(prefix.as_str()))
    }
}

/// An id that sorts before everything that begins with the prefix, and after nearly everything else that does; `None` where there
/// is no such id, and a list starts at its beginning.
fn just_before(prefix: &str) -> Option<VmId> {
    let last = prefix.chars().next_back()?;
    let rest = prefix.strip_suffix(last)?;
    let before = u32::from(last).checked_sub(1).and_then(char::from_u32)?;
    VmId::new(&format!("{rest}{before}\u{10ffff}")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cover(patterns: &[&str]) -> IdCover {
        let patterns: Vec<Pattern> = patterns
            .iter()
            .map(|pattern| Pattern::new(pattern).unwrap())
            .collect();
        IdCover::new(&patterns)
    }

    fn id(text: &str) -> VmId {
        VmId::new(text).unwrap()
    }

    #[test]
    fn a_cover_keeps_the_shortest_prefixes_and_common_ones_the_longest() {
        let rows: [(&[&str], &[&str], &[&str]); 6] = [
            (&["*"], &["web-*"], &["web-*"]),
            (&["web-*", "web-1*"], &["*"], &["web-*"]),
            (&["web-*", "db"], &["d*", "web-1"], &["db", "web-1"]),
            (&["a*", "b*"], &["b*", "c*"], &["b*"]),
            (&["x"], &["y"], &[]),
            (&["*-db"], &["eu*"], &["eu*"]),
        ];
        for (one, two, expected) in rows {
            let found = cover(one).common(&cover(two));
            assert_eq!(found, cover(expected), "{one:?} {two:?}");
            assert_eq!(cover(two).common(&cover(one)), found, "either way");
        }
    }

    #[test]
    fn a_list_goes_on_at_the_next_id_that_can_be_reached() {
        let cover = cover(&["db", "m*", "n1", "n2", "web-*", "zz"]);
        let before = |prefix| NextIds::After(just_before(prefix));
        let single = |ids: &[&str]| NextIds::Single(ids.iter().map(|text| id(text)).collect());
        let rows = [
            (None, Some(single(&["db"]))),
            (Some("db"), Some(before("m"))),
            (Some("m1"), Some(NextIds::After(Some(id("m1"))))),
            (Some("n"), Some(single(&["n1", "n2"]))),
            (Some("n1"), Some(single(&["n2"]))),
            (Some("n2"), Some(before("web-"))),
            (Some("web-7"), Some(NextIds::After(Some(id("web-7"))))),
            (Some("x"), Some(single(&["zz"]))),
            (Some("zz"), None),
        ];
        for (after, expected) in rows {
            let after = after.map(id);
            assert_eq!(cover.next_after(after.as_ref(), 5), expected, "{after:?}");
        }
    }

    #[test]
    fn what_begins_with_a_prefix_sorts_after_the_id_before_it() {
        for prefix in ["a", "web-", "\u{e9}", "x\u{e000}", "b!", "~"] {
            let Some(before) = just_before(prefix) else {
                continue;
            };
            assert!(before.as_str() < prefix, "{prefix:?}: {before:?}");
        }
        assert!(
            just_before("web-").is_some_and(|before| before.as_str() > "web,z"),
            "close"
        );
        assert_eq!(just_before(""), None, "everything");
    }
}
