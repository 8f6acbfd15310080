//! The conformance suite: what every adapter must do, row by row.

use std::time::Duration;

use snapgate::adapters::adapter::*;
use snapgate::model::*;

use crate::conformance::AdapterFixture;
use crate::conformance::by;
use crate::conformance::create;
use crate::conformance::key;
use crate::conformance::listing;
use crate::conformance::on;
use crate::conformance::plans;
use crate::conformance::run;
use crate::conformance::run_from;
use crate::conformance::texts;

/// Which rows of the suite were run on a bed; those that its capability does not promise are skipped.
struct Rows {
    pub(crate) fixture: &'static str,
    pub(crate) capability: Capability,
    pub(crate) said: Vec<(String, bool)>,
}

impl Rows {
    /// Whether to run a row that needs these verbs.
    pub(crate) fn due(&mut self, row: &str, verbs: &[Verb]) -> bool {
        let able = verbs
            .iter()
            .all(|verb| self.capability.verb(*verb).is_some());
        self.due_if(row, able)
    }

    pub(crate) fn due_if(&mut self, row: &str, able: bool) -> bool {
        self.said.push((row.to_owned(), able));
        able
    }

    pub(crate) fn replays(&self, verb: Verb) -> bool {
        let verb = self.capability.verb(verb);
        verb.is_some_and(|verb| verb.recovery == Recovery::ReplaySafe)
    }

    /// Straight to the terminal: the test runner swallows what passing tests print.
    pub(crate) fn print(&self) {
        let mut table = String::new();
        for (row, run) in &self.said {
            let word = if *run { "run" } else { "skipped" };
            table.push_str(&format!(
                "conformance: {:<8} {word:<8} {row}\n",
                self.fixture
            ));
        }
        std::io::Write::write_all(&mut std::io::stderr().lock(), table.as_bytes()).unwrap();
    }
}

pub(crate) async fn run_suite(fixture: &dyn AdapterFixture) {
    let (adapter, vm, name) = (fixture.adapter(), fixture.vm(), fixture.name());
    let adapter = adapter.as_ref();
    let mut rows = Rows {
        fixture: name,
        capability: adapter.capability().clone(),
        said: Vec::new(),
    };
    if rows.due("health", &[]) {
        let health = adapter.health(by()).await.unwrap();
        assert!(!health.product.is_empty(), "{name}: names itself");
    }
    if rows.due("an unknown VM is reported", &[]) {
        let nowhere = VmId::new("no-such-vm").unwrap();
        let error = adapter.read_vm(&nowhere, by()).await.unwrap_err();
        assert_eq!(error.fault.kind, FaultKind::NoSuchVm, "{name}: unknown VM");
        let page = Page {
            after: None,
            limit: 1,
        };
        let error = adapter
            .list_backups(&nowhere, &page, by())
            .await
            .unwrap_err();
        assert_eq!(error.fault.kind, FaultKind::NoSuchVm, "{name}: list");
        assert_eq!(adapter.read_vm(&vm, by()).await.unwrap().id, vm, "{name}");
    }
    let lists_vms = fixture.lists_vms();
    if rows.due_if("VMs are listed in order, page by page", lists_vms) {
        listing::lists_vms(fixture, adapter).await;
    } else {
        listing::says_that_it_cannot_list(name, adapter).await;
    }
    if rows.due("create", &[Verb::Create]) {
        let backup = creates(fixture, adapter, &mut rows).await;
        let row = "plans change nothing and show what matters";
        if rows.due(row, &[Verb::Restore, Verb::Delete]) {
            plans::come_true(fixture, adapter, &backup).await;
        }
        if rows.due("restore", &[Verb::Restore]) {
            restores(fixture, adapter, &backup, &mut rows).await;
        }
        let backup = updates(fixture, adapter, backup, &mut rows).await;
        if rows.due("delete", &[Verb::Delete]) {
            deletes(fixture, adapter, &backup, &mut rows).await;
        }
    }
    rows.print();
}

