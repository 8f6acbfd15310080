//! A configuration file without its secrets, to be given away.
//!
//! The declarations of the keys decide, not the look of a value: values of secret keys are left out unless they only say where the
//! secret is, and so are the values of everything that is not declared, because a mistyped key may hold a secret. Comments are left out
//! for the same reason.

use std::fmt::Write as _;
use std::path::Path;

use toml::de::DeTable;
use toml::de::DeValue;

use crate::config::tables;
use crate::model::Secret;
use crate::schema::SecretSource;
use crate::schema::Table;

/// What stands in place of a secret.
pub const REDACTED: &str = "[redacted]";
/// Shorter texts are not looked for: they would be found everywhere.
const SECRET_BYTES_MIN: usize = 4;
/// The same for the last part of a secret.
const SECRET_PART_BYTES_MIN: usize = 8;

/// A configuration file without its secrets, and the secrets.
#[derive(Debug)]
pub struct RedactedConfig {
    /// The file as TOML. It cannot be loaded.
    pub text: String,
    /// The values of its secret keys, and those that they refer to: nothing that is given away may hold one.
    pub secrets: Vec<Secret>,
}

/// Reads a file and removes its secrets. It need not be a valid configuration.
///
/// # Errors
/// Why it cannot be read as TOML, without a part of it.
pub fn redact(file: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<RedactedConfig, String> {
    let source = SecretSource::new(env);
    let text = source.read(file)?;
    let root = DeTable::parse(&text)
        .map_err(|error| format!("{} is not TOML: {}", file.display(), error.message()))?;
    let folder = file.parent().unwrap_or_else(|| Path::new("."));
    let mut redaction = Redaction {
        source: &source,
        folder,
        text: String::new(),
        secrets: Vec::new(),
    };
    for (name, value) in root.get_ref() {
        let name: &str = name.get_ref();
        let declared = tables::ALL.iter().find(|table| table.name == name);
        redaction.add_tables(name, value.get_ref(), declared);
    }
    Ok(RedactedConfig {
        text: redaction.text,
        secrets: redaction.secrets,
    })
}

/// Removes every one of these secrets from a text, and credentials and queries from its URLs.
#[must_use]
pub fn scrub(text: &str, secrets: &[Secret]) -> String {
    let mut text = scrub_urls(text);
    for secret in secrets {
        if secret.reveal().len() >= SECRET_BYTES_MIN {
            text = text.replace(secret.reveal(), REDACTED);
        }
    }
    text
}

struct Redaction<'a> {
    source: &'a SecretSource<'a>,
    folder: &'a Path,
    text: String,
    secrets: Vec<Secret>,
}

