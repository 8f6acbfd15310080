//! What is allowed in a configuration but is seldom meant.

use std::path::Path;
use std::time::Duration;

use crate::adapters::transport::Address;
use crate::config::addresses::is_loopback;
use crate::config::log_level;
use crate::config::rights;
use crate::config::secret_source::environment;
use crate::config::settings::BackendKind;
use crate::config::settings::Settings;
use crate::gate::Grantee;
use crate::gate::PassThroughAccess;
use crate::gate::Placement;
use crate::gate::User;
use crate::listener::Tls;
use crate::model::Pattern;
use crate::model::PrincipalName;
use crate::model::Timestamp;

/// A certificate that ends earlier than this is warned of.
const RENEWED_BEFORE: Duration = Duration::from_secs(14 * 24 * 3600);

/// The hashes in the examples that come with the program.
const PUBLISHED_HASHES: [&str; 6] = [
    "$argon2id$v=19$m=19456,t=2,p=1$smNcpShQKdDea2TX8Skyuw$wTxU4/xg9gJRXylQkUuzUWYIKOY070eXDkRzvfNcm14",
    "$argon2id$v=19$m=19456,t=2,p=1$mTcYaymFeOGztoo9sE3/Mg$4J3ASrvSgzVA8fSP877G2rQOtMbYM8Rh0DD6VwUcw/E",
    "$argon2id$v=19$m=19456,t=2,p=1$GGvVaHBQNfkGU5g0exQGsQ$Kv1PiPuMRJ5x1/PpvVbYMs/kD0sfef8wzgUL6yXcMOo",
    "$argon2id$v=19$m=19456,t=2,p=1$g8LxiEsZA8njh5T+Lae6Cg$gMciO67/+c/kQubM5sqfEGFJHSAi1xQuMJrdkfAE+Js",
    "$argon2id$v=19$m=19456,t=2,p=1$nH3YZjZa+4x0QsueSnEDQA$jUCbvZ8/W0lkj/yI171hgmyddMQl1dQ38zU3OlpmP4w",
    "$argon2id$v=19$m=19456,t=2,p=1$8ORd1jZnfQXl8D2+thJwLg$/moHgdgoKa/I0ZhT8/gz5nS8FhEfVmV2o9GAO0QiU+E",
];

/// One sentence for each thing that is allowed but seldom meant, at this moment.
#[must_use]
pub fn warnings(settings: &Settings, now: Timestamp) -> Vec<String> {
    let mut found = settings.notes.clone();
    let encrypted = settings.listener.tls.is_some();
    for (name, address, safe, what) in [
        (
            "listen",
            settings.listener.listen,
            encrypted,
            "passwords are sent in cleartext",
        ),
        (
            "admin",
            settings.listener.admin,
            false,
            "metrics and health are served without a password",
        ),
    ] {
        if !is_loopback(address) && !safe {
            found.push(format!(
                "server.{name}: other machines may reach {address}: {what}"
            ));
        }
    }
    let listen = settings.listener.listen;
    if !is_loopback(listen) {
        let all = settings.gate.passthrough.iter().enumerate();
        let open = all.filter(|(_, it)| it.access == PassThroughAccess::Open);
        found.extend(open.map(|(index, it)| {
            format!(
                "passthrough[{index}].authentication: whoever reaches {listen} is passed on by {} without a password",
                it.name
            )
        }));
    }
    let limits = &settings.listener.limits;
    if !is_loopback(listen) && limits.connections_per_address >= limits.connections {
        found.push(format!(
            "limits.connections: one address can take all {}, because limits.connections_per_address is {}",
            limits.connections, limits.connections_per_address
        ));
    }
    if log_level::is_silent(&settings.logging.level) {
        let level = &settings.logging.level;
        found.push(format!("log.level: {level:?} silences every message"));
    }
    found.extend(rights::secrets(settings));
    for network in settings.gate.trusted_proxies.networks() {
        if network.prefix_len() == 0 {
            found.push(format!(
                "server.trusted_proxies: {network} trusts every machine: clients can choose the address that limits and the audit trail go by"
            ));
        }
    }
    certificates(settings, now, &mut found);
    people(settings, &mut found);
    for (index, grant) in settings.gate.grants.iter().enumerate() {
        for vms in &grant.vms {
            if !settings
                .gate
                .placements
                .iter()
                .any(|placement| overlap(vms, placement))
            {
                let text = vms.as_str();
                found.push(format!(
                    "grant[{index}].vms: {text:?} matches no VM of any backend"
                ));
            }
        }
    }
    backends(settings, &mut found);
    found.extend(rights::folders(settings));
    found
}

