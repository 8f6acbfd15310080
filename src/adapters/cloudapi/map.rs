//! Between what servers send and the model, without I/O.

use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use crate::adapters::cloudapi::error;
use crate::adapters::cloudapi::link;
use crate::adapters::cloudapi::wire;
use crate::model::Backup;
use crate::model::BackupId;
use crate::model::BackupKind;
use crate::model::BackupName;
use crate::model::BackupPatch;
use crate::model::BackupState;
use crate::model::Description;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::Identity;
use crate::model::NewBackup;
use crate::model::OperationSeq;
use crate::model::Patch;
use crate::model::Progress;
use crate::model::RunState;
use crate::model::Tag;
use crate::model::Timestamp;
use crate::model::Verb;
use crate::model::Vm;
use crate::model::VmId;
use crate::model::VmPage;
use crate::model::VmRange;
use crate::model::limits;

/// What the ids of backups made through this gateway begin with.
const MINTED_PREFIX: &str = "via-";
/// The prefix of the tag that carries the id: the server chooses another id for the backup.
pub(super) const ID_TAG: &str = "snapgate-id=";

/// The id of a new backup.
pub(super) fn minted_id(seq: OperationSeq) -> String {
    format!("{MINTED_PREFIX}{seq}")
}

/// Whether a gateway may have chosen that id.
pub(super) fn is_minted(id: &BackupId) -> bool {
    id.as_str().starts_with(MINTED_PREFIX)
}

/// The id that a tag gives a backup.
fn id_in_tag(tag: &str) -> Option<BackupId> {
    let id = tag.strip_prefix(ID_TAG)?;
    let digits = id.strip_prefix(MINTED_PREFIX)?;
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    BackupId::new(id).ok().filter(|_| plain)
}

fn id_tag(id: &BackupId) -> String {
    format!("{ID_TAG}{id}")
}

/// A backup on the server.
#[derive(Clone, Debug)]
pub(super) struct RemoteBackup {
    /// The server's id of it.
    pub(super) server_id: BackupId,
    /// Whether its id here comes from an id tag.
    pub(super) has_id_tag: bool,
    /// As callers see it: with the id of the id tag, and without that tag.
    pub(super) backup: Backup,
    /// Whether it is still being made.
    pub(super) is_incomplete: bool,
}

/// The backup of that id on the server; `None` when one of its members cannot be used.
///
/// The last id tag counts: in a chain of gateways each appends its own to those of the gateways before it.
pub(super) fn remote_backup(
    server_id: BackupId,
    wire_backup: wire::Backup,
) -> Option<RemoteBackup> {
    let created = wire_backup.created?;
    let mut tags = wire_backup.tags.unwrap_or_default();
    let at = tags.iter().rposition(|tag| id_in_tag(tag).is_some());
    let tagged_id = at.and_then(|at| id_in_tag(&tags.remove(at)));
    let state = backup_state(wire_backup.state.as_deref());
    Some(RemoteBackup {
        has_id_tag: tagged_id.is_some(),
        is_incomplete: state == BackupState::Creating,
        backup: Backup {
            id: tagged_id.unwrap_or_else(|| server_id.clone()),
            identity: identity(&server_id, &created),
            name: BackupName::new(&wire_backup.name).ok()?,
            description: wire_backup
                .description
                .filter(|description| !description.is_empty())
                .and_then(|description| Description::new(&description).ok()),
            kind: wire_backup.kind.and_then(|word| backup_kind(&word)),
            created: Timestamp::from_system(humantime::parse_rfc3339(&created).ok()?),
            tags: tags
                .iter()
                .filter_map(|tag| Tag::new(tag).ok())
                .take(limits::TAGS_MAX)
                .collect(),
            state,
            size: wire_backup.size,
            protected: wire_backup.protected.unwrap_or(false),
        },
        server_id,
    })
}

