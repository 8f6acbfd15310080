//! What became of a call whose answer was lost: decided from what was seen before it and what is seen now.
//!
//! Pure: the adapter looks, this decides. See docs/adapters/libvirt.md, "Recovery".

use serde::Deserialize;
use serde::Serialize;

use crate::adapters::adapter::FindOutcome;
use crate::adapters::libvirt::definition_checks;
use crate::adapters::libvirt::map::VmActivity;
use crate::adapters::libvirt::native::DomainState;
use crate::model::Evidence;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::public_text;

/// What was seen of the VM, before or after.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VmEvidence {
    /// The VM's number: another one after each start, -1 while it is off.
    pub(crate) id: i32,
    /// What it does and why.
    pub(crate) state: DomainState,
    /// The snapshot it was last made from or put back to.
    pub(crate) current: Option<String>,
    /// Whether the VM was to be switched off after the restore.
    #[serde(default)]
    pub(crate) then_off: bool,
    /// Whether a snapshot of the new backup's name was there already.
    #[serde(default)]
    pub(crate) is_taken: bool,
    /// Which disks the VM has and, while it is off, what they hold, as a text to be compared; `None` when not seen.
    #[serde(default)]
    pub(crate) disks: Option<String>,
}

impl VmEvidence {
    /// To be stored with the operation; `None` when it is too long for that.
    pub(crate) fn evidence(&self) -> Option<Evidence> {
        Evidence::new(serde_json::to_string(self).ok()?)
    }

    /// What was stored; `None` when nothing was, or not by us.
    pub(crate) fn parse(evidence: Option<&Evidence>) -> Option<Self> {
        serde_json::from_str(evidence?.as_str()).ok()
    }
}

/// Whether the create was done. `is_there`: a snapshot of its name is listed, and none is being made.
pub(crate) fn outcome_of_create(
    before: Option<&VmEvidence>,
    now: &VmEvidence,
    is_there: bool,
) -> FindOutcome {
    if before.is_some_and(|before| before.is_taken) {
        // It was refused for that very reason, and the snapshot is not ours.
        return FindOutcome::NotBegun;
    }
    if is_there {
        return FindOutcome::Done(None);
    }
    let Some(before) = before else {
        return FindOutcome::NotBegun;
    };
    if now.state.is_saving() && !before.state.is_saving() {
        return FindOutcome::Failed(Fault::new(
            FaultKind::BackendFailed,
            public_text!(
                "The VM manager stopped while the backup was made. The VM is paused, and its disks may hold an unlisted snapshot. Resume the VM, and ask the operator to check its disks."
            ),
        ));
    }
    if before.state.activity() != VmActivity::Off && now.state.is_off_by_failure() {
        return FindOutcome::Failed(Fault::new(
            FaultKind::BackendFailed,
            public_text!(
                "The VM manager or the VM stopped while the backup was made. The VM is off, and its disks may hold an unlisted snapshot. Start the VM, and ask the operator to check its disks."
            ),
        ));
    }
    FindOutcome::NotBegun
}

/// A create that left something on these disks which libvirt does not list.
pub(crate) fn create_left_parts(disks: &[String]) -> FindOutcome {
    let disks = definition_checks::list_disks(disks.iter().map(String::as_str));
    FindOutcome::Failed(Fault::new(
        FaultKind::BackendFailed,
        public_text!(
            "The VM manager stopped while the backup was made, and an unlisted snapshot remains on {disks}. Ask the operator to remove it while the VM is off."
        ),
    ))
}

/// A delete after which libvirt does not list the snapshot; `left`: the disks that still hold it.
pub(crate) fn outcome_of_delete(left: &[String]) -> FindOutcome {
    if left.is_empty() {
        return FindOutcome::Done(None);
    }
    let disks = definition_checks::list_disks(left.iter().map(String::as_str));
    FindOutcome::Failed(Fault::new(
        FaultKind::BackendFailed,
        public_text!(
            "The backup is no longer listed, but its part remains on {disks}. Ask the operator to remove it while the VM is off."
        ),
    ))
}

/// Whether the restore was done. `disks`: how many the snapshot holds; `match_snapshot`: whether all disks of the VM, which is
/// off, hold its data or none does.
pub(crate) fn outcome_of_restore(
    before: Option<&VmEvidence>,
    now: &VmEvidence,
    name: &str,
    disks: usize,
    match_snapshot: Option<bool>,
) -> FindOutcome {
    let Some(before) = before else {
        return FindOutcome::Unknowable;
    };
    let is_current = now.current.as_deref() == Some(name);
    if before.id >= 0 {
        return outcome_of_restore_while_on(before, now, is_current);
    }
    if now.id >= 0 {
        // It was off: only a restore of memory, or another client of libvirt, can have started it.
        return match (is_current && now.state.is_from_snapshot(), before.then_off) {
            (true, true) => FindOutcome::Failed(Fault::new(
                FaultKind::BackendFailed,
                public_text!(
                    "The VM was restored, but it is paused instead of off. Ask the operator to stop it."
                ),
            )),
            (true, false) => FindOutcome::Done(None),
            (false, _) => FindOutcome::Unknowable,
        };
    }
    outcome_of_restore_while_off(before, now, name, disks, match_snapshot)
}

