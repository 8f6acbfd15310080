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
use crate::model::limits;

/// What the ids of backups made through this gateway begin with.
const MINTED: &str = "via-";
/// What the tag begins with by which such a backup is found again: the server chooses an id of its own.
const MARK: &str = "snapgate-id=";

/// The id of a new backup.
pub(super) fn minted(seq: OperationSeq) -> String {
    format!("{MINTED}{seq}")
}

/// Whether a gateway may have chosen that id.
pub(super) fn is_minted(id: &BackupId) -> bool {
    id.as_str().starts_with(MINTED)
}

/// The id that a tag gives a backup.
fn marked(tag: &str) -> Option<BackupId> {
    let id = tag.strip_prefix(MARK)?;
    let digits = id.strip_prefix(MINTED)?;
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    BackupId::new(id).ok().filter(|_| plain)
}

fn mark(id: &BackupId) -> String {
    format!("{MARK}{id}")
}

/// A backup on the server.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    /// The server's id of it.
    pub(super) inner: BackupId,
    /// Whether its id here comes from its mark.
    pub(super) marked: bool,
    /// As callers see it: with the id that the mark gives it, and without the mark.
    pub(super) backup: Backup,
    /// Whether it is still being made.
    pub(super) half_made: bool,
}

/// The backup of that id on the server; `None` when one of its members cannot be used.
///
/// The last mark counts: in a chain every gateway puts its own behind those of the gateways before it.
pub(super) fn seen(inner: BackupId, told: wire::Backup) -> Option<Seen> {
    let created = told.created?;
    let mut tags = told.tags.unwrap_or_default();
    let at = tags.iter().rposition(|tag| marked(tag).is_some());
    let mark = at.and_then(|at| marked(&tags.remove(at)));
    let state = state(told.state.as_deref());
    Some(Seen {
        marked: mark.is_some(),
        half_made: state == BackupState::Creating,
        backup: Backup {
            id: mark.unwrap_or_else(|| inner.clone()),
            identity: identity(&inner, &created),
            name: BackupName::new(&told.name).ok()?,
            description: told
                .description
                .filter(|description| !description.is_empty())
                .and_then(|description| Description::new(&description).ok()),
            kind: told.kind.and_then(|it| kind(&it)),
            created: Timestamp::from_system(humantime::parse_rfc3339(&created).ok()?),
            tags: tags
                .iter()
                .filter_map(|tag| Tag::new(tag).ok())
                .take(limits::TAGS_MAX)
                .collect(),
            state,
            size: told.size,
            protected: told.protected.unwrap_or(false),
        },
        inner,
    })
}

/// Everything of a list that can be used, in order of the ids here. Two backups with one mark are left out: somebody
/// copied it, and it cannot be told which is meant.
pub(super) fn all_seen(vm: &VmId, told: Vec<wire::Backup>) -> Vec<Seen> {
    let mut all: Vec<Seen> = told
        .into_iter()
        .filter_map(|it| {
            let (of, inner) = link::backup_of(&it.uri)?;
            seen(inner, it).filter(|_| of == *vm)
        })
        .collect();
    all.sort_by(|one, other| one.backup.id.cmp(&other.backup.id));
    let ids: Vec<BackupId> = all.iter().map(|it| it.backup.id.clone()).collect();
    let is_single = |id: &BackupId| ids.iter().filter(|it| *it == id).count() == 1;
    let twice = ids
        .windows(2)
        .any(|window| matches!(window, [one, other] if one == other));
    if twice {
        tracing::warn!(%vm, "backups with the same mark are left out");
        all.retain(|it| is_single(&it.backup.id));
    }
    all
}

/// Ids may be used again; the time of creation tells two such backups apart.
fn identity(inner: &BackupId, created: &str) -> Identity {
    Identity::new(format!("{created} {inner}"))
}

/// The server's id in an identity.
pub(super) fn inner_of(identity: &Identity) -> Option<BackupId> {
    let (_, inner) = identity.as_str().split_once(' ')?;
    BackupId::new(inner).ok()
}

fn state(word: Option<&str>) -> BackupState {
    match word {
        // The source's own Backup has no state.
        None | Some("AVAILABLE") => BackupState::Available,
        Some("CREATING") => BackupState::Creating,
        Some("UPDATING") => BackupState::Updating,
        Some("RESTORING") => BackupState::Restoring,
        Some("DELETING") => BackupState::Deleting,
        // A word that is not known says nothing good: it can be looked at and removed, not restored.
        Some(_) => BackupState::Error,
    }
}

fn kind(word: &str) -> Option<BackupKind> {
    BackupKind::ALL.into_iter().find(|it| it.as_str() == word)
}