impl Redaction<'_> {
    /// A table or an array of tables under this heading. `declared` is `None` for what the program does not know.
    fn add_tables(&mut self, heading: &str, value: &DeValue<'_>, declared: Option<&Table>) {
        match value {
            DeValue::Table(table) => {
                self.say(&format!("\n[{heading}]"));
                self.add_keys(heading, table, declared);
            }
            DeValue::Array(items) if items.iter().all(|item| item.get_ref().is_table()) => {
                for item in items {
                    self.say(&format!("\n[[{heading}]]"));
                    if let Some(table) = item.get_ref().as_table() {
                        self.add_keys(heading, table, declared);
                    }
                }
            }
            DeValue::String(_)
            | DeValue::Integer(_)
            | DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_)
            | DeValue::Array(_) => self.say(&format!("{heading} = {REDACTED:?}")),
        }
    }

    fn add_keys(&mut self, heading: &str, table: &DeTable<'_>, declared: Option<&Table>) {
        // Tables come last: keys behind the heading of another table would belong to that one.
        for (name, value) in table {
            let name: &str = name.get_ref();
            let value = value.get_ref();
            let nested = declared.and_then(|declared| nested_table(declared, name));
            if nested.is_some() && value.is_table() {
                continue;
            }
            let shown = match declared.and_then(|declared| secrecy(declared, name)) {
                Some(Secrecy::Public) => self.public_value(value),
                Some(Secrecy::Secret) => self.secret_value(value),
                None => {
                    // It may be a mistyped key with a secret, which must not be found elsewhere either.
                    self.note_texts(value);
                    format!("{REDACTED:?} # not a key of snapgate")
                }
            };
            self.say(&format!("{} = {shown}", quoted_key(name)));
        }
        for (name, value) in table {
            let name: &str = name.get_ref();
            let nested = declared.and_then(|declared| nested_table(declared, name));
            if let (Some(nested), true) = (nested, value.get_ref().is_table()) {
                self.add_tables(&format!("{heading}.{name}"), value.get_ref(), Some(nested));
            }
        }
    }

    fn say(&mut self, line: &str) {
        // Writing to a string does not fail.
        writeln!(self.text, "{line}").unwrap_or_default();
    }

    /// The value of a secret key: where the secret is, or a placeholder.
    fn secret_value(&mut self, value: &DeValue<'_>) -> String {
        let Some(text) = value.as_str() else {
            return format!("{REDACTED:?}");
        };
        let is_reference = text.starts_with("file:") || text.starts_with("env:");
        // A secret that cannot be read cannot be in what the program wrote.
        if let Ok(secret) = self.source.resolve(text, self.folder) {
            // Of `USER@REALM!ID=SECRET` and `Bearer SECRET` the last part is the secret, and may be found alone.
            let part = secret.rsplit(['=', ' ']).next().unwrap_or_default();
            if part.len() >= SECRET_PART_BYTES_MIN {
                self.secrets.push(Secret::new(part.to_owned()));
            }
            self.secrets.push(Secret::new(secret));
        }
        if is_reference {
            quoted(text)
        } else {
            format!("{REDACTED:?}")
        }
    }

    fn public_value(&mut self, value: &DeValue<'_>) -> String {
        match value {
            DeValue::String(text) => {
                self.note_credentials(text);
                quoted(&scrub_urls(text))
            }
            DeValue::Integer(number) => number.to_string(),
            DeValue::Float(number) => number.to_string(),
            DeValue::Boolean(flag) => flag.to_string(),
            DeValue::Datetime(time) => time.to_string(),
            DeValue::Array(items) => {
                let items: Vec<String> = items
                    .iter()
                    .map(|item| self.public_value(item.get_ref()))
                    .collect();
                format!("[{}]", items.join(", "))
            }
            DeValue::Table(_) => format!("{REDACTED:?}"),
        }
    }

    /// Remembers the password in a URL.
    fn note_credentials(&mut self, text: &str) {
        if let Some((credentials, _)) = url_credentials(text) {
            let password = credentials
                .split_once(':')
                .map_or(credentials, |both| both.1);
            self.secrets.push(Secret::new(password.to_owned()));
        }
        let query = text
            .split_once("://")
            .and_then(|(_, rest)| rest.split_once('?'));
        let values = query.into_iter().flat_map(|(_, query)| query.split('&'));
        let values = values.filter_map(|pair| pair.split_once('='));
        self.secrets
            .extend(values.map(|(_, value)| Secret::new(value.to_owned())));
    }

    /// Remembers every text in a value.
    fn note_texts(&mut self, value: &DeValue<'_>) {
        match value {
            DeValue::String(text) => self.secrets.push(Secret::new(text.to_string())),
            DeValue::Array(items) => {
                for item in items {
                    self.note_texts(item.get_ref());
                }
            }
            DeValue::Table(table) => {
                for (_, value) in table {
                    self.note_texts(value.get_ref());
                }
            }
            DeValue::Integer(_)
            | DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_) => {}
        }
    }
}

/// Whether the value of a declared key may be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Secrecy {
    Public,
    Secret,
}

fn nested_table<'t>(table: &'t Table, name: &str) -> Option<&'t Table> {
    table.nested.iter().find(|nested| nested.name == name)
}

/// What the declaration of a key says; `None` when there is none. Keys of nested tables may stand in the outer one. A name that
/// several of them declare is a secret if it is one in any of them.
fn secrecy(table: &Table, name: &str) -> Option<Secrecy> {
    let all = std::iter::once(table).chain(table.nested);
    let keys = all.flat_map(|table| table.keys.iter());
    let declared = keys.filter(|key| key.name() == name);
    declared.fold(None, |known, key| {
        let is_secret = key.is_secret() || known == Some(Secrecy::Secret);
        Some(if is_secret {
            Secrecy::Secret
        } else {
            Secrecy::Public
        })
    })
}

/// As a TOML string: its escapes are those of JSON.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn quoted_key(name: &str) -> String {
    let is_bare = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if !name.is_empty() && name.bytes().all(is_bare) {
        name.to_owned()
    } else {
        quoted(name)
    }
}

