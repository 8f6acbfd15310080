//! What is allowed in a configuration but is seldom meant.

use std::time::Duration;

use crate::adapters::kind::WarningContext;
use crate::config::addresses::is_loopback;
use crate::config::file_access;
use crate::config::log_level;
use crate::config::settings::Settings;
use crate::gate;
use crate::gate::Grantee;
use crate::gate::PassThroughAccess;
use crate::gate::Placement;
use crate::gate::User;
use crate::listener::ClientCertificates;
use crate::listener::Tls;
use crate::model::Pattern;
use crate::model::PrincipalName;
use crate::model::Timestamp;
use crate::schema::environment;

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

/// What a warning is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WarningSubject {
    /// A file with a secret that others can read or write.
    SecretFiles,
    /// A certificate of the API port.
    Certificates,
    /// A folder or image of a backend.
    Folders,
    /// Any other setting.
    Settings,
}

/// One sentence for each thing that is allowed but seldom meant, at this moment.
#[must_use]
pub fn warnings(settings: &Settings, now: Timestamp) -> Vec<String> {
    let all = warnings_by_subject(settings, now).into_iter();
    all.map(|(_, warning)| warning).collect()
}

/// The same, with what each is about.
#[must_use]
pub fn warnings_by_subject(settings: &Settings, now: Timestamp) -> Vec<(WarningSubject, String)> {
    let mut all = Vec::new();
    let mut add = |subject: WarningSubject, found: Vec<String>| {
        all.extend(found.into_iter().map(|warning| (subject, warning)));
    };
    let collect = |look: &dyn Fn(&mut Vec<String>)| {
        let mut found = Vec::new();
        look(&mut found);
        found
    };
    add(
        WarningSubject::Settings,
        [settings.notes.clone(), reachability(settings)].concat(),
    );
    add(WarningSubject::SecretFiles, file_access::secrets(settings));
    add(WarningSubject::Settings, trust(settings));
    add(
        WarningSubject::Certificates,
        collect(&|found| certificates(settings, now, found)),
    );
    add(
        WarningSubject::Settings,
        collect(&|found| {
            people(settings, found);
            grants(settings, found);
            backends(settings, found);
        }),
    );
    add(WarningSubject::Folders, file_access::folders(settings));
    all
}

/// Who can reach the gateway, and how much of it; and whether it says anything.
fn reachability(settings: &Settings) -> Vec<String> {
    let mut found = Vec::new();
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
                "server.{name}: other machines can reach {address}: {what}"
            ));
        }
    }
    let listen = settings.listener.listen;
    if !is_loopback(listen) {
        let all = settings.gate.passthrough.iter().enumerate();
        let open = all.filter(|(_, value)| value.access == PassThroughAccess::Open);
        found.extend(open.map(|(index, route)| {
            format!(
                "passthrough[{index}].authentication: route {} passes every client of {listen} through without authentication",
                route.name
            )
        }));
    }
    let limits = &settings.listener.limits;
    if !is_loopback(listen) && limits.connections_per_address >= limits.connections {
        found.push(format!(
            "limits.connections: one address can use all {} connections, because limits.connections_per_address is {}",
            limits.connections, limits.connections_per_address
        ));
    }
    if log_level::is_silent(&settings.logging.level) {
        let level = &settings.logging.level;
        found.push(format!("log.level: {level:?} silences every message"));
    }
    found
}

/// Whom the gateway believes what it cannot check.
fn trust(settings: &Settings) -> Vec<String> {
    let mut found = Vec::new();
    for network in settings.gate.trusted_proxies.networks() {
        if network.prefix_len() == 0 {
            found.push(format!(
                "server.trusted_proxies: {network} trusts every machine, so clients can forge their address in limits and the audit trail"
            ));
        }
    }
    let origins = settings.gate.allowed_origins.iter();
    found.extend(origins.filter(|origin| origin.is_forgeable()).map(|origin| {
        format!(
            "server.allowed_origins: pages of {origin} are not encrypted, so that anyone on the way can use the API with the rights of their readers"
        )
    }));
    page(settings, &mut found);
    found
}