/// The VM.
pub(super) fn vm(id: &VmId, told: wire::Vm) -> Vm {
    Vm {
        id: id.clone(),
        name: told.name,
        description: told
            .description
            .filter(|description| !description.is_empty()),
        run_state: match told.run_status.as_deref() {
            Some("STARTED") => Some(RunState::Started),
            Some("STOPPED") => Some(RunState::Stopped),
            Some("SLEEPING") => Some(RunState::Sleeping),
            Some(_) | None => None,
        },
    }
}

/// The body of a create. `None` when there is no room for the mark.
pub(super) fn creation(new: &NewBackup, id: &BackupId) -> Option<Value> {
    if new.tags.len() >= limits::TAGS_MAX {
        return None;
    }
    let mut body = Map::new();
    let mut set = |name: &str, value: Value| drop(body.insert(name.to_owned(), value));
    set("name", json!(new.name.as_str()));
    set("tags", json!(tags(&new.tags, Some(id))));
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

/// The body of an update. `None` when the tags cannot be set: no room for the mark, or one of them would be taken for it.
pub(super) fn update(patch: &BackupPatch, of: &Seen) -> Option<Value> {
    let own = of.marked.then_some(&of.backup.id);
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
            let taken = own.is_none() && all.iter().any(|it| marked(it.as_str()).is_some());
            if taken || (own.is_some() && all.len() >= limits::TAGS_MAX) {
                return None;
            }
            set("tags", json!(tags(all, own)));
        }
        Patch::Clear => set("tags", json!(tags(&[], own))),
    }
    match &patch.protected {
        Patch::Keep => {}
        Patch::Set(it) => set("protected", json!(it)),
        Patch::Clear => set("protected", json!(false)),
    }
    Some(Value::Object(body))
}

fn tags(all: &[Tag], own: Option<&BackupId>) -> Vec<String> {
    let told = all.iter().map(|it| it.as_str().to_owned());
    told.chain(own.map(mark)).collect()
}

/// The word for a verb in a Status (Spec: "Status op Value").
pub(super) const fn op(verb: Verb) -> &'static str {
    match verb {
        Verb::Create => "back_up",
        Verb::Update => "update-Backup",
        Verb::Delete => "delete-Backup",
        Verb::Restore => "restore-Backup",
    }
}

/// What a Status says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
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

