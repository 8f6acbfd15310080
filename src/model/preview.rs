//! What a restore or a delete would do to a VM, as far as its VM manager can say before it is done.

use crate::model::Backup;
use crate::model::BackupId;
use crate::model::Change;
use crate::model::Fault;
use crate::model::Identity;
use crate::model::PublicText;
use crate::model::RunState;
use crate::model::Version;
use crate::model::Vm;
use crate::model::precondition::Fields;

/// One disk whose contents are replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreviewDisk {
    /// What the VM manager calls it.
    pub disk: String,
    /// Bytes that the guest sees, when the VM manager knows.
    pub size: Option<u64>,
}

/// The storage that a restore needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpaceNeeds {
    /// Bytes that it writes, when that is known.
    pub bytes: Option<u64>,
    /// Bytes that are free for it now, when that is known.
    pub free: Option<u64>,
}

/// A part of a preview that the VM manager may not be able to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PreviewPart {
    /// The disks that are overwritten.
    Overwrites,
    /// The backups that go with it.
    Loses,
    /// The disks that stay as they are.
    Leaves,
    /// The run state afterwards.
    After,
    /// The storage that it needs.
    Needs,
    /// Everything that would refuse it: what is listed may be incomplete.
    Refused,
}

impl PreviewPart {
    /// Every part, in the order of the documentation.
    pub const ALL: [Self; 6] = [
        Self::Overwrites,
        Self::Loses,
        Self::Leaves,
        Self::After,
        Self::Needs,
        Self::Refused,
    ];

    /// The member of a plan that has it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Overwrites => "overwrites",
            Self::Loses => "loses",
            Self::Leaves => "leaves",
            Self::After => "after",
            Self::Needs => "needs",
            Self::Refused => "refused",
        }
    }
}

/// What a restore or a delete would do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preview {
    /// The VM as it is.
    pub vm: Vm,
    /// The backup that is restored or deleted.
    pub backup: Backup,
    /// The disks whose contents are replaced, as they are now. Empty for a delete.
    pub overwrites: Vec<PreviewDisk>,
    /// Other backups of the VM that are removed with it.
    pub loses: Vec<Backup>,
    /// Disks of the VM that stay as they are. Empty for a delete.
    pub leaves: Vec<String>,
    /// The run state of the VM afterwards, when that is known.
    pub after: Option<RunState>,
    /// The storage that it needs, when anything is known of that.
    pub needs: Option<SpaceNeeds>,
    /// Everything that would refuse it now, by the checks of the change itself and in their order.
    pub refused: Vec<Fault>,
    /// What does not refuse it and should be known before.
    pub warnings: Vec<PublicText>,
    /// The parts that this VM manager cannot give.
    pub unknown: Vec<PreviewPart>,
    /// The backups that are newer than this one, in order of their ids.
    pub newer: Vec<(BackupId, Identity)>,
    /// Whatever else of the VM must not change between a look and the deed: its own identity, the state of disks that are at
    /// rest. `None` where the VM manager shows nothing of that kind. Opaque.
    pub vm_mark: Option<String>,
}

impl Preview {
    /// A preview in which nothing happens yet: the run state stays, and nothing is overwritten, lost or refused.
    #[must_use]
    pub fn new(vm: Vm, backup: Backup) -> Self {
        Self {
            after: vm.run_state,
            vm,
            backup,
            overwrites: Vec::new(),
            loses: Vec::new(),
            leaves: Vec::new(),
            needs: None,
            refused: Vec::new(),
            warnings: Vec::new(),
            unknown: Vec::new(),
            newer: Vec::new(),
            vm_mark: None,
        }
    }

    /// A preview of a VM manager that can say nothing beside what the VM and the backup are.
    #[must_use]
    pub fn unknown(vm: Vm, backup: Backup) -> Self {
        Self {
            after: None,
            unknown: PreviewPart::ALL.to_vec(),
            ..Self::new(vm, backup)
        }
    }

