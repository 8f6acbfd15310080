//! Between the words of LXD and Incus and our own. Pure.

use serde::Deserialize;
use serde::Serialize;
use serde_json::Map;
use serde_json::Value;

use crate::adapters::incus::client::VolumePath;
use crate::adapters::incus::wire;
use crate::model::Backup;
use crate::model::BackupId;
use crate::model::BackupKind;
use crate::model::BackupName;
use crate::model::BackupPatch;
use crate::model::BackupState;
use crate::model::Description;
use crate::model::Identity;
use crate::model::NewBackup;
use crate::model::Patch;
use crate::model::RunState;
use crate::model::Tag;
use crate::model::Timestamp;
use crate::model::Vm;
use crate::model::VmId;
use crate::model::limits;

/// Longest name that every version takes.
const NAME_BYTES_MAX: usize = 64;
/// What snapshots made by a gateway begin with; a number follows.
const MINTED: &str = "snapgate-";
/// What operations that make snapshots say of themselves.
pub(super) const MAKING: &str = "Snapshotting instance";
/// The version of the label. Later ones may add members, and change none.
const LABEL_VERSION: u32 = 1;

/// Whether the name of an instance, snapshot or project is one that no version misreads.
///
/// Some versions take `..` for a folder and destroy what is beside it, and can never remove a name with `%` again.
pub(super) fn is_strict(name: &str) -> bool {
    let end = |it: Option<char>| it.is_some_and(|it| it.is_ascii_alphanumeric());
    name.len() <= NAME_BYTES_MAX
        && end(name.chars().next())
        && end(name.chars().next_back())
        && !name.contains("..")
        && name
            .chars()
            .all(|character| character.is_ascii_alphanumeric() || "._-".contains(character))
}

/// The number of an operation in a path such as `/1.0/operations/4a08d9d0-4654-40d9-8e54-45e563d00409?project=p`.
pub(super) fn operation_id(path: &str) -> Option<&str> {
    let id = path
        .strip_prefix("/1.0/operations/")?
        .split('?')
        .next()
        .unwrap_or_default();
    let digits = |it: char| it.is_ascii_hexdigit() || it == '-';
    (id.len() == 36 && id.chars().all(digits)).then_some(id)
}

/// Where the snapshots of an instance's root disk are.
pub(super) fn volume_path(instance: &wire::Instance) -> Option<VolumePath> {
    let root = instance.expanded_devices.values().find(|expanded_device| {
        expanded_device.get("type").is_some_and(|it| it == "disk")
            && expanded_device.get("path").is_some_and(|path| path == "/")
    })?;
    Some(VolumePath {
        pool: root.get("pool")?.clone(),
        kind: instance.kind.clone(),
        vm: instance.name.clone(),
    })
}

/// What changes with each restore, on versions that have it.
pub(super) fn generation(instance: &wire::Instance) -> Option<&str> {
    let key = "volatile.uuid.generation";
    instance.config.get(key).map(String::as_str)
}

/// The VM.
pub(super) fn vm(id: &VmId, instance: wire::Instance) -> Vm {
    Vm {
        id: id.clone(),
        run_state: match instance.status.as_str() {
            "Running" | "Ready" => Some(RunState::Started),
            "Stopped" => Some(RunState::Stopped),
            "Frozen" => Some(RunState::Sleeping),
            _ => None,
        },
        name: instance.name,
        description: Some(instance.description).filter(|it| !it.is_empty()),
    }
}

/// A time such as `2026-11-23T12:52:36.394117357Z`, or with an offset such as `+01:00` instead of the `Z`.
pub(super) fn timestamp(text: &str) -> Option<Timestamp> {
    if let Ok(time) = humantime::parse_rfc3339(text) {
        return Some(Timestamp::from_system(time));
    }
    let (time, offset) = text.split_at_checked(text.len().checked_sub(6)?)?;
    let local = humantime::parse_rfc3339(&format!("{time}Z")).ok()?;
    let (hours, minutes) = offset.get(1..)?.split_once(':')?;
    let minutes = hours
        .parse::<u64>()
        .ok()?
        .checked_mul(60)?
        .checked_add(minutes.parse().ok()?)?;
    let by = std::time::Duration::from_secs(minutes.checked_mul(60)?);
    match offset.get(..1)? {
        "+" => Some(Timestamp::from_system(local).minus(by)),
        "-" => Some(Timestamp::from_system(local).plus(by)),
        _ => None,
    }
}

/// Whether an operation on the VM is at work that excludes ours. Consoles and commands in it do not.
pub(super) fn is_at_work(task: &wire::Task, vm: &str) -> bool {
    task.status_code < 200 && task.class == "task" && may_concern(task, vm)
}

