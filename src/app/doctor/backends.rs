//! Whether backends answer, and whether their credentials may do what is needed and no more.

use std::sync::Arc;
use std::time::Duration;

use crate::adapters::adapter::Adapter;
use crate::app::doctor::finding::Examination;
use crate::app::doctor::finding::Finding;
use crate::app::doctor::sandbox::RIGHTS;
use crate::app::probe;
use crate::config::Backend;
use crate::config::Settings;
use crate::runtime::Clock;

const BACKENDS: &str = "backends";
/// Longest wait for one backend.
const PATIENCE: Duration = Duration::from_secs(10);

/// Checks one backend through an adapter.
pub(super) async fn check_backend(
    settings: &Settings,
    backend: &Backend,
    adapter: &dyn Adapter,
    clock: &Arc<dyn Clock>,
    into: &mut Examination,
) {
    let health = adapter.health(clock.deadline(PATIENCE)).await;
    into.add(
        BACKENDS,
        health.err().map(|error| {
            Finding::new(
                BACKENDS,
                format!("{}: {}", backend.name, probe::describe_error(&error)),
                "Requests for the VMs of this backend are answered with 503, and accepted operations wait.",
                format!("See docs/adapters/{}.md and the runbook SnapgateBackendDown.", backend.config.kind()),
            )
        }),
    );
    let Some(compared) = probe::compare_rights(settings, backend, clock).await else {
        return;
    };
    let name = &backend.name;
    match compared {
        Ok(report) => {
            let excess = report.excess.iter().map(|line| {
                Finding::new(
                    RIGHTS,
                    format!("backend {name}: {line}"),
                    "An attacker who controls the gateway can use these rights too.",
                    "Remove the rights from the role of the gateway's credential; docs/adapters names the ones that are needed.",
                )
            });
            let missing = report.lines.iter().filter(|_| !report.is_sufficient);
            let missing = missing.filter(|line| line.contains("missing"));
            let missing = missing.map(|line| {
                Finding::new(
                    RIGHTS,
                    format!("backend {name}: {}", line.trim()),
                    "Requests that a grant allows will fail at the VM manager.",
                    "Give the gateway's credential these rights, or remove the grant.",
                )
            });
            into.add(RIGHTS, missing.chain(excess).collect::<Vec<_>>());
        }
        Err(error) => into.skip(
            RIGHTS,
            format!("backend {name}: {}", probe::describe_error(&error)),
        ),
    }
}
