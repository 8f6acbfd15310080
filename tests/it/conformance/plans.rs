//! Plans: that they change nothing, show what matters, and never lie.

use snapgate::adapters::adapter::*;
use snapgate::model::*;

use crate::conformance::AdapterFixture;
use crate::conformance::by;
use crate::conformance::create;
use crate::conformance::on;
use crate::conformance::run;

/// Whether a plan said what became of the request, where nothing changed in between.
pub(crate) fn judge(
    intent: &Intent,
    plan: &Result<Preview, AdapterError>,
    begun: &Result<BeginOutcome, AdapterError>,
) {
    let refused = match begun {
        Ok(_) => None,
        Err(error) if error.effect == Effect::None => Some(error.fault.kind),
        // A lost answer says nothing.
        Err(_) => return,
    };
    let planned = match plan {
        // The plan says itself that not every refusal can be foreseen. What it foresees must be true all the same.
        Ok(preview)
            if preview.refused.is_empty() && preview.unknown.contains(&PreviewPart::Refused) =>
        {
            return;
        }
        Ok(preview) => preview.refused.first().map(|fault| fault.kind),
        Err(error) => Some(error.fault.kind),
    };
    let verb = intent.verb();
    assert_eq!(
        planned, refused,
        "the plan lies about a {verb:?}: {plan:?}, {begun:?}"
    );
}

/// Everything that a plan must leave as it is.
async fn seen(fixture: &dyn AdapterFixture, adapter: &dyn Adapter) -> (u64, Vm, Vec<Backup>) {
    let vm = fixture.vm();
    let found = adapter.read_vm(&vm, by()).await.unwrap();
    let all = list_all_backups(adapter, &vm, by()).await.unwrap();
    (fixture.content(), found, all)
}

/// Plans of a restore and of a delete of the backup, which nothing refuses.
pub(crate) async fn come_true(
    fixture: &dyn AdapterFixture,
    adapter: &dyn Adapter,
    backup: &Backup,
) {
    let (vm, name) = (fixture.vm(), fixture.name());
    fixture.write(2);
    let before = seen(fixture, adapter).await;
    let changes = [Change::Restore(RestoreOptions::default()), Change::Delete];
    let mut prints = Vec::new();
    for change in &changes {
        let verb = change.verb().as_str();
        let intent = on(backup, &vm, change.clone());
        let plan = adapter.preview(&intent, by()).await.unwrap();
        assert_eq!(plan.refused, [], "{name}, {verb}: nothing refuses it");
        assert_eq!(plan.vm, before.1, "{name}, {verb}: the VM");
        assert_eq!(plan.backup, *backup, "{name}, {verb}: the backup");
        let is_newer = plan.newer.iter().any(|(id, _)| *id == backup.id);
        assert!(!is_newer, "{name}, {verb}: not newer than itself");
        let has_disks = match change.verb() {
            Verb::Restore => plan.unknown.contains(&PreviewPart::Overwrites),
            Verb::Create | Verb::Update | Verb::Delete => true,
        };
        assert!(
            has_disks || !plan.overwrites.is_empty(),
            "{name}, {verb}: {plan:?}"
        );
        let again = adapter.preview(&intent, by()).await.unwrap();
        let print = plan.fingerprint(change);
        assert_eq!(
            again.fingerprint(change),
            print,
            "{name}, {verb}: the same plan"
        );
        let other = Intent {
            identity: Some(Identity::new("other".to_owned())),
            ..intent.clone()
        };
        let missing = adapter.preview(&other, by()).await.unwrap_err();
        assert_eq!(
            missing.fault.kind,
            FaultKind::NoSuchBackup,
            "{name}, {verb}: identity"
        );
        prints.push(print);
    }
    assert_ne!(prints[0], prints[1], "{name}: the plan of another change");
    let intent = create(adapter, &vm, "none", 39);
    let refused = adapter.preview(&intent, by()).await.unwrap_err();
    assert_eq!(
        refused.fault.kind,
        FaultKind::Unsupported,
        "{name}: of a create"
    );
    let after = seen(fixture, adapter).await;
    assert_eq!(after, before, "{name}: plans change nothing");
    stales_with_newer_backups(fixture, adapter, backup, &prints).await;
}

async fn stales_with_newer_backups(
    fixture: &dyn AdapterFixture,
    adapter: &dyn Adapter,
    backup: &Backup,
    prints: &[Version],
) {
    let (vm, name) = (fixture.vm(), fixture.name());
    let newer = create(adapter, &vm, "newer", 40);
    assert_eq!(
        run(adapter, &newer, 40).await,
        Ok(()),
        "{name}: a newer backup"
    );
    let print = async |change: &Change| {
        let intent = on(backup, &vm, change.clone());
        let plan = adapter.preview(&intent, by()).await.unwrap();
        (plan.newer.clone(), plan.fingerprint(change))
    };
    let restore = Change::Restore(RestoreOptions::default());
    let (listed, now) = print(&restore).await;
    let is_listed = listed.iter().any(|(id, _)| *id == newer.target.backup);
    assert!(is_listed, "{name}: it is newer: {listed:?}");
    assert_ne!(now, prints[0], "{name}: the plan is stale");
    let made = adapter.read_backup(&newer.target, by()).await.unwrap();
    let delete = on(&made, &vm, Change::Delete);
    assert_eq!(
        run(adapter, &delete, 41).await,
        Ok(()),
        "{name}: deleted again"
    );
    let (_, again) = print(&restore).await;
    assert_eq!(again, prints[0], "{name}: right again");
    if fixture.pause(true) {
        let (_, paused) = print(&restore).await;
        assert_ne!(paused, prints[0], "{name}: another run state");
        assert!(fixture.pause(false), "{name}: resumed");
        let (_, again) = print(&restore).await;
        assert_eq!(again, prints[0], "{name}: and right again");
    }
}

/// The VM after the restore is what its plan said.
pub(crate) async fn came_true(fixture: &dyn AdapterFixture, adapter: &dyn Adapter, plan: &Preview) {
    let (vm, name) = (fixture.vm(), fixture.name());
    let found = adapter.read_vm(&vm, by()).await.unwrap();
    if let (Some(planned), Some(after)) = (plan.after, found.run_state) {
        assert_eq!(planned, after, "{name}: the run state afterwards");
    }
    let all = list_all_backups(adapter, &vm, by()).await.unwrap();
    for lost in &plan.loses {
        let is_there = all.iter().any(|other| other.id == lost.id);
        assert!(!is_there, "{name}: {lost:?} was to go");
    }
    for (id, _) in &plan.newer {
        let is_lost = plan.loses.iter().any(|lost| lost.id == *id);
        let is_there = all.iter().any(|other| other.id == *id);
        assert_eq!(is_there, !is_lost, "{name}: {id} was to stay or go");
    }
}