/// The VM was off and is off.
fn outcome_of_restore_while_off(
    before: &VmEvidence,
    now: &VmEvidence,
    name: &str,
    disks: usize,
    match_snapshot: Option<bool>,
) -> FindOutcome {
    let is_current = now.current.as_deref() == Some(name);
    let was_current = before.current.as_deref() == Some(name);
    if is_current && !was_current {
        // Only a restore makes another snapshot the current one. With memory, the VM is started for it and then
        // switched off, and which of both failed is not to be seen.
        return if before.then_off {
            FindOutcome::Unknowable
        } else {
            FindOutcome::Done(None)
        };
    }
    let is_alike = before.state == now.state && before.current == now.current;
    match (&before.disks, &now.disks) {
        // A restore writes to every disk.
        (Some(then), Some(now)) if then == now && is_alike => FindOutcome::NotBegun,
        // The disk was written to, or replaced, and is not as the backup. Had it been restored before that, the
        // snapshot would be the current one; of several disks, some may have been.
        (Some(then), Some(now))
            if then != now && match_snapshot == Some(false) && disks <= 1 && !is_current =>
        {
            FindOutcome::VmChanged
        }
        (Some(_), Some(_)) => FindOutcome::Unknowable,
        // One disk is restored wholly or not at all; of several, some may have been.
        (None, _) | (_, None) if disks <= 1 && is_alike && !is_current && !before.then_off => {
            FindOutcome::NotBegun
        }
        (None, _) | (_, None) => FindOutcome::Unknowable,
    }
}