/// What stands between `://` and the host, and the rest of the text from the host on.
fn url_credentials(text: &str) -> Option<(&str, &str)> {
    let (_, rest) = text.split_once("://")?;
    let end = rest.find(is_url_end).unwrap_or(rest.len());
    let authority = rest.get(..end)?;
    let (credentials, _) = authority.rsplit_once('@')?;
    let host = rest.get(credentials.len().checked_add(1)?..)?;
    Some((credentials, host))
}

/// Whether a character ends the part of a URL with user name, host and port.
fn is_url_end(character: char) -> bool {
    matches!(character, '/' | '?' | '#' | '"' | '\'' | '<' | '>' | ',') || character.is_whitespace()
}

/// Removes user names, passwords and queries from all URLs of a text.
fn scrub_urls(text: &str) -> String {
    let mut scrubbed = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at.saturating_add(3));
        scrubbed.push_str(before);
        rest = after;
        let end = rest.find(is_url_end).unwrap_or(rest.len());
        let (authority, behind) = rest.split_at(end);
        match authority.rsplit_once('@') {
            Some((_, host)) => {
                scrubbed.push_str(REDACTED);
                scrubbed.push('@');
                scrubbed.push_str(host);
            }
            None => scrubbed.push_str(authority),
        }
        rest = behind;
        // The path up to a query.
        let is_end = |character: char| is_url_end(character) && character != '/';
        let end = rest.find(is_end).unwrap_or(rest.len());
        let (path, behind) = rest.split_at(end);
        scrubbed.push_str(path);
        rest = behind;
        if let Some(query) = rest.strip_prefix('?') {
            let is_end = |character: char| is_url_end(character) && !"/?".contains(character);
            let end = query.find(is_end).unwrap_or(query.len());
            scrubbed.push('?');
            scrubbed.push_str(REDACTED);
            rest = query.get(end..).unwrap_or_default();
        }
    }
    scrubbed.push_str(rest);
    scrubbed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_lose_credentials_and_queries() {
        let rows = [
            ("plain", "plain"),
            ("https://host/path", "https://host/path"),
            (
                "https://ann:pw@host:1/p?k=v#f",
                "https://[redacted]@host:1/p?[redacted]#f",
            ),
            (
                "a https://u@h, b http://h?q c",
                "a https://[redacted]@h, b http://h?[redacted] c",
            ),
            ("unix:///run/x@y.sock", "unix:///run/x@y.sock"),
            ("https://a:b@c@h/", "https://[redacted]@h/"),
            ("://", "://"),
        ];
        for (text, expected) in rows {
            assert_eq!(scrub_urls(text), expected, "{text}");
        }
    }

    #[test]
    fn every_key_that_may_name_a_secret_is_declared_as_one() {
        let nested = tables::ALL.iter().flat_map(|table| table.nested);
        for table in tables::ALL.iter().chain(nested) {
            for key in table.keys {
                let names_a_secret = key.describe().form.contains("env:NAME");
                let (table, name) = (table.name, key.name());
                assert_eq!(key.is_secret(), names_a_secret, "{table}.{name}");
            }
        }
    }

    #[test]
    fn what_is_not_declared_is_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("c.toml");
        let text = "# old: hunter2a\ntop = \"hunter2b\"\n[server]\nlisten = \"127.0.0.1:1\"\npasword = \"hunter2c\"\n\
            [nope]\nx = [\"hunter2d\"]\n[[user]]\nname = \"ann\"\npassword_hash = \"hunter2e\"\n\
            [[backend]]\ntoken = \"hunter2f\"\nurl = \"https://u:hunter2g@h/\"\n[backend.proxmox]\ntoken = \"file:t\"\n";
        std::fs::write(&file, text).unwrap();
        std::fs::write(folder.path().join("t"), "hunter2h\n").unwrap();
        let found = redact(&file, &|_| None).unwrap();
        assert!(!found.text.contains("hunter2"), "{}", found.text);
        for shown in [
            "listen = \"127.0.0.1:1\"",
            "name = \"ann\"",
            "token = \"file:t\"",
            "[backend.proxmox]",
        ] {
            assert!(found.text.contains(shown), "{shown}: {}", found.text);
        }
        let all = "hunter2b hunter2c hunter2e hunter2f hunter2g hunter2h";
        let left = scrub(all, &found.secrets);
        // The first is a key of the file itself, not of a table.
        assert!(!left.replace("hunter2b", "").contains("hunter2"), "{left}");
    }
}
