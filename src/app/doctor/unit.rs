//! What the unit of systemd forbids, compared with what the backends of the configuration need. Reads the text of the unit and
//! its drop-ins, so that no gateway must run.

use std::path::Path;

use crate::app::doctor::finding::Finding;
use crate::app::doctor::machine::WrittenFolder;
use crate::app::doctor::sandbox::SANDBOX;

/// The settings of a unit that matter here, drop-ins included.
#[derive(Debug, Default, PartialEq, Eq)]
struct UnitSettings {
    protect_system: String,
    protect_home: String,
    private_tmp: bool,
    private_network: bool,
    writable: Vec<String>,
    read_only: Vec<String>,
    inaccessible: Vec<String>,
    /// `None` when all are allowed.
    families: Option<Vec<String>>,
}

fn is_yes(value: &str) -> bool {
    ["1", "yes", "true", "on"].contains(&value)
}

impl UnitSettings {
    /// Reads the text of a unit and its drop-ins, in the order in which systemd reads them.
    fn parse(text: &str) -> Self {
        let mut unit = Self::default();
        // A backslash at the end of a line joins it with the next.
        let text = text.replace("\\\n", " ");
        for line in text.lines().map(str::trim) {
            if line.starts_with(['#', ';', '[']) {
                continue;
            }
            if let Some((name, value)) = line.split_once('=') {
                unit.apply(name.trim(), value.trim());
            }
        }
        unit
    }

    fn apply(&mut self, name: &str, value: &str) {
        let paths = |list: &mut Vec<String>, prefix: &str| {
            // An empty value clears what was before.
            if value.is_empty() {
                list.clear();
            }
            // A dash in front means that the path may be missing, a plus that it is below the root directory.
            let words = value.split_whitespace();
            let words = words.map(|word| word.trim_start_matches(['-', '+']));
            list.extend(words.map(|word| format!("{prefix}{}", word.trim_end_matches('/'))));
        };
        match name {
            "ProtectSystem" => value.clone_into(&mut self.protect_system),
            "ProtectHome" => value.clone_into(&mut self.protect_home),
            "PrivateTmp" => self.private_tmp = is_yes(value) || value == "disconnected",
            "PrivateNetwork" => self.private_network = is_yes(value),
            "ReadWritePaths" | "BindPaths" => paths(&mut self.writable, ""),
            "StateDirectory" => paths(&mut self.writable, "/var/lib/"),
            "LogsDirectory" => paths(&mut self.writable, "/var/log/"),
            "CacheDirectory" => paths(&mut self.writable, "/var/cache/"),
            "RuntimeDirectory" => paths(&mut self.writable, "/run/"),
            "ReadOnlyPaths" => paths(&mut self.read_only, ""),
            "InaccessiblePaths" => paths(&mut self.inaccessible, ""),
            "RestrictAddressFamilies" if value == "none" => self.families = Some(Vec::new()),
            "RestrictAddressFamilies" if value.is_empty() => self.families = None,
            // A tilde lists those that are forbidden, which is too seldom to be worth more.
            "RestrictAddressFamilies" if !value.starts_with('~') => {
                let words = value.split_whitespace().map(str::to_owned);
                self.families.get_or_insert_default().extend(words);
            }
            _ => {}
        }
    }

    /// The setting that keeps the process from writing to the folder, and what to add instead.
    fn obstacle(&self, folder: &Path) -> Option<(String, String)> {
        let is_below = |list: &[String]| list.iter().any(|path| folder.starts_with(path));
        let shown = folder.display();
        let add = format!("ReadWritePaths={shown}");
        if is_below(&self.inaccessible) {
            let remedy = "Remove the folder from InaccessiblePaths".to_owned();
            return Some(("InaccessiblePaths".to_owned(), remedy));
        }
        let in_home = ["/home", "/root", "/run/user"]
            .iter()
            .any(|home| folder.starts_with(home));
        let is_bound = self.protect_home == "tmpfs" && is_below(&self.writable);
        if in_home && (is_yes(&self.protect_home) || self.protect_home == "tmpfs") && !is_bound {
            let remedy = format!(
                "Set ProtectHome=tmpfs and BindPaths={shown}, or move the folder out of the home folders"
            );
            return Some((format!("ProtectHome={}", self.protect_home), remedy));
        }
        let in_tmp = ["/tmp", "/var/tmp"]
            .iter()
            .any(|tmp| folder.starts_with(tmp));
        if in_tmp && self.private_tmp {
            let remedy = "Move the folder to another place: the gateway has a /tmp of its own";
            return Some(("PrivateTmp".to_owned(), remedy.to_owned()));
        }
        if is_below(&self.writable) {
            return None;
        }
        if in_home && self.protect_home == "read-only" {
            return Some(("ProtectHome=read-only".to_owned(), format!("Add {add}")));
        }
        if is_below(&self.read_only) {
            return Some(("ReadOnlyPaths".to_owned(), format!("Add {add}")));
        }
        let protected: &[&str] = match self.protect_system.as_str() {
            "strict" if !(in_tmp && self.private_tmp) => &["/"],
            "full" => &["/usr", "/boot", "/efi", "/etc"],
            value if is_yes(value) => &["/usr", "/boot", "/efi"],
            _ => &[],
        };
        let is_protected = protected.iter().any(|path| folder.starts_with(path));
        let setting = format!("ProtectSystem={}", self.protect_system);
        is_protected.then(|| (setting, format!("Add {add}")))
    }
}

