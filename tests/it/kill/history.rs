//! The judge of a history: knows HTTP answers and the VM manager's log, and nothing of the gateway's insides.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use serde_json::Value;

use crate::kill::simulated_vmm::End;
use crate::kill::simulated_vmm::Execution;

/// One request of a client that got its 202, under one `Idempotency-Key`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Accepted {
    /// Every `status_uri` it was given: a client without an answer asks again with the same key.
    pub(crate) status_uris: BTreeSet<String>,
    /// Every final answer about it, before and after crashes: they must all be the same.
    pub(crate) ends: Vec<Value>,
    /// How often the gateway said that it knows no such Status.
    pub(crate) missing: u64,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) accepted: u64,
    /// 202s without a Status.
    pub(crate) lost: u64,
    /// Statuses without an end.
    pub(crate) unfinished: u64,
    /// Operations that the VM manager carried out more than once.
    pub(crate) run_twice: u64,
    /// Statuses that differ from what the VM manager did, or that changed after their end.
    pub(crate) untrue: u64,
    /// What the VM manager carried out without any 202.
    pub(crate) unannounced: u64,
    pub(crate) succeeded: u64,
    pub(crate) failed: u64,
    pub(crate) not_executed: u64,
    pub(crate) unknown: u64,
    /// The first few offences in words.
    pub(crate) offences: Vec<String>,
}

impl Verdict {
    /// Everything that must not be.
    pub(crate) const fn wrong(&self) -> u64 {
        self.lost + self.unfinished + self.run_twice + self.untrue + self.unannounced
    }

    fn offence(&mut self, words: String) {
        if self.offences.len() < 10 {
            self.offences.push(words);
        }
    }
}

/// The number of the operation, out of its `status_uri`.
fn number(status_uri: &str) -> u64 {
    let number = status_uri.split("seq=").nth(1);
    number
        .and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("a status_uri has a number: {status_uri}"))
}

/// What a finished Status says about what was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    Done,
    Failed,
    NotExecuted,
    Unknown,
}

fn said(status: &Value) -> Option<Said> {
    match (status["state"].as_str()?, status["status"].as_u64()?) {
        ("SUCCESS", 200..=299) => Some(Said::Done),
        // "Nothing was changed": 503 says so for NOT_EXECUTED, and for a VM manager that could not be reached.
        ("FAILED", 503) => Some(Said::NotExecuted),
        ("FAILED", 400..=599) => Some(Said::Failed),
        ("UNKNOWN", 500) => Some(Said::Unknown),
        _ => None,
    }
}