/// The valid backups of a list, in order of their ids here. Backups that share an id tag are left out: the tag was copied,
/// and nothing says which of them is meant.
pub(super) fn remote_backups(vm: &VmId, wire_backup: Vec<wire::Backup>) -> Vec<RemoteBackup> {
    let mut all: Vec<RemoteBackup> = wire_backup
        .into_iter()
        .filter_map(|backup| {
            let (of, server_id) = link::backup_in_link(&backup.uri)?;
            remote_backup(server_id, backup).filter(|_| of == *vm)
        })
        .collect();
    all.sort_by(|one, other| one.backup.id.cmp(&other.backup.id));
    let ids: Vec<BackupId> = all.iter().map(|remote| remote.backup.id.clone()).collect();
    let is_single = |id: &BackupId| ids.iter().filter(|other| *other == id).count() == 1;
    let twice = ids
        .windows(2)
        .any(|window| matches!(window, [one, other] if one == other));
    if twice {
        tracing::warn!(%vm, "backups with a duplicate id tag hidden");
        all.retain(|remote| is_single(&remote.backup.id));
    }
    all
}

/// Ids may be reused; the time of creation distinguishes the backups.
fn identity(server_id: &BackupId, created: &str) -> Identity {
    Identity::new(format!("{created} {server_id}"))
}

/// The server's id in an identity.
pub(super) fn server_id_of(identity: &Identity) -> Option<BackupId> {
    let (_, server_id) = identity.as_str().split_once(' ')?;
    BackupId::new(server_id).ok()
}

fn backup_state(word: Option<&str>) -> BackupState {
    match word {
        // The specification's own Backup has no state.
        None | Some("AVAILABLE") => BackupState::Available,
        Some("CREATING") => BackupState::Creating,
        Some("UPDATING") => BackupState::Updating,
        Some("RESTORING") => BackupState::Restoring,
        Some("DELETING") => BackupState::Deleting,
        // An unknown word: the backup can be listed and deleted, not restored.
        Some(_) => BackupState::Error,
    }
}

fn backup_kind(word: &str) -> Option<BackupKind> {
    BackupKind::ALL
        .into_iter()
        .find(|kind| kind.as_str() == word)
}

/// The VM.
pub(super) fn vm(id: &VmId, wire_backup: wire::Vm) -> Vm {
    Vm {
        id: id.clone(),
        name: wire_backup.name,
        description: wire_backup
            .description
            .filter(|description| !description.is_empty()),
        run_state: run_state(wire_backup.run_status.as_deref()),
    }
}

/// The run state of that word; `None` for a word that is not known.
pub(super) fn run_state(word: Option<&str>) -> Option<RunState> {
    match word {
        Some("STARTED") => Some(RunState::Started),
        Some("STOPPED") => Some(RunState::Stopped),
        Some("SLEEPING") => Some(RunState::Sleeping),
        Some(_) | None => None,
    }
}

/// The wanted part of a list of VMs, whatever order the server has them in. What is no id here is left out.
pub(super) fn vm_page(range: &VmRange, listed: ListedVms) -> VmPage {
    let entry = |one: wire::VmSummary| {
        let id = VmId::new(&one.id).ok()?;
        Some(Vm {
            name: one.name.unwrap_or(one.id),
            id,
            description: None,
            run_state: run_state(one.state.as_deref()),
        })
    };
    let mut vms: Vec<Vm> = listed.vms.into_iter().filter_map(entry).collect();
    vms.sort_by(|one, other| one.id.cmp(&other.id));
    vms.dedup_by(|one, other| one.id == other.id);
    let page = range.page_of(range.rest_of(&vms, |vm| &vm.id).iter().cloned());
    VmPage {
        more: page.more || listed.more,
        complete: listed.complete,
        ..page
    }
}

/// What a server lists after an id.
#[derive(Debug)]
pub(super) struct ListedVms {
    pub(super) vms: Vec<wire::VmSummary>,
    /// Whether the server has more after these.
    pub(super) more: bool,
    pub(super) complete: bool,
}

/// The body of a create. `None` when there is no room for the id tag.
pub(super) fn create_body(new: &NewBackup, id: &BackupId) -> Option<Value> {
    if new.tags.len() >= limits::TAGS_MAX {
        return None;
    }
    let mut body = Map::new();
    let mut set = |name: &str, value: Value| drop(body.insert(name.to_owned(), value));
    set("name", json!(new.name.as_str()));
    set("tags", json!(tags_with_id(&new.tags, Some(id))));
    if let Some(text) = &new.description {
        set("description", json!(text.as_str()));
    }
    if let Some(kind) = new.kind {
        set("type", json!(kind.as_str()));
    }
    if new.protected {
        set("protected", json!(true));
    }
    Some(Value::Object(body))
}

