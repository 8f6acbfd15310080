//! Which folders are used, what is refused in them and with which words, and VMs that were renamed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::test_fixture::Fixture;
use super::test_fixture::about;
use super::test_fixture::by;
use super::test_fixture::config;
use super::test_fixture::create;
use super::test_fixture::key;
use super::test_fixture::open;
use super::test_fixture::open_soon;
use super::test_fixture::restore;
use super::*;
use crate::model::BackupPatch;
use crate::model::BackupState;
use crate::model::Fault;
use crate::model::Patch;
use crate::model::Timestamp;

const MARK: &str = ".snapgate-folder.json";

fn vm(id: &str) -> VmId {
    VmId::new(id).unwrap()
}

/// Closes the fixture; from now on the directories are accepted by their marks alone.
async fn closed(fixture: Fixture) -> (tempfile::TempDir, Config, Failpoints) {
    let Fixture {
        dir,
        failpoints,
        files,
    } = fixture;
    files.tasks.ended().await;
    drop(files);
    let config = Config {
        new_folders: false,
        ..config(&dir)
    };
    (dir, config, failpoints)
}

/// The answer of a gateway on these directories to a list, once no other process has them locked.
async fn health(config: &Config, failpoints: &Failpoints) -> Result<(), Fault> {
    let files = open_soon(config.clone(), failpoints).await;
    files
        .health(by())
        .await
        .map(|_| ())
        .map_err(|error| error.fault)
}

fn empty(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            fs::remove_dir_all(path).unwrap();
        } else {
            fs::remove_file(path).unwrap();
        }
    }
}

#[tokio::test]
async fn a_folder_that_lost_its_contents_is_unavailable() {
    type Change = fn(&Path);
    let rows: [(&str, Change, Option<&str>); 7] = [
        ("as it was", |_| {}, None),
        (
            "backups empty",
            |dir| empty(&dir.join("backups")),
            Some("`backups`"),
        ),
        ("root empty", |dir| empty(&dir.join("root")), Some("`root`")),
        (
            "root with something else in it",
            |dir| {
                empty(&dir.join("root"));
                fs::create_dir(dir.join("root/stray")).unwrap();
            },
            Some("`root`"),
        ),
        (
            "backups of another root",
            |dir| {
                let path = dir.join("root").join(MARK);
                let text = fs::read_to_string(&path).unwrap();
                let id = text.find("\"id\": \"").unwrap() + 7;
                let mut other = text.into_bytes();
                other[id] = if other[id] == b'0' { b'1' } else { b'0' };
                fs::write(path, other).unwrap();
            },
            Some("`backups`"),
        ),
        (
            "the two are exchanged",
            |dir| {
                fs::rename(dir.join("root"), dir.join("x")).unwrap();
                fs::rename(dir.join("backups"), dir.join("root")).unwrap();
                fs::rename(dir.join("x"), dir.join("backups")).unwrap();
            },
            Some("was used as"),
        ),
        (
            "lost+found beside",
            |dir| fs::create_dir(dir.join("root/lost+found")).unwrap(),
            None,
        ),
    ];
    for (name, change, refused) in rows {
        let fixture = Fixture::new();
        fixture.backup(1).await;
        let (dir, config, failpoints) = closed(fixture).await;
        change(dir.path());
        let outcome = health(&config, &failpoints).await;
        match (outcome, refused) {
            (Ok(()), None) => {}
            (Err(fault), Some(part)) => {
                assert_eq!(fault.kind, FaultKind::Unavailable, "{name}");
                assert!(fault.text.contains(part), "{name}: {}", fault.text);
            }
            (outcome, _) => panic!("{name}: {outcome:?}"),
        }
    }
}

#[tokio::test]
async fn folders_of_earlier_versions_are_recognised_and_new_ones_are_not() {
    type Change = fn(&Path);
    let rows: [(&str, Change, bool); 5] = [
        (
            "with backups",
            |dir| fs::remove_file(dir.join("backups/.snapgate-lock")).unwrap(),
            true,
        ),
        (
            "with the lock alone",
            |dir| {
                empty(&dir.join("backups"));
                fs::write(dir.join("backups/.snapgate-lock"), "").unwrap();
            },
            true,
        ),
        ("empty backups", |dir| empty(&dir.join("backups")), false),
        (
            "backups with strange files",
            |dir| {
                empty(&dir.join("backups"));
                fs::write(dir.join("backups/letter.txt"), "x").unwrap();
            },
            false,
        ),
        ("an empty root", |dir| empty(&dir.join("root")), false),
    ];
    for (name, change, is_used) in rows {
        let fixture = Fixture::new();
        fixture.backup(1).await;
        let (dir, config, failpoints) = closed(fixture).await;
        for folder in ["root", "backups"] {
            fs::remove_file(dir.path().join(folder).join(MARK)).unwrap();
        }
        change(dir.path());
        let outcome = health(&config, &failpoints).await;
        assert_eq!(outcome.is_ok(), is_used, "{name}: {outcome:?}");
        for folder in ["root", "backups"] {
            let is_marked = dir.path().join(folder).join(MARK).exists();
            assert_eq!(is_marked, is_used, "{name}: {folder}");
        }
        if is_used {
            continue;
        }
        assert!(
            !dir.path().join("backups/.snapgate-lock").exists() || name == "an empty root",
            "{name}"
        );
        let strange = name.contains("strange");
        let plain = prepare_folders(&config, UnmarkedFolders::Empty);
        assert_eq!(plain.is_err(), strange, "{name}: init: {plain:?}");
        prepare_folders(&config, UnmarkedFolders::Any).unwrap();
        assert_eq!(
            health(&config, &failpoints).await,
            Ok(()),
            "{name}: prepared"
        );
    }
}

