//! What other versions answer than the one that is tested for real: a daemon of scripted answers.

use super::*;

use parking_lot::Mutex;
use std::path::Path;

use tokio::io::AsyncBufReadExt;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::io::BufReader;
use tokio::net::UnixListener;
use tokio::net::UnixStream;

use crate::adapters::adapter::Effect;
use crate::adapters::incus::label::SnapshotLabel;
use crate::adapters::incus::map;
use crate::adapters::incus::native_tasks;
use crate::model::BackupPatch;
use crate::model::BackupState;
use crate::model::Change;
use crate::model::Identity;
use crate::model::OperationSeq;
use crate::model::Patch;
use crate::model::RestoreOptions;
use crate::runtime::SystemClock;
use crate::runtime::Tasks;

const MADE: &str = "2026-11-23T12:00:00.5Z";
const OPERATION: &str = "4a08d9d0-4654-40d9-8e54-45e563d00409";

/// A daemon with one instance `web01` and one snapshot `s`.
#[derive(Debug, Default)]
struct Daemon {
    /// The description of the snapshot's volume.
    label: String,
    generation: Option<u32>,
    /// Whether the snapshot holds the memory.
    stateful: bool,
    /// How often a write of the label is refused because another client wrote it.
    stale: u32,
    /// Whether writing the label is an operation.
    slow_labels: bool,
    /// The name of the snapshot; `s` when empty.
    name: String,
    /// The status of the operation that made the snapshot, while it is known.
    making: Option<u16>,
    /// A label that another client writes while the operations are being read.
    meanwhile: Option<String>,
    /// What deletions and restores are answered with instead.
    refusal: Option<(u16, &'static str)>,
    /// The status of the storage pool.
    pool: &'static str,
    /// What reading the storage of the instance is answered with instead.
    storage: Option<(u16, &'static str)>,
    /// When the daemon removes the snapshot.
    expires_at: String,
    /// Whether an expiry that is set is not kept.
    stubborn: bool,
    /// Every change that was asked for, with its body.
    changes: Vec<String>,
}

fn error(code: u16, text: &str) -> String {
    format!(r#"{{"type":"error","error_code":{code},"error":"{text}"}}"#)
}

fn sync(metadata: &serde_json::Value) -> String {
    format!(r#"{{"type":"sync","metadata":{metadata}}}"#)
}

fn begun() -> String {
    format!(r#"{{"type":"async","operation":"/1.0/operations/{OPERATION}"}}"#)
}

impl Daemon {
    /// About the instance, storage and expiry; `None` for everything else.
    fn answer_of_instance(&mut self, method: &str, path: &str, body: &str) -> Option<String> {
        Some(match (method, path) {
            ("GET", "/1.0/instances/web01") => sync(&serde_json::json!({
                "name": "web01", "type": "container", "created_at": MADE,
                "config": self.generation.map_or_else(
                    || serde_json::json!({}),
                    |generation| serde_json::json!({"volatile.uuid.generation": generation.to_string()}),
                ),
                "expanded_devices": {"root": {"type": "disk", "path": "/", "pool": "default"}},
            })),
            ("GET", "/1.0/instances/web01/metadata") => match self.storage {
                Some((code, text)) => error(code, text),
                None => sync(&serde_json::json!({})),
            },
            ("GET", "/1.0/storage-pools/default") => {
                sync(&serde_json::json!({"driver": "dir", "status": self.pool}))
            }
            ("PUT", "/1.0/instances/web01/snapshots/s") => {
                let body: serde_json::Value = serde_json::from_str(body).unwrap();
                if !self.stubborn {
                    body["expires_at"]
                        .as_str()
                        .unwrap()
                        .clone_into(&mut self.expires_at);
                }
                begun()
            }
            _ => return None,
        })
    }

    fn answer(&mut self, method: &str, path: &str, body: &str) -> String {
        if method != "GET" {
            self.changes.push(format!("{method} {path} {body}"));
        }
        if let Some(answer) = self.answer_of_instance(method, path, body) {
            return answer;
        }
        let is_label = path.contains("/storage-pools/");
        let name = if self.name.is_empty() {
            "s"
        } else {
            &self.name
        };
        let snapshot = serde_json::json!({
            "name": name, "created_at": MADE, "stateful": self.stateful, "expires_at": self.expires_at,
        });
        match (method, path) {
            ("GET", "/1.0/instances/web01/snapshots") => sync(&serde_json::json!([snapshot])),
            ("GET", path) if path == format!("/1.0/instances/web01/snapshots/{name}") => {
                sync(&snapshot)
            }
            ("GET", "/1.0/operations") => {
                if let Some(label) = self.meanwhile.take() {
                    self.label = label;
                }
                let making = self.making.map(|making| {
                    serde_json::json!({
                        "id": OPERATION, "class": "task", "description": native_tasks::SNAPSHOTTING, "status_code": making,
                        "created_at": "2026-11-23T12:00:00.4Z",
                        "resources": {"instances": ["/1.0/instances/web01"]},
                    })
                });
                let all: Vec<_> = making.into_iter().collect();
                sync(&serde_json::json!({ "any": all }))
            }
            ("GET", path) if path.ends_with("/wait") => error(500, "context deadline exceeded"),
            ("GET", path) if is_label => {
                let volume = serde_json::json!({"name": name, "description": self.label});
                if path.ends_with("/snapshots") {
                    sync(&serde_json::json!([volume]))
                } else {
                    sync(&volume)
                }
            }
            ("PUT", _) if is_label && self.stale > 0 => {
                self.stale = self.stale.saturating_sub(1);
                error(412, "ETag doesn't match")
            }
            ("PUT", _) if is_label => {
                let body: serde_json::Value = serde_json::from_str(body).unwrap();
                body["description"]
                    .as_str()
                    .unwrap()
                    .clone_into(&mut self.label);
                if self.slow_labels {
                    begun()
                } else {
                    sync(&serde_json::json!({}))
                }
            }
            ("PUT" | "DELETE", _) => self
                .refusal
                .map_or_else(begun, |(code, text)| error(code, text)),
            _ => error(404, "not found"),
        }
    }
}

async fn serve(daemon: Arc<Mutex<Daemon>>, peer: UnixStream) {
    let mut peer = BufReader::new(peer);
    loop {
        let (mut first, mut length) = (String::new(), 0);
        if peer.read_line(&mut first).await.unwrap_or(0) == 0 {
            return;
        }
        loop {
            let mut line = String::new();
            peer.read_line(&mut line).await.unwrap();
            let line = line.trim().to_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        peer.read_exact(&mut body).await.unwrap();
        let mut words = first.split([' ', '?']);
        let (method, path) = (words.next().unwrap(), words.next().unwrap());
        let body = String::from_utf8(body).unwrap();
        let answer = daemon.lock().answer(method, path, &body);
        let head = format!(
            "HTTP/1.1 200 OK\r\netag: \"x\"\r\ncontent-length: {}\r\n\r\n",
            answer.len()
        );
        peer.write_all((head + &answer).as_bytes()).await.unwrap();
    }
}

fn start(folder: &Path, daemon: Daemon) -> (Incus, Arc<Mutex<Daemon>>) {
    let socket = folder.join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    let daemon = Arc::new(Mutex::new(daemon));
    let shared = Arc::clone(&daemon);
    let tasks = Tasks::default();
    let more = tasks.clone();
    drop(tasks.spawn(async move {
        while let Ok((peer, _)) = listener.accept().await {
            drop(more.spawn(serve(Arc::clone(&shared), peer)));
        }
    }));
    let config = Config {
        address: Address::Unix(socket),
        project: "p".to_owned(),
        connect_timeout: Duration::from_secs(1),
    };
    (Incus::new(&config, SystemClock::shared()).unwrap(), daemon)
}

fn by() -> Deadline {
    SystemClock.deadline(Duration::from_secs(5))
}

fn intent(change: Change) -> Intent {
    Intent {
        target: Target {
            vm: VmId::new("web01").unwrap(),
            backup: BackupId::new("s").unwrap(),
        },
        identity: Some(Identity::new(MADE.to_owned())),
        change,
    }
}

fn key() -> RequestKey {
    RequestKey(OperationSeq::new(7).unwrap())
}

#[tokio::test]
async fn labels_are_never_overwritten_blindly_and_may_be_written_by_operations() {
    let rows = [
        ("at once", 0, false, Ok(BeginOutcome::Done)),
        ("as an operation", 0, true, Ok(BeginOutcome::Done)),
        ("at the third try", 2, false, Ok(BeginOutcome::Done)),
        (
            "given up",
            3,
            false,
            Err((FaultKind::Conflict, Effect::None)),
        ),
    ];
    for (name, stale, slow_labels, expected) in rows {
        let folder = tempfile::tempdir().unwrap();
        let daemon = Daemon {
            stale,
            slow_labels,
            ..Daemon::default()
        };
        let (adapter, daemon) = start(folder.path(), daemon);
        let patch = BackupPatch {
            protected: Patch::Set(true),
            ..BackupPatch::default()
        };
        let update = intent(Change::Update(patch));
        let before = adapter.baseline(&update, key(), by()).await.unwrap();
        let found = adapter
            .find_outcome(&update, key(), before.as_ref(), by())
            .await
            .unwrap();
        assert!(
            matches!(found, FindOutcome::NotBegun),
            "{name}: before: {found:?}"
        );
        let result = adapter.begin(&update, key(), before.as_ref(), by()).await;
        let result = result.map_err(|error| (error.fault.kind, error.effect));
        assert_eq!(result, expected, "{name}");
        let found = adapter
            .find_outcome(&update, key(), before.as_ref(), by())
            .await
            .unwrap();
        assert_eq!(
            matches!(found, FindOutcome::Done(_)),
            result.is_ok(),
            "{name}: {found:?}"
        );
        daemon.lock().label = "by hand".to_owned();
        let found = adapter
            .find_outcome(&update, key(), before.as_ref(), by())
            .await
            .unwrap();
        assert!(
            matches!(found, FindOutcome::Unknowable),
            "{name}: overwritten: {found:?}"
        );
    }
}

#[tokio::test]
async fn a_removal_that_was_refused_leaves_the_backup_whole() {
    let rows = [
        (
            "rights",
            500,
            "User does not have permission",
            Effect::None,
            false,
        ),
        (
            "starting",
            503,
            "daemon setup in progress",
            Effect::None,
            false,
        ),
        ("unclear", 500, "disk on fire", Effect::Possible, true),
    ];
    for (name, code, text, effect, marked) in rows {
        let folder = tempfile::tempdir().unwrap();
        let daemon = Daemon {
            refusal: Some((code, text)),
            ..Daemon::default()
        };
        let (adapter, daemon) = start(folder.path(), daemon);
        let delete = intent(Change::Delete);
        let error = adapter.begin(&delete, key(), None, by()).await.unwrap_err();
        assert_eq!(error.effect, effect, "{name}: {error:?}");
        let label = daemon.lock().label.clone();
        assert_eq!(label.contains("removing"), marked, "{name}: {label}");
        let found = adapter
            .find_outcome(&delete, key(), None, by())
            .await
            .unwrap();
        let right = if marked {
            matches!(found, FindOutcome::Failed(_))
        } else {
            matches!(found, FindOutcome::NotBegun)
        };
        assert!(right, "{name}: {found:?}");
    }
}

#[tokio::test]
async fn restores_are_known_by_the_generation_where_there_is_one() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon {
        generation: Some(1),
        ..Daemon::default()
    };
    let (adapter, daemon) = start(folder.path(), daemon);
    let restore = intent(Change::Restore(RestoreOptions::default()));
    let before = adapter.baseline(&restore, key(), by()).await.unwrap();
    let found = adapter
        .find_outcome(&restore, key(), before.as_ref(), by())
        .await
        .unwrap();
    assert!(matches!(found, FindOutcome::NotBegun), "before: {found:?}");
    let begun = adapter
        .begin(&restore, key(), before.as_ref(), by())
        .await
        .unwrap();
    assert!(matches!(begun, BeginOutcome::Task(_)), "{begun:?}");
    let changes = daemon.lock().changes.clone();
    assert_eq!(
        changes.len(),
        2,
        "the label and the restore alone: {changes:?}"
    );
    assert_eq!(
        changes[1], r#"PUT /1.0/instances/web01 {"restore":"s"}"#,
        "never empty"
    );
    let found = adapter
        .find_outcome(&restore, key(), before.as_ref(), by())
        .await
        .unwrap();
    assert!(
        matches!(found, FindOutcome::Failed(_)),
        "the same generation: {found:?}"
    );
    daemon.lock().generation = Some(2);
    let found = adapter
        .find_outcome(&restore, key(), before.as_ref(), by())
        .await
        .unwrap();
    assert!(
        matches!(found, FindOutcome::Done(_)),
        "another generation: {found:?}"
    );
    let error = adapter
        .begin(&restore, key(), before.as_ref(), by())
        .await
        .unwrap_err();
    assert_eq!(
        error.fault.kind,
        FaultKind::Busy,
        "another client restored it: {error:?}"
    );
}

#[tokio::test]
async fn what_another_gateway_makes_is_shown_once_it_is_labelled_or_given_up() {
    let labelled = {
        let mut label = SnapshotLabel::parse(MADE, "");
        label.made = Some("snapgate-7".to_owned());
        label.to_text()
    };
    let (whole, broken) = (Some(BackupState::Available), Some(BackupState::Error));
    let rows = [
        ("running", "", Some(103), None, None),
        ("ended, to be labelled", "", Some(200), None, None),
        ("labelled", labelled.as_str(), Some(200), None, whole),
        ("labelled, forgotten", &labelled, None, None, whole),
        ("labelled just now", "", None, Some(labelled.clone()), whole),
        ("given up", "", None, None, broken),
    ];
    for (name, label, making, meanwhile, expected) in rows {
        let target = Target {
            vm: VmId::new("web01").unwrap(),
            backup: BackupId::new("snapgate-7").unwrap(),
        };
        let daemon = || Daemon {
            name: "snapgate-7".to_owned(),
            label: label.to_owned(),
            making,
            meanwhile: meanwhile.clone(),
            ..Daemon::default()
        };
        let folder = tempfile::tempdir().unwrap();
        let (adapter, _daemon) = start(folder.path(), daemon());
        let page = Page {
            after: None,
            limit: 9,
        };
        let listed = adapter.list_backups(&target.vm, &page, by()).await.unwrap();
        let listed = listed.backups.first().map(|backup| backup.state);
        assert_eq!(listed, expected, "{name}: listed");
        let folder = tempfile::tempdir().unwrap();
        let (adapter, _daemon) = start(folder.path(), daemon());
        let read = adapter.read_backup(&target, by()).await;
        let read = read
            .map(|backup| backup.state)
            .map_err(|error| error.fault.kind);
        let expected = expected.ok_or(FaultKind::NoSuchBackup);
        assert_eq!(read, expected, "{name}: read");
    }
}

#[tokio::test]
async fn memory_is_put_back_when_the_snapshot_holds_it_and_only_then() {
    let rows = [
        (false, r#"PUT /1.0/instances/web01 {"restore":"s"}"#),
        (
            true,
            r#"PUT /1.0/instances/web01 {"restore":"s","stateful":true}"#,
        ),
    ];
    for (stateful, expected) in rows {
        let folder = tempfile::tempdir().unwrap();
        let daemon = Daemon {
            generation: Some(1),
            stateful,
            ..Daemon::default()
        };
        let (adapter, daemon) = start(folder.path(), daemon);
        let restore = intent(Change::Restore(RestoreOptions::default()));
        let before = adapter.baseline(&restore, key(), by()).await.unwrap();
        let begun = adapter.begin(&restore, key(), before.as_ref(), by()).await;
        assert!(
            matches!(begun, Ok(BeginOutcome::Task(_))),
            "{stateful}: {begun:?}"
        );
        let changes = daemon.lock().changes.clone();
        assert_eq!(changes[1], expected, "{stateful}");
    }
}

fn protect() -> Intent {
    intent(Change::Update(BackupPatch {
        protected: Patch::Set(true),
        ..BackupPatch::default()
    }))
}

#[tokio::test]
async fn a_backup_that_becomes_protected_no_longer_expires() {
    let never = client::NEVER;
    let soon = "2030-01-01T00:00:00Z";
    let rows = [
        ("never expired", never, 0, false, None, never),
        ("expired", soon, 0, false, None, never),
        (
            "label refused",
            soon,
            9,
            false,
            Some(FaultKind::Conflict),
            soon,
        ),
        (
            "expiry kept",
            soon,
            0,
            true,
            Some(FaultKind::Conflict),
            soon,
        ),
    ];
    for (name, expires_at, stale, stubborn, fault, expected) in rows {
        let folder = tempfile::tempdir().unwrap();
        let daemon = Daemon {
            expires_at: expires_at.to_owned(),
            stale,
            stubborn,
            ..Daemon::default()
        };
        let (adapter, daemon) = start(folder.path(), daemon);
        let result = adapter.begin(&protect(), key(), None, by()).await;
        assert_eq!(result.err().map(|error| error.fault.kind), fault, "{name}");
        let daemon = daemon.lock();
        assert_eq!(daemon.expires_at, expected, "{name}");
        let is_protected = daemon.label.contains(r#""protected":true"#);
        assert_eq!(is_protected, fault.is_none(), "{name}: the label follows");
    }
}

#[tokio::test]
async fn a_new_backup_is_asked_for_without_an_expiry() {
    let folder = tempfile::tempdir().unwrap();
    let (adapter, daemon) = start(folder.path(), Daemon::default());
    let new = NewBackup {
        name: crate::model::BackupName::new("n").unwrap(),
        description: None,
        kind: None,
        tags: Vec::new(),
        protected: false,
    };
    let mut create = intent(Change::Create(new));
    create.target.backup = BackupId::new("snapgate-7").unwrap();
    create.identity = None;
    drop(adapter.begin(&create, key(), None, by()).await);
    let changes = daemon.lock().changes.clone();
    let asked = changes.first().map(String::as_str).unwrap_or_default();
    assert!(
        asked.contains(r#""expires_at":"0001-01-01T00:00:00Z""#),
        "{changes:?}"
    );
}

#[tokio::test]
async fn a_backup_about_to_expire_is_kept_while_it_is_restored() {
    let folder = tempfile::tempdir().unwrap();
    let soon = SystemClock.now().plus(Duration::from_secs(60));
    let daemon = Daemon {
        generation: Some(1),
        expires_at: soon.to_string(),
        ..Daemon::default()
    };
    let (adapter, daemon) = start(folder.path(), daemon);
    let restore = intent(Change::Restore(RestoreOptions::default()));
    let before = adapter.baseline(&restore, key(), by()).await.unwrap();
    let begun = adapter.begin(&restore, key(), before.as_ref(), by()).await;
    assert!(matches!(begun, Ok(BeginOutcome::Task(_))), "{begun:?}");
    let until = map::timestamp(&daemon.lock().expires_at).unwrap();
    let day = Duration::from_secs(23 * 3600);
    assert!(until > SystemClock.now().plus(day), "kept until {until}");
}

#[tokio::test]
async fn storage_that_is_not_there_is_unavailable_and_nothing_is_changed() {
    let text = "Failed to create mount directory";
    let rows = [
        ("known to the daemon", "Unavailable", None, true),
        ("not noticed", "Created", Some((404, text)), false),
    ];
    for (name, pool, storage, reads_too) in rows {
        let folder = tempfile::tempdir().unwrap();
        let daemon = Daemon {
            pool,
            storage,
            generation: Some(1),
            ..Daemon::default()
        };
        let (adapter, daemon) = start(folder.path(), daemon);
        let page = Page {
            after: None,
            limit: 9,
        };
        let vm = VmId::new("web01").unwrap();
        let listed = adapter.list_backups(&vm, &page, by()).await;
        let listed = listed.err().map(|listed| listed.fault.kind);
        assert_eq!(
            listed,
            reads_too.then_some(FaultKind::Unavailable),
            "{name}"
        );
        for change in [Change::Delete, Change::Restore(RestoreOptions::default())] {
            let change = intent(change);
            let before = Evidence::new(r#"{"generation":"1"}"#.to_owned());
            let error = adapter.begin(&change, key(), before.as_ref(), by()).await;
            let error = error.unwrap_err();
            let seen = (error.fault.kind, error.effect);
            assert_eq!(seen, (FaultKind::Unavailable, Effect::None), "{name}");
        }
        let changes = daemon.lock().changes.clone();
        assert!(changes.is_empty(), "{name}: {changes:?}");
    }
}

#[tokio::test]
async fn a_backup_protected_by_another_gateway_meanwhile_is_not_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let mut label = SnapshotLabel::parse(MADE, "");
    label.protected = true;
    let daemon = Daemon {
        meanwhile: Some(label.to_text()),
        ..Daemon::default()
    };
    let mut made = SnapshotLabel::parse(MADE, "");
    made.made = Some("snapgate-1".to_owned());
    let daemon = Daemon {
        label: made.to_text(),
        ..daemon
    };
    let (adapter, daemon) = start(folder.path(), daemon);
    let delete = intent(Change::Delete);
    let error = adapter.begin(&delete, key(), None, by()).await.unwrap_err();
    assert_eq!(error.fault.kind, FaultKind::Protected, "{error:?}");
    let changes = daemon.lock().changes.clone();
    assert!(changes.is_empty(), "{changes:?}");
}
