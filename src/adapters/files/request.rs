//! A change as the storage knows it: its durable id, and what is left to do after it was checked.

use std::fmt;
use std::fs::File;

use crate::adapters::files::error::Problem;
use crate::adapters::files::jobs::Job;
use crate::model::Evidence;
use crate::model::Intent;
use crate::model::RequestKey;

/// Between the random part of a baseline and the fingerprint of the disks.
const SEPARATOR: char = '.';

/// A change with the id by which it is recognised on the disk.
#[derive(Clone, Debug)]
pub(super) struct Request {
    /// The change.
    pub(super) intent: Intent,
    /// The request key and what the baseline adds; letters, digits, `-` and `.` only.
    pub(super) durable_id: String,
    disks_before: Option<String>,
}

impl Request {
    /// The request of that key. The random baseline keeps apart two stores that both count from 1.
    pub(super) fn new(intent: &Intent, key: RequestKey, baseline: Option<&Evidence>) -> Self {
        let durable_id = match baseline {
            Some(evidence) => {
                let short = blake3::hash(evidence.as_str().as_bytes()).to_hex();
                format!("{key}.{short}")
            }
            None => key.to_string(),
        };
        let disks_before = baseline.and_then(|evidence| evidence.as_str().split_once(SEPARATOR));
        Self {
            intent: intent.clone(),
            durable_id,
            disks_before: disks_before.map(|(_, fingerprint)| fingerprint.to_owned()),
        }
    }

    /// What the baseline saw of the disks, if it looked at them.
    pub(super) fn disks_before(&self) -> Option<&str> {
        self.disks_before.as_deref()
    }
}

/// Files that are closed after the end of the work was reported: the last close of an image that was replaced
/// frees its room, which takes long.
pub(super) type ReplacedImages = Vec<File>;

/// What is left to do after a request was checked.
pub(super) type PendingWork = Box<dyn FnOnce(&Job) -> Result<ReplacedImages, Problem> + Send>;

/// How a request started.
pub(super) enum StartOutcome {
    /// And ended.
    Done,
    /// This is left to do.
    Pending(PendingWork),
}

impl fmt::Debug for StartOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Done => "Done",
            Self::Pending(_) => "Pending",
        })
    }
}

/// The part of a baseline about one restore.
pub(super) fn restore_evidence(random: &str, fingerprint: &str) -> String {
    format!("{random}{SEPARATOR}{fingerprint}")
}