#[tokio::test]
async fn a_folder_that_is_replaced_under_the_gateway_is_unavailable_until_it_is_back() {
    for folder in ["root", "backups"] {
        let fixture = Fixture::new();
        let backup = fixture.backup(1).await;
        let (path, aside) = (
            fixture.dir.path().join(folder),
            fixture.dir.path().join("aside"),
        );
        fs::rename(&path, &aside).unwrap();
        fs::create_dir(&path).unwrap();
        let page = Page {
            after: None,
            limit: 10,
        };
        let error = fixture
            .files
            .list_backups(&vm("vm"), &page, by())
            .await
            .unwrap_err();
        assert_eq!(error.fault.kind, FaultKind::Unavailable, "{folder}: a list");
        assert!(
            error.fault.text.contains(folder),
            "{folder}: {}",
            error.fault.text
        );
        for (intent, number) in [(create("vm", 2, "x"), 2), (restore(&backup), 3)] {
            let failure = fixture.failure(&intent, number).await;
            assert_eq!(failure, Some(FaultKind::Unavailable), "{folder}: {number}");
        }
        assert_eq!(
            fs::read_dir(&path).unwrap().count(),
            0,
            "{folder}: nothing is written there"
        );
        fs::remove_dir(&path).unwrap();
        fs::rename(&aside, &path).unwrap();
        assert_eq!(fixture.list().await.len(), 1, "{folder}: back");
    }
}

#[tokio::test]
async fn a_folder_that_is_replaced_during_a_create_or_restore_ends_it() {
    for folder in ["root", "backups"] {
        for verb in ["create", "restore"] {
            let fixture = Fixture::new();
            let backup = fixture.backup(1).await;
            fixture.fill(2);
            let intent = match verb {
                "create" => create("vm", 2, "x"),
                _ => restore(&backup),
            };
            let request = Request::new(&intent, key(2), None);
            let now = Timestamp::default();
            let StartOutcome::Pending(work) = fixture.files.executor.start(&request, now).unwrap()
            else {
                panic!("there is work to do")
            };
            let (path, aside) = (
                fixture.dir.path().join(folder),
                fixture.dir.path().join("aside"),
            );
            fs::rename(&path, &aside).unwrap();
            fs::create_dir(&path).unwrap();
            let problem = work(&Job::new(request.durable_id.clone(), true)).unwrap_err();
            assert!(
                problem.to_string().contains(folder),
                "{verb}, {folder}: {problem}"
            );
            fs::remove_dir(&path).unwrap();
            fs::rename(&aside, &path).unwrap();
            assert_eq!(
                fixture.generations(),
                Some((2, 2)),
                "{verb}, {folder}: nothing is touched"
            );
            assert_eq!(fixture.list().await.len(), 1, "{verb}, {folder}: no backup");
        }
    }
}

#[tokio::test]
async fn one_root_or_one_folder_of_backups_has_one_gateway() {
    let fixture = Fixture::new();
    let dir = fixture.dir.path();
    for folder in ["other", "kept"] {
        fs::create_dir(dir.join(folder)).unwrap();
    }
    symlink(dir.join("root"), dir.join("link")).unwrap();
    let rows = [
        ("root", "root", "kept"),
        ("root by a link", "link", "kept"),
        ("backups", "other", "backups"),
        ("root as backups", "other", "root"),
        ("backups as root", "backups", "kept"),
    ];
    for (name, root, backups) in rows {
        let config = Config {
            root: dir.join(root),
            backups: dir.join(backups),
            new_folders: true,
        };
        let refused = open(config, &Failpoints::default()).map(|_| ());
        assert!(
            matches!(refused, Err(FilesError::InUse(_))),
            "{name}: {refused:?}"
        );
    }
    assert_eq!(
        fs::read_dir(dir.join("kept")).unwrap().count(),
        0,
        "nothing is left there"
    );
}