    /// The same with the newer ones of these backups of the VM.
    ///
    /// One of the same time counts as newer: times of VM managers are often in whole seconds.
    #[must_use]
    pub fn with_newer<'a>(mut self, all: impl IntoIterator<Item = &'a Backup>) -> Self {
        let is_newer =
            |other: &&Backup| other.id != self.backup.id && other.created >= self.backup.created;
        let newer = all.into_iter().filter(is_newer);
        self.newer = newer
            .map(|other| (other.id.clone(), other.identity.clone()))
            .collect();
        self.newer.sort_by(|one, other| one.0.cmp(&other.0));
        self
    }

    /// What this preview and a later one of the same change have in common while nothing that matters has changed.
    ///
    /// It covers the change with its options, the identity of VM and backup, the disks, the newer backups, and the run state now
    /// and afterwards. It does not cover clocks, free bytes, names of backups, or what would refuse the change.
    #[must_use]
    pub fn fingerprint(&self, change: &Change) -> Version {
        let mut fields = Fields::default();
        fields.add(change.verb().as_str().as_bytes());
        match change {
            Change::Restore(options) => {
                fields.add_count(options.0.len());
                for (name, value) in &options.0 {
                    fields.add(name.as_bytes());
                    fields.add(value.as_bytes());
                }
            }
            Change::Create(_) | Change::Update(_) | Change::Delete => fields.add_count(0),
        }
        fields.add(self.vm.id.as_str().as_bytes());
        fields.add_optional(self.vm.run_state.map(|state| state.as_str().as_bytes()));
        fields.add_optional(self.vm_mark.as_deref().map(str::as_bytes));
        fields.add(self.backup.id.as_str().as_bytes());
        fields.add(self.backup.identity.as_str().as_bytes());
        fields.add_count(self.overwrites.len());
        for disk in &self.overwrites {
            fields.add(disk.disk.as_bytes());
            let size = disk.size.map(u64::to_le_bytes);
            fields.add_optional(size.as_ref().map(<[u8; 8]>::as_slice));
        }
        fields.add_count(self.leaves.len());
        for disk in &self.leaves {
            fields.add(disk.as_bytes());
        }
        fields.add_count(self.loses.len());
        for backup in &self.loses {
            fields.add(backup.id.as_str().as_bytes());
            fields.add(backup.identity.as_str().as_bytes());
        }
        fields.add_count(self.newer.len());
        for (id, identity) in &self.newer {
            fields.add(id.as_str().as_bytes());
            fields.add(identity.as_str().as_bytes());
        }
        fields.add_optional(self.after.map(|state| state.as_str().as_bytes()));
        fields.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::BackupName;
    use crate::model::BackupState;
    use crate::model::FaultKind;
    use crate::model::RestoreOptions;
    use crate::model::Timestamp;
    use crate::model::VmId;
    use crate::public_text;

    fn backup(id: &str, created: u64) -> Backup {
        Backup {
            id: BackupId::new(id).unwrap(),
            identity: Identity::new(format!("{id}@1")),
            name: BackupName::new("n").unwrap(),
            description: None,
            kind: None,
            created: Timestamp::from_millis(created),
            tags: Vec::new(),
            state: BackupState::Available,
            size: None,
            protected: false,
        }
    }

    fn preview() -> Preview {
        let vm = Vm {
            id: VmId::new("1").unwrap(),
            name: "web".to_owned(),
            description: None,
            run_state: Some(RunState::Stopped),
        };
        Preview::new(vm, backup("b", 5))
    }

    fn restore(options: &[(&str, &str)]) -> Change {
        let pairs = options
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Change::Restore(RestoreOptions(pairs.collect()))
    }

    type Edit = (&'static str, fn(&mut Preview));

    const DECISIVE: [Edit; 11] = [
        ("another VM", |preview| {
            preview.vm.id = VmId::new("2").unwrap();
        }),
        ("run state", |preview| {
            preview.vm.run_state = Some(RunState::Started);
        }),
        ("unknown run state", |preview| preview.vm.run_state = None),
        ("mark of the VM", |preview| {
            preview.vm_mark = Some("1".to_owned());
        }),
        ("another backup", |preview| {
            preview.backup.id = BackupId::new("c").unwrap();
        }),
        ("identity", |preview| {
            preview.backup.identity = Identity::new("2".to_owned());
        }),
        ("a disk", |preview| {
            preview.overwrites.push(PreviewDisk {
                disk: "d".to_owned(),
                size: None,
            });
        }),
        ("its size", |preview| {
            preview.overwrites.push(PreviewDisk {
                disk: "d".to_owned(),
                size: Some(0),
            });
        }),
        ("a disk that stays", |preview| {
            preview.leaves.push("d".to_owned());
        }),
        ("a newer backup", |preview| {
            preview
                .newer
                .push((BackupId::new("c").unwrap(), Identity::new("c".to_owned())));
        }),
        ("afterwards", |preview| {
            preview.after = Some(RunState::Started);
        }),
    ];

    const IRRELEVANT: [Edit; 5] = [
        ("free bytes", |preview| {
            preview.needs = Some(SpaceNeeds {
                bytes: Some(1),
                free: Some(2),
            });
        }),
        ("a refusal", |preview| {
            preview
                .refused
                .push(Fault::new(FaultKind::Busy, public_text!("The VM is busy.")));
        }),
        ("a warning", |preview| {
            preview.warnings.push(public_text!("The VM is old."));
        }),
        ("a name", |preview| {
            preview.backup.name = BackupName::new("m").unwrap();
        }),
        ("what is unknown", |preview| {
            preview.unknown.push(PreviewPart::Needs);
        }),
    ];

    #[test]
    fn a_fingerprint_covers_what_matters_and_nothing_else() {
        let plain = preview().fingerprint(&restore(&[]));
        let mut seen = vec![("nothing", plain)];
        let mut add = |name, version| {
            for (other, before) in &seen {
                assert_ne!(version, *before, "{name} and {other}");
            }
            seen.push((name, version));
        };
        for (name, edit) in DECISIVE {
            let mut edited = preview();
            edit(&mut edited);
            add(name, edited.fingerprint(&restore(&[])));
        }
        add("a delete", preview().fingerprint(&Change::Delete));
        add("an option", preview().fingerprint(&restore(&[("a", "b")])));
        add(
            "another option",
            preview().fingerprint(&restore(&[("ab", "")])),
        );
        for (name, edit) in IRRELEVANT {
            let mut edited = preview();
            edit(&mut edited);
            assert_eq!(edited.fingerprint(&restore(&[])), plain, "{name}");
        }
    }

    #[test]
    fn newer_backups_are_those_of_the_same_time_and_later() {
        let all = [
            backup("d", 6),
            backup("a", 4),
            backup("c", 5),
            backup("b", 5),
        ];
        let found = preview().with_newer(&all);
        let ids: Vec<&str> = found.newer.iter().map(|(id, _)| id.as_str()).collect();
        assert_eq!(
            ids,
            ["c", "d"],
            "in order of the ids, without the backup itself"
        );
    }
}
