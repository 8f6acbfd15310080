//! Plans never lie: over generated states of the two directories, what a plan says is what becomes of the request.

use std::collections::BTreeMap;
use std::fs;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;

use rustix::fs::FlockOperation;

use super::image_lock::ImageUse;
use super::test_fixture::Fixture;
use super::test_fixture::about;
use super::test_fixture::by;
use super::test_fixture::key;
use super::*;
use crate::model::BackupPatch;
use crate::model::Patch;
use crate::model::PreviewPart;
use crate::model::RestoreOptions;
use crate::model::RunState;

/// One thing about the directories that may refuse a restore or a delete, or may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trait {
    ExtraDisk,
    MissingDisk,
    DiskInUse,
    DiskFlocked,
    StrangeEntry,
    Protected,
    ShortCopy,
    NoManifest,
    AnOption,
    FolderLocked,
    NewerBackup,
    OtherIdentity,
    NoBackup,
}

impl Trait {
    /// In an order in which each can be applied after those before.
    const ALL: [Self; 13] = [
        Self::NewerBackup,
        Self::Protected,
        Self::ExtraDisk,
        Self::MissingDisk,
        Self::DiskInUse,
        Self::DiskFlocked,
        Self::StrangeEntry,
        Self::ShortCopy,
        Self::NoManifest,
        Self::AnOption,
        Self::FolderLocked,
        Self::OtherIdentity,
        Self::NoBackup,
    ];
}

/// The directories in one state, with the locks that others hold.
struct Scene {
    fixture: Fixture,
    backup: Backup,
    traits: Vec<Trait>,
    /// The locks that others hold.
    locks: Vec<File>,
}

impl Scene {
    async fn with(traits: Vec<Trait>) -> Self {
        let fixture = Fixture::new();
        let mut backup = fixture.backup(1).await;
        let mut locks = Vec::new();
        for one in &traits {
            locks.extend(apply(*one, &fixture, &mut backup).await);
        }
        Self {
            fixture,
            backup,
            traits,
            locks,
        }
    }

    fn intents(&self) -> [Intent; 2] {
        let mut options = RestoreOptions::default();
        if self.traits.contains(&Trait::AnOption) {
            options.0.insert("mode".to_owned(), "x".to_owned());
        }
        [Change::Delete, Change::Restore(options)].map(|change| about(&self.backup, change))
    }

    /// Names, lengths and times of everything.
    fn tree(&self) -> BTreeMap<PathBuf, (u64, i64, i64, u64)> {
        let mut found = BTreeMap::new();
        let mut open = vec![self.fixture.dir.path().to_owned()];
        while let Some(path) = open.pop() {
            let seen = fs::symlink_metadata(&path).unwrap();
            if seen.is_dir() {
                let entries = fs::read_dir(&path).unwrap();
                open.extend(entries.map(|entry| entry.unwrap().path()));
            }
            let times = (seen.ctime(), seen.ctime_nsec());
            found.insert(path, (seen.len(), times.0, times.1, seen.ino()));
        }
        found
    }
}

fn lock_folder(path: &Path) -> File {
    let folder = File::open(path).unwrap();
    rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive).unwrap();
    folder
}