/// The body of an update. `None` when the tags cannot be set: there is no room for the id tag, or one of them looks like one.
pub(super) fn update_body(patch: &BackupPatch, of: &RemoteBackup) -> Option<Value> {
    let own = of.has_id_tag.then_some(&of.backup.id);
    let mut body = Map::new();
    let mut set = |name: &str, value: Value| drop(body.insert(name.to_owned(), value));
    if let Some(name) = &patch.name {
        set("name", json!(name.as_str()));
    }
    match &patch.description {
        Patch::Keep => {}
        Patch::Set(text) => set("description", json!(text.as_str())),
        Patch::Clear => set("description", Value::Null),
    }
    match &patch.tags {
        Patch::Keep => {}
        Patch::Set(all) => {
            let is_reserved =
                own.is_none() && all.iter().any(|tag| id_in_tag(tag.as_str()).is_some());
            if is_reserved || (own.is_some() && all.len() >= limits::TAGS_MAX) {
                return None;
            }
            set("tags", json!(tags_with_id(all, own)));
        }
        Patch::Clear => set("tags", json!(tags_with_id(&[], own))),
    }
    match &patch.protected {
        Patch::Keep => {}
        Patch::Set(protected) => set("protected", json!(protected)),
        Patch::Clear => set("protected", json!(false)),
    }
    Some(Value::Object(body))
}

fn tags_with_id(all: &[Tag], own: Option<&BackupId>) -> Vec<String> {
    let wire_backup = all.iter().map(|tag| tag.as_str().to_owned());
    wire_backup.chain(own.map(id_tag)).collect()
}

/// The word for a verb in a Status (Spec: "Status op Value").
pub(super) const fn status_op(verb: Verb) -> &'static str {
    match verb {
        Verb::Create => "back_up",
        Verb::Update => "update-Backup",
        Verb::Delete => "delete-Backup",
        Verb::Restore => "restore-Backup",
    }
}

/// What a Status says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum StatusOutcome {
    /// Not finished.
    Running(Progress),
    /// It was done.
    Done,
    /// It failed.
    Failed(Fault),
    /// It was stopped on request.
    Cancelled,
    /// The server does not know, or contradicts itself.
    Unknown,
}

/// A Status is finished at 100 (Spec: "Status"); where it has a `state`, that counts too.
pub(super) fn read_outcome(wire_backup: &wire::Status) -> StatusOutcome {
    if wire_backup.progress < 100 {
        let percent = u8::try_from(wire_backup.progress).unwrap_or(99);
        return StatusOutcome::Running(Progress::unfinished(percent));
    }
    match (wire_backup.state.as_deref(), wire_backup.status) {
        (Some("CANCELLED"), _) => StatusOutcome::Cancelled,
        (Some("SUCCESS"), None) | (Some("SUCCESS") | None, Some(200..=299)) => StatusOutcome::Done,
        (Some("FAILED"), None) => failed_outcome(wire_backup, FaultKind::BackendFailed),
        (Some("FAILED") | None, Some(status @ 400..=599)) => failed_outcome(
            wire_backup,
            match status {
                404 => FaultKind::NoSuchBackup,
                400..=499 => FaultKind::Conflict,
                501 => FaultKind::Unsupported,
                503 => FaultKind::Unavailable,
                504 => FaultKind::TimedOut,
                507 => FaultKind::StorageFull,
                _ => FaultKind::BackendFailed,
            },
        ),
        (Some(_) | None, Some(_) | None) => StatusOutcome::Unknown,
    }
}

fn failed_outcome(wire_backup: &wire::Status, kind: FaultKind) -> StatusOutcome {
    let sentence = error::sentence_for(kind);
    let message = wire_backup
        .message
        .as_deref()
        .and_then(error::publishable_message);
    let text = match message {
        Some(message) => error::with_server_message(&sentence, &message),
        None => sentence,
    };
    StatusOutcome::Failed(Fault::new(kind, text))
}

