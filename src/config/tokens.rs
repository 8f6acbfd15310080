//! The file of API tokens: read with the configuration, written by `snapgate token` alone.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;

use rustix::fs::FlockOperation;
use serde::Deserialize;
use serde::Serialize;

use crate::gate::ApiToken;
use crate::gate::Scope;
use crate::gate::TokenDigest;
use crate::model::Action;
use crate::model::Pattern;
use crate::model::PrincipalName;
use crate::model::Timestamp;
use crate::model::TokenName;
use crate::model::limits;
use crate::schema::Problem;
use crate::schema::io_reason;

/// The format that is written.
const FORMAT: u32 = 1;

/// The whole file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    format: u32,
    tokens: Vec<TokenRecord>,
}

/// One token as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRecord {
    /// Its name, unique in the file.
    pub name: TokenName,
    /// Whose rights it has, at most.
    pub owner: PrincipalName,
    /// The SHA-256 of the token, 64 hexadecimal digits.
    pub sha256: String,
    /// When it was made, RFC 3339.
    pub created: String,
    /// When it ends, RFC 3339; never when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
    /// What it may do of what its owner may.
    pub actions: Vec<Action>,
    /// On which VMs.
    pub vms: Vec<String>,
    /// On which backups of these.
    pub backups: Vec<String>,
}

impl TokenRecord {
    /// The token as the gate knows it; what is wrong with it when it cannot be used.
    fn token(&self) -> Result<ApiToken, String> {
        let patterns = |all: &[String], what: &str| {
            let made = all.iter().map(|text| Pattern::new(text));
            let made: Result<Vec<_>, _> = made.collect();
            made.map_err(|error| format!("a pattern in {what} {error}"))
        };
        let expires = self.expires.as_deref().map(time).transpose()?;
        Ok(ApiToken {
            name: self.name.clone(),
            owner: self.owner.clone(),
            digest: TokenDigest::parse(&self.sha256)
                .ok_or("sha256 is not 64 hexadecimal digits")?,
            expires,
            scope: Scope {
                actions: self.actions.iter().copied().collect(),
                vms: patterns(&self.vms, "vms")?,
                backups: patterns(&self.backups, "backups")?,
            },
        })
    }

    /// The record as JSON.
    #[must_use]
    pub fn to_text(&self) -> String {
        // A structure of texts is always written.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// When it ends; never when `None`.
    #[must_use]
    pub fn ends(&self) -> Option<Timestamp> {
        self.expires
            .as_deref()
            .and_then(|expires| time(expires).ok())
    }
}

fn time(text: &str) -> Result<Timestamp, String> {
    humantime::parse_rfc3339(text)
        .map(Timestamp::from_system)
        .map_err(|_malformed| format!("{text:?} is not a time such as 2026-01-31T12:00:00Z"))
}

/// The tokens that these records, one JSON text by name, are for, and what is wrong with the others.
#[must_use]
pub fn api_tokens(records: &BTreeMap<String, String>) -> (Vec<ApiToken>, Vec<String>) {
    let (mut tokens, mut problems) = (Vec::new(), Vec::new());
    for (name, text) in records {
        let record: Result<TokenRecord, _> = serde_json::from_str(text);
        let token = record
            .map_err(|error| error.to_string())
            .and_then(|record| record.token());
        match token {
            Ok(token) if token.name.as_str() == name => tokens.push(token),
            Ok(_) => problems.push(format!("token {name:?}: its record is of another name")),
            Err(what) => problems.push(format!("token {name:?}: {what}")),
        }
    }
    (tokens, problems)
}

/// The records as one JSON text by name.
#[must_use]
pub fn token_texts(records: &[TokenRecord]) -> BTreeMap<String, String> {
    let texts = records
        .iter()
        .map(|record| (record.name.to_string(), record.to_text()));
    texts.collect()
}

/// The records of these texts, one JSON text by name.
///
/// # Errors
/// Which record cannot be read, and why.
pub fn token_records(texts: &BTreeMap<String, String>) -> Result<Vec<TokenRecord>, String> {
    let records = texts.iter().map(|(name, text)| {
        serde_json::from_str(text).map_err(|error| format!("token {name:?} in etcd: {error}"))
    });
    records.collect()
}

/// What the text of a file holds, or what is wrong with it.
fn parse(text: &str) -> Result<Vec<TokenRecord>, String> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let found: Document = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if found.format != FORMAT {
        let format = found.format;
        return Err(format!("unsupported format {format} (expected {FORMAT})"));
    }
    if found.tokens.len() > limits::PRINCIPALS_MAX {
        return Err(format!("more than {} tokens", limits::PRINCIPALS_MAX));
    }
    Ok(found.tokens)
}