/// libvirt restarts QEMU for a restore, so a VM that was on has another number afterwards, or is off.
fn outcome_of_restore_while_on(
    before: &VmEvidence,
    now: &VmEvidence,
    is_current: bool,
) -> FindOutcome {
    if now.id == before.id {
        return match (&before.disks, &now.disks) {
            (Some(then), Some(now)) if then != now => FindOutcome::VmChanged,
            (Some(_) | None, Some(_) | None) => FindOutcome::NotBegun,
        };
    }
    if is_current && now.state.is_from_snapshot() {
        return FindOutcome::Done(None);
    }
    if now.state.is_off_by_failure() {
        return FindOutcome::Failed(Fault::new(
            FaultKind::BackendFailed,
            public_text!("The restore failed half-way."),
        ));
    }
    FindOutcome::Unknowable
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(id: i32, state: (i32, i32), current: &str) -> VmEvidence {
        VmEvidence {
            id,
            state: DomainState {
                state: state.0,
                reason: state.1,
            },
            current: Some(current.to_owned()).filter(|name| !name.is_empty()),
            then_off: false,
            is_taken: false,
            disks: None,
        }
    }

    fn word(found: &FindOutcome) -> &'static str {
        match found {
            FindOutcome::NotBegun => "not begun",
            FindOutcome::VmChanged => "vm changed",
            FindOutcome::HalfDone(_) => "half done",
            FindOutcome::Task(_) => "task",
            FindOutcome::Done(_) => "done",
            FindOutcome::Failed(_) => "failed",
            FindOutcome::NotYet => "not yet",
            FindOutcome::Unknowable => "unknowable",
        }
    }

    #[test]
    fn a_create_is_done_when_it_is_there() {
        let on = seen(1, (1, 1), "old");
        let stale = seen(1, (3, 3), "old");
        let mut taken = on.clone();
        taken.is_taken = true;
        let there = [
            ("there", Some(&on), seen(1, (1, 5), "new"), "done"),
            ("reverted", Some(&on), seen(2, (1, 4), "old"), "done"),
            ("no evidence", None, seen(1, (1, 5), "new"), "done"),
            ("taken", Some(&taken), seen(1, (1, 1), "new"), "not begun"),
        ];
        for (name, before, now, expected) in there {
            assert_eq!(
                word(&outcome_of_create(before, &now, true)),
                expected,
                "{name}"
            );
        }
        let absent = [
            ("no evidence", None, seen(1, (1, 5), "new"), "not begun"),
            ("absent", Some(&on), on.clone(), "not begun"),
            ("daemon died", Some(&on), stale.clone(), "failed"),
            ("stale before", Some(&stale), stale.clone(), "not begun"),
            ("VM died", Some(&on), seen(-1, (5, 8), "old"), "failed"),
            ("off", Some(&on), seen(-1, (5, 1), "old"), "not begun"),
        ];
        for (name, before, now, expected) in absent {
            assert_eq!(
                word(&outcome_of_create(before, &now, false)),
                expected,
                "{name}"
            );
        }
    }

    #[test]
    fn a_restore_of_a_vm_that_was_on_shows_in_its_number() {
        let on = seen(1, (1, 1), "a");
        let was_current = seen(1, (1, 4), "b");
        let rows = [
            ("no evidence", None, seen(2, (1, 4), "b"), "unknowable"),
            ("same number", Some(&on), on.clone(), "not begun"),
            (
                "again",
                Some(&was_current),
                was_current.clone(),
                "not begun",
            ),
            ("restarted", Some(&on), seen(2, (1, 4), "b"), "done"),
            ("paused", Some(&on), seen(2, (3, 7), "b"), "done"),
            ("off from it", Some(&on), seen(-1, (5, 7), "b"), "done"),
            (
                "from another",
                Some(&on),
                seen(2, (1, 4), "a"),
                "unknowable",
            ),
            (
                "booted since",
                Some(&on),
                seen(3, (1, 1), "b"),
                "unknowable",
            ),
            ("failed", Some(&on), seen(-1, (5, 6), "a"), "failed"),
            ("off", Some(&on), seen(-1, (5, 1), "a"), "unknowable"),
        ];
        for (name, before, now, expected) in rows {
            assert_eq!(
                word(&outcome_of_restore(before, &now, "b", 1, None)),
                expected,
                "{name}"
            );
        }
    }

    #[test]
    fn a_restore_of_a_vm_that_was_off_is_known_only_by_a_new_current_snapshot() {
        let off = seen(-1, (5, 0), "a");
        let mut memory = off.clone();
        memory.then_off = true;
        let rows = [
            ("put back", &off, seen(-1, (5, 0), "b"), 2, "done"),
            ("unchanged", &off, off.clone(), 1, "not begun"),
            ("some disks?", &off, off.clone(), 2, "unknowable"),
            ("now on", &off, seen(4, (1, 4), "b"), 1, "done"),
            ("started", &off, seen(4, (1, 1), "a"), 1, "unknowable"),
            ("off again", &memory, seen(-1, (5, 2), "b"), 1, "unknowable"),
            ("left paused", &memory, seen(4, (3, 7), "b"), 1, "failed"),
        ];
        for (name, before, now, disks, expected) in rows {
            let found = outcome_of_restore(Some(before), &now, "b", disks, None);
            assert_eq!(word(&found), expected, "{name}");
        }
    }

    #[test]
    fn what_the_disks_hold_decides_where_it_can_be_seen() {
        let with = |mut seen: VmEvidence, disks: &str| {
            seen.disks = Some(disks.to_owned());
            seen
        };
        let off = with(seen(-1, (5, 0), "a"), "1");
        let same = with(seen(-1, (5, 0), "b"), "1");
        let on = with(seen(3, (1, 1), "a"), "1");
        let written = with(off.clone(), "2");
        let again = with(same.clone(), "2");
        let rows = [
            ("nothing was written", &off, &off, None, 2, "not begun"),
            ("not even of two", &same, &same, Some(false), 2, "not begun"),
            (
                "written, nothing of it",
                &off,
                &written,
                Some(false),
                1,
                "vm changed",
            ),
            ("two written", &off, &written, Some(false), 2, "unknowable"),
            (
                "written, all of it",
                &off,
                &written,
                Some(true),
                1,
                "unknowable",
            ),
            (
                "written, not seen what",
                &off,
                &written,
                None,
                1,
                "unknowable",
            ),
            (
                "restored and written?",
                &same,
                &again,
                Some(false),
                1,
                "unknowable",
            ),
            (
                "other disks",
                &on,
                &with(on.clone(), "2"),
                None,
                2,
                "vm changed",
            ),
            ("the same disks", &on, &on, None, 2, "not begun"),
        ];
        for (name, before, now, match_snapshot, disks, expected) in rows {
            let found = outcome_of_restore(Some(before), now, "b", disks, match_snapshot);
            assert_eq!(word(&found), expected, "{name}");
        }
    }

    #[test]
    fn what_a_delete_left_behind_is_named() {
        assert_eq!(word(&outcome_of_delete(&[])), "done", "nothing left");
        let left = outcome_of_delete(&["vdb".to_owned()]);
        let FindOutcome::Failed(fault) = &left else {
            panic!("{left:?}");
        };
        assert!(fault.text.contains("disk vdb"), "{fault:?}");
    }

    #[test]
    fn evidence_survives_the_store() {
        let before = seen(-1, (5, 0), "a\"b");
        let kept = before.evidence();
        assert_eq!(VmEvidence::parse(kept.as_ref()), Some(before), "the same");
        let foreign = Evidence::new("x".to_owned());
        assert_eq!(VmEvidence::parse(foreign.as_ref()), None, "not ours");
    }
}
