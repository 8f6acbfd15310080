use std::time::Duration;
use std::time::Instant;

use super::*;
use crate::adapters::adapter::Effect;
use crate::adapters::adapter::Retry;
use crate::adapters::sim;
use crate::adapters::sim::Sim;
use crate::model::BackupId;
use crate::model::Change;
use crate::model::Deadline;
use crate::model::FaultKind;
use crate::model::Intent;
use crate::model::OperationSeq;
use crate::model::RequestKey;
use crate::model::RestoreOptions;
use crate::model::Target;
use crate::model::Timestamp;
use crate::model::VmId;
use crate::runtime::Tasks;

/// The clock of the paused runtime.
#[derive(Debug)]
struct Paused;

impl Clock for Paused {
    fn now(&self) -> Timestamp {
        Timestamp::default()
    }

    fn instant(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }

    fn since_boot(&self) -> Duration {
        Duration::ZERO
    }
}

struct Bed {
    adapter: Arc<dyn Adapter>,
    script: Script,
    control: sim::SimControl,
    metrics: Arc<Metrics>,
    intent: Intent,
    by: Deadline,
}

async fn bed(config: Config) -> Bed {
    let vm = VmId::new("1").unwrap();
    let world = sim::Config {
        vms: vec![vm.clone()],
        ..sim::Config::default()
    };
    let made = Sim::new(&world, Arc::new(Paused), Tasks::default());
    let (control, script) = (made.control(), Script::default());
    let metrics = Arc::new(Metrics::new().unwrap());
    let by = Paused.deadline(Duration::from_secs(10));
    let target = Target {
        vm,
        backup: BackupId::new("456").unwrap(),
    };
    let identity = Some(made.read_backup(&target, by).await.unwrap().identity);
    let change = Change::Restore(RestoreOptions::default());
    let chaos = Arc::new(Chaos::new(Arc::new(made), script.clone()));
    let name = BackendName::new("b").unwrap();
    let adapter = wrap(name, chaos, &config, Arc::new(Paused), Arc::clone(&metrics));
    Bed {
        adapter,
        script,
        control,
        metrics,
        intent: Intent {
            target,
            identity,
            change,
        },
        by,
    }
}

fn key() -> RequestKey {
    RequestKey(OperationSeq::new(1).unwrap())
}

fn passing(kind: FaultKind) -> InjectedFault {
    InjectedFault::Fail(kind, Effect::None, Retry::Temporary)
}

