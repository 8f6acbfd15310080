//! The kills of the suite: a whole gateway without sockets (gate, operations, store) over each adapter is ended between
//! any two steps of a change, and the next one must report the truth about it.
//!
//! A step is a call to the adapter or a durable write; both lie between the moments counted here: right before a call
//! is made, and right after, before its answer is heard. Kills within a call are each adapter's own tests'.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::Method;
use snapgate::adapters::adapter::*;
use snapgate::model::*;
use snapgate::runtime::Clock;
use snapgate::runtime::SystemClock;

use crate::conformance::AdapterFixture;
use crate::conformance::mortal_gateway::DUE;
use crate::conformance::mortal_gateway::KillSwitch;
use crate::conformance::mortal_gateway::MortalGateway;

/// More moments than a change can have here: a change that has more never ends.
const MOMENTS_MAX: usize = 100;

/// How often the backup that a change is about is asked for.
const PREPARATIONS_MAX: u32 = 3;

/// What is there and what the VM holds, before or after a change.
fn was_done(fixture: &dyn AdapterFixture, life: &MortalGateway, verb: Verb, path: &str) -> bool {
    let found = life.send(&Method::GET, path);
    let status = found.response.status().as_u16();
    match verb {
        Verb::Create => {
            assert!(status == 200 || status == 404, "there or not: {found:?}");
            // What is left of one that was cut short is shown, so that it can be removed, and said to be no good.
            let text = String::from_utf8_lossy(found.response.body()).into_owned();
            status == 200 && !text.contains("\"state\":\"ERROR\"")
        }
        Verb::Delete => {
            assert!(status == 200 || status == 404, "there or not: {found:?}");
            status == 404
        }
        Verb::Update => {
            let text = String::from_utf8_lossy(found.response.body()).into_owned();
            assert_eq!(status, 200, "still there: {text}");
            text.contains("\"tags\":[\"new\"]")
        }
        Verb::Restore => {
            assert_eq!(status, 200, "still there: {found:?}");
            match fixture.content() {
                1 => true,
                2 => false,
                other => panic!("neither before nor after: {other}"),
            }
        }
    }
}

/// Kills the gateway at this moment of one change and judges what the next one reports. Says which moment it was, or
/// `None` when the change has no such moment, and what is untrue.
pub(crate) fn killed_at(
    fixture: &dyn AdapterFixture,
    folder: &Path,
    verb: Verb,
    moment: usize,
) -> (Option<&'static str>, Result<(), String>) {
    let kill_switch = KillSwitch::after(fixture.kill_moments(), moment);
    let verdict = killed_by(fixture, folder, verb, moment, &kill_switch);
    (*kill_switch.dead.borrow(), verdict)
}

/// Makes a backup and returns its path. No gateway is killed here, but LXD forgets what it made five seconds after the end: a
/// gateway that is not given a turn for so long reports that, and is asked for another one.
fn prepared(fixture: &dyn AdapterFixture, life: &MortalGateway, name: &str) -> String {
    let backups = format!("/vms/{}/backups", fixture.vm().as_str());
    for number in 0..PREPARATIONS_MAX {
        let body = format!("{{\"name\":\"{name}-{number}\"}}");
        let made = life.change(&Method::POST, &backups, &body, &KillSwitch::never());
        let made = life.end(made);
        if made.phase == Phase::Succeeded {
            return format!("{backups}/{}", made.target().backup.as_str());
        }
        assert_eq!(made.phase, Phase::Failed, "{name}: prepared: {made:?}");
        say(&format!(
            "conformance: {name} prepared anew: {:?}\n",
            made.fault
        ));
    }
    panic!("{name}: no backup was made")
}

fn killed_by(
    fixture: &dyn AdapterFixture,
    folder: &Path,
    verb: Verb,
    number: usize,
    kill_switch: &Arc<KillSwitch>,
) -> Result<(), String> {
    let (vm, name) = (fixture.vm(), fixture.name());
    let backups = format!("/vms/{}/backups", vm.as_str());
    fixture.write(1);
    let never = KillSwitch::never();
    let first = MortalGateway::begin(folder, fixture, &never);
    let path = prepared(fixture, &first, &format!("{}-{number}", verb.as_str()));
    first.stop();
    fixture.write(2);

    let second = MortalGateway::begin(folder, fixture, kill_switch);
    let killed = format!("{{\"name\":\"killed-{number}\"}}");
    let restore = format!("{path}/restore");
    let (method, place, body) = match verb {
        Verb::Create => (Method::POST, &backups, killed.as_str()),
        Verb::Update => (Method::PUT, &path, "{\"tags\":[\"new\"]}"),
        Verb::Delete => (Method::DELETE, &path, ""),
        Verb::Restore => (Method::POST, &restore, ""),
    };
    let seq = second.change(&method, place, body, kill_switch);
    let died = second.dies(seq, kill_switch, fixture);
    second.kill();
    fixture.killed();
    let what = format!(
        "{name}: {} killed {}",
        verb.as_str(),
        died.unwrap_or("never")
    );

    // Carried out before the kill: a second run takes this away.
    let marked = verb == Verb::Restore && fixture.found() == Some(1);
    if marked {
        fixture.write(3);
    }
    let third = MortalGateway::begin(folder, fixture, &never);
    let end = third.end(seq);
    let twice = marked && fixture.found() != Some(3);
    if marked {
        fixture.write(1);
    }
    let target = match verb {
        Verb::Create => format!("{backups}/{}", end.target().backup.as_str()),
        Verb::Update | Verb::Delete | Verb::Restore => path,
    };
    // Work that is no longer followed may still run in the VM manager.
    let mut done = was_done(fixture, &third, verb, &target);
    let begun = |done: bool| {
        let executions = fixture.executions(end.key());
        executions.is_none_or(|execution| execution == u64::from(done))
    };
    let until = SystemClock.deadline(Duration::from_secs(10)).instant();
    while end.phase == Phase::Unknown && !begun(done) && SystemClock.instant() < until {
        std::thread::sleep(Duration::from_millis(20));
        done = was_done(fixture, &third, verb, &target);
    }
    let recovery = third.recovery(verb);
    third.stop();
    let is_true = match end.phase {
        Phase::Succeeded => done,
        Phase::Failed | Phase::NotExecuted => !done,
        Phase::Unknown => recovery == Some(Recovery::NoTrace),
        Phase::Accepted
        | Phase::Submitting
        | Phase::Running
        | Phase::Uncertain
        | Phase::Cancelled => false,
    };
    let executions = fixture.executions(end.key());
    let is_once = !twice && executions.is_none_or(|execution| execution == u64::from(done));
    if is_true && is_once {
        return Ok(());
    }
    Err(format!(
        "{what}: done: {done}, times: {executions:?}, twice: {twice}, Status: {end:?}"
    ))
}

