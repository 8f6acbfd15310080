//! What the gateway keeps of backups, around the simulated VM manager.

use std::sync::Arc;
use std::time::Duration;

use snapgate::adapters::adapter::*;
use snapgate::adapters::annotations::{Annotation, AnnotationRecord, Annotations};
use snapgate::adapters::layers::Annotate;
use snapgate::adapters::sim;
use snapgate::model::*;
use snapgate::runtime::{Clock, ManualClock, SystemClock, Tasks};

use crate::conformance::{by, create, key, on, run};
use crate::memory_annotations::MemoryAnnotations;

struct AnnotatedSim {
    sim: Arc<sim::Sim>,
    memory: Arc<MemoryAnnotations>,
    clock: Arc<ManualClock>,
    adapter: Annotate,
}

fn vm() -> VmId {
    VmId::new("33333").unwrap()
}

fn backend() -> BackendName {
    BackendName::new("lab").unwrap()
}

fn target(id: &str) -> Target {
    Target {
        vm: vm(),
        backup: BackupId::new(id).unwrap(),
    }
}

impl AnnotatedSim {
    /// Two backups that the VM manager had before.
    fn new() -> Self {
        let config = sim::Config {
            vms: vec![vm()],
            backups: 2,
            duration: Duration::from_millis(10),
            ..sim::Config::default()
        };
        let sim = Arc::new(sim::Sim::new(
            &config,
            SystemClock::shared(),
            Tasks::default(),
        ));
        let memory = Arc::<MemoryAnnotations>::default();
        let clock = Arc::new(ManualClock::new(SystemClock.now()));
        let shared: Arc<dyn Clock> = Arc::<ManualClock>::clone(&clock);
        let inner: Arc<dyn Adapter> = Arc::<sim::Sim>::clone(&sim);
        let kept: Arc<dyn Annotations> = Arc::<MemoryAnnotations>::clone(&memory);
        let adapter = Annotate::new(backend(), inner, kept, shared);
        Self {
            sim,
            memory,
            clock,
            adapter,
        }
    }

    async fn list(&self, limit: u16) -> BackupPage {
        let page = Page { after: None, limit };
        self.adapter.list_backups(&vm(), &page, by()).await.unwrap()
    }

    async fn kept(&self, id: &str) -> Option<AnnotationRecord> {
        self.memory.get(&backend(), &target(id)).await.unwrap()
    }
}

fn said(id: &str, identity: Option<&str>, name: &str) -> AnnotationRecord {
    AnnotationRecord {
        target: target(id),
        identity: identity.map(|identity| Identity::new(identity.to_owned())),
        annotation: Annotation {
            name: Some(BackupName::new(name).unwrap()),
            protected: true,
            ..Annotation::default()
        },
        written: SystemClock.now(),
    }
}

#[apply(test)]
async fn an_update_is_the_gateways_alone_and_names_stay_unique() {
    let sim_fixture = AnnotatedSim::new();
    let adapter = &sim_fixture.adapter;
    let native = sim_fixture
        .sim
        .read_backup(&target("456"), by())
        .await
        .unwrap();
    let patch = |name: &str| BackupPatch {
        name: Some(BackupName::new(name).unwrap()),
        description: Patch::Set(Description::new("text").unwrap()),
        ..BackupPatch::default()
    };
    let update = on(&native, &vm(), Change::Update(patch("mine")));
    assert_eq!(run(adapter, &update, 1).await, Ok(()), "updated");
    assert_eq!(run(adapter, &update, 1).await, Ok(()), "the same again");
    let found = adapter
        .find_outcome(&update, key(1), None, by())
        .await
        .unwrap();
    assert!(matches!(found, FindOutcome::Done(_)), "found: {found:?}");
    let shown = adapter.read_backup(&target("456"), by()).await.unwrap();
    assert_eq!(shown.name.as_str(), "mine", "shown");
    assert_eq!(
        sim_fixture
            .sim
            .read_backup(&target("456"), by())
            .await
            .unwrap(),
        native,
        "the VM manager knows nothing of it"
    );
    let other = sim_fixture
        .sim
        .read_backup(&target("457"), by())
        .await
        .unwrap();
    let taken = on(&other, &vm(), Change::Update(patch("mine")));
    assert_eq!(
        run(adapter, &taken, 2).await,
        Err(FaultKind::NameTaken),
        "taken"
    );
    let making = create(adapter, &vm(), "mine", 3);
    assert_eq!(
        run(adapter, &making, 3).await,
        Err(FaultKind::NameTaken),
        "recognised as a new one"
    );
    assert_eq!(
        sim_fixture.kept(making.target.backup.as_str()).await,
        None,
        "nothing is left of it"
    );
}