/// Which of the page and a pass-through route gets a request, and which upstreams have the origin of the page.
fn page(settings: &Settings, found: &mut Vec<String>) {
    if !settings.gate.page {
        return;
    }
    let clients = settings.listener.tls.as_ref().map(Tls::clients);
    if matches!(clients, Some(ClientCertificates::Required(_))) {
        found.push(
            "tls.client_certificates: \"required\" closes the page of server.page to browsers, because its requests are sent without their certificates; write \"optional\""
                .to_owned(),
        );
    }
    let public: Option<http::Uri> = settings.gate.public_url.as_str().parse().ok();
    let public = public.as_ref().and_then(http::Uri::host);
    let public = public.map(str::to_ascii_lowercase).unwrap_or_default();
    for (index, route) in settings.gate.passthrough.iter().enumerate() {
        let name = &route.name;
        let is_hosted = !route.hosts.is_empty();
        if gate::page_takes_from_prefix(route.prefix.as_str()) {
            found.push(if is_hosted {
                format!("passthrough[{index}].path: on its hosts route {name} gets the requests for /ui, and the page of server.page is not served there")
            } else {
                format!("passthrough[{index}].path: the page of server.page gets the requests for /ui, and route {name} gets none of them")
            });
        }
        if !is_hosted || route.hosts.contains(&public) {
            found.push(format!(
                "passthrough[{index}].hosts: route {name} has the origin of the page of server.page, so scripts of its upstream can use the credentials of people who are signed in there; give the route a host of its own"
            ));
        }
    }
}

fn certificates(settings: &Settings, now: Timestamp, found: &mut Vec<String>) {
    let all = settings.listener.tls.iter().flat_map(Tls::certificates);
    for (index, certificate) in all.enumerate() {
        let (begins, ends) = certificate.validity();
        if ends <= now {
            found.push(format!("certificate[{index}]: expired at {ends}"));
        } else if begins > now {
            found.push(format!("certificate[{index}]: not valid before {begins}"));
        } else if ends.since(now) < RENEWED_BEFORE {
            found.push(format!("certificate[{index}]: expires at {ends}"));
        }
        if !certificate.has_alternative_names() {
            found.push(format!(
                "certificate[{index}].chain: the certificate has a common name but no subject alternative name, so clients reject it; have it reissued with one for each host name"
            ));
            continue;
        }
        for name in certificate.unsupported_names() {
            found.push(format!(
                "certificate[{index}].names: {name:?} is not a subject alternative name of the certificate, so clients reject it for that host"
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
        found.push("no user is configured: every request will be refused".to_owned());
    }
    for (name, user) in users {
        if PUBLISHED_HASHES.contains(&user.password.reveal()) {
            found.push(format!(
                "user {name} has the password of a published example; create another hash with: snapgate hash-password"
            ));
        }
        let granted = |grantee: &Grantee| is_for(grantee, name, user);
        if !grants.iter().flat_map(|grant| &grant.to).any(granted) {
            found.push(format!(
                "user {name} has no grant: every request will be denied"
            ));
        }
    }
    for token in settings.gate.credentials.tokens.iter().flatten() {
        if !users.contains_key(&token.owner) {
            let (name, owner) = (&token.name, &token.owner);
            found.push(format!(
                "token {name} cannot be used: its owner {owner} is not a user"
            ));
        }
    }
    for (index, grant) in grants.iter().enumerate() {
        for to in &grant.to {
            let mut mapped = issuers.iter().flat_map(|issuer| issuer.groups.values());
            if let Grantee::Group(group) = to
                && !mapped.any(|other| other == group)
                && !users.iter().any(|(name, user)| is_for(to, name, user))
            {
                found.push(format!("grant[{index}].to: group {group} has no members"));
            }
        }
    }
}

fn is_for(grantee: &Grantee, name: &PrincipalName, user: &User) -> bool {
    match grantee {
        Grantee::User(user) => user == name,
        Grantee::Group(group) => user.groups.contains(group),
    }
}

fn grants(settings: &Settings, found: &mut Vec<String>) {
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
}

fn backends(settings: &Settings, found: &mut Vec<String>) {
    if settings.backends.is_empty() {
        found.push("no backend is configured: no VM can be reached".to_owned());
    }
    let program_path = environment("PATH").unwrap_or_default();
    for backend in &settings.backends {
        let placements = settings.gate.placements.iter();
        let vms: Vec<Pattern> = placements
            .filter(|placement| placement.backend == backend.name)
            .map(|placement| placement.pattern.clone())
            .collect();
        let context = WarningContext {
            listen: settings.listener.listen,
            vms: &vms,
            program_path: &program_path,
        };
        let warnings = backend.config.warnings(&context).into_iter();
        found.extend(warnings.map(|warning| format!("backend {}: {warning}", backend.name)));
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