/// The tokens of the file, and its problems.
pub(super) fn read(file: &Path, text: &str) -> (Vec<ApiToken>, Vec<Problem>) {
    let problem = |what: String| Problem {
        file: file.to_owned(),
        position: None,
        key: String::new(),
        what,
        hint: Some("only snapgate token writes this file; restore it from a copy".to_owned()),
    };
    let records = match parse(text) {
        Ok(records) => records,
        Err(what) => return (Vec::new(), vec![problem(what)]),
    };
    let (mut tokens, mut problems) = (Vec::new(), Vec::new());
    let mut names = BTreeSet::new();
    for record in records {
        if !names.insert(record.name.clone()) {
            problems.push(problem(format!("duplicate token \"{}\"", record.name)));
        }
        match record.token() {
            Ok(token) => tokens.push(token),
            Err(what) => problems.push(problem(format!("token \"{}\": {what}", record.name))),
        }
    }
    (tokens, problems)
}

/// Why the file of tokens could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum TokenFileError {
    /// It could not be read or written.
    #[error("cannot {what} {}: {}", .file.display(), io_reason(.source))]
    File {
        /// Which file.
        file: PathBuf,
        /// `read` or `write`.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Its contents cannot be used.
    #[error("{}: {what}", .file.display())]
    Contents {
        /// Which file.
        file: PathBuf,
        /// What is wrong.
        what: String,
    },
}

/// The tokens in the file; none when there is no file.
///
/// # Errors
/// [`TokenFileError`].
pub fn read_tokens(file: &Path) -> Result<Vec<TokenRecord>, TokenFileError> {
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(source) => return Err(failed(file, "read", source)),
    };
    parse(&text).map_err(|what| TokenFileError::Contents {
        file: file.to_owned(),
        what,
    })
}

/// Changes the tokens in the file: with a lock against others who do the same, as a whole or not at all, readable by its
/// owner alone. The file keeps its owner; a new one gets that of its folder, so that the gateway can read what root wrote.
///
/// # Errors
/// [`TokenFileError`], or what `change` says; the file is as it was then.
pub fn change_tokens<T, E: From<TokenFileError>>(
    file: &Path,
    change: impl FnOnce(&mut Vec<TokenRecord>) -> Result<T, E>,
) -> Result<T, E> {
    let written = |source: io::Error| E::from(failed(file, "write", source));
    let lock = lock(file).map_err(written)?;
    let mut tokens = read_tokens(file)?;
    let done = change(&mut tokens)?;
    replace(file, tokens).map_err(written)?;
    drop(lock);
    Ok(done)
}

fn failed(file: &Path, what: &'static str, source: io::Error) -> TokenFileError {
    let file = file.to_owned();
    TokenFileError::File { file, what, source }
}

