//! Checks a history of requests, answers, Statuses and executions against the promises.
//!
//! Independent of the code under test: it knows nothing of the machine, only what a client sees and what the VM manager did.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::adapters::adapter::Recovery;
use crate::model::FaultKind;
use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::Phase;
use crate::model::limits;
use crate::operations::testing::NOW;

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::operations::tests) enum Answer {
    /// 202 with this number, at this place of the history.
    Accepted(OperationSeq, usize),
    /// Refused: nothing was stored.
    Refused,
    /// The store failed for good: the process ends, and nothing is promised.
    Failed,
}

/// A request of a client.
#[derive(Clone, Debug)]
pub(in crate::operations::tests) struct ClientRequest {
    /// The sequence number that was reserved for it.
    pub seq: OperationSeq,
    pub key: Option<u64>,
    /// Its place in the history.
    pub asked: usize,
    /// `None` when the gateway was gone first.
    pub answer: Option<Answer>,
}

/// A Status that a client saw.
#[derive(Clone, Debug)]
pub(in crate::operations::tests) struct ObservedStatus {
    pub seq: OperationSeq,
    pub at: Duration,
    /// `None`: there is no such operation, it says.
    pub revision: Option<(u64, u8, Phase)>,
}

/// Work that the VM manager did, or will do.
#[derive(Clone, Debug)]
pub(in crate::operations::tests) struct Execution {
    pub seq: OperationSeq,
    pub vm: String,
    /// The backup whose version changes by it, if one does.
    pub changes: Option<String>,
    pub begins: Duration,
    pub ends: Duration,
    pub succeeds: bool,
    /// Undone without a trace before its end.
    pub dropped: Option<Duration>,
    /// When the VM manager forgets the task.
    pub forgotten: Option<Duration>,
    /// Whether the state of the VM or backup shows that it was done.
    pub visible: bool,
}

impl Execution {
    pub(in crate::operations::tests) const fn has_effect(&self) -> bool {
        self.succeeds && self.dropped.is_none()
    }
}

/// Everything that clients saw.
#[derive(Clone, Debug, Default)]
pub(in crate::operations::tests) struct History {
    pub requests: Vec<ClientRequest>,
    pub shown: Vec<ObservedStatus>,
    places: usize,
}

impl History {
    /// The next place.
    pub(in crate::operations::tests) const fn place(&mut self) -> usize {
        self.places += 1;
        self.places
    }

    /// The numbers that were given in a 202, with the place of the first one.
    pub(in crate::operations::tests) fn accepted(&self) -> BTreeMap<OperationSeq, usize> {
        let mut accepted = BTreeMap::new();
        for ask in &self.requests {
            if let Some(Answer::Accepted(seq, place)) = ask.answer {
                let first = accepted.entry(seq).or_insert(place);
                *first = place.min(*first);
            }
        }
        accepted
    }
}

/// The violations found, by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::operations::tests) struct Verdict {
    pub lost: Vec<String>,
    pub never_ended: Vec<String>,
    pub run_twice: Vec<String>,
    pub untrue: Vec<String>,
    pub out_of_order: Vec<String>,
    /// Changes made, or refused, against the precondition they were asked for with.
    pub against_condition: Vec<String>,
}

impl Verdict {
    pub(in crate::operations::tests) fn is_clean(&self) -> bool {
        *self == Self::default()
    }
}

/// Judges a history after its end, with what the store holds and what the VM manager did. `recovery` is what the VM
/// manager really is, whatever its adapter said.
pub(in crate::operations::tests) fn judge(
    history: &History,
    records: &[Operation],
    executions: &[Execution],
    recovery: Recovery,
) -> Verdict {
    let mut verdict = Verdict::default();
    let by_seq: BTreeMap<_, _> = records.iter().map(|record| (record.seq, record)).collect();
    for seq in history.accepted().into_keys() {
        if !by_seq.contains_key(&seq) {
            verdict
                .lost
                .push(format!("{seq} got its 202 and is missing"));
        }
    }
    for record in records {
        judge_end(record, executions, recovery, &mut verdict);
    }
    judge_asks(history, &by_seq, &mut verdict);
    judge_shown(history, executions, &mut verdict);
    judge_order(history, &by_seq, executions, &mut verdict);
    judge_conditions(records, executions, &mut verdict);
    verdict
}

fn judge_end(
    record: &Operation,
    executions: &[Execution],
    recovery: Recovery,
    verdict: &mut Verdict,
) {
    let seq = record.seq;
    let of_it = || executions.iter().filter(|done| done.seq == seq);
    if of_it().filter(|done| done.dropped.is_none()).count() > 1 {
        verdict.run_twice.push(format!("{seq} was run twice"));
    }
    let done = of_it().any(Execution::has_effect);
    let true_end = match record.phase {
        Phase::Succeeded => done,
        Phase::Failed | Phase::Cancelled | Phase::NotExecuted => !done,
        Phase::Unknown => recovery == Recovery::NoTrace,
        Phase::Accepted | Phase::Submitting | Phase::Running | Phase::Uncertain => {
            verdict
                .never_ended
                .push(format!("{seq} is {:?}", record.phase));
            true
        }
    };
    if !true_end {
        let what = format!("{seq} says {:?}, and done is {done}", record.phase);
        verdict.untrue.push(what);
    }
}

/// What had begun before a long absence is not begun again after it.
pub(in crate::operations::tests) fn judge_resumption(
    records: &[Operation],
    executions: &[Execution],
    absences: &[(Duration, Duration)],
    verdict: &mut Verdict,
) {
    for record in records {
        let Some(started) = record.started else {
            continue;
        };
        let started = started.since(NOW);
        for (from, to) in absences {
            let away = *to - *from;
            let begun_again = executions
                .iter()
                .any(|done| done.seq == record.seq && done.begins >= *to);
            if started <= *from && away > limits::ACCEPT_TTL && begun_again {
                let what = format!("{} was begun again after {away:?}", record.seq);
                verdict.untrue.push(what);
            }
        }
    }
}