/// Puts the directories into that state; returns the lock that another program holds for it.
async fn apply(one: Trait, fixture: &Fixture, backup: &mut Backup) -> Option<File> {
    let of_backup = fixture.vm_backups().join("1");
    match one {
        Trait::ExtraDisk => fs::write(fixture.disk("c.raw"), "c").unwrap(),
        // One that may have been removed by another trait is no harm.
        Trait::MissingDisk => drop(fs::remove_file(fixture.disk("b.raw"))),
        Trait::DiskInUse => {
            let file = File::open(fixture.disk("a.raw")).unwrap();
            image_lock::acquire(&file, ImageUse::Read).unwrap();
            return Some(file);
        }
        Trait::DiskFlocked => {
            let file = File::open(fixture.disk("b.raw")).ok()?;
            rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).ok()?;
            return Some(file);
        }
        Trait::StrangeEntry => fs::create_dir(fixture.disk("folder")).unwrap(),
        Trait::Protected => {
            let patch = BackupPatch {
                protected: Patch::Set(true),
                ..BackupPatch::default()
            };
            let update = about(backup, Change::Update(patch));
            let end = fixture.run(&update, 2).await;
            assert!(matches!(end, Ok(TaskState::Done(_))), "protected: {end:?}");
        }
        Trait::ShortCopy => fs::write(of_backup.join("disks/a.raw"), "short").unwrap(),
        Trait::NoManifest => fs::write(of_backup.join("manifest.json"), "{").unwrap(),
        Trait::FolderLocked => return Some(lock_folder(&fixture.disk(""))),
        Trait::NewerBackup => drop(fixture.backup(3).await),
        Trait::OtherIdentity => backup.identity = Identity::new("other".to_owned()),
        Trait::NoBackup => fs::remove_dir_all(of_backup).unwrap(),
        Trait::AnOption => {}
    }
    None
}

/// The kind of what refuses the change first, by its plan.
async fn planned(scene: &Scene, intent: &Intent) -> Option<FaultKind> {
    match scene.fixture.files.preview(intent, by()).await {
        Ok(preview) => preview.refused.first().map(|fault| fault.kind),
        Err(error) => Some(error.fault.kind),
    }
}

/// What becomes of the request: `None` when it is done.
async fn in_fact(scene: &Scene, intent: &Intent, number: u64) -> Option<FaultKind> {
    scene.fixture.failure(intent, number).await
}

/// A child that another test starts has every lock of this process for the moment until it is another program.
///
/// `first` is the first of the numbers of its requests: one number is one request.
async fn judge(scene: &Scene, intent: &Intent, first: u64) {
    let expects_lock = !scene.locks.is_empty();
    let is_accident = |kind| kind == Some(FaultKind::Busy) && !expects_lock;
    for number in first..first.saturating_add(200) {
        let before = scene.tree();
        let planned = planned(scene, intent).await;
        assert_eq!(
            scene.tree(),
            before,
            "a plan changes nothing: {:?}",
            scene.traits
        );
        let found = if is_accident(planned) {
            planned
        } else {
            in_fact(scene, intent, number).await
        };
        if is_accident(planned) || is_accident(found) {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        }
        let verb = intent.verb();
        assert_eq!(
            planned, found,
            "the plan lies: {verb:?} with {:?}",
            scene.traits
        );
        return;
    }
    panic!("locks of other tests stay: {:?}", scene.traits);
}

/// Numbers from a seed, by xorshift.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Nothing, each alone, and so many states with a few at once.
fn generated_states(seed: u64, count: usize) -> Vec<Vec<Trait>> {
    let mut numbers = Numbers(seed);
    let mut states: Vec<Vec<Trait>> = vec![Vec::new()];
    states.extend(Trait::ALL.map(|one| vec![one]));
    for _ in 0..count {
        let drawn = numbers.next() & numbers.next();
        let all = Trait::ALL.into_iter().enumerate();
        let chosen = all.filter(|(bit, _)| (drawn >> bit) & 1 == 1);
        states.push(chosen.map(|(_, one)| one).collect());
    }
    states
}

#[tokio::test]
async fn plans_over_generated_states_never_lie() {
    let (mut refused, mut done) = (0, 0);
    for traits in generated_states(0x005e_ed01, 60) {
        let scene = Scene::with(traits).await;
        // A restore first: what is deleted cannot be restored.
        let [delete, restore] = scene.intents();
        for (first, intent) in [(100, restore), (1000, delete)] {
            match planned(&scene, &intent).await {
                Some(_) => refused += 1,
                None => done += 1,
            }
            judge(&scene, &intent, first).await;
        }
    }
    assert!(
        refused > 40 && done > 8,
        "both are tried: {refused} refused, {done} done"
    );
}

