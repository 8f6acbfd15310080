//! Checks the members of etcd, where the operations are in etcd.

use crate::app::doctor::finding::Examination;
use crate::app::doctor::finding::Finding;
use crate::config::Settings;
use crate::etcd::Connection;
use crate::operations::StoreLocation;

const ETCD: &str = "etcd";

/// Asks every member for its state, and reads a key.
pub(super) async fn check_etcd(settings: &Settings, about: &mut Examination) {
    let StoreLocation::Etcd(config) = &settings.operations.store else {
        return;
    };
    let connection = Connection::new(config);
    let statuses = connection.member_statuses().await;
    let answers = statuses.iter().any(|(_, status)| status.is_ok());
    let mut found = Vec::new();
    for (endpoint, status) in statuses {
        match status {
            Ok(status) if status.has_leader => {}
            Ok(_) => found.push(format!("{endpoint}: the member has no leader")),
            Err(error) => found.push(format!("{endpoint}: {}", connection.explain(&error))),
        }
    }
    // The state of a member can be read without a right, and without a majority.
    if answers && let Err(error) = connection.read(config.leader_key(), None).await {
        found.push(format!("{}: {}", config.prefix, connection.explain(&error)));
    }
    let findings = found.into_iter().map(|what| {
        Finding::new(
            ETCD,
            what,
            "Without a majority of the members no change is accepted and no Status is shown.",
            "Do what the finding says, or see the log of the member (runbook SnapgateEtcdMemberDown).",
        )
    });
    about.add(ETCD, findings);
}