/// Makes backups and returns the first.
async fn creates(fixture: &dyn AdapterFixture, adapter: &dyn Adapter, rows: &mut Rows) -> Backup {
    let (vm, name) = (fixture.vm(), fixture.name());
    let first = create(adapter, &vm, "one", 1);
    let error = adapter.read_backup(&first.target, by()).await.unwrap_err();
    let unknown = FaultKind::NoSuchBackup;
    assert_eq!(error.fault.kind, unknown, "{name}: unknown backup");
    let found = adapter
        .find_outcome(&first, key(1), None, by())
        .await
        .unwrap();
    assert!(
        !matches!(found, FindOutcome::Done(_) | FindOutcome::Task(_)),
        "{name}: never begun: {found:?}"
    );
    fixture.write(1);
    let seen = adapter.baseline(&first, key(1), by()).await.unwrap();
    let outcome = run_from(adapter, &first, 1, seen.as_ref()).await;
    assert_eq!(outcome, Ok(()), "{name}: create");
    let found = adapter
        .find_outcome(&first, key(1), seen.as_ref(), by())
        .await;
    let found = found.unwrap();
    assert!(
        matches!(found, FindOutcome::Done(_)),
        "{name}: found after done: {found:?}"
    );
    let backup = adapter.read_backup(&first.target, by()).await.unwrap();
    assert_eq!(backup.name.as_str(), "one", "{name}: as asked for");
    let replays = rows.replays(Verb::Create);
    if rows.due_if("the same create again makes nothing", replays) {
        let outcome = run_from(adapter, &first, 1, seen.as_ref()).await;
        assert_eq!(outcome, Ok(()), "{name}: again");
        let now = adapter.read_backup(&first.target, by()).await.unwrap();
        assert_eq!(now, backup, "{name}: the same backup");
    }
    let taken = create(adapter, &vm, "one", 2);
    let outcome = run(adapter, &taken, 2).await;
    assert_eq!(outcome, Err(FaultKind::NameTaken), "{name}: name");
    for kind in [
        BackupKind::Full,
        BackupKind::Snapshot,
        BackupKind::Incremental,
    ] {
        let able = rows.capability.kinds.contains(&kind);
        let row = format!("a backup of kind {kind:?} is refused");
        if rows.due_if(&row, !able) {
            let mut intent = create(adapter, &vm, "odd", 20);
            if let Change::Create(new) = &mut intent.change {
                new.kind = Some(kind);
            }
            let outcome = run(adapter, &intent, 20).await;
            assert_eq!(outcome, Err(FaultKind::Unsupported), "{name}: {kind:?}");
        }
    }
    let second = create(adapter, &vm, "two", 3);
    assert_eq!(run(adapter, &second, 3).await, Ok(()), "{name}: second");
    let page = |after, limit| Page { after, limit };
    let head = adapter
        .list_backups(&vm, &page(None, 1), by())
        .await
        .unwrap();
    assert!(
        head.more && head.backups.len() == 1,
        "{name}: first page: {head:?}"
    );
    let rest = page(Some(head.backups[0].id.clone()), 5);
    let tail = adapter.list_backups(&vm, &rest, by()).await.unwrap();
    assert!(
        !tail.more && tail.backups.len() == 1,
        "{name}: rest: {tail:?}"
    );
    assert!(tail.backups[0].id > head.backups[0].id, "{name}: in order");
    queries(adapter, &vm, name).await;
    backup
}

/// The two backups `one` and `two`, filtered, sorted and page by page.
async fn queries(adapter: &dyn Adapter, vm: &VmId, name: &str) {
    let select = async |query: &BackupQuery| {
        let found = adapter.query_backups(vm, query, by()).await.unwrap();
        let names = found.backups.iter().map(|backup| backup.name.as_str());
        let names = names.collect::<Vec<_>>().join(" ");
        (names, found)
    };
    let named = |wanted| BackupQuery {
        filter: BackupFilter {
            name: Some(wanted),
            ..BackupFilter::default()
        },
        count: true,
        ..BackupQuery::default()
    };
    let filters = [
        (named(NameFilter::Exact("two".to_owned())), "two"),
        (named(NameFilter::Exact("t".to_owned())), ""),
        (named(NameFilter::Prefix("o".to_owned())), "one"),
    ];
    for (query, expected) in filters {
        let (names, found) = select(&query).await;
        assert_eq!(names, expected, "{name}: {query:?}");
        let count = usize::from(!expected.is_empty());
        assert_eq!(found.count, Some(count), "{name}: {query:?}");
    }
    let mut query = BackupQuery {
        order: BackupOrder {
            key: BackupSortKey::Name,
            descending: true,
        },
        limit: 1,
        count: true,
        ..BackupQuery::default()
    };
    let (names, first) = select(&query).await;
    assert_eq!(
        (names.as_str(), first.more, first.count),
        ("two", true, Some(2)),
        "{name}"
    );
    let last = &first.backups[0];
    query.after = Some(BackupSortKey::Name.position_of(last));
    let (names, second) = select(&query).await;
    assert_eq!((names.as_str(), second.more), ("one", false), "{name}");
    query.after = None;
    query.filter.since = Some(last.created.plus(Duration::from_secs(86_400)));
    let (names, found) = select(&query).await;
    assert_eq!(
        (names.as_str(), found.count),
        ("", Some(0)),
        "{name}: none is newer"
    );
}

