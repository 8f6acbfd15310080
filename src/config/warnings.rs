//! What is allowed in a configuration but is seldom meant.

use std::time::Duration;

use crate::config::settings::BackendKind;
use crate::config::settings::Settings;
use crate::gate::Grantee;
use crate::gate::PassAccess;
use crate::gate::Placement;
use crate::gate::User;
use crate::listener::Tls;
use crate::model::Pattern;
use crate::model::PrincipalName;
use crate::model::Timestamp;

/// A certificate that ends earlier than this is warned of.
const RENEWED_BEFORE: Duration = Duration::from_secs(14 * 24 * 3600);

/// One sentence for each thing that is allowed but seldom meant, at this moment.
#[must_use]
pub fn warnings(settings: &Settings, now: Timestamp) -> Vec<String> {
    let mut found = Vec::new();
    let encrypted = settings.listener.tls.is_some();
    for (name, address, safe, what) in [
        (
            "listen",
            settings.listener.listen,
            encrypted,
            "passwords cross the network readable by all",
        ),
        (
            "admin",
            settings.listener.admin,
            false,
            "metrics and health can be read without a password",
        ),
    ] {
        if !address.ip().is_loopback() && !safe {
            found.push(format!(
                "server.{name}: {address} is no loopback address: {what}"
            ));
        }
    }
    let listen = settings.listener.listen;
    if !listen.ip().is_loopback() {
        let all = settings.gate.passthrough.iter().enumerate();
        let open = all.filter(|(_, it)| it.access == PassAccess::Open);
        found.extend(open.map(|(index, it)| {
            format!(
                "passthrough[{index}].authentication: whoever reaches {listen} is passed on by {} without a password",
                it.name
            )
        }));
    }
    let limits = &settings.listener.limits;
    if !listen.ip().is_loopback() && limits.connections_per_address >= limits.connections {
        found.push(format!(
            "limits.connections: one address can take all {}, because limits.connections_per_address is {}",
            limits.connections, limits.connections_per_address
        ));
    }
    certificates(settings, now, &mut found);
    people(settings, &mut found);
    for (index, grant) in settings.gate.grants.iter().enumerate() {
        for vms in &grant.vms {
            if !settings.gate.placements.iter().any(|it| overlap(vms, it)) {
                let text = vms.as_str();
                found.push(format!(
                    "grant[{index}].vms: {text:?} matches no VM of any backend"
                ));
            }
        }
    }
    backends(settings, &mut found);
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
        let granted = |it: &Grantee| is_for(it, name, user);
        if !grants.iter().flat_map(|it| &it.to).any(granted) {
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
            let mut mapped = issuers.iter().flat_map(|it| it.groups.values());
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
        let BackendKind::Sim(sim) = &backend.kind else {
            continue;
        };
        let name = &backend.name;
        let placed = |id: &str| {
            let mut all = settings.gate.placements.iter();
            all.any(|it| it.backend == *name && it.pattern.matches(id))
        };
        for vm in sim.vms.iter().filter(|it| !placed(it.as_str())) {
            found.push(format!(
                "backend {name}: no pattern in vms matches the simulated VM {vm}"
            ));
        }
    }
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
