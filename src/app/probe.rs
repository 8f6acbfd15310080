//! `snapgate check --probe`: connects to every backend and reports its capabilities, and fetches the keys of issuers.

use std::sync::Arc;
use std::time::Duration;

use crate::adapters::adapter::Adapter;
use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::Capability;
use crate::adapters::adapter::MetadataOwner;
use crate::adapters::layers;
use crate::adapters::rights::RightsQuestion;
use crate::adapters::rights::RightsReport;
use crate::app::backends;
use crate::app::issuers;
use crate::config::Backend;
use crate::config::Settings;
use crate::gate::Placement;
use crate::model::ActionSet;
use crate::model::Verb;
use crate::model::VmId;
use crate::runtime::Clock;
use crate::runtime::SystemClock;
use crate::runtime::Tasks;
use crate::telemetry::Metrics;

/// Longest wait for one backend or VM.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest wait for the rights of one credential: a call for each VM and storage.
const RIGHTS_PATIENCE: Duration = Duration::from_secs(60);
/// Most VMs of one backend that are looked at: those that the configuration names without a `*`.
const VMS_MAX: usize = 20;

/// The report about one backend or issuer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeReport {
    /// Whether it answered, and every VM that was looked at.
    pub is_healthy: bool,
    /// The report for the operator, line by line.
    pub lines: Vec<String>,
}

/// Looks at every backend, and then at every issuer whose keys are fetched, in the order of the configuration. Opens each as
/// a start would.
pub async fn probe(settings: &Settings, metrics: &Arc<Metrics>) -> Vec<ProbeReport> {
    let clock = SystemClock::shared();
    let mut all = Vec::new();
    for backend in &settings.backends {
        let mut found = ProbeReport {
            is_healthy: true,
            lines: Vec::new(),
        };
        match backends::build_adapter(backend, &clock, &Tasks::default()) {
            Ok(adapter) => {
                probe_backend(settings, backend, adapter, &clock, metrics, &mut found).await;
            }
            Err(error) => found.failed(error.to_string()),
        }
        all.push(found);
    }
    for source in &settings.key_sources {
        let found = issuers::look(source, &clock).await;
        all.push(ProbeReport {
            is_healthy: found.is_ok(),
            lines: vec![found.unwrap_or_else(|why| why)],
        });
    }
    all
}

impl ProbeReport {
    fn failed(&mut self, line: String) {
        self.is_healthy = false;
        self.lines.push(line);
    }
}

async fn probe_backend(
    settings: &Settings,
    backend: &Backend,
    adapter: Arc<dyn Adapter>,
    clock: &Arc<dyn Clock>,
    metrics: &Arc<Metrics>,
    found: &mut ProbeReport,
) {
    let name = &backend.name;
    let metadata_owner = adapter.metadata_owner();
    let adapter = layers::wrap(
        name.clone(),
        adapter,
        &backend.layers,
        Arc::clone(clock),
        Arc::clone(metrics),
    );
    match adapter.health(clock.deadline(PATIENCE)).await {
        Ok(health) => found
            .lines
            .push(format!("backend {name}: {}", health.product)),
        Err(error) => found.failed(format!("backend {name}: {}", describe_error(&error))),
    }
    found
        .lines
        .extend(describe_capability(adapter.capability(), metadata_owner));
    let placed = settings.gate.placements.iter();
    let vms = placed
        .filter(|placed| placed.backend == *name && !placed.pattern.prefix().1)
        .filter_map(|placement| VmId::new(placement.pattern.as_str()).ok());
    for vm in vms.take(VMS_MAX) {
        match adapter.read_vm(&vm, clock.deadline(PATIENCE)).await {
            Ok(found_vm) => {
                let state = found_vm.run_state.map_or("", |state| state.as_str());
                found
                    .lines
                    .push(format!("  VM {vm}: {} {state}", found_vm.name));
            }
            Err(error) => found.failed(format!("  VM {vm}: {}", describe_error(&error))),
        }
    }
    probe_rights(settings, backend, clock, found).await;
}

/// Compares the rights of the backend's credential with what the grants allow; `None` where the VM manager does not say which
/// rights it has.
pub(super) async fn compare_rights(
    settings: &Settings,
    backend: &Backend,
    clock: &Arc<dyn Clock>,
) -> Option<Result<RightsReport, AdapterError>> {
    let pattern_of = |vm: &VmId| {
        let placement = placement_of(&settings.gate.placements, vm)?;
        (placement.backend == backend.name).then(|| placement.pattern.clone())
    };
    let actions_on = |vm: &VmId| {
        let all = settings.gate.grants.iter();
        let on_vm = all.filter(|grant| grant.vms.iter().any(|vms| vms.matches(vm.as_str())));
        on_vm.fold(ActionSet::NONE, |actions, grant| {
            actions.union(grant.actions)
        })
    };
    let question = RightsQuestion {
        pattern_of: &pattern_of,
        actions_on: &actions_on,
        by: clock.deadline(RIGHTS_PATIENCE),
    };
    Some(backend.config.audit_rights(&question)?.await)
}

async fn probe_rights(
    settings: &Settings,
    backend: &Backend,
    clock: &Arc<dyn Clock>,
    found: &mut ProbeReport,
) {
    let Some(compared) = compare_rights(settings, backend, clock).await else {
        return;
    };
    match compared {
        Ok(report) => {
            found.is_healthy &= report.is_sufficient;
            found.lines.extend(report.lines);
        }
        Err(error) => found.failed(format!("  rights: {}", describe_error(&error))),
    }
}

/// The placement that a request for the VM would take: an exact id wins over prefixes, a longer prefix over a shorter one.
fn placement_of<'a>(placements: &'a [Placement], vm: &VmId) -> Option<&'a Placement> {
    let fitting = placements
        .iter()
        .filter(|placement| placement.pattern.matches(vm.as_str()));
    fitting.max_by_key(|placement| {
        let (prefix, is_open) = placement.pattern.prefix();
        (!is_open, prefix.len())
    })
}

/// For the operator, who may know what the VM manager itself said.
pub(super) fn describe_error(error: &AdapterError) -> String {
    match error.private() {
        "" => error.fault.text.to_string(),
        private => format!("{} ({private})", error.fault.text),
    }
}

fn describe_capability(capability: &Capability, metadata_owner: MetadataOwner) -> Vec<String> {
    let can = |verb: Verb| {
        capability.verb(verb).is_some()
            || (verb == Verb::Update && metadata_owner == MetadataOwner::Gateway)
    };
    let verbs = |wanted: bool| -> String {
        let verbs = Verb::ALL.into_iter().filter(|verb| can(*verb) == wanted);
        let verbs: Vec<&str> = verbs.map(Verb::as_str).collect();
        if verbs.is_empty() {
            "none".to_owned()
        } else {
            verbs.join(", ")
        }
    };
    let kinds: Vec<&str> = capability.kinds.iter().map(|kind| kind.as_str()).collect();
    let yes = |value: bool| if value { "yes" } else { "no" };
    vec![
        format!(
            "  supported: {}; unsupported: {}",
            verbs(true),
            verbs(false)
        ),
        format!(
            "  backup types: {}; running VMs: {}; memory: {}; all disks or none: {}",
            kinds.join(", "),
            yes(capability.online),
            yes(capability.memory),
            yes(capability.consistent)
        ),
    ]
}
