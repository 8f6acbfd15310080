//! What a client reads from the answers of a gateway. Members that it does not know are kept in `json`, and passed on.

use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde_json::Value;

use crate::client::ClientError;

/// What became of a change.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Status {
    /// The kind of operation.
    pub op: String,
    /// 0 to 100; 100 exactly when it is over.
    pub progress: u8,
    /// The backup it is about.
    pub target_uri: String,
    /// This Status.
    pub status_uri: String,
    /// The number of the operation; servers of the 2009 page send none.
    #[serde(default)]
    pub seq: Option<String>,
    /// The outcome as an HTTP status, at 100 only.
    #[serde(default)]
    pub status: Option<u16>,
    /// The outcome as a sentence, at 100 only.
    #[serde(default)]
    pub message: Option<String>,
    /// The state as a word; servers of the 2009 page send none.
    #[serde(default)]
    pub state: Option<String>,
    /// When it was accepted.
    #[serde(default)]
    pub created: Option<String>,
    /// The whole of it, as it came.
    #[serde(skip)]
    pub json: Value,
}

/// How an operation ended, or that it has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It has not ended.
    Unfinished,
    /// It did what was asked for.
    Succeeded,
    /// It failed, or was cancelled.
    Failed,
    /// The gateway could not determine it.
    Unknown,
}

impl Status {
    /// From an answer or an event.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] when it is no Status.
    pub fn parse(text: &[u8]) -> Result<Self, ClientError> {
        let json = parse_json(text)?;
        Self::from_json(json)
    }

    /// From a member of a list.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] when it is no Status.
    pub fn from_json(json: Value) -> Result<Self, ClientError> {
        let mut status = Self::deserialize(&json).map_err(|error| unlike(&error))?;
        status.json = json;
        Ok(status)
    }

    /// Whether and how it ended. Later versions may have other words for the state, so the number decides.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        if self.progress < 100 {
            return Outcome::Unfinished;
        }
        match (self.state.as_deref(), self.status) {
            (Some("UNKNOWN"), _) => Outcome::Unknown,
            (_, Some(200..=299)) => Outcome::Succeeded,
            (_, Some(_)) => Outcome::Failed,
            // Finished without an outcome: no version of the interface answers so.
            (_, None) => Outcome::Unknown,
        }
    }

    /// The ids of VM and backup in `target_uri`, decoded.
    #[must_use]
    pub fn target(&self) -> Option<(String, String)> {
        ids_in(&self.target_uri)
    }
}

/// A backup.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Backup {
    /// Unique in its VM.
    pub name: String,
    /// The backup itself.
    pub uri: String,
    /// When it was made.
    #[serde(default)]
    pub created: Option<String>,
    /// Whether it can be used.
    #[serde(default)]
    pub state: Option<String>,
    /// How much of the VM it holds.
    #[serde(default, rename = "type")]
    pub kind: Option<String>,
    /// Bytes.
    #[serde(default)]
    pub size: Option<u64>,
    /// Free words.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Whether it is protected from being deleted.
    #[serde(default)]
    pub protected: bool,
    /// The id, from `uri`.
    #[serde(skip)]
    pub id: String,
    /// The whole of it, as it came.
    #[serde(skip)]
    pub json: Value,
}

impl Backup {
    /// From an answer or a member of a list.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] when it is no backup.
    pub fn from_json(json: Value) -> Result<Self, ClientError> {
        let mut backup = Self::deserialize(&json).map_err(|error| unlike(&error))?;
        let ids = ids_in(&backup.uri);
        let (_, id) = ids.ok_or_else(|| {
            ClientError::Invalid("the uri of a backup does not end with its id".to_owned())
        })?;
        backup.id = id;
        backup.json = json;
        Ok(backup)
    }
}

/// A VM in a list.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct ListedVm {
    /// The id, as in paths.
    pub id: String,
    /// The name.
    pub name: String,
    /// Whether it runs.
    #[serde(default)]
    pub state: Option<String>,
    /// The newest backup.
    #[serde(default)]
    pub last_backup: Option<LastBackup>,
    /// The whole of it, as it came.
    #[serde(skip)]
    pub json: Value,
}

/// The newest backup of a VM.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct LastBackup {
    /// When it was made.
    pub created: String,
}

/// A VM.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Vm {
    /// The name.
    pub name: String,
    /// Whether it runs.
    #[serde(default)]
    pub run_status: Option<String>,
    /// What a person wrote about it.
    #[serde(default)]
    pub description: Option<String>,
    /// The whole of it, as it came.
    #[serde(skip)]
    pub json: Value,
}

/// What a restore or a delete would do.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Plan {
    /// The VM.
    pub vm: PlannedVm,
    /// The backup.
    pub backup: PlannedBackup,
    /// The disks that get the state of the backup.
    #[serde(default)]
    pub overwrites: Vec<PlannedDisk>,
    /// What goes with it.
    #[serde(default)]
    pub loses: Losses,
    /// The disks that stay as they are.
    #[serde(default)]
    pub leaves: Vec<String>,
    /// Whether the VM runs afterwards.
    #[serde(default)]
    pub after: Option<String>,
    /// The room it needs.
    #[serde(default)]
    pub needs: Option<Needs>,
    /// How long it may take.
    #[serde(default)]
    pub duration: Option<PlannedDuration>,
    /// What would refuse it now.
    #[serde(default)]
    pub refused: Vec<PlanRefusal>,
    /// What is worth knowing.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// What the VM manager cannot say beforehand.
    #[serde(default)]
    pub unknown: Vec<String>,
    /// For `If-Plan`.
    pub fingerprint: String,
    /// The whole of it, as it came.
    #[serde(skip)]
    pub json: Value,
}