/// Moments of every change: the calls themselves, and the look before it.
const DECISIVE: [&str; 4] = [
    "before baseline",
    "after baseline",
    "before begin",
    "after begin",
];

/// The moments of every change that the adapter can do, one after the other. To be called outside any runtime.
pub(crate) fn kill_at_every_moment(fixture: &dyn AdapterFixture) {
    for verb in Verb::ALL {
        kill_during(fixture, verb);
    }
}

/// The moments of one change, one after the other. To be called outside any runtime.
pub(crate) fn kill_during(fixture: &dyn AdapterFixture, verb: Verb) {
    let folder = tempfile::tempdir().unwrap();
    let name = fixture.name();
    let (mut seen, mut spared) = (Vec::new(), 0);
    let start = SystemClock.instant();
    let life = MortalGateway::begin(folder.path(), fixture, &KillSwitch::never());
    let recovery = life.recovery(verb);
    let is_able = recovery.is_some();
    // Such an update may be begun by its acceptance, without a look before it.
    let may_skip_look = verb == Verb::Update && recovery == Some(Recovery::ReplaySafe);
    life.stop();
    // One life after the other, until one is not killed any more.
    let mut alive = !is_able;
    while !alive {
        let kill_switch = KillSwitch::after(fixture.kill_moments(), seen.len());
        let verdict = killed_by(fixture, folder.path(), verb, seen.len(), &kill_switch);
        verdict.unwrap_or_else(|untrue| panic!("{untrue}"));
        let Some(moment) = *kill_switch.dead.borrow() else {
            spared = kill_switch.spared.load(Ordering::SeqCst);
            alive = true;
            continue;
        };
        seen.push(moment);
        let count = seen.len();
        assert!(count < MOMENTS_MAX, "{name}: {verb:?} never ends");
    }
    let is_skipped = |moment: &str| may_skip_look && moment.ends_with("baseline");
    let due = |moment: &&&str| is_able && fixture.kill_moments().holds(true) && !is_skipped(moment);
    for moment in DECISIVE.iter().filter(due) {
        assert!(
            seen.contains(moment),
            "{name}: {verb:?}: {moment}: {seen:?}"
        );
    }
    let (count, verb) = (seen.len(), verb.as_str());
    let took = SystemClock.instant().duration_since(start).as_secs_f64();
    say(&format!(
        "conformance: {name:<8} killed   {verb} at {count} moments, not at {spared} more, {took:.0} s\n"
    ));
}

/// One moment of one change that the VM manager alone sees: see [`AdapterFixture::is_kill_due`].
pub(crate) fn kill_when_due(fixture: &dyn AdapterFixture, verb: Verb) {
    let folder = tempfile::tempdir().unwrap();
    let kill_switch = KillSwitch::never();
    let verdict = killed_by(fixture, folder.path(), verb, 0, &kill_switch);
    assert_eq!(
        *kill_switch.dead.borrow(),
        Some(DUE),
        "{}: {verb:?}",
        fixture.name()
    );
    verdict.unwrap_or_else(|untrue| panic!("{untrue}"));
    let (name, verb) = (fixture.name(), verb.as_str());
    say(&format!("conformance: {name:<8} killed   {verb} {DUE}\n"));
}

/// Straight to the terminal: the test runner swallows what passing tests print.
fn say(text: &str) {
    std::io::Write::write_all(&mut std::io::stderr().lock(), text.as_bytes()).unwrap();
}

/// One moment of one change, by the name it must have.
pub(crate) fn kill(fixture: &dyn AdapterFixture, verb: Verb, moment: usize, named: &str) {
    let folder = tempfile::tempdir().unwrap();
    let (died, verdict) = killed_at(fixture, folder.path(), verb, moment);
    assert_eq!(died, Some(named), "{}: {verb:?}", fixture.name());
    verdict.unwrap_or_else(|untrue| panic!("{untrue}"));
    let (name, verb) = (fixture.name(), verb.as_str());
    say(&format!("conformance: {name:<8} killed   {verb} {named}\n"));
}