/// Of all that were asked for with one version of a backup at most one changed it, and none was refused over a change that
/// was not made.
fn judge_conditions(records: &[Operation], executions: &[Execution], verdict: &mut Verdict) {
    let mut effective = BTreeMap::<String, OperationSeq>::new();
    for record in records
        .iter()
        .filter(|record| !record.preconditions.is_empty())
    {
        let (vm, backup) = (record.target().vm.as_str(), record.target().backup.as_str());
        let changes = |value: &&Execution| {
            value.has_effect() && value.vm == vm && value.changes.as_deref() == Some(backup)
        };
        let refused = record.fault.as_ref().map(|fault| fault.kind);
        if refused == Some(FaultKind::PreconditionFailed) {
            let others = |value: &&Execution| value.seq != record.seq;
            if !executions
                .iter()
                .filter(changes)
                .any(|execution| others(&execution))
            {
                let what = format!("{} was refused, and nothing had changed", record.seq);
                verdict.against_condition.push(what);
            }
        }
        // What has an unknown outcome may go on beside the next one, which says so.
        let done = record.phase != Phase::Unknown
            && executions
                .iter()
                .filter(changes)
                .any(|execution| execution.seq == record.seq);
        let name = format!("{vm}/{backup} {:?}", record.preconditions);
        if done && let Some(other) = effective.insert(name, record.seq) {
            let what = format!("{} and {other} were done with one tag", record.seq);
            verdict.against_condition.push(what);
        }
    }
}

/// What was refused is not stored, and a key names one operation.
fn judge_asks(
    history: &History,
    records: &BTreeMap<OperationSeq, &Operation>,
    verdict: &mut Verdict,
) {
    let mut keys: BTreeMap<u64, OperationSeq> = BTreeMap::new();
    for ask in &history.requests {
        // A number that was not used may be given again after a restart with a clock that went back.
        let its_own = history
            .requests
            .iter()
            .filter(|other| other.seq == ask.seq)
            .count()
            == 1;
        if its_own && ask.answer == Some(Answer::Refused) && records.contains_key(&ask.seq) {
            let what = format!("{} was refused and is stored", ask.seq);
            verdict.untrue.push(what);
        }
        if let (Some(key), Some(Answer::Accepted(seq, _))) = (ask.key, &ask.answer)
            && *keys.entry(key).or_insert(*seq) != *seq
        {
            verdict.run_twice.push(format!("key {key} made two"));
        }
    }
    for (name, count) in count_keys(records) {
        if count > 1 {
            verdict
                .run_twice
                .push(format!("key {name} is stored twice"));
        }
    }
}

fn count_keys(records: &BTreeMap<OperationSeq, &Operation>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for key in records
        .values()
        .filter_map(|record| record.idempotency.as_ref())
    {
        *counts.entry(key.key.as_str().to_owned()).or_insert(0) += 1;
    }
    counts
}

/// What is shown never goes back and never contradicts itself or the VM manager.
fn judge_shown(history: &History, executions: &[Execution], verdict: &mut Verdict) {
    let mut last: BTreeMap<OperationSeq, (u64, u8, Phase)> = BTreeMap::new();
    for shown in &history.shown {
        let seq = shown.seq;
        let Some(new) = shown.revision else {
            verdict.lost.push(format!("{seq} was not found"));
            continue;
        };
        let old = *last.entry(seq).or_insert(new);
        let changed_at_the_end = old.2.is_final() && old != new;
        if new.0 < old.0 || new.1 < old.1 || changed_at_the_end || (new.0 == old.0 && new != old) {
            let what = format!("{seq} went from {old:?} to {new:?}");
            verdict.untrue.push(what);
        }
        let done_by_then =
            |value: &Execution| value.seq == seq && value.has_effect() && value.ends <= shown.at;
        if new.2 == Phase::Succeeded && !executions.iter().any(done_by_then) {
            verdict.untrue.push(format!("{seq} succeeded too early"));
        }
        last.insert(seq, new);
    }
}

/// On one VM nothing overlaps, and what was accepted before another one was asked for begins before it.
fn judge_order(
    history: &History,
    records: &BTreeMap<OperationSeq, &Operation>,
    executions: &[Execution],
    verdict: &mut Verdict,
) {
    let unknown = |seq| {
        records
            .get(seq)
            .is_some_and(|record| record.phase == Phase::Unknown)
    };
    let first_asked = |seq| {
        history
            .requests
            .iter()
            .filter(|ask| ask.seq == seq)
            .map(|ask| ask.asked)
            .min()
    };
    let accepted = history.accepted();
    for one in executions
        .iter()
        .filter(|execution| !unknown(&execution.seq))
    {
        for other in executions
            .iter()
            .filter(|execution| execution.vm == one.vm && execution.seq != one.seq)
        {
            let end = one.dropped.unwrap_or(one.ends);
            if one.begins <= other.begins && other.begins < end && one.begins < end {
                let what = format!("{} began while {} ran", other.seq, one.seq);
                verdict.out_of_order.push(what);
            }
            let (before, after) = (accepted.get(&one.seq), first_asked(other.seq));
            if let (Some(before), Some(after)) = (before, after)
                && *before < after
                && other.begins < one.begins
                && !unknown(&other.seq)
            {
                let what = format!("{} overtook {}", other.seq, one.seq);
                verdict.out_of_order.push(what);
            }
        }
    }
}
