//! Killed gateways, a killed libvirtd and a killed QEMU: every outcome is found as it is.

use std::time::Duration;

use snapgate::adapters::adapter::*;
use snapgate::adapters::libvirt::Config;
use snapgate::adapters::libvirt::Libvirt;
use snapgate::model::*;
use snapgate::runtime::Clock;
use snapgate::runtime::SystemClock;
use snapgate::runtime::Tasks;

use crate::conformance::by;
use crate::conformance::create;
use crate::conformance::key;
use crate::conformance::run;
use crate::harness::PATIENCE;
use crate::libvirt::made;
use crate::libvirt::private_libvirtd::PrivateLibvirtd;
use crate::libvirt::restore;
use crate::libvirt::vm;

/// Begins on a runtime of its own and throws all of that away after a while, as when the gateway is killed.
fn begin_and_die(config: Config, intent: Intent, number: u64, after: Duration) -> Option<Evidence> {
    let life = move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let adapter = Libvirt::new(config, SystemClock::shared(), Tasks::default());
        let baseline = runtime.block_on(async {
            let baseline = adapter.baseline(&intent, key(number), by()).await.unwrap();
            let begin = adapter.begin(&intent, key(number), baseline.as_ref(), by());
            // However far it came.
            drop(tokio::time::timeout(after, begin).await);
            baseline
        });
        runtime.shutdown_background();
        baseline
    };
    std::thread::Builder::new()
        .spawn(life)
        .unwrap()
        .join()
        .unwrap()
}

/// Waits until libvirtd has taken up what those sent who died since.
async fn taken_up(libvirtd: &PrivateLibvirtd, clients: usize) {
    crate::harness::eventually("they are gone", || libvirtd.clients() <= clients);
    // What was read from them is given to a thread, which begins at once.
    tokio::time::sleep(Duration::from_millis(200)).await;
}