/// The VM of a plan.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct PlannedVm {
    /// The id.
    pub id: String,
    /// The name.
    pub name: String,
    /// Whether it runs.
    #[serde(default)]
    pub state: Option<String>,
}

/// A backup that a plan is about.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct PlannedBackup {
    /// The id.
    pub id: String,
    /// The name.
    pub name: String,
    /// When it was made.
    #[serde(default)]
    pub created: String,
}

/// A disk of a plan.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct PlannedDisk {
    /// Its name.
    pub disk: String,
    /// Bytes.
    #[serde(default)]
    pub size: Option<u64>,
}

/// What goes with an operation.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Losses {
    /// What was written to the VM since then.
    #[serde(default)]
    pub since: Option<String>,
    /// Backups that are deleted with it.
    #[serde(default)]
    pub backups: Vec<PlannedBackup>,
}

/// The room that an operation needs.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Needs {
    /// Bytes it needs.
    #[serde(default)]
    pub bytes: Option<u64>,
    /// Bytes there are.
    #[serde(default)]
    pub free: Option<u64>,
}

/// How long an operation may take.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct PlannedDuration {
    /// About so many seconds.
    pub seconds: u64,
    /// What that is known from.
    pub basis: String,
}

/// What would refuse an operation.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct PlanRefusal {
    /// The stable code.
    pub code: String,
    /// The sentence.
    pub text: String,
}

/// Implements reading of types that keep the whole answer.
macro_rules! keeps_json {
    ($($kind:ident),*) => {$(
        impl $kind {
            /// From an answer or a member of a list.
            ///
            /// # Errors
            /// [`ClientError::Invalid`] when it is something else.
            pub fn from_json(json: Value) -> Result<Self, ClientError> {
                let mut found = Self::deserialize(&json).map_err(|error| unlike(&error))?;
                found.json = json;
                Ok(found)
            }
        }
    )*};
}

keeps_json!(ListedVm, Vm, Plan);

/// One action in the answer about permissions.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Permission {
    /// The action.
    pub action: String,
    /// Whether the caller may do it.
    pub allowed: bool,
    /// Why not, and what to ask for.
    #[serde(default)]
    pub reason: Option<String>,
}

/// Any JSON.
///
/// # Errors
/// [`ClientError::Invalid`] when it is none.
pub(super) fn parse_json(text: &[u8]) -> Result<Value, ClientError> {
    serde_json::from_slice(text).map_err(|error| unlike(&error))
}

fn unlike(error: &serde_json::Error) -> ClientError {
    ClientError::Invalid(error.to_string())
}

/// The ids of VM and backup in a link to a backup.
fn ids_in(link: &str) -> Option<(String, String)> {
    let mut segments = link.rsplit('/');
    let backup = segments.next()?;
    let backups = segments.next()?;
    let vm = segments.next()?;
    let decoded = |text: &str| {
        let text = percent_decode_str(text).decode_utf8().ok()?;
        (!text.is_empty()).then(|| text.into_owned())
    };
    (backups == "backups").then_some(())?;
    Some((decoded(vm)?, decoded(backup)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(progress: u8, rest: &str) -> Status {
        let text = format!(
            r#"{{"op":"restore-Backup","progress":{progress},"target_uri":"/vms/a%2Fb/backups/456","status_uri":"/statuses?seq=1"{rest}}}"#
        );
        Status::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn the_outcome_is_known_at_100_alone() {
        let rows = [
            (status(50, r#","state":"RUNNING""#), Outcome::Unfinished),
            // A word of a later version that is not over.
            (status(50, r#","state":"PAUSED""#), Outcome::Unfinished),
            (
                status(100, r#","state":"SUCCESS","status":200"#),
                Outcome::Succeeded,
            ),
            (status(100, r#","status":201"#), Outcome::Succeeded),
            (
                status(100, r#","state":"FAILED","status":507"#),
                Outcome::Failed,
            ),
            (
                status(100, r#","state":"CANCELLED","status":409"#),
                Outcome::Failed,
            ),
            (
                status(100, r#","state":"UNKNOWN","status":500"#),
                Outcome::Unknown,
            ),
            (status(100, ""), Outcome::Unknown),
        ];
        for (status, expected) in rows {
            assert_eq!(status.outcome(), expected, "{}", status.json);
        }
    }

    #[test]
    fn ids_are_read_from_links() {
        let target = status(0, "").target();
        assert_eq!(
            target,
            Some(("a/b".to_owned(), "456".to_owned())),
            "decoded"
        );
        for link in ["/vms/1", "/vms/1/backups/", "456", "/vms/1/backup/2"] {
            assert_eq!(ids_in(link), None, "{link}");
        }
        let json =
            serde_json::json!({"name": "n", "uri": "https://a/b/vms/1/backups/x%20y", "later": 1});
        let backup = Backup::from_json(json).unwrap();
        assert_eq!(backup.id, "x y", "decoded");
        assert_eq!(backup.json["later"], 1, "what is not known is kept");
    }

    #[test]
    fn what_is_no_status_is_refused() {
        assert!(Status::parse(b"<html>").is_err(), "no JSON");
        assert!(Status::parse(b"{\"statuses\":[]}").is_err(), "a list");
    }
}