/// Finished is what is at 100 (Spec: "Status"); `state` is heeded where it is there.
pub(super) fn outcome(told: &wire::Status) -> Outcome {
    if told.progress < 100 {
        let percent = u8::try_from(told.progress).unwrap_or(99);
        return Outcome::Running(Progress::unfinished(percent));
    }
    match (told.state.as_deref(), told.status) {
        (Some("CANCELLED"), _) => Outcome::Cancelled,
        (Some("SUCCESS"), None) | (Some("SUCCESS") | None, Some(200..=299)) => Outcome::Done,
        (Some("FAILED"), None) => failed(told, FaultKind::BackendFailed),
        (Some("FAILED") | None, Some(status @ 400..=599)) => failed(
            told,
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
        (Some(_) | None, Some(_) | None) => Outcome::Unknown,
    }
}

fn failed(told: &wire::Status, kind: FaultKind) -> Outcome {
    let sentence = error::sentence(kind);
    let said = told.message.as_deref().and_then(error::sayable);
    let text = said.map_or_else(
        || sentence.to_owned(),
        |said| error::with_words(sentence, &said),
    );
    Outcome::Failed(Fault::new(kind, text))
}

/// The VM of a Status about a restore.
pub(super) fn restored_vm(told: &wire::Status) -> Option<VmId> {
    let is_restore = told.op.eq_ignore_ascii_case(op(Verb::Restore));
    let (vm, _) = link::backup_of(&told.target_uri).filter(|_| is_restore)?;
    Some(vm)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> wire::Status {
        let told =
            json!({"op": "restore-Backup", "progress": 100, "status_uri": "/statuses?seq=1"});
        serde_json::from_value(told).unwrap()
    }

    fn told(id: &str, tags: &[&str]) -> wire::Backup {
        let told = json!({
            "name": "n", "uri": format!("http://x/vms/1/backups/{id}"), "created": "2026-11-24T01:02:03Z",
            "tags": tags,
        });
        serde_json::from_value(told).unwrap()
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
            let inner = BackupId::new("7").unwrap();
            let found = seen(inner.clone(), told("7", tags)).unwrap();
            assert_eq!(found.backup.id.as_str(), *id, "{tags:?}");
            assert_eq!(found.inner, inner, "{tags:?}");
            let left: Vec<&str> = found.backup.tags.iter().map(Tag::as_str).collect();
            assert_eq!(left, *shown, "{tags:?}");
            assert_eq!(inner_of(&found.backup.identity), Some(inner), "{tags:?}");
        }
    }

    #[test]
    fn copied_marks_name_nothing_and_others_are_in_order() {
        let vm = VmId::new("1").unwrap();
        let list = vec![
            told("9", &[]),
            told("1", &["snapgate-id=via-5"]),
            told("2", &["snapgate-id=via-5"]),
            told("3", &["snapgate-id=via-4"]),
            told("0", &[]),
        ];
        let found = all_seen(&vm, list);
        let ids: Vec<&str> = found.iter().map(|it| it.backup.id.as_str()).collect();
        assert_eq!(ids, ["0", "9", "via-4"], "without the two of one mark");
        let other = VmId::new("2").unwrap();
        assert!(
            all_seen(&other, vec![told("9", &[])]).is_empty(),
            "of another VM"
        );
    }

    #[test]
    fn tags_keep_the_mark_and_never_become_one() {
        let inner = BackupId::new("7").unwrap();
        let marked = seen(inner.clone(), told("7", &["snapgate-id=via-5"])).unwrap();
        let plain = seen(inner, told("7", &[])).unwrap();
        let tag = |it: &str| Tag::new(it).unwrap();
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
        let many: Vec<Tag> = (0..64).map(|it| tag(&it.to_string())).collect();
        let rows = [
            (
                "set",
                set(vec![tag("a")]),
                &marked,
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
                &marked,
                Some(json!({"tags": [own], "description": null, "protected": false})),
            ),
            (
                "of a gateway before",
                set(vec![tag("snapgate-id=via-1")]),
                &marked,
                Some(json!({"tags": ["snapgate-id=via-1", own]})),
            ),
            (
                "a mark by hand",
                set(vec![tag("snapgate-id=via-1")]),
                &plain,
                None,
            ),
            ("no room", set(many), &marked, None),
        ];
        for (name, patch, of, expected) in rows {
            assert_eq!(update(&patch, of), expected, "{name}");
        }
    }

    #[test]
    fn statuses_say_how_it_ended_and_contradictions_say_nothing() {
        let bad = |kind| failed(&plain(), kind);
        let rows = [
            (json!({"progress": 0}), Outcome::Running(Progress::NONE)),
            (
                json!({"progress": 40, "status": 500}),
                Outcome::Running(Progress::unfinished(40)),
            ),
            (json!({"progress": 100, "status": 200}), Outcome::Done),
            (
                json!({"progress": 100, "status": 201, "state": "SUCCESS"}),
                Outcome::Done,
            ),
            (json!({"progress": 100, "state": "SUCCESS"}), Outcome::Done),
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
                Outcome::Cancelled,
            ),
            (
                json!({"progress": 100, "status": 500, "state": "UNKNOWN"}),
                Outcome::Unknown,
            ),
            (json!({"progress": 100}), Outcome::Unknown),
            (
                json!({"progress": 100, "status": 200, "state": "FAILED"}),
                Outcome::Unknown,
            ),
            (
                json!({"progress": 100, "status": 500, "state": "SUCCESS"}),
                Outcome::Unknown,
            ),
            (json!({"progress": 100, "status": 302}), Outcome::Unknown),
            (
                json!({"progress": 100, "status": 200, "state": "NEW WORD"}),
                Outcome::Unknown,
            ),
        ];
        for (mut text, expected) in rows {
            text["op"] = json!("restore-Backup");
            text["status_uri"] = json!("/statuses?seq=1");
            let told = serde_json::from_value(text.clone()).unwrap();
            assert_eq!(outcome(&told), expected, "{text}");
        }
    }
    #[test]
    fn a_failed_status_keeps_the_sentence_of_the_server() {
        let said = "The data was restored, but the VM could not be started. It is off now.";
        let told = json!({
            "op": "restore-Backup", "progress": 100, "status": 502, "state": "FAILED", "message": said,
            "status_uri": "/statuses?seq=1", "target_uri": "/vms/7/backups/8",
        });
        let told: wire::Status = serde_json::from_value(told).unwrap();
        match outcome(&told) {
            Outcome::Failed(fault) => assert!(fault.text.contains(said), "{fault:?}"),
            other @ (Outcome::Running(_)
            | Outcome::Done
            | Outcome::Cancelled
            | Outcome::Unknown) => panic!("{other:?}"),
        }
        assert_eq!(restored_vm(&told), VmId::new("7").ok(), "of a restore");
    }
}