fn certificates(settings: &Settings, now: Timestamp, found: &mut Vec<String>) {
    let all = settings.listener.tls.iter().flat_map(Tls::certificates);
    for (index, it) in all.enumerate() {
        let (begins, ends) = it.validity();
        if ends <= now {
            found.push(format!("certificate[{index}]: ended at {ends}"));
        } else if begins > now {
            found.push(format!("certificate[{index}]: begins at {begins} only"));
        } else if ends.since(now) < RENEWED_BEFORE {
            found.push(format!("certificate[{index}]: ends at {ends}"));
        }
        if !it.has_alternative_names() {
            found.push(format!(
                "certificate[{index}].chain: the certificate has a common name but no subject alternative name, so clients refuse it; have it issued with one for each host name"
            ));
            continue;
        }
        for name in it.unsupported_names() {
            found.push(format!(
                "certificate[{index}].names: {name:?} is not among the subject alternative names of the certificate, so clients refuse it for that host"
            ));
        }
    }
}

fn people(settings: &Settings, found: &mut Vec<String>) {
    let users = &settings.gate.credentials.users;
    let grants = &settings.gate.grants;
    let credentials = &settings.gate.credentials;
    let (issuers, holders) = (&credentials.issuers, &credentials.certificates);
    if users.is_empty() && issuers.is_empty() && holders.is_empty() {
        found.push("there is no user: every request will be refused".to_owned());
    }
    for (name, user) in users {
        if PUBLISHED_HASHES.contains(&user.password.reveal()) {
            found.push(format!(
                "the user {name} has the password of a published example, which everyone knows: make another hash with snapgate hash-password"
            ));
        }
        let granted = |it: &Grantee| is_for(it, name, user);
        if !grants.iter().flat_map(|grant| &grant.to).any(granted) {
            found.push(format!("the user {name} has no grant and may do nothing"));
        }
    }
    for token in settings.gate.credentials.tokens.iter().flatten() {
        if !users.contains_key(&token.owner) {
            let (name, owner) = (&token.name, &token.owner);
            found.push(format!(
                "the token {name} is dead: its owner {owner} is no user"
            ));
        }
    }
    for (index, grant) in grants.iter().enumerate() {
        for to in &grant.to {
            let mut mapped = issuers.iter().flat_map(|issuer| issuer.groups.values());
            if let Grantee::Group(group) = to
                && !mapped.any(|it| it == group)
                && !users.iter().any(|(name, user)| is_for(to, name, user))
            {
                found.push(format!("grant[{index}].to: nobody is in the group {group}"));
            }
        }
    }
}

fn is_for(grantee: &Grantee, name: &PrincipalName, user: &User) -> bool {
    match grantee {
        Grantee::User(it) => it == name,
        Grantee::Group(it) => user.groups.contains(it),
    }
}

fn backends(settings: &Settings, found: &mut Vec<String>) {
    if settings.backends.is_empty() {
        found.push("there is no backend: no VM can be reached".to_owned());
    }
    for backend in &settings.backends {
        if let BackendKind::CloudApi(config) = &backend.kind
            && config.address == Address::Loopback(settings.listener.listen)
        {
            let name = &backend.name;
            found.push(format!("backend {name}: its url is this gateway itself"));
        }
        if let BackendKind::Qemu(config) = &backend.kind
            && !config.images.is_empty()
        {
            let name = &backend.name;
            let programs = [&config.qemu_img, &config.qemu_io];
            found.extend(programs.into_iter().filter(|path| !is_found(path)).map(|path| {
                let path = path.display();
                format!("backend {name}: the program {path} is not found: nothing can be done to stopped VMs")
            }));
        }
        let BackendKind::Sim(sim) = &backend.kind else {
            continue;
        };
        let name = &backend.name;
        let placed = |id: &str| {
            let mut all = settings.gate.placements.iter();
            all.any(|it| it.backend == *name && it.pattern.matches(id))
        };
        for vm in sim.vms.iter().filter(|vm| !placed(vm.as_str())) {
            found.push(format!(
                "backend {name}: no pattern in vms matches the simulated VM {vm}"
            ));
        }
    }
}

/// Whether a program exists, by its path or in one of the folders of PATH.
fn is_found(program: &Path) -> bool {
    if program.components().count() > 1 {
        return program.is_file();
    }
    let path = environment("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// Whether some VM can fit both.
fn overlap(vms: &Pattern, placement: &Placement) -> bool {
    let (placed, open) = placement.pattern.prefix();
    let (wanted, starred) = vms.prefix();
    if !open {
        return vms.matches(placed);
    }
    wanted.starts_with(placed) || (starred && placed.starts_with(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::BackendName;

    #[test]
    fn patterns_overlap_when_some_id_fits_both() {
        let rows = [
            ("web*", "web01", true),
            ("web01", "web*", true),
            ("web", "web*", true),
            ("we", "web*", false),
            ("w*", "web*", true),
            ("*-db", "web*", true),
            ("db*", "web*", false),
            ("*-db", "web", false),
        ];
        for (vms, placed, expected) in rows {
            let placement = Placement {
                pattern: Pattern::new(placed).unwrap(),
                backend: BackendName::new("b").unwrap(),
            };
            let found = overlap(&Pattern::new(vms).unwrap(), &placement);
            assert_eq!(found, expected, "{vms} and {placed}");
        }
    }
}
