//! What must not be one place: VMs and backups of backends, and the files that the gateway writes.

use std::path::Path;
use std::path::PathBuf;

use crate::config::paths::Overlap;
use crate::config::paths::overlap;
use crate::config::reader::Section;
use crate::config::schema::backend;
use crate::config::settings::Backend;
use crate::config::settings::BackendKind;

/// A file that the gateway writes, and the key that names it.
pub(super) struct Written<'a> {
    pub(super) section: &'a Section<'a>,
    pub(super) key: &'static str,
    pub(super) path: &'a Path,
    /// Whether it is among the files that were read, once.
    pub(super) is_read: bool,
}

/// Notes folders of VMs or backups that another backend uses, too: each would change what the other relies on.
pub(super) fn folders(section: &Section<'_>, kind: &BackendKind, others: &[Backend]) {
    let BackendKind::Files(mine) = kind else {
        return;
    };
    for other in others {
        let BackendKind::Files(theirs) = &other.kind else {
            continue;
        };
        let (root, backups) = (backend::ROOT.name, backend::BACKUPS.name);
        for (my_key, my_path, their_key, their_path) in [
            (root, &mine.root, root, &theirs.root),
            (root, &mine.root, backups, &theirs.backups),
            (backups, &mine.backups, root, &theirs.root),
            (backups, &mine.backups, backups, &theirs.backups),
        ] {
            if let Some(overlap) = overlap(my_path, their_path) {
                let (how, name) = (overlap.in_words(), &other.name);
                let what = format!("{how} {their_key} of the backend {name}");
                let hint = "give each backend a root and a backups folder of its own, side by side";
                section.problem_at(my_key, what, hint);
            }
        }
    }
}

/// Notes files that are written where the gateway reads or writes something else.
pub(super) fn files(written: &[Written<'_>], read: &[PathBuf], backends: &[Backend]) {
    for (index, file) in written.iter().enumerate() {
        let wrong = |what: String| {
            let hint = "name a file that nothing else uses";
            file.section.problem_at(file.key, what, hint);
        };
        let is_same = |other: &Path| overlap(file.path, other) == Some(Overlap::Same);
        for other in written.iter().take(index) {
            if is_same(other.path) {
                let (path, key) = (other.section.path(), other.key);
                wrong(format!("is the same file as {path}.{key}"));
            }
        }
        let readings = read.iter().filter(|path| is_same(path));
        if readings.clone().count() > usize::from(file.is_read)
            && let Some(other) = readings.clone().next()
        {
            let other = other.display();
            wrong(format!(
                "is the file {other}, which the configuration is read from"
            ));
        }
        for backend in backends {
            let BackendKind::Files(folders) = &backend.kind else {
                continue;
            };
            for (key, folder) in [
                (backend::ROOT.name, &folders.root),
                (backend::BACKUPS.name, &folders.backups),
            ] {
                if overlap(file.path, folder) == Some(Overlap::Below) {
                    let name = &backend.name;
                    wrong(format!(
                        "is below {key} of the backend {name}, where it would be treated as a part of a VM"
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
    fn files_that_are_written_are_nothing_else() {
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
                "operations.store: is below root of the backend a",
            ),
            (
                "the audit trail is among backups",
                "operations.db",
                "backups/audit.log",
                "tokens.json",
                "log.audit: is below backups of the backend a",
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
                 [[backend]]\nname = \"a\"\nkind = \"files\"\nvms = [\"*\"]\nroot = \"vms\"\nbackups = \"backups\"\n"
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