#[tokio::test]
async fn a_plan_lists_disks_room_and_every_refusal() {
    let scene = Scene::with(vec![
        Trait::AnOption,
        Trait::ExtraDisk,
        Trait::ShortCopy,
        Trait::DiskInUse,
    ])
    .await;
    let [delete, restore] = scene.intents();
    let expected = [
        FaultKind::Invalid,
        FaultKind::Damaged,
        FaultKind::Busy,
        FaultKind::Conflict,
    ];
    let mut plan = scene.fixture.files.preview(&restore, by()).await.unwrap();
    // Another disk may be in use for a moment: see `judge`.
    for _ in 0..50 {
        if plan.refused.len() == expected.len() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        plan = scene.fixture.files.preview(&restore, by()).await.unwrap();
    }
    let kinds: Vec<FaultKind> = plan.refused.iter().map(|fault| fault.kind).collect();
    assert_eq!(kinds, expected, "all, in the order of the checks");
    let disks: Vec<(&str, Option<u64>)> = plan
        .overwrites
        .iter()
        .map(|disk| (disk.disk.as_str(), disk.size))
        .collect();
    let sizes = [("a.raw", Some(5 << 19)), ("b.raw", Some(1 << 20))];
    assert_eq!(disks, sizes, "with their present lengths");
    let needs = plan.needs.unwrap();
    assert_eq!(needs.bytes, Some((5 << 19) + (64 << 10)), "without holes");
    assert!(needs.free.unwrap() > 0, "room: {needs:?}");
    assert_eq!(plan.after, Some(RunState::Stopped), "nothing starts it");
    assert_eq!(plan.unknown, [PreviewPart::After; 0], "everything is known");
    let plan = scene.fixture.files.preview(&delete, by()).await.unwrap();
    assert_eq!(plan.refused, [], "a delete is not about the disks");
    let short = Scene::with(vec![Trait::MissingDisk]).await;
    let [_, restore] = short.intents();
    let plan = short.fixture.files.preview(&restore, by()).await.unwrap();
    let text = plan.warnings.first().expect("a warning").as_str();
    assert!(text.contains("`b.raw`"), "a disk that is created: {text}");
}

#[tokio::test]
async fn a_plan_goes_stale_with_the_disks_and_the_newer_backups() {
    let scene = Scene::with(Vec::new()).await;
    let [_, restore] = scene.intents();
    let files = &scene.fixture.files;
    let print = async || {
        let plan = files.preview(&restore, by()).await.unwrap();
        plan.fingerprint(&restore.change)
    };
    let first = print().await;
    assert_eq!(print().await, first, "while nothing changes");
    fs::write(scene.fixture.disk("vm.json"), r#"{"name": "Web"}"#).unwrap();
    assert_eq!(print().await, first, "a name is no disk");
    scene.fixture.fill(2);
    let second = print().await;
    assert_ne!(second, first, "the disks were written to");
    scene.fixture.backup(3).await;
    assert_ne!(print().await, second, "a newer backup");
}

/// A change of the VM runs in this process, and holds every lock.
#[tokio::test]
async fn a_vm_that_is_being_changed_is_busy_in_its_plan() {
    let scene = Scene::with(Vec::new()).await;
    let files = &scene.fixture.files;
    let held = files.jobs.reserve_vm(&scene.backup_vm()).unwrap();
    for intent in scene.intents() {
        let begun = files.begin(&intent, key(90), None, by()).await.unwrap_err();
        let plan = files.preview(&intent, by()).await.unwrap();
        let first = plan.refused.first().unwrap();
        assert_eq!(*first, begun.fault, "{:?}", intent.verb());
    }
    drop(held);
}

impl Scene {
    fn backup_vm(&self) -> VmId {
        let [delete, _] = self.intents();
        delete.target.vm
    }
}
