//! Between the words of LXD and Incus and our own. Pure.

use crate::adapters::incus::label::SnapshotLabel;
use crate::adapters::incus::names;
use crate::adapters::incus::names::VolumePath;
use crate::adapters::incus::wire;
use crate::model::Backup;
use crate::model::BackupId;
use crate::model::BackupKind;
use crate::model::BackupName;
use crate::model::BackupState;
use crate::model::Description;
use crate::model::Identity;
use crate::model::RunState;
use crate::model::Tag;
use crate::model::Timestamp;
use crate::model::Vm;
use crate::model::VmId;
use crate::model::limits;

/// Where the snapshots of an instance's root disk are.
pub(super) fn volume_path(instance: &wire::Instance) -> Option<VolumePath> {
    let root = instance.expanded_devices.values().find(|expanded_device| {
        expanded_device
            .get("type")
            .is_some_and(|kind| kind == "disk")
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

/// Whether an instance runs, from its status.
pub(super) fn run_state(status: &str) -> Option<RunState> {
    match status {
        "Running" | "Ready" => Some(RunState::Started),
        "Stopped" => Some(RunState::Stopped),
        "Frozen" => Some(RunState::Sleeping),
        _ => None,
    }
}

/// The VM.
pub(super) fn vm(id: &VmId, instance: wire::Instance) -> Vm {
    Vm {
        id: id.clone(),
        run_state: run_state(&instance.status),
        name: instance.name,
        description: Some(instance.description).filter(|text| !text.is_empty()),
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

/// The backup; `None` for a snapshot whose name or time is not one we can use.
pub(super) fn backup(snapshot: &wire::Snapshot, label: &SnapshotLabel) -> Option<Backup> {
    let id = names::last_segment(&snapshot.name);
    if !names::is_safe_name(id) {
        return None;
    }
    let valid = |text: &Option<String>| text.as_deref().and_then(|text| BackupName::new(text).ok());
    let name = match valid(&label.name) {
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
        state: if label.is_complete(id) {
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
    fn backups_made_by_a_gateway_are_whole_once_they_say_so() {
        let at = "2026-11-23T12:00:00Z";
        let bare = SnapshotLabel::parse(at, "");
        let mut made = bare.clone();
        made.made = Some("snapgate-7".to_owned());
        let mut removing = made.clone();
        removing.removing = Some("snapgate-8".to_owned());
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