/// The VM of a Status about a restore.
pub(super) fn restored_vm(wire_backup: &wire::Status) -> Option<VmId> {
    let is_restore = wire_backup
        .op
        .eq_ignore_ascii_case(status_op(Verb::Restore));
    let (vm, _) = link::backup_in_link(&wire_backup.target_uri).filter(|_| is_restore)?;
    Some(vm)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> wire::Status {
        let wire_backup =
            json!({"op": "restore-Backup", "progress": 100, "status_uri": "/statuses?seq=1"});
        serde_json::from_value(wire_backup).unwrap()
    }

    fn wire_backup(id: &str, tags: &[&str]) -> wire::Backup {
        let wire_backup = json!({
            "name": "n", "uri": format!("http://x/vms/1/backups/{id}"), "created": "2026-11-24T01:02:03Z",
            "tags": tags,
        });
        serde_json::from_value(wire_backup).unwrap()
    }

    #[test]
    fn marks_give_ids_and_are_not_shown() {
        let rows: &[(&[&str], &str, &[&str])] = &[
            (&["a"], "7", &["a"]),
            (&["a", "snapgate-id=via-12"], "via-12", &["a"]),
            (&["snapgate-id=via-12", "a"], "via-12", &["a"]),
            // Another gateway before this one: its mark is a tag like any other.
            (
                &["snapgate-id=via-11", "a", "snapgate-id=via-12"],
                "via-12",
                &["snapgate-id=via-11", "a"],
            ),
            (
                &["snapgate-id=via-", "snapgate-id=8"],
                "7",
                &["snapgate-id=via-", "snapgate-id=8"],
            ),
            (
                &["snapgate-id=via-1/../2"],
                "7",
                &["snapgate-id=via-1/../2"],
            ),
        ];
        for (tags, id, shown) in rows {
            let server_id = BackupId::new("7").unwrap();
            let found = remote_backup(server_id.clone(), wire_backup("7", tags)).unwrap();
            assert_eq!(found.backup.id.as_str(), *id, "{tags:?}");
            assert_eq!(found.server_id, server_id, "{tags:?}");
            let left: Vec<&str> = found.backup.tags.iter().map(Tag::as_str).collect();
            assert_eq!(left, *shown, "{tags:?}");
            assert_eq!(
                server_id_of(&found.backup.identity),
                Some(server_id),
                "{tags:?}"
            );
        }
    }

    #[test]
    fn copied_marks_name_nothing_and_others_are_in_order() {
        let vm = VmId::new("1").unwrap();
        let list = vec![
            wire_backup("9", &[]),
            wire_backup("1", &["snapgate-id=via-5"]),
            wire_backup("2", &["snapgate-id=via-5"]),
            wire_backup("3", &["snapgate-id=via-4"]),
            wire_backup("0", &[]),
        ];
        let found = remote_backups(&vm, list);
        let ids: Vec<&str> = found
            .iter()
            .map(|remote| remote.backup.id.as_str())
            .collect();
        assert_eq!(ids, ["0", "9", "via-4"], "without the two of one mark");
        let other = VmId::new("2").unwrap();
        assert!(
            remote_backups(&other, vec![wire_backup("9", &[])]).is_empty(),
            "of another VM"
        );
    }

    #[test]
    fn tags_keep_the_mark_and_never_become_one() {
        let server_id = BackupId::new("7").unwrap();
        let tagged =
            remote_backup(server_id.clone(), wire_backup("7", &["snapgate-id=via-5"])).unwrap();
        let plain = remote_backup(server_id, wire_backup("7", &[])).unwrap();
        let tag = |text: &str| Tag::new(text).unwrap();
        let set = |tags: Vec<Tag>| BackupPatch {
            tags: Patch::Set(tags),
            ..BackupPatch::default()
        };
        let clear = BackupPatch {
            tags: Patch::Clear,
            description: Patch::Clear,
            protected: Patch::Clear,
            ..BackupPatch::default()
        };
        let own = "snapgate-id=via-5";
        let many: Vec<Tag> = (0..64).map(|number| tag(&number.to_string())).collect();
        let rows = [
            (
                "set",
                set(vec![tag("a")]),
                &tagged,
                Some(json!({"tags": ["a", own]})),
            ),
            (
                "set, no mark",
                set(vec![tag("a")]),
                &plain,
                Some(json!({"tags": ["a"]})),
            ),
            (
                "clear",
                clear,
                &tagged,
                Some(json!({"tags": [own], "description": null, "protected": false})),
            ),
            (
                "of a gateway before",
                set(vec![tag("snapgate-id=via-1")]),
                &tagged,
                Some(json!({"tags": ["snapgate-id=via-1", own]})),
            ),
            (
                "a mark by hand",
                set(vec![tag("snapgate-id=via-1")]),
                &plain,
                None,
            ),
            ("no room", set(many), &tagged, None),
        ];
        for (name, patch, of, expected) in rows {
            assert_eq!(update_body(&patch, of), expected, "{name}");
        }
    }

    #[test]
    fn statuses_say_how_it_ended_and_contradictions_say_nothing() {
        let bad = |kind| failed_outcome(&plain(), kind);
        let rows = [
            (
                json!({"progress": 0}),
                StatusOutcome::Running(Progress::NONE),
            ),
            (
                json!({"progress": 40, "status": 500}),
                StatusOutcome::Running(Progress::unfinished(40)),
            ),
            (json!({"progress": 100, "status": 200}), StatusOutcome::Done),
            (
                json!({"progress": 100, "status": 201, "state": "SUCCESS"}),
                StatusOutcome::Done,
            ),
            (
                json!({"progress": 100, "state": "SUCCESS"}),
                StatusOutcome::Done,
            ),
            (
                json!({"progress": 100, "status": 507, "state": "FAILED"}),
                bad(FaultKind::StorageFull),
            ),
            (
                json!({"progress": 100, "status": 409}),
                bad(FaultKind::Conflict),
            ),
            (
                json!({"progress": 100, "status": 404}),
                bad(FaultKind::NoSuchBackup),
            ),
            (
                json!({"progress": 100, "status": 409, "state": "CANCELLED"}),
                StatusOutcome::Cancelled,
            ),
            (
                json!({"progress": 100, "status": 500, "state": "UNKNOWN"}),
                StatusOutcome::Unknown,
            ),
            (json!({"progress": 100}), StatusOutcome::Unknown),
            (
                json!({"progress": 100, "status": 200, "state": "FAILED"}),
                StatusOutcome::Unknown,
            ),
            (
                json!({"progress": 100, "status": 500, "state": "SUCCESS"}),
                StatusOutcome::Unknown,
            ),
            (
                json!({"progress": 100, "status": 302}),
                StatusOutcome::Unknown,
            ),
            (
                json!({"progress": 100, "status": 200, "state": "NEW WORD"}),
                StatusOutcome::Unknown,
            ),
        ];
        for (mut text, expected) in rows {
            text["op"] = json!("restore-Backup");
            text["status_uri"] = json!("/statuses?seq=1");
            let wire_backup = serde_json::from_value(text.clone()).unwrap();
            assert_eq!(read_outcome(&wire_backup), expected, "{text}");
        }
    }
    #[test]
    fn a_failed_status_keeps_the_sentence_of_the_server() {
        let message = "The data was restored, but the VM could not be started. It is off now.";
        let wire_backup = json!({
            "op": "restore-Backup", "progress": 100, "status": 502, "state": "FAILED", "message": message,
            "status_uri": "/statuses?seq=1", "target_uri": "/vms/7/backups/8",
        });
        let wire_backup: wire::Status = serde_json::from_value(wire_backup).unwrap();
        match read_outcome(&wire_backup) {
            StatusOutcome::Failed(fault) => assert!(fault.text.contains(message), "{fault:?}"),
            other @ (StatusOutcome::Running(_)
            | StatusOutcome::Done
            | StatusOutcome::Cancelled
            | StatusOutcome::Unknown) => panic!("{other:?}"),
        }
        assert_eq!(
            restored_vm(&wire_backup),
            VmId::new("7").ok(),
            "of a restore"
        );
    }
}