/// Whether the operation works on the VM, or may do so: what the daemon does by its own schedule names no instance.
fn may_concern(task: &wire::Task, vm: &str) -> bool {
    let names_nothing = task
        .resources
        .as_ref()
        .is_none_or(|all| all.values().all(Vec::is_empty));
    if names_nothing {
        let text = task.description.as_str();
        return text == MAKING || text.contains("expired instance snapshots");
    }
    concerns(task, vm)
}

/// Whether a snapshot of the VM is being made.
pub(super) fn is_making(task: &wire::Task, vm: &str) -> bool {
    is_at_work(task, vm) && task.description == MAKING
}

/// Whether the operation names the VM among what it works on.
pub(super) fn concerns(task: &wire::Task, vm: &str) -> bool {
    let Some(resources) = &task.resources else {
        return false;
    };
    resources.values().flatten().any(|path| {
        let mut parts = path.split(['/', '?']).skip(2);
        matches!(
            parts.next(),
            Some("instances" | "containers" | "virtual-machines")
        ) && parts.next() == Some(vm)
    })
}

/// Whether the snapshot may be half made, which is asked of snapshots without a label only.
///
/// One of a gateway counts as such for as long as the VM manager knows the operation that made it, ended or not: by then
/// the gateway has labelled it, or the VM manager has removed it.
pub(super) fn is_half_made(snapshot: &wire::Snapshot, tasks: &[wire::Task], vm: &str) -> bool {
    let made = timestamp(&snapshot.created_at);
    let is_ours = is_minted(wire::last_segment(&snapshot.name));
    tasks
        .iter()
        .filter(|task| task.description == MAKING && may_concern(task, vm))
        .filter(|task| is_ours || is_at_work(task, vm))
        .any(|task| made >= timestamp(&task.created_at))
}

/// What the gateway writes about a snapshot, as JSON in the description of its volume.
///
/// New snapshots inherit descriptions, so a label counts only for the snapshot it names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Label {
    /// The version of this form.
    snapgate: u32,
    /// When the snapshot was made that this is about, as the VM manager writes it.
    #[serde(rename = "for")]
    about: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    tags: Vec<String>,
    #[serde(default)]
    pub(super) protected: bool,
    /// The request that made the snapshot; written when it was whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) made: Option<String>,
    /// The last request that changed this label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) changed: Option<String>,
    /// The request that began to restore the VM from it; written before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) restoring: Option<String>,
    /// The request that began to remove it; written before. It may be half gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) removing: Option<String>,
    /// What later versions write.
    #[serde(flatten)]
    rest: Map<String, Value>,
}

impl Label {
    /// Of the snapshot made at that time, from the description of its volume. What a person wrote there is kept as
    /// the description.
    pub(super) fn of(about: &str, text: &str) -> Self {
        let empty = Self {
            snapgate: LABEL_VERSION,
            about: about.to_owned(),
            name: None,
            description: None,
            tags: Vec::new(),
            protected: false,
            made: None,
            changed: None,
            restoring: None,
            removing: None,
            rest: Map::new(),
        };
        match serde_json::from_str::<Self>(text) {
            Ok(label) if label.about == about => label,
            Ok(_inherited) => empty,
            Err(_not_a_label) => Self {
                description: Some(text.to_owned()).filter(|it| !it.is_empty()),
                ..empty
            },
        }
    }

    /// What a new backup says about itself.
    pub(super) fn fill(&mut self, new: &NewBackup) {
        self.name = Some(new.name.as_str().to_owned());
        self.description = new
            .description
            .as_ref()
            .map(|description| description.as_str().to_owned());
        self.tags = new.tags.iter().map(|tag| tag.as_str().to_owned()).collect();
        self.protected = new.protected;
    }

    /// What an update changes.
    pub(super) fn patch(&mut self, patch: &BackupPatch) {
        if let Some(name) = &patch.name {
            self.name = Some(name.as_str().to_owned());
        }
        match &patch.description {
            Patch::Keep => {}
            Patch::Set(it) => self.description = Some(it.as_str().to_owned()),
            Patch::Clear => self.description = None,
        }
        match &patch.tags {
            Patch::Keep => {}
            Patch::Set(all) => self.tags = all.iter().map(|it| it.as_str().to_owned()).collect(),
            Patch::Clear => self.tags.clear(),
        }
        self.protected = patch.protected.apply(Some(self.protected)).unwrap_or(false);
    }

    /// The description to write.
    pub(super) fn text(&self) -> String {
        serde_json::json!(self).to_string()
    }