/// Judges. `may_be_unknown` says whether the VM manager leaves no trace.
pub(crate) fn judge(accepted: &[Accepted], log: &[Execution], may_be_unknown: bool) -> Verdict {
    let mut verdict = Verdict::default();
    let mut by_key = BTreeMap::<u64, Vec<End>>::new();
    for line in log {
        by_key.entry(line.key).or_default().push(line.end);
    }
    for one in accepted {
        verdict.accepted += 1;
        if one.status_uris.len() != 1 {
            verdict.untrue += 1;
            verdict.offence(format!("one key, several Statuses: {:?}", one.status_uris));
        }
        if one.missing > 0 {
            verdict.lost += 1;
            verdict.offence(format!("no Status: {:?}", one.status_uris));
        }
        let mut ends = Vec::new();
        for uri in &one.status_uris {
            ends.append(&mut by_key.remove(&number(uri)).unwrap_or_default());
        }
        // A refusal had no effect.
        let refused = ends.contains(&End::Refused);
        ends.retain(|end| *end != End::Refused);
        if ends.len() > 1 {
            verdict.run_twice += 1;
            verdict.offence(format!("{} executions: {:?}", ends.len(), one.status_uris));
        }
        let Some(last) = one.ends.last() else {
            verdict.unfinished += u64::from(one.missing == 0);
            verdict.offence(format!("no end: {:?}", one.status_uris));
            continue;
        };
        let is_true = one.ends.iter().all(|end| end == last)
            && match said(last) {
                Some(Said::Done) => {
                    verdict.succeeded += 1;
                    ends.contains(&End::Done) && !ends.contains(&End::Failed)
                }
                Some(Said::Failed) => {
                    verdict.failed += 1;
                    ends.as_slice() == [End::Failed] || (ends.is_empty() && refused)
                }
                Some(Said::NotExecuted) => {
                    verdict.not_executed += 1;
                    ends.is_empty()
                }
                Some(Said::Unknown) => {
                    verdict.unknown += 1;
                    may_be_unknown
                }
                None => false,
            };
        if !is_true {
            verdict.untrue += 1;
            let said: BTreeSet<String> = one.ends.iter().map(Value::to_string).collect();
            verdict.offence(format!("did {ends:?}, said {said:?}"));
        }
    }
    verdict.unannounced = u64::try_from(by_key.len()).unwrap();
    if let Some((key, ends)) = by_key.first_key_value() {
        verdict.offence(format!("operation {key} did {ends:?}, without a 202"));
    }
    verdict
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[apply(test)]
    fn every_kind_of_offence_is_seen() {
        let done = json!({"state": "SUCCESS", "status": 200});
        let failed = json!({"state": "FAILED", "status": 507});
        let not = json!({"state": "FAILED", "status": 503});
        let unknown = json!({"state": "UNKNOWN", "status": 500});
        let odd = json!({"state": "RUNNING", "status": 200});
        type Row<'a> = (&'a str, &'a [&'a Value], u64, &'a [End], bool, [u64; 5]);
        // lost, unfinished, run twice, untrue, unannounced
        let rows: &[Row<'_>] = &[
            ("done", &[&done, &done], 0, &[End::Done], false, [0; 5]),
            ("failed", &[&failed], 0, &[End::Failed], false, [0; 5]),
            ("refused", &[&failed], 0, &[End::Refused], false, [0; 5]),
            ("not done", &[&not], 0, &[], false, [0; 5]),
            (
                "refused, not done",
                &[&not],
                0,
                &[End::Refused],
                false,
                [0; 5],
            ),
            ("unknown", &[&unknown], 0, &[End::Done], true, [0; 5]),
            ("lost", &[], 1, &[], false, [1, 0, 0, 0, 0]),
            (
                "lost for a while",
                &[&done],
                1,
                &[End::Done],
                false,
                [1, 0, 0, 0, 0],
            ),
            ("no end", &[], 0, &[End::Done], false, [0, 1, 0, 0, 0]),
            (
                "twice",
                &[&done],
                0,
                &[End::Done, End::Done],
                false,
                [0, 0, 1, 0, 0],
            ),
            (
                "twice, and lied",
                &[&not],
                0,
                &[End::Done, End::Done],
                false,
                [0, 0, 1, 1, 0],
            ),
            ("never done", &[&done], 0, &[], false, [0, 0, 0, 1, 0]),
            (
                "refused and yet done",
                &[&done],
                0,
                &[End::Refused],
                false,
                [0, 0, 0, 1, 0],
            ),
            (
                "failed and yet done",
                &[&done],
                0,
                &[End::Failed],
                false,
                [0, 0, 0, 1, 0],
            ),
            (
                "done and yet failed",
                &[&failed],
                0,
                &[End::Done],
                false,
                [0, 0, 0, 1, 0],
            ),
            (
                "failed at nothing",
                &[&failed],
                0,
                &[],
                false,
                [0, 0, 0, 1, 0],
            ),
            (
                "done and yet not",
                &[&not],
                0,
                &[End::Done],
                false,
                [0, 0, 0, 1, 0],
            ),
            (
                "failed and yet not",
                &[&not],
                0,
                &[End::Failed],
                false,
                [0, 0, 0, 1, 0],
            ),
            (
                "must be known",
                &[&unknown],
                0,
                &[End::Done],
                false,
                [0, 0, 0, 1, 0],
            ),
            (
                "changed its word",
                &[&unknown, &done],
                0,
                &[End::Done],
                true,
                [0, 0, 0, 1, 0],
            ),
            (
                "says nothing",
                &[&odd],
                0,
                &[End::Done],
                false,
                [0, 0, 0, 1, 0],
            ),
        ];
        for (name, ends, missing, log, may_be_unknown, expected) in rows {
            let accepted = Accepted {
                status_uris: BTreeSet::from(["/statuses?op=x&seq=5".to_owned()]),
                ends: ends.iter().map(|end| (*end).clone()).collect(),
                missing: *missing,
            };
            let log: Vec<Execution> = log.iter().map(|end| line(5, *end)).collect();
            let verdict = judge(&[accepted], &log, *may_be_unknown);
            let seen = [
                verdict.lost,
                verdict.unfinished,
                verdict.run_twice,
                verdict.untrue,
                verdict.unannounced,
            ];
            assert_eq!(seen, *expected, "{name}: {:?}", verdict.offences);
            assert_eq!(
                verdict.wrong() > 0,
                !verdict.offences.is_empty(),
                "{name}: in words"
            );
        }
    }

    #[apply(test)]
    fn unannounced_work_and_two_statuses_for_one_key_are_found() {
        let log = [line(5, End::Done), line(6, End::Done)];
        let verdict = judge(&[], &log, true);
        assert_eq!(
            (verdict.unannounced, verdict.wrong()),
            (2, 2),
            "{verdict:?}"
        );
        let accepted = Accepted {
            status_uris: BTreeSet::from(["?seq=5".to_owned(), "?seq=6".to_owned()]),
            ends: vec![json!({"state": "SUCCESS", "status": 200})],
            missing: 0,
        };
        let verdict = judge(&[accepted], &log, true);
        assert_eq!((verdict.untrue, verdict.run_twice), (1, 1), "{verdict:?}");
    }

    fn line(key: u64, end: End) -> Execution {
        Execution {
            key,
            vm: "1".to_owned(),
            backup: "456".to_owned(),
            verb: "restore".to_owned(),
            end,
        }
    }
}