fn beside(file: &Path, ending: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

/// Held until dropped. A file of its own, because the file of tokens is replaced.
fn lock(file: &Path) -> io::Result<File> {
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(beside(file, ".lock"))?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
    Ok(lock)
}

fn replace(file: &Path, tokens: Vec<TokenRecord>) -> io::Result<()> {
    let document = Document {
        format: FORMAT,
        tokens,
    };
    let mut bytes = serde_json::to_vec_pretty(&document)?;
    bytes.push(b'\n');
    let folder = match file.parent() {
        Some(found) if !found.as_os_str().is_empty() => found,
        Some(_) | None => Path::new("."),
    };
    let model = fs::metadata(file).or_else(|_absent| fs::metadata(folder))?;
    let made = beside(file, ".new");
    // What an earlier attempt may have left behind; the lock is held.
    match fs::remove_file(&made) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut new = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&made)?;
    let own = new.metadata()?;
    if (own.uid(), own.gid()) != (model.uid(), model.gid()) {
        std::os::unix::fs::fchown(&new, Some(model.uid()), Some(model.gid()))?;
    }
    new.write_all(&bytes)?;
    new.sync_all()?;
    fs::rename(&made, file)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn record(name: &str) -> TokenRecord {
        TokenRecord {
            name: TokenName::new(name).unwrap(),
            owner: PrincipalName::new("ann").unwrap(),
            sha256: "ab".repeat(32),
            created: "2026-01-01T00:00:00Z".to_owned(),
            expires: Some("2026-02-01T00:00:00Z".to_owned()),
            actions: vec![Action::Read],
            vms: vec!["*".to_owned()],
            backups: vec!["*".to_owned()],
        }
    }

    #[test]
    fn changes_are_whole_private_and_survive_one_another() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tokens.json");
        assert_eq!(read_tokens(&file).unwrap(), [], "no file, no tokens");
        std::thread::scope(|scope| {
            for number in 0..8 {
                let file = &file;
                scope.spawn(move || {
                    change_tokens::<_, TokenFileError>(file, |all| {
                        all.push(record(&format!("t{number}")));
                        Ok(())
                    })
                    .unwrap();
                });
            }
        });
        assert_eq!(read_tokens(&file).unwrap().len(), 8, "none is lost");
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "for its owner alone");
        let before = fs::read(&file).unwrap();
        let refused: Result<(), TokenFileError> = change_tokens(&file, |all| {
            all.clear();
            let what = String::new();
            let file = file.clone();
            Err(TokenFileError::Contents { file, what })
        });
        assert!(refused.is_err(), "refused");
        assert_eq!(fs::read(&file).unwrap(), before, "and unchanged");
        let (tokens, problems) = read(&file, str::from_utf8(&before).unwrap());
        assert_eq!(
            (tokens.len(), problems.len()),
            (8, 0),
            "as the gate sees it"
        );
    }

    #[test]
    fn invalid_token_files_are_reported_and_nothing_is_guessed() {
        let one = serde_json::to_value(record("t")).unwrap();
        let with = |change: &dyn Fn(&mut serde_json::Value)| {
            let mut changed = one.clone();
            change(&mut changed);
            serde_json::json!({ "format": 1, "tokens": [changed] }).to_string()
        };
        let rows = [
            ("empty", String::new(), ""),
            ("no JSON", "{".to_owned(), "EOF"),
            (
                "format",
                "{\"format\":2,\"tokens\":[]}".to_owned(),
                "format 2",
            ),
            (
                "unknown",
                with(&|record| record["more"] = 1.into()),
                "unknown field",
            ),
            (
                "hash",
                with(&|record| record["sha256"] = "x".into()),
                "64 hexadecimal",
            ),
            (
                "time",
                with(&|record| record["expires"] = "soon".into()),
                "not a time",
            ),
            (
                "action",
                with(&|record| record["actions"][0] = "fly".into()),
                "unknown variant",
            ),
            (
                "pattern",
                with(&|record| record["vms"][0] = "".into()),
                "vms must not be empty",
            ),
            (
                "twice",
                serde_json::json!({ "format": 1, "tokens": [one, one] }).to_string(),
                "duplicate token",
            ),
        ];
        for (name, text, expected) in rows {
            let (_, problems) = read(Path::new("t.json"), &text);
            let text: String = problems.iter().map(ToString::to_string).collect();
            assert!(text.contains(expected), "{name}: {text}");
            assert_eq!(problems.is_empty(), expected.is_empty(), "{name}: {text}");
        }
    }
}
