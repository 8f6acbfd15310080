//! Which changes of a configuration need a restart.

use crate::config::cluster::PeerChannel;
use crate::config::settings::Backend;
use crate::config::settings::Settings;
use crate::config::trace_export::TraceExport;
use crate::model::GatewayName;
use crate::operations;
use crate::operations::StoreLocation;

/// The keys that differ and need a restart; empty when a reload applies everything.
#[must_use]
pub fn restart_needed(old: &Settings, new: &Settings) -> Vec<String> {
    let mut found: Vec<String> = fixed(old, new)
        .into_iter()
        .filter(|(_, differs)| *differs)
        .map(|(key, _)| key.to_owned())
        .collect();
    if old.listener.tls.is_some() != new.listener.tls.is_some() {
        found.push("certificate (the first one or the last one)".to_owned());
    }
    found.extend(backends(&old.backends, &new.backends));
    found
}

/// Every key outside of backends that needs a restart, and whether it differs.
#[expect(clippy::too_many_lines, reason = "it is a table")]
fn fixed(old: &Settings, new: &Settings) -> [(&'static str, bool); 49] {
    let (one, two) = (&old.listener, &new.listener);
    let (from, to) = (&old.operations, &new.operations);
    let (was, is) = (&old.logging, &new.logging);
    [
        ("server.listen", one.listen != two.listen),
        ("server.admin", one.admin != two.admin),
        ("server.threads", old.threads != new.threads),
        ("server.drain", one.drain != two.drain),
        ("server.drain_notice", one.drain_notice != two.drain_notice),
        ("cluster.name", name_of(old) != name_of(new)),
        (
            "cluster.listen",
            peers(old, |peers| peers.listen) != peers(new, |peers| peers.listen),
        ),
        (
            "cluster.advertise",
            peers(old, |peers| &peers.advertise) != peers(new, |peers| &peers.advertise),
        ),
        (
            "cluster.ca",
            peers(old, |peers| &peers.authorities) != peers(new, |peers| &peers.authorities),
        ),
        (
            "cluster.cert",
            peers(old, |peers| &peers.certificates) != peers(new, |peers| &peers.certificates),
        ),
        (
            "cluster.key",
            peers(old, |peers| peers.key.reveal()) != peers(new, |peers| peers.key.reveal()),
        ),
        ("operations.store", is_other_store(from, to)),
        (
            "operations.operator_file",
            from.operator_file != to.operator_file,
        ),
        ("operations.retention", from.retention != to.retention),
        ("operations.when_busy", from.when_busy != to.when_busy),
        (
            "operations.queue_per_vm",
            from.queue_per_vm != to.queue_per_vm,
        ),
        ("operations.queue_total", from.queue_total != to.queue_total),
        ("operations.cell", from.cell != to.cell),
        ("operations.accept_ttl", from.accept_ttl != to.accept_ttl),
        ("operations.resume_ttl", from.resume_ttl != to.resume_ttl),
        (
            "operations.probe_window",
            from.probe_window != to.probe_window,
        ),
        ("operations.poll_min", from.poll_min != to.poll_min),
        ("operations.poll_max", from.poll_max != to.poll_max),
        (
            "limits.connections",
            one.limits.connections != two.limits.connections,
        ),
        (
            "limits.connections_per_address",
            one.limits.connections_per_address != two.limits.connections_per_address,
        ),
        ("limits.streams", one.limits.streams != two.limits.streams),
        (
            "limits.handshake_timeout",
            one.limits.handshake_timeout != two.limits.handshake_timeout,
        ),
        (
            "limits.header_timeout",
            one.limits.header_timeout != two.limits.header_timeout,
        ),
        (
            "limits.body_timeout",
            one.limits.body_timeout != two.limits.body_timeout,
        ),
        (
            "limits.body_rate",
            one.limits.body_rate != two.limits.body_rate,
        ),
        (
            "limits.body_grace",
            one.limits.body_grace != two.limits.body_grace,
        ),
        (
            "limits.idle_timeout",
            one.limits.idle_timeout != two.limits.idle_timeout,
        ),
        (
            "limits.write_timeout",
            one.limits.write_timeout != two.limits.write_timeout,
        ),
        ("log.format", was.format != is.format),
        ("log.level", was.level != is.level),
        ("log.access", was.access != is.access),
        ("log.audit", was.audit != is.audit),
        (
            "log.audit_required",
            was.audit_required != is.audit_required,
        ),
        ("etcd.endpoints", etcd(old, new, |etcd| &etcd.endpoints)),
        ("etcd.prefix", etcd(old, new, |etcd| &etcd.prefix)),
        ("etcd.ca", etcd(old, new, |etcd| &etcd.authorities)),
        (
            "etcd.client_cert",
            etcd(old, new, |etcd| {
                etcd.identity
                    .as_ref()
                    .map(|identity| &identity.certificates)
            }),
        ),
        (
            "etcd.client_key",
            etcd(old, new, |etcd| {
                etcd.identity.as_ref().map(|identity| &identity.key)
            }),
        ),
        (
            "etcd.username",
            etcd(old, new, |etcd| {
                etcd.credentials.as_ref().map(|user| &user.username)
            }),
        ),
        (
            "etcd.password",
            etcd(old, new, |etcd| {
                etcd.credentials.as_ref().map(|user| &user.password)
            }),
        ),
        ("etcd.lease", etcd(old, new, |etcd| etcd.lease)),
        (
            "tracing.endpoint",
            trace(old, |export| (&export.origin, &export.target))
                != trace(new, |export| (&export.origin, &export.target)),
        ),
        (
            "tracing.ca",
            trace(old, |export| &export.authorities) != trace(new, |export| &export.authorities),
        ),
        (
            "tracing.authorization",
            trace(old, |export| &export.authorization)
                != trace(new, |export| &export.authorization),
        ),
    ]
}

fn name_of(settings: &Settings) -> Option<&GatewayName> {
    settings.cluster.as_ref().map(|cluster| &cluster.name)
}

/// A part of the peer channel, where there is one.
fn peers<'s, T>(settings: &'s Settings, part: impl Fn(&'s PeerChannel) -> T) -> Option<T> {
    settings.peers.as_ref().map(part)
}

/// Whether the operations are in another file, or in a file instead of etcd or the other way round.
fn is_other_store(from: &operations::Config, to: &operations::Config) -> bool {
    match (&from.store, &to.store) {
        (StoreLocation::Etcd(_), StoreLocation::Etcd(_)) => false,
        (one, other) => one != other,
    }
}

/// Whether a part of `[etcd]` differs, where both have their operations there.
fn etcd<'s, T: PartialEq>(
    old: &'s Settings,
    new: &'s Settings,
    part: impl Fn(&'s crate::etcd::Config) -> T,
) -> bool {
    match (&old.operations.store, &new.operations.store) {
        (StoreLocation::Etcd(one), StoreLocation::Etcd(other)) => part(one) != part(other),
        (StoreLocation::File(_) | StoreLocation::Etcd(_), _) => false,
    }
}

/// A part of the export of traces, where there is one.
fn trace<'s, T>(settings: &'s Settings, part: impl Fn(&'s TraceExport) -> T) -> Option<T> {
    settings.trace_export.as_ref().map(part)
}

fn backends(old: &[Backend], new: &[Backend]) -> Vec<String> {
    let by_name =
        |all: &[Backend], one: &Backend| all.iter().find(|other| other.name == one.name).cloned();
    let gone = old
        .iter()
        .filter(|backend| by_name(new, backend).is_none())
        .map(|backend| format!("backend {} (removed)", backend.name));
    let other = new
        .iter()
        .filter_map(|backend| match by_name(old, backend) {
            None => Some(format!("backend {} (added)", backend.name)),
            Some(was) if was != *backend => Some(format!("backend {} (changed)", backend.name)),
            Some(_) => None,
        });
    gone.chain(other).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::config::load::load;
    use crate::config::tables;
    use crate::schema::TakesEffect;

    const BASE: &str =
        "[operations]\nstore = \"s\"\n[[backend]]\nname = \"a\"\nkind = \"sim\"\nvms = [\"a*\"]\n";

    fn settings(folder: &Path, text: &str) -> Settings {
        let file = folder.join("c.toml");
        fs::write(&file, text).unwrap();
        load(&file, &|_| None).unwrap()
    }

    #[test]
    fn only_what_needs_a_restart_is_named() {
        let rows: [(&str, &str, &str, &[&str]); 7] = [
            ("nothing", "", "", &[]),
            ("vms", "a*", "b*", &[]),
            (
                "timeout",
                "vms =",
                "timeout = \"5s\"\nvms =",
                &["backend a (changed)"],
            ),
            (
                "name",
                "\"a\"",
                "\"b\"",
                &["backend a (removed)", "backend b (added)"],
            ),
            ("store", "\"s\"", "\"t\"", &["operations.store"]),
            (
                "body",
                "[operations]",
                "[limits]\nbody = \"2KiB\"\n[operations]",
                &[],
            ),
            (
                "several",
                "[operations]",
                "[server]\nlisten = \"127.0.0.1:1\"\ndrain = \"1s\"\n[log]\nformat = \"json\"\n[operations]",
                &["server.listen", "server.drain", "log.format"],
            ),
        ];
        let folder = tempfile::tempdir().unwrap();
        let old = settings(folder.path(), BASE);
        for (name, from, to, expected) in rows {
            let new = settings(folder.path(), &BASE.replace(from, to));
            assert_eq!(restart_needed(&old, &new), expected, "{name}");
        }
    }

    #[test]
    fn the_keys_that_are_compared_are_those_declared_to_need_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let one = settings(folder.path(), BASE);
        let mut compared: Vec<&str> = fixed(&one, &one).iter().map(|key| key.0).collect();
        let mut declared = Vec::new();
        for table in tables::ALL.iter().filter(|table| table.name != "backend") {
            for key in table.keys.iter().map(|key| key.describe()) {
                if key.takes_effect == TakesEffect::Restart {
                    declared.push(format!("{}.{}", table.name, key.name));
                }
            }
        }
        compared.sort_unstable();
        declared.sort_unstable();
        assert_eq!(compared, declared, "left: reload.rs, right: tables/");
    }
}
