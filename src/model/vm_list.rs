//! Lists of VMs: which part is wanted, and one part of a list.

use crate::model::Vm;
use crate::model::VmId;

/// Which part of the VMs of a backend is wanted. Lists are ordered by VM id, byte-wise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmRange {
    /// Only VMs whose id sorts after this one; it need not be the id of a VM.
    pub after: Option<VmId>,
    /// At most so many, 1..=[`crate::model::limits::PAGE_MAX`].
    pub limit: u16,
}

impl VmRange {
    /// How many VMs are wanted at most.
    #[must_use]
    pub fn wanted(&self) -> usize {
        usize::from(self.limit.max(1))
    }

    /// How many VMs decide the page: one more than are wanted, to know whether there are more.
    #[must_use]
    pub fn needed(&self) -> usize {
        self.wanted().saturating_add(1)
    }

    /// What follows `after` in a list that is in order of the ids. A search in a sorted list: what comes before is not looked at.
    pub fn rest_of<'e, T>(&self, entries: &'e [T], id: impl Fn(&T) -> &VmId) -> &'e [T] {
        let Some(after) = &self.after else {
            return entries;
        };
        let start = entries.partition_point(|entry| id(entry) <= after);
        entries.get(start..).unwrap_or_default()
    }

    /// The page made of VMs that sort after `after`, in order. At most [`needed`](Self::needed) of them are looked at.
    #[must_use]
    pub fn page_of(&self, vms: impl IntoIterator<Item = Vm>) -> VmPage {
        let mut vms: Vec<Vm> = vms.into_iter().take(self.needed()).collect();
        let more = vms.len() == self.needed();
        vms.truncate(self.wanted());
        VmPage {
            vms,
            more,
            complete: true,
        }
    }
}

/// One part of a list of VMs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmPage {
    /// The VMs, in order of their ids (byte-wise). Their descriptions are left out.
    pub vms: Vec<Vm>,
    /// Whether there are more after the last of these.
    pub more: bool,
    /// Whether every VM manager behind the backend answered: a gateway may itself stand before several.
    pub complete: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(id: &str) -> Vm {
        Vm {
            id: VmId::new(id).unwrap(),
            name: id.to_owned(),
            description: None,
            run_state: None,
        }
    }

    #[test]
    fn a_page_has_the_vms_after_an_id_and_says_whether_there_are_more() {
        let all = ["a", "b", "c"].map(vm);
        // after, limit, ids, more
        let rows: [(Option<&str>, u16, &[&str], bool); 8] = [
            (None, 5, &["a", "b", "c"], false),
            (None, 3, &["a", "b", "c"], false),
            (None, 2, &["a", "b"], true),
            (None, 0, &["a"], true),
            (Some("a"), 2, &["b", "c"], false),
            (Some("a"), 1, &["b"], true),
            (Some("aa"), 1, &["b"], true),
            (Some("c"), 1, &[], false),
        ];
        for (after, limit, ids, more) in rows {
            let range = VmRange {
                after: after.map(|id| VmId::new(id).unwrap()),
                limit,
            };
            let rest = range.rest_of(&all, |vm| &vm.id);
            let page = range.page_of(rest.iter().cloned());
            let found: Vec<&str> = page.vms.iter().map(|vm| vm.id.as_str()).collect();
            assert_eq!(
                (found.as_slice(), page.more),
                (ids, more),
                "{after:?} {limit}"
            );
            assert!(page.complete, "{after:?} {limit}: complete");
        }
    }
}