#[tokio::test(start_paused = true)]
async fn reads_are_repeated_for_passing_reasons_only() {
    let rows = [
        ("passes", vec![passing(FaultKind::Unavailable); 2], None),
        (
            "does not pass",
            vec![passing(FaultKind::Unavailable); 3],
            Some(Retry::Exhausted),
        ),
        (
            "cannot pass",
            vec![InjectedFault::Fail(
                FaultKind::NoSuchBackup,
                Effect::None,
                Retry::Permanent,
            )],
            Some(Retry::Permanent),
        ),
        ("an answer lost", vec![InjectedFault::LoseAnswer], None),
    ];
    for (name, troubles, expected) in rows {
        let bed = bed(Config::default()).await;
        for trouble in troubles {
            bed.script.add(Call::Read, trouble);
        }
        let result = bed.adapter.read_backup(&bed.intent.target, bed.by).await;
        assert_eq!(result.err().map(|error| error.retry), expected, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_begin_is_made_once_and_its_end_is_distinguished() {
    let rows = [
        (
            "not sent",
            passing(FaultKind::Unavailable),
            FaultKind::Unavailable,
            Effect::None,
            0,
        ),
        (
            "answer lost",
            InjectedFault::LoseAnswer,
            FaultKind::TimedOut,
            Effect::Possible,
            1,
        ),
        (
            "hangs",
            InjectedFault::Hang,
            FaultKind::TimedOut,
            Effect::Possible,
            0,
        ),
        (
            "hangs after",
            InjectedFault::HangAfter,
            FaultKind::TimedOut,
            Effect::Possible,
            1,
        ),
    ];
    for (name, trouble, kind, effect, executions) in rows {
        let config = Config {
            timeout: Duration::from_secs(3),
            ..Config::default()
        };
        let bed = bed(config).await;
        bed.script.add(Call::Begin, trouble);
        let begun = Paused.instant();
        let error = bed
            .adapter
            .begin(&bed.intent, key(), None, bed.by)
            .await
            .unwrap_err();
        assert_eq!((error.fault.kind, error.effect), (kind, effect), "{name}");
        assert_eq!(
            bed.control.executions(key()),
            executions,
            "{name}: executions"
        );
        assert!(
            Paused.instant() - begun <= Duration::from_secs(3),
            "{name}: within the timeout"
        );
        let text = String::from_utf8(bed.metrics.encode_text()).unwrap();
        let kind = kind.as_str();
        let line = format!(
            "snapgate_backend_calls_total{{backend=\"b\",call=\"begin\",result=\"{kind}\"}} 1"
        );
        assert!(text.contains(&line), "{name}: {text}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_earlier_of_timeout_and_deadline_counts() {
    let config = Config {
        retries: 0,
        ..Config::default()
    };
    let bed = bed(config).await;
    bed.script.add(Call::Read, InjectedFault::Hang);
    let begun = Paused.instant();
    let error = bed
        .adapter
        .read_backup(&bed.intent.target, bed.by)
        .await
        .unwrap_err();
    assert_eq!(
        (error.fault.kind, error.effect),
        (FaultKind::TimedOut, Effect::None),
        "a read"
    );
    assert_eq!(
        Paused.instant() - begun,
        Duration::from_secs(10),
        "the caller's deadline"
    );
    let late = bed
        .adapter
        .begin(&bed.intent, key(), None, bed.by)
        .await
        .unwrap_err();
    assert_eq!(late.effect, Effect::None, "no time left: not sent");
    assert_eq!(bed.control.executions(key()), 0, "not sent");
}

#[tokio::test(start_paused = true)]
async fn more_reads_than_allowed_wait_until_their_deadline() {
    let config = Config {
        reads: 1,
        retries: 0,
        ..Config::default()
    };
    let bed = bed(config).await;
    bed.script
        .add(Call::Read, InjectedFault::Delay(Duration::from_secs(5)));
    let soon = Paused.deadline(Duration::from_secs(1));
    let (first, second, poll) = tokio::join!(
        bed.adapter.read_backup(&bed.intent.target, bed.by),
        bed.adapter.read_backup(&bed.intent.target, soon),
        bed.adapter.find_outcome(&bed.intent, key(), None, soon),
    );
    assert!(first.is_ok(), "has its place: {first:?}");
    assert_eq!(
        second.unwrap_err().fault.kind,
        FaultKind::Unavailable,
        "no place in time"
    );
    assert!(
        poll.is_ok(),
        "operations do not wait behind callers: {poll:?}"
    );
    let after = bed.adapter.read_backup(&bed.intent.target, bed.by).await;
    assert!(after.is_ok(), "the place was given back: {after:?}");
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_is_down_is_left_alone_and_found_again() {
    let config = Config {
        retries: 0,
        breaker_failures: 2,
        ..Config::default()
    };
    let bed = bed(config).await;
    bed.script
        .repeat(Call::Read, passing(FaultKind::Unavailable), 2);
    for _ in 0..2 {
        let error = bed
            .adapter
            .read_backup(&bed.intent.target, bed.by)
            .await
            .unwrap_err();
        assert_eq!(error.fault.text, "Injected failure.", "the backend itself");
    }
    let error = bed
        .adapter
        .begin(&bed.intent, key(), None, bed.by)
        .await
        .unwrap_err();
    assert_eq!(
        (error.effect, error.retry),
        (Effect::None, Retry::Temporary),
        "open"
    );
    assert_eq!(bed.control.executions(key()), 0, "not sent");
    tokio::time::sleep(Duration::from_secs(5)).await;
    let result = bed.adapter.read_backup(&bed.intent.target, bed.by).await;
    assert!(result.is_ok(), "tried again: {result:?}");
}

#[tokio::test(start_paused = true)]
async fn the_layers_keep_what_an_adapter_says_of_a_failure() {
    for kind in FaultKind::ALL {
        for effect in [Effect::None, Effect::Possible] {
            let bed = bed(Config::default()).await;
            let trouble = InjectedFault::Fail(kind, effect, Retry::Permanent);
            bed.script.add(Call::Begin, trouble);
            let begun = bed.adapter.begin(&bed.intent, key(), None, bed.by).await;
            let error = begun.unwrap_err();
            let seen = (error.fault.kind, error.effect, error.fault.text.as_str());
            assert_eq!(seen, (kind, effect, "Injected failure."), "{error:?}");
        }
    }
}

/// The names of the functions in the block that begins with this line.
fn functions_of(source: &str, block: &str) -> Vec<String> {
    let (_, rest) = source.split_once(block).expect(block);
    let (body, _) = rest.split_once("\n}\n").expect("the end of the block");
    let lines = body
        .lines()
        .filter(|line| line.starts_with("    ") && !line.starts_with("     "));
    let names =
        lines.filter_map(|line| line.trim().trim_start_matches("async ").strip_prefix("fn "));
    let mut names: Vec<_> = names
        .map(|name| name.split(['(', '<']).next().unwrap().to_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn every_wrapper_states_every_method() {
    let methods = functions_of(include_str!("../adapter.rs"), "\npub trait Adapter:");
    assert!(methods.len() >= 14, "read from the source: {methods:?}");
    for (name, source) in [
        ("Layered", include_str!("layered.rs")),
        ("Annotate", include_str!("annotate.rs")),
        ("Chaos", include_str!("chaos.rs")),
        ("Leased", include_str!("leased.rs")),
    ] {
        let stated = functions_of(source, &format!("\nimpl Adapter for {name} {{"));
        assert_eq!(stated, methods, "{name} forwards or answers every method");
    }
}