/// What the unit forbids that the backends need. `kinds` are the kinds of the configured backends.
pub(super) fn check_unit(text: &str, folders: &[WrittenFolder], kinds: &[&str]) -> Vec<Finding> {
    let unit = UnitSettings::parse(text);
    let mut found = Vec::new();
    for folder in folders {
        if let Some((setting, remedy)) = unit.obstacle(&folder.path) {
            let (key, path) = (&folder.key, folder.path.display());
            found.push(Finding::new(
                SANDBOX,
                format!("{key}: the unit does not let the gateway write to {path} ({setting})"),
                if folder.is_own {
                    "The gateway does not start, or cannot record changes."
                } else {
                    "Backups and restores on this backend fail."
                },
                format!("{remedy} (systemctl edit snapgate), then restart the gateway."),
            ));
        }
    }
    let needs = |family: &str, users: &[&str]| {
        let is_used = kinds.iter().any(|kind| users.contains(kind));
        let is_allowed = unit
            .families
            .as_ref()
            .is_none_or(|families| families.iter().any(|known| known == family));
        is_used && !is_allowed
    };
    for (family, users) in [
        ("AF_UNIX", &["qemu", "libvirt", "incus"][..]),
        ("AF_INET", &["proxmox", "cloudapi"][..]),
    ] {
        if needs(family, users) {
            found.push(Finding::new(
                SANDBOX,
                format!("the unit does not let the gateway open sockets of {family} (RestrictAddressFamilies)"),
                format!("Backends of the kinds {} cannot be reached.", users.join(", ")),
                format!("Add {family} to RestrictAddressFamilies (systemctl edit snapgate), then restart the gateway."),
            ));
        }
    }
    if unit.private_network
        && kinds
            .iter()
            .any(|kind| ["proxmox", "cloudapi"].contains(kind))
    {
        found.push(Finding::new(
            SANDBOX,
            "the unit gives the gateway a network of its own (PrivateNetwork)",
            "VM managers on other machines cannot be reached.",
            "Set PrivateNetwork=no (systemctl edit snapgate), then restart the gateway.",
        ));
    }
    found
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn findings(text: &str, path: &str, kinds: &[&str]) -> Vec<String> {
        let folder = WrittenFolder {
            path: PathBuf::from(path),
            key: "k".to_owned(),
            is_own: false,
        };
        let found = check_unit(text, &[folder], kinds);
        found.into_iter().map(|finding| finding.what).collect()
    }

    #[test]
    #[expect(clippy::too_many_lines, reason = "it is a table")]
    fn folders_that_the_unit_protects_are_found() {
        let strict = "[Service]\nProtectSystem=strict\nStateDirectory=snapgate\n";
        let rows = [
            ("nothing", String::new(), "/srv/vms", ""),
            (
                "strict",
                strict.to_owned(),
                "/srv/vms",
                "ProtectSystem=strict",
            ),
            (
                "the state folder",
                strict.to_owned(),
                "/var/lib/snapgate",
                "",
            ),
            (
                "a neighbour",
                strict.to_owned(),
                "/var/lib/snapgate2",
                "strict",
            ),
            (
                "a drop-in",
                format!("{strict}# x\nReadWritePaths=-/srv/vms /srv/b\n"),
                "/srv/vms/a",
                "",
            ),
            (
                "cleared",
                format!("{strict}ReadWritePaths=/srv\nReadWritePaths=\n"),
                "/srv/vms",
                "strict",
            ),
            (
                "full",
                "ProtectSystem=full\n".to_owned(),
                "/etc/x",
                "ProtectSystem=full",
            ),
            (
                "full, elsewhere",
                "ProtectSystem=full\n".to_owned(),
                "/srv/vms",
                "",
            ),
            (
                "home",
                "ProtectHome=yes\n".to_owned(),
                "/home/ann/vms",
                "ProtectHome=yes",
            ),
            (
                "home, bound",
                "ProtectHome=read-only\nReadWritePaths=/home/ann\n".to_owned(),
                "/home/ann/vms",
                "",
            ),
            (
                "tmp",
                "PrivateTmp=yes\n".to_owned(),
                "/tmp/vms",
                "PrivateTmp",
            ),
            (
                "hidden",
                "InaccessiblePaths=/srv\nReadWritePaths=/srv\n".to_owned(),
                "/srv/vms",
                "InaccessiblePaths",
            ),
            (
                "two lines",
                format!("{strict}ReadWritePaths=/a \\\n  /srv/vms\n"),
                "/srv/vms",
                "",
            ),
        ];
        for (name, text, path, expected) in rows {
            let found = findings(&text, path, &[]);
            assert_eq!(found.is_empty(), expected.is_empty(), "{name}: {found:?}");
            assert!(found.concat().contains(expected), "{name}: {found:?}");
        }
    }

    #[test]
    fn sockets_that_the_unit_forbids_are_found() {
        let families = "RestrictAddressFamilies=AF_INET AF_INET6\n";
        let rows = [
            (families.to_owned(), "libvirt", "AF_UNIX"),
            (families.to_owned(), "proxmox", ""),
            (
                format!("{families}RestrictAddressFamilies=AF_UNIX\n"),
                "libvirt",
                "",
            ),
            (
                format!("{families}RestrictAddressFamilies=\n"),
                "libvirt",
                "",
            ),
            (
                "RestrictAddressFamilies=none\n".to_owned(),
                "proxmox",
                "AF_INET",
            ),
            (
                "PrivateNetwork=yes\n".to_owned(),
                "proxmox",
                "PrivateNetwork",
            ),
            ("PrivateNetwork=yes\n".to_owned(), "qemu", ""),
        ];
        for (text, kind, expected) in rows {
            let found = findings(&text, "/x", &[kind]);
            assert_eq!(found.is_empty(), expected.is_empty(), "{text}: {found:?}");
            assert!(found.concat().contains(expected), "{text}: {found:?}");
        }
    }
}