    /// Whether the snapshot can be restored: a gateway's own only once it was labelled as whole, and none that
    /// somebody began to remove.
    pub(super) fn is_whole(&self, snapshot: &str) -> bool {
        self.removing.is_none() && (self.made.is_some() || !is_minted(snapshot))
    }
}

/// Whether a gateway chose that name.
pub(super) fn is_minted(snapshot: &str) -> bool {
    snapshot
        .strip_prefix(MINTED)
        .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The backup; `None` for a snapshot whose name or time is not one we can use.
pub(super) fn backup(snapshot: &wire::Snapshot, label: &Label) -> Option<Backup> {
    let id = wire::last_segment(&snapshot.name);
    if !is_strict(id) {
        return None;
    }
    let said = |text: &Option<String>| text.as_deref().and_then(|text| BackupName::new(text).ok());
    let name = match said(&label.name) {
        Some(name) => name,
        None => BackupName::new(id).ok()?,
    };
    let tags = label.tags.iter().filter_map(|tag| Tag::new(tag).ok());
    let description = label.description.as_deref();
    Some(Backup {
        id: BackupId::new(id).ok()?,
        identity: Identity::new(snapshot.created_at.clone()),
        name,
        description: description.and_then(|description| Description::new(description).ok()),
        kind: Some(BackupKind::Snapshot),
        created: timestamp(&snapshot.created_at)?,
        tags: tags.take(limits::TAGS_MAX).collect(),
        state: if label.is_whole(id) {
            BackupState::Available
        } else {
            BackupState::Error
        },
        size: u64::try_from(snapshot.size).ok(),
        protected: label.protected,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn dangerous_names_are_not_strict() {
        let long = "a".repeat(64);
        let longer = "a".repeat(65);
        let rows = [
            ("web01", true),
            ("a", true),
            ("snap.0_x-1", true),
            (long.as_str(), true),
            (longer.as_str(), false),
            ("", false),
            (".", false),
            ("..", false),
            ("a..b", false),
            (".hidden", false),
            ("end.", false),
            ("-a", false),
            ("a/b", false),
            ("../x", false),
            ("a%b", false),
            ("a%2fb", false),
            ("a b", false),
            ("a\\b", false),
            ("a?b", false),
            ("\u{fc}n\u{ef}", false),
        ];
        for (name, expected) in rows {
            assert_eq!(is_strict(name), expected, "{name:?}");
        }
    }

    #[test]
    fn times_are_read_with_and_without_offset() {
        let rows = [
            (
                "2026-11-23T12:52:36.394117357Z",
                Some("2026-11-23T12:52:36Z"),
            ),
            ("2026-11-23T12:52:36Z", Some("2026-11-23T12:52:36Z")),
            ("2026-11-23T12:52:36.5+01:30", Some("2026-11-23T11:22:36Z")),
            ("2026-11-23T12:52:36-02:00", Some("2026-11-23T14:52:36Z")),
            ("", None),
            ("tomorrow", None),
            ("\u{fc}\u{fc}\u{fc}\u{fc}", None),
        ];
        for (text, expected) in rows {
            let found = timestamp(text).map(|timestamp| timestamp.to_string());
            assert_eq!(found.as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn operations_are_named_by_their_number_only() {
        let id = "4a08d9d0-4654-40d9-8e54-45e563d00409";
        let rows = [
            (format!("/1.0/operations/{id}"), Some(id)),
            (format!("/1.0/operations/{id}?project=p"), Some(id)),
            (format!("/1.0/instances/{id}"), None),
            ("/1.0/operations/../instances".to_owned(), None),
            (String::new(), None),
        ];
        for (path, expected) in rows {
            assert_eq!(operation_id(&path), expected, "{path}");
        }
    }

    fn task(description: &str, status_code: u16, path: &str) -> wire::Task {
        let resources = BTreeMap::from([("instances".to_owned(), vec![path.to_owned()])]);
        wire::Task {
            id: String::new(),
            class: "task".to_owned(),
            description: description.to_owned(),
            created_at: "2026-11-23T12:00:00Z".to_owned(),
            status_code,
            err: String::new(),
            resources: Some(resources),
        }
    }

    #[test]
    fn what_the_daemon_does_by_schedule_names_no_vm_and_may_be_about_any() {
        for (text, expected) in [
            (MAKING, true),
            ("Cleaning up expired instance snapshots", true),
            ("Cleaning up expired instance backups", false),
        ] {
            for resources in [None, Some(BTreeMap::new())] {
                let mut scheduled = task(text, 103, "");
                scheduled.resources = resources;
                assert_eq!(
                    is_at_work(&scheduled, "web01"),
                    expected,
                    "{text}, by schedule"
                );
            }
        }
    }

    #[test]
    fn only_what_works_on_the_vm_itself_is_in_the_way() {
        let rows = [
            ("itself", "/1.0/instances/web01", 103, true),
            ("with project", "/1.0/instances/web01?project=p", 103, true),
            (
                "one of its snapshots",
                "/1.0/instances/web01/snapshots/s",
                103,
                true,
            ),
            ("under its old name", "/1.0/containers/web01", 105, true),
            ("another", "/1.0/instances/web011", 103, false),
            ("ended", "/1.0/instances/web01", 200, false),
        ];
        for (name, path, status, expected) in rows {
            let found = is_at_work(&task("Restoring snapshot", status, path), "web01");
            assert_eq!(found, expected, "{name}");
        }
        let mut console = task("Executing command", 103, "/1.0/instances/web01");
        console.class = "websocket".to_owned();
        assert!(!is_at_work(&console, "web01"), "a console");
        let (before, after) = ("2026-11-23T11:59:59Z", "2026-11-23T12:00:00.1Z");
        let rows = [
            ("older", "s", before, MAKING, 103, false),
            ("a person's, at work", "s", after, MAKING, 103, true),
            ("a person's, ended", "s", after, MAKING, 200, false),
            ("ours, at work", "snapgate-7", after, MAKING, 103, true),
            (
                "ours, to be labelled",
                "snapgate-7",
                after,
                MAKING,
                200,
                true,
            ),
            (
                "ours, to be removed",
                "snapgate-7",
                after,
                MAKING,
                400,
                true,
            ),
            ("ours, older", "snapgate-7", before, MAKING, 200, false),
            (
                "restored",
                "snapgate-7",
                after,
                "Restoring snapshot",
                103,
                false,
            ),
        ];
        for (name, id, made, what, status, expected) in rows {
            let tasks = [task(what, status, "/1.0/instances/web01")];
            let found = is_half_made(&snapshot(id, made), &tasks, "web01");
            assert_eq!(found, expected, "{name}");
        }
    }

    fn snapshot(name: &str, created_at: &str) -> wire::Snapshot {
        wire::Snapshot {
            name: name.to_owned(),
            created_at: created_at.to_owned(),
            stateful: false,
            ephemeral: false,
            expires_at: String::new(),
            size: -1,
        }
    }

    #[test]
    fn labels_count_for_the_snapshot_they_name_and_survive_writing() {
        let at = "2026-11-23T12:00:00Z";
        let mut label = Label::of(at, "written by hand");
        assert_eq!(
            label.description.as_deref(),
            Some("written by hand"),
            "kept"
        );
        label.patch(&BackupPatch {
            tags: Patch::Set(vec![Tag::new("t").unwrap()]),
            protected: Patch::Set(true),
            ..BackupPatch::default()
        });
        let text = label.text().replace("}", ",\"later\":1}");
        let again = Label::of(at, &text);
        assert_eq!((again.tags.len(), again.protected), (1, true), "read again");
        assert!(
            again.text().contains("\"later\":1"),
            "members of later versions"
        );
        let inherited = Label::of("2026-11-24T12:00:00Z", &text);
        assert_eq!(inherited, Label::of("2026-11-24T12:00:00Z", ""), "ignored");
    }

    #[test]
    fn backups_made_by_a_gateway_are_whole_once_they_say_so() {
        let at = "2026-11-23T12:00:00Z";
        let bare = Label::of(at, "");
        let made = Label {
            made: Some("snapgate-7".to_owned()),
            ..bare.clone()
        };
        let removing = Label {
            removing: Some("snapgate-8".to_owned()),
            ..made.clone()
        };
        let rows = [
            ("a person's", "snap0", &bare, Some(BackupState::Available)),
            ("half made", "snapgate-7", &bare, Some(BackupState::Error)),
            ("whole", "snapgate-7", &made, Some(BackupState::Available)),
            (
                "half removed",
                "snapgate-7",
                &removing,
                Some(BackupState::Error),
            ),
            (
                "half removed, a person's",
                "snap0",
                &removing,
                Some(BackupState::Error),
            ),
            (
                "long form",
                "web01/snap0",
                &bare,
                Some(BackupState::Available),
            ),
            ("cannot be named", "a b", &bare, None),
            ("cannot be named safely", "..", &bare, None),
        ];
        for (name, id, label, expected) in rows {
            let found = backup(&snapshot(id, at), label).map(|backup| backup.state);
            assert_eq!(found, expected, "{name}");
        }
    }
}
