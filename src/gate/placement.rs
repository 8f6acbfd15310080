//! Which backend a VM is on.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::gate::config::Placement;
use crate::model::BackendName;
use crate::model::VmId;

/// The placements, ready for look-up.
#[derive(Debug)]
pub(super) struct Placements {
    exact: BTreeMap<String, BackendName>,
    /// Longest first.
    prefixes: Vec<(String, BackendName)>,
}

impl Placements {
    pub(super) fn new(rules: &[Placement]) -> Self {
        let mut exact = BTreeMap::new();
        let mut prefixes = Vec::new();
        for rule in rules {
            let (prefix, open) = rule.pattern.prefix();
            if open {
                prefixes.push((prefix.to_owned(), rule.backend.clone()));
            } else {
                exact.insert(prefix.to_owned(), rule.backend.clone());
            }
        }
        prefixes.sort_by_key(|(prefix, _)| Reverse(prefix.len()));
        Self { exact, prefixes }
    }

    /// An exact id wins over prefixes, a longer prefix over a shorter one.
    pub(super) fn find(&self, vm: &VmId) -> Option<&BackendName> {
        self.exact.get(vm.as_str()).or_else(|| {
            self.prefixes
                .iter()
                .find(|(prefix, _)| vm.as_str().starts_with(prefix))
                .map(|(_, backend)| backend)
        })
    }

    /// Where VMs are whose ids begin so, unless a longer pattern says otherwise.
    pub(super) fn find_beginning(&self, beginning: &str) -> Option<&BackendName> {
        let mut prefixes = self.prefixes.iter();
        let longest = prefixes.find(|(prefix, _)| beginning.starts_with(prefix.as_str()));
        longest.map(|(_, backend)| backend)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Pattern;

    #[test]
    fn the_most_exact_placement_wins() {
        let rules = [
            ("*", "all"),
            ("web-1", "one"),
            ("web-*", "web"),
            ("web-1*", "ones"),
        ];
        let rules = rules.map(|(pattern, backend)| Placement {
            pattern: Pattern::new(pattern).unwrap(),
            backend: BackendName::new(backend).unwrap(),
        });
        let all = Placements::new(&rules);
        for (vm, expected) in [
            ("web-1", "one"),
            ("web-11", "ones"),
            ("web-2", "web"),
            ("db", "all"),
        ] {
            let found = all.find(&VmId::new(vm).unwrap()).map(BackendName::as_str);
            assert_eq!(found, Some(expected), "{vm}");
        }
        let few = Placements::new(rules.get(1..3).unwrap_or_default());
        assert_eq!(few.find(&VmId::new("db").unwrap()), None, "not placed");
    }
}