async fn restores(
    fixture: &dyn AdapterFixture,
    adapter: &dyn Adapter,
    backup: &Backup,
    rows: &mut Rows,
) {
    let (vm, name) = (fixture.vm(), fixture.name());
    fixture.write(2);
    let restore = on(backup, &vm, Change::Restore(RestoreOptions::default()));
    let other = Intent {
        identity: Some(Identity::new("other".to_owned())),
        ..restore.clone()
    };
    let outcome = run(adapter, &other, 4).await;
    assert_eq!(outcome, Err(FaultKind::NoSuchBackup), "{name}: identity");
    assert_eq!(fixture.content(), 2, "{name}: nothing restored");
    let found = adapter
        .find_outcome(&restore, key(5), None, by())
        .await
        .unwrap();
    assert!(
        !matches!(found, FindOutcome::Done(_) | FindOutcome::Task(_)),
        "{name}: never begun: {found:?}"
    );
    let seen = adapter.baseline(&restore, key(5), by()).await.unwrap();
    let plan = adapter.preview(&restore, by()).await.unwrap();
    assert_eq!(plan.refused, [], "{name}: nothing refuses the restore");
    let outcome = run_from(adapter, &restore, 5, seen.as_ref()).await;
    assert_eq!(outcome, Ok(()), "{name}: restore");
    assert_eq!(fixture.content(), 1, "{name}: content is back");
    plans::came_true(fixture, adapter, &plan).await;
    let broken = fixture.break_restores();
    let row = "a restore that fails says what it left";
    if rows.due_if(row, broken.is_some()) {
        texts::fails(fixture, adapter, &restore, broken).await;
    }
    let replays = rows.replays(Verb::Restore);
    if rows.due_if("the same restore again does nothing", replays) {
        fixture.write(3);
        let outcome = run_from(adapter, &restore, 5, seen.as_ref()).await;
        assert_eq!(outcome, Ok(()), "{name}: the same again");
        assert_eq!(fixture.content(), 3, "{name}: acts once");
    }
}

/// Changes the backup and protects it where that can be done. Returns it, not protected.
async fn updates(
    fixture: &dyn AdapterFixture,
    adapter: &dyn Adapter,
    backup: Backup,
    rows: &mut Rows,
) -> Backup {
    if !rows.due("update", &[Verb::Update]) {
        return backup;
    }
    let (vm, name) = (fixture.vm(), fixture.name());
    let patch = BackupPatch {
        tags: Patch::Set(vec![Tag::new("new").unwrap()]),
        protected: Patch::Set(true),
        ..BackupPatch::default()
    };
    let update = on(&backup, &vm, Change::Update(patch));
    assert_eq!(run(adapter, &update, 6).await, Ok(()), "{name}: update");
    let after = adapter.read_backup(&update.target, by()).await.unwrap();
    let expected = [Tag::new("new").unwrap()];
    assert_eq!(after.tags, expected, "{name}: replaced, not merged");
    if rows.due("a protected backup is not deleted", &[Verb::Delete]) {
        let page = Page {
            after: None,
            limit: 9,
        };
        let before = adapter.list_backups(&vm, &page, by()).await.unwrap();
        let delete = on(&after, &vm, Change::Delete);
        let plan = adapter.preview(&delete, by()).await.unwrap();
        let kinds: Vec<FaultKind> = plan.refused.iter().map(|fault| fault.kind).collect();
        assert_eq!(kinds, [FaultKind::Protected], "{name}: planned");
        let outcome = run(adapter, &delete, 7).await;
        assert_eq!(outcome, Err(FaultKind::Protected), "{name}: protected");
        let now = adapter.list_backups(&vm, &page, by()).await.unwrap();
        assert_eq!(now, before, "{name}: a refused delete changes nothing");
        let read = adapter.read_backup(&delete.target, by()).await.unwrap();
        assert_eq!(read, after, "{name}: a refused delete changes nothing");
        if rows.due_if("refusals say what to do", true) {
            let taken = create(adapter, &vm, "one", 32);
            texts::names_remedy(fixture, adapter, &delete, 33).await;
            texts::names_remedy(fixture, adapter, &taken, 32).await;
        }
    }
    let patch = BackupPatch {
        protected: Patch::Clear,
        ..BackupPatch::default()
    };
    let update = on(&after, &vm, Change::Update(patch));
    assert_eq!(run(adapter, &update, 8).await, Ok(()), "{name}: unprotect");
    adapter.read_backup(&update.target, by()).await.unwrap()
}

async fn deletes(
    fixture: &dyn AdapterFixture,
    adapter: &dyn Adapter,
    backup: &Backup,
    rows: &mut Rows,
) {
    let (vm, name) = (fixture.vm(), fixture.name());
    let delete = on(backup, &vm, Change::Delete);
    let plan = adapter.preview(&delete, by()).await.unwrap();
    assert_eq!(plan.refused, [], "{name}: nothing refuses the delete");
    assert_eq!(plan.overwrites, [], "{name}: a delete overwrites nothing");
    let seen = adapter.baseline(&delete, key(9), by()).await.unwrap();
    let outcome = run_from(adapter, &delete, 9, seen.as_ref()).await;
    assert_eq!(outcome, Ok(()), "{name}: delete");
    let gone = adapter.read_backup(&delete.target, by()).await.unwrap_err();
    assert_eq!(gone.fault.kind, FaultKind::NoSuchBackup, "{name}: gone");
    let planned = adapter.preview(&delete, by()).await.unwrap_err();
    assert_eq!(
        planned.fault.kind,
        FaultKind::NoSuchBackup,
        "{name}: no plan"
    );
    let replays = rows.replays(Verb::Delete);
    if rows.due_if("a deleted backup is found deleted", replays) {
        let found = adapter
            .find_outcome(&delete, key(9), seen.as_ref(), by())
            .await;
        let found = found.unwrap();
        assert!(matches!(found, FindOutcome::Done(_)), "{name}: {found:?}");
    }
}