#[apply(test)]
async fn what_was_said_belongs_to_one_backup_and_no_later_one() {
    let sim_fixture = AnnotatedSim::new();
    let rows = [
        ("written before it was made", None, true, true),
        ("another identity", Some("other"), false, false),
    ];
    for (name, identity, shown, bound) in rows {
        sim_fixture
            .memory
            .put(&backend(), &said("456", identity, "said"))
            .await
            .unwrap();
        let read = sim_fixture
            .adapter
            .read_backup(&target("456"), by())
            .await
            .unwrap();
        assert_eq!(read.name.as_str() == "said", shown, "{name}: name");
        assert_eq!(read.protected, shown, "{name}: protection");
        let kept = sim_fixture.kept("456").await.unwrap().identity;
        assert_eq!(kept == Some(read.identity), bound, "{name}: bound");
    }
}

#[apply(test)]
async fn a_create_is_written_first_and_removed_with_its_failure() {
    let sim_fixture = AnnotatedSim::new();
    let making = create(&sim_fixture.adapter, &vm(), "new", 1);
    let id = making.target.backup.as_str();
    let begun = sim_fixture
        .adapter
        .begin(&making, key(1), None, by())
        .await
        .unwrap();
    assert!(matches!(begun, BeginOutcome::Task(_)), "a task: {begun:?}");
    assert_eq!(
        sim_fixture.kept(id).await.unwrap().identity,
        None,
        "written, not bound"
    );
    assert_eq!(
        run(&sim_fixture.adapter, &making, 1).await,
        Ok(()),
        "the same call again"
    );
    let made = sim_fixture
        .adapter
        .read_backup(&making.target, by())
        .await
        .unwrap();
    assert_eq!(
        sim_fixture.kept(id).await.unwrap().identity,
        Some(made.identity),
        "bound"
    );

    sim_fixture
        .sim
        .control()
        .fail_next_task(FaultKind::BackendFailed);
    let failing = create(&sim_fixture.adapter, &vm(), "bad", 2);
    assert_eq!(
        run(&sim_fixture.adapter, &failing, 2).await,
        Err(FaultKind::BackendFailed),
        "failed"
    );
    assert_eq!(
        sim_fixture.kept(failing.target.backup.as_str()).await,
        None,
        "nothing is left"
    );
}

#[apply(test)]
async fn what_is_left_over_goes_only_when_it_was_missed_for_long() {
    let sim_fixture = AnnotatedSim::new();
    for (id, protected) in [("455", false), ("458", true), ("999", false)] {
        let mut gone = said(id, Some("x"), "gone");
        gone.annotation.protected = protected;
        sim_fixture.memory.put(&backend(), &gone).await.unwrap();
    }
    sim_fixture
        .memory
        .put(&backend(), &said("456", None, "there"))
        .await
        .unwrap();
    sim_fixture.list(100).await;
    sim_fixture.clock.advance(Duration::from_secs(23 * 3600));
    sim_fixture.list(100).await;
    assert!(
        sim_fixture.kept("455").await.is_some(),
        "not for so short a time"
    );
    sim_fixture.clock.advance(Duration::from_secs(2 * 3600));
    sim_fixture.list(1).await;
    assert!(sim_fixture.kept("455").await.is_none(), "within the page");
    assert!(sim_fixture.kept("999").await.is_some(), "behind the page");
    sim_fixture.list(100).await;
    assert!(sim_fixture.kept("999").await.is_none(), "missed for long");
    assert!(sim_fixture.kept("456").await.is_some(), "it is there");
    // Storage that was away for days may come back.
    assert!(
        sim_fixture.kept("458").await.is_some(),
        "protection is kept for good"
    );
}
