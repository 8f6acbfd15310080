//! Paths that must not be the same: folders of backends, and files that the gateway writes.

use std::path::Path;
use std::path::PathBuf;

use crate::adapters::registry::BackendConfig;
use crate::config::settings::Backend;
use crate::schema::Overlap;
use crate::schema::Section;
use crate::schema::overlap;

/// A file that the gateway writes, and the key that names it.
pub(super) struct OutputFile<'a> {
    pub(super) section: &'a Section<'a>,
    pub(super) key: &'static str,
    pub(super) path: &'a Path,
    /// Whether it is among the files that were read, once.
    pub(super) is_read: bool,
}

/// Reports folders of a backend that an earlier backend uses too: each would change files that the other relies on.
pub(super) fn check_folders(section: &Section<'_>, config: &BackendConfig, earlier: &[Backend]) {
    for own in config.folders() {
        for other in earlier {
            for theirs in other.config.folders() {
                let Some(overlap) = overlap(own.path, theirs.path) else {
                    continue;
                };
                let (how, name) = (overlap.describe(), &other.name);
                let what = format!("{how} {} of backend {name}", theirs.key);
                let hint = "give each backend folders of its own, side by side";
                section.report_key(own.key, what, hint);
            }
        }
    }
}

/// Reports output files that are the same as another file that the gateway reads or writes, or that lie in a folder of a backend.
pub(super) fn check_files(outputs: &[OutputFile<'_>], inputs: &[PathBuf], backends: &[Backend]) {
    for (index, file) in outputs.iter().enumerate() {
        let report = |what: String| {
            let hint = "name a file that nothing else uses";
            file.section.report_key(file.key, what, hint);
        };
        let is_same = |other: &Path| overlap(file.path, other) == Some(Overlap::Same);
        for other in outputs.iter().take(index) {
            if is_same(other.path) {
                let (path, key) = (other.section.path(), other.key);
                report(format!("is the same file as {path}.{key}"));
            }
        }
        // The file of tokens is read once as such; a second time means that it is something else as well.
        let mut same_inputs = inputs.iter().filter(|path| is_same(path));
        if let Some(input) = same_inputs.nth(usize::from(file.is_read)) {
            let input = input.display();
            report(format!(
                "is the file {input}, which the configuration is read from"
            ));
        }
        for backend in backends {
            for folder in backend.config.folders() {
                if overlap(file.path, folder.path) == Some(Overlap::Below) {
                    let (key, name) = (folder.key, &backend.name);
                    report(format!(
                        "is below {key} of backend {name}, where it would be treated as a part of a VM"
                    ));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::config::load;

    #[expect(clippy::too_many_lines, reason = "it is a table")]
    #[test]
    fn output_files_are_used_for_nothing_else() {
        let rows = [
            ("apart", "operations.db", "audit.log", "tokens.json", ""),
            (
                "audit is the store",
                "operations.db",
                "./operations.db",
                "tokens.json",
                "log.audit: is the same file as operations.store",
            ),
            (
                "audit is the store by a hard link",
                "operations.db",
                "linked.db",
                "tokens.json",
                "log.audit: is the same file as operations.store",
            ),
            (
                "tokens are the audit trail",
                "operations.db",
                "one",
                "one",
                "authentication.tokens: is the same file as log.audit",
            ),
            (
                "the store is the configuration",
                "c.toml",
                "audit.log",
                "tokens.json",
                "operations.store: is the file",
            ),
            (
                "the audit trail is the htpasswd file",
                "operations.db",
                "users",
                "tokens.json",
                "log.audit: is the file",
            ),
            (
                "tokens are the htpasswd file",
                "operations.db",
                "audit.log",
                "users",
                "authentication.tokens: is the file",
            ),
            (
                "the store is in a VM",
                "vms/web/operations.db",
                "audit.log",
                "tokens.json",
                "operations.store: is below root of backend a",
            ),
            (
                "the audit trail is among backups",
                "operations.db",
                "backups/audit.log",
                "tokens.json",
                "log.audit: is below backups of backend a",
            ),
        ];
        for (name, store, audit, tokens, expected) in rows {
            let folder = tempfile::tempdir().unwrap();
            let at = |path: &str| folder.path().join(path);
            fs::create_dir_all(at("vms/web")).unwrap();
            fs::create_dir(at("backups")).unwrap();
            fs::write(at("users"), "").unwrap();
            fs::write(at("operations.db"), "").unwrap();
            fs::hard_link(at("operations.db"), at("linked.db")).unwrap();
            let text = format!(
                "[operations]\nstore = \"{store}\"\n[log]\naudit = \"{audit}\"\n\
                 [authentication]\nhtpasswd = \"users\"\ntokens = \"{tokens}\"\n\
                 [[backend]]\nname = \"a\"\nkind = \"files\"\nvms = [\"*\"]\n[backend.files]\nroot = \"vms\"\nbackups = \"backups\"\n"
            );
            fs::write(at("c.toml"), text).unwrap();
            let found = load(&at("c.toml"), &|_| None);
            let found = found.map_or_else(|problems| problems.to_string(), |_| String::new());
            let right = if expected.is_empty() {
                found.is_empty()
            } else {
                found.contains(expected)
            };
            assert!(right, "{name}: {found}");
        }
    }
}