/// Asks until there is an answer.
pub(crate) async fn found(
    adapter: &dyn Adapter,
    intent: &Intent,
    number: u64,
    before: Option<&Evidence>,
) -> FindOutcome {
    let end = SystemClock.deadline(PATIENCE);
    loop {
        match adapter
            .find_outcome(intent, key(number), before, by())
            .await
        {
            Ok(FindOutcome::NotYet) | Err(_) => {}
            // It does not know yet that the daemon died: followed, as the gateway does.
            Ok(FindOutcome::Task(task)) => match adapter.poll(&task, by()).await {
                Ok(TaskState::Done(_)) => return FindOutcome::Done(None),
                Ok(TaskState::Failed(fault)) => return FindOutcome::Failed(fault),
                Ok(TaskState::Running(_) | TaskState::Gone | TaskState::Cancelled) | Err(_) => {}
            },
            Ok(found) => return found,
        }
        assert!(
            SystemClock.instant() < end.instant(),
            "{number}: found out in time"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[apply(test)]
async fn what_a_killed_gateway_began_is_found_as_it_is() {
    let libvirtd = PrivateLibvirtd::start();
    let (adapter, web01) = (libvirtd.adapter(), vm("web01"));
    let adapter: &dyn Adapter = adapter.as_ref();
    libvirtd.write(1);
    let backup = made(adapter, &web01, "base", 1).await;
    let mut restored = 0;
    // With every connection that the adapter has.
    found(adapter, &restore(&backup, &web01, ""), 2, None).await;
    let clients = libvirtd.clients();
    // Longer and longer, until one came far enough.
    for (life, wait) in (0..).zip([0_u64, 20, 100, 300, 900, 3000, 9000, 27000]) {
        if restored > 0 && life > 3 {
            break;
        }
        libvirtd.write(2);
        let number = 100 + life;
        let intent = restore(&backup, &web01, "");
        let wait = Duration::from_millis(wait);
        let before = begin_and_die(libvirtd.config(), intent.clone(), number, wait);
        taken_up(&libvirtd, clients).await;
        let found = found(adapter, &intent, number, before.as_ref()).await;
        let content = libvirtd.read("web01.qcow2");
        match found {
            FindOutcome::Done(_) => {
                assert_eq!(content, 1, "life {life}: done means put back");
                restored += 1;
            }
            FindOutcome::NotBegun => assert_eq!(content, 2, "life {life}: nothing was done"),
            FindOutcome::VmChanged
            | FindOutcome::HalfDone(_)
            | FindOutcome::Task(_)
            | FindOutcome::Failed(_)
            | FindOutcome::NotYet
            | FindOutcome::Unknowable => {
                panic!("life {life}: {found:?}")
            }
        }
        assert_eq!(libvirtd.state("web01"), "running", "life {life}: it runs");

        let number = 200 + life;
        let intent = create(adapter, &web01, &format!("life {life}"), number);
        let before = begin_and_die(libvirtd.config(), intent.clone(), number, wait);
        taken_up(&libvirtd, clients).await;
        let found = self::found(adapter, &intent, number, before.as_ref()).await;
        let read = adapter.read_backup(&intent.target, by()).await;
        match found {
            FindOutcome::Done(_) => {
                assert!(read.is_ok(), "life {life}: done means there: {read:?}");
            }
            FindOutcome::NotBegun => assert!(read.is_err(), "life {life}: not there: {read:?}"),
            FindOutcome::VmChanged
            | FindOutcome::HalfDone(_)
            | FindOutcome::Task(_)
            | FindOutcome::Failed(_)
            | FindOutcome::NotYet
            | FindOutcome::Unknowable => {
                panic!("life {life}: {found:?}")
            }
        }
    }
    assert!(
        restored > 0,
        "at least one restore was begun before the end"
    );
}

#[apply(test)]
async fn a_killed_libvirtd_makes_no_untrue_answers() {
    let libvirtd = PrivateLibvirtd::start();
    let (adapter, web01) = (libvirtd.adapter(), vm("web01"));
    let adapter: &dyn Adapter = adapter.as_ref();
    libvirtd.write(1);
    let backup = made(adapter, &web01, "base", 1).await;
    libvirtd.kill_daemon();
    let error = adapter
        .read_backup(&create(adapter, &web01, "x", 1).target, by())
        .await
        .unwrap_err();
    assert_eq!(error.fault.kind, FaultKind::Unavailable, "{error:?}");
    assert_eq!(error.effect, Effect::None, "nothing was sent");
    libvirtd.start_daemon();
    let end = by();
    while adapter.health(by()).await.is_err() && SystemClock.instant() < end.instant() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let target = create(adapter, &web01, "x", 1).target;
    assert_eq!(
        adapter.read_backup(&target, by()).await.unwrap(),
        backup,
        "connected again"
    );

    for (life, wait) in (0..).zip([5_u64, 100, 400, 800]) {
        if libvirtd.state("web01") != "running" {
            libvirtd.virsh(&["destroy", "web01"]);
            libvirtd.virsh(&["start", "web01"]);
        }
        libvirtd.write(2);
        let number = 100 + life;
        let intent = if life % 2 == 0 {
            create(adapter, &web01, &format!("life {life}"), number)
        } else {
            restore(&backup, &web01, "")
        };
        let before = adapter.baseline(&intent, key(number), by()).await.unwrap();
        let kill = async {
            tokio::time::sleep(Duration::from_millis(wait)).await;
            libvirtd.kill_daemon();
            libvirtd.start_daemon();
        };
        let begin = adapter.begin(&intent, key(number), before.as_ref(), by());
        let (begun, ()) = tokio::join!(begin, kill);
        let found = match begun {
            Err(error) => {
                assert_eq!(error.effect, Effect::None, "life {life}: {error:?}");
                FindOutcome::NotBegun
            }
            Ok(_) => found(adapter, &intent, number, before.as_ref()).await,
        };
        check_outcome(&libvirtd, adapter, &intent, &found, life).await;
        if libvirtd.state("web01") == "shut off" {
            libvirtd.virsh(&["start", "web01"]);
        }
    }
}

/// Holds what was found against what is there.
async fn check_outcome(
    libvirtd: &PrivateLibvirtd,
    adapter: &dyn Adapter,
    intent: &Intent,
    found: &FindOutcome,
    life: u64,
) {
    let is_create = matches!(intent.change, Change::Create(_));
    match (found, is_create) {
        (FindOutcome::Done(_), true) => {
            let read = adapter.read_backup(&intent.target, by()).await;
            assert!(read.is_ok(), "life {life}: {read:?}");
        }
        (FindOutcome::NotBegun, true) => {
            let read = adapter.read_backup(&intent.target, by()).await;
            assert!(read.is_err(), "life {life}: {read:?}");
            assert_ne!(
                libvirtd.state("web01"),
                "shut off",
                "life {life}: nothing was done"
            );
        }
        (FindOutcome::Done(_), false) => {
            assert_eq!(libvirtd.read("web01.qcow2"), 1, "life {life}: put back");
        }
        (FindOutcome::NotBegun, false) => {
            assert_eq!(
                libvirtd.read("web01.qcow2"),
                2,
                "life {life}: nothing was done"
            );
            assert_eq!(
                libvirtd.state("web01"),
                "running",
                "life {life}: nothing was done"
            );
        }
        // Both admit that something went wrong, which an operator can see.
        (FindOutcome::Failed(fault), _) => {
            let id = intent.target.backup.as_str();
            let is_stopped = libvirtd.state("web01") != "running";
            let is_made = is_create && libvirtd.monitor("web01", "info snapshots").contains(id);
            // The daemon died before the call was sent.
            let is_unchanged = fault.text.contains("Nothing was changed.");
            assert!(
                is_stopped || is_made || is_unchanged,
                "life {life}: {found:?}"
            );
            if is_unchanged {
                assert!(!is_stopped && !is_made, "life {life}: {found:?}");
                assert_eq!(libvirtd.read("web01.qcow2"), 2, "life {life}: {found:?}");
            }
        }
        (FindOutcome::Unknowable, _) => assert!(!is_create, "life {life}: a create can be known"),
        (
            FindOutcome::VmChanged
            | FindOutcome::HalfDone(_)
            | FindOutcome::Task(_)
            | FindOutcome::NotYet,
            _,
        ) => {
            panic!("life {life}: {found:?}")
        }
    }
}

#[apply(test)]
async fn a_killed_qemu_fails_its_operation_and_the_next_ones_work() {
    let libvirtd = PrivateLibvirtd::start();
    let (adapter, web01) = (libvirtd.adapter(), vm("web01"));
    let adapter: &dyn Adapter = adapter.as_ref();
    for (life, moment) in (1..).zip(["in the middle", "at once", "a little later"]) {
        let intent = create(adapter, &web01, &format!("life {life}"), life);
        let id = intent.target.backup.as_str();
        let is_middle = moment == "in the middle";
        if is_middle {
            // Nothing is made before it is killed.
            libvirtd.signal("web01", "STOP");
        }
        let kill = async {
            match moment {
                "in the middle" => {
                    while !libvirtd.lists("web01", id) {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                }
                "at once" => {}
                _later => tokio::time::sleep(Duration::from_millis(30)).await,
            }
            libvirtd.signal("web01", "KILL");
        };
        let (outcome, ()) = tokio::join!(run(adapter, &intent, life), kill);
        let read = adapter.read_backup(&intent.target, by()).await;
        assert_eq!(
            outcome.is_ok(),
            read.is_ok(),
            "{moment}: {outcome:?} {read:?}"
        );
        assert!(!is_middle || outcome.is_err(), "{moment}: {outcome:?}");
        crate::harness::eventually("libvirt notices", || libvirtd.state("web01") == "shut off");
        let stopped = adapter.read_vm(&web01, by()).await.unwrap();
        assert_eq!(stopped.run_state, Some(RunState::Stopped), "{moment}");
        libvirtd.virsh(&["start", "web01"]);
        crate::harness::eventually("it boots", || libvirtd.counter("web01") > 0);
    }
    let backup = made(adapter, &web01, "afterwards", 10).await;
    assert_eq!(
        run(adapter, &restore(&backup, &web01, ""), 11).await,
        Ok(()),
        "and restored"
    );
}