#[tokio::test]
async fn refusals_name_the_thing_and_the_remedy() {
    let fixture = Fixture::new();
    fs::create_dir(fixture.disk("lost+found")).unwrap();
    fs::create_dir(fixture.dir.path().join("root/lost+found")).unwrap();
    fs::create_dir(fixture.dir.path().join("backups/lost+found")).unwrap();
    let backup = fixture.backup(1).await;
    fs::create_dir(fixture.vm_backups().join("lost+found")).unwrap();
    assert_eq!(fixture.list().await.len(), 1, "lost+found is no backup");
    assert_eq!(
        fixture.failure(&restore(&backup), 2).await,
        None,
        "nor a disk"
    );
    let found = fixture
        .files
        .read_vm(&vm("lost+found"), by())
        .await
        .unwrap_err();
    assert_eq!(found.fault.kind, FaultKind::NoSuchVm, "nor a VM");
    type Change = fn(&Fixture);
    let rows: [(Change, &[&str]); 4] = [
        (
            |fixture| fs::write(fixture.disk("lost+found/#12"), "x").unwrap(),
            &["`lost+found`", "move it"],
        ),
        (
            |fixture| fs::create_dir(fixture.disk("old")).unwrap(),
            &["`old`", "a folder", "move it"],
        ),
        (
            |fixture| symlink("/nowhere", fixture.disk("iso")).unwrap(),
            &["`iso`", "a symbolic link"],
        ),
        (
            |fixture| {
                let vm_backups = fixture.vm_backups();
                fs::rename(&vm_backups, fixture.dir.path().join("far")).unwrap();
                symlink(fixture.dir.path().join("far"), vm_backups).unwrap();
            },
            &["symbolic link", "mount --bind"],
        ),
    ];
    for (number, (change, parts)) in (10..).zip(rows) {
        let fixture = Fixture::new();
        fixture.backup(1).await;
        fs::create_dir(fixture.disk("lost+found")).unwrap();
        change(&fixture);
        let end = fixture.run(&create("vm", number, "x"), number).await;
        let Err(fault) = end else {
            panic!("{parts:?}: {end:?}");
        };
        assert_eq!(fault.kind, FaultKind::Conflict, "{parts:?}");
        for part in parts {
            assert!(fault.text.contains(part), "{part}: {}", fault.text);
        }
    }
}

#[expect(clippy::too_many_lines, reason = "it is one story")]
#[tokio::test]
async fn backups_of_a_renamed_vm_keep_their_protection_and_can_be_adopted() {
    for both_folders in [true, false] {
        let fixture = Fixture::new();
        let backup = fixture.backup(1).await;
        let patch = BackupPatch {
            protected: Patch::Set(true),
            ..BackupPatch::default()
        };
        assert_eq!(
            fixture
                .failure(&about(&backup, Change::Update(patch)), 2)
                .await,
            None,
            "protected"
        );
        fixture.backup(3).await;
        let (dir, config, failpoints) = closed(fixture).await;
        let rename = |folder: &str| {
            let path = dir.path().join(folder);
            fs::rename(path.join("vm"), path.join("web")).unwrap();
        };
        rename("root");
        if both_folders {
            rename("backups");
            let files = open_soon(config.clone(), &failpoints).await;
            let page = Page {
                after: None,
                limit: 10,
            };
            let list = files
                .list_backups(&vm("web"), &page, by())
                .await
                .unwrap()
                .backups;
            let shown: Vec<_> = list
                .iter()
                .map(|one| (one.state, one.protected, one.name.as_str()))
                .collect();
            let expected = [
                (BackupState::Error, true, "backup 1"),
                (BackupState::Error, false, "backup 3"),
            ];
            assert_eq!(shown, expected, "as the manifests say");
            let busy = adopt_backups(&config, &vm("vm"), &vm("web"));
            assert!(busy.is_err(), "a gateway uses them: {busy:?}");
            files.tasks.ended().await;
        }
        let adopted = |from: &str, to: &str| {
            // Programs that other tests start hold our locks for a moment.
            let mut last = adopt_backups(&config, &vm(from), &vm(to));
            for _ in 0..20 {
                if matches!(&last, Err(FolderError::Files(_))) {
                    last = adopt_backups(&config, &vm(from), &vm(to));
                }
            }
            last
        };
        let strange = adopted("nobody", "web");
        assert!(strange.is_err(), "another name: {strange:?}");
        assert_eq!(
            adopted("vm", "web").unwrap(),
            Adopted {
                changed: 2,
                kept: 0
            },
            "adopted"
        );
        assert_eq!(
            adopted("vm", "web").unwrap(),
            Adopted {
                changed: 0,
                kept: 2
            },
            "again"
        );
        let files = open_soon(config.clone(), &failpoints).await;
        let page = Page {
            after: None,
            limit: 10,
        };
        let list = files
            .list_backups(&vm("web"), &page, by())
            .await
            .unwrap()
            .backups;
        let shown: Vec<_> = list.iter().map(|one| (one.state, one.protected)).collect();
        let expected = [
            (BackupState::Available, true),
            (BackupState::Available, false),
        ];
        assert_eq!(shown, expected, "whole, and still protected");
        assert_eq!(list[0].identity, backup.identity, "the same backup");
    }
}
