//! Connects to every backend and tells what it is and can do there, and fetches the keys of issuers: `snapgate check --probe`.

use std::sync::Arc;
use std::time::Duration;

use crate::adapters::adapter::Adapter;
use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::Capability;
use crate::adapters::adapter::MetadataOwner;
use crate::adapters::layers;
use crate::app::backends;
use crate::app::issuers;
use crate::config::Backend;
use crate::config::Settings;
use crate::model::Verb;
use crate::model::VmId;
use crate::runtime::Clock;
use crate::runtime::SystemClock;
use crate::runtime::Tasks;
use crate::telemetry::Metrics;

/// Longest wait for one backend or VM.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most VMs of one backend that are looked at: those that the configuration names without a `*`.
const VMS_MAX: usize = 20;

/// What was found out about one backend or issuer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probed {
    /// Whether it answered, and every VM that was looked at.
    pub is_well: bool,
    /// What to tell the operator, line by line.
    pub lines: Vec<String>,
}

/// Looks at every backend, and then at every issuer whose keys are fetched, in the order of the configuration. Opens each as
/// a start would.
pub async fn probe(settings: &Settings, metrics: &Arc<Metrics>) -> Vec<Probed> {
    let clock = SystemClock::shared();
    let mut all = Vec::new();
    for backend in &settings.backends {
        let mut found = Probed {
            is_well: true,
            lines: Vec::new(),
        };
        match backends::build_adapter(backend, &clock, &Tasks::default()) {
            Ok(adapter) => look(settings, backend, adapter, &clock, metrics, &mut found).await,
            Err(error) => found.failed(error.to_string()),
        }
        all.push(found);
    }
    for source in &settings.key_sources {
        let found = issuers::look(source, &clock).await;
        all.push(Probed {
            is_well: found.is_ok(),
            lines: vec![found.unwrap_or_else(|why| why)],
        });
    }
    all
}

impl Probed {
    fn failed(&mut self, line: String) {
        self.is_well = false;
        self.lines.push(line);
    }
}

async fn look(
    settings: &Settings,
    backend: &Backend,
    adapter: Arc<dyn Adapter>,
    clock: &Arc<dyn Clock>,
    metrics: &Arc<Metrics>,
    found: &mut Probed,
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
        Err(error) => found.failed(format!("backend {name}: {}", said(&error))),
    }
    found
        .lines
        .extend(abilities(adapter.capability(), metadata_owner));
    let placed = settings.gate.placements.iter();
    let vms = placed
        .filter(|placed| placed.backend == *name && !placed.pattern.prefix().1)
        .filter_map(|it| VmId::new(it.pattern.as_str()).ok());
    for vm in vms.take(VMS_MAX) {
        match adapter.vm(&vm, clock.deadline(PATIENCE)).await {
            Ok(it) => {
                let state = it.run_state.map_or("", |state| state.as_str());
                found.lines.push(format!("  VM {vm}: {} {state}", it.name));
            }
            Err(error) => found.failed(format!("  VM {vm}: {}", said(&error))),
        }
    }
}

/// For the operator, who may know what the VM manager itself said.
fn said(error: &AdapterError) -> String {
    match error.private() {
        "" => error.fault.text.to_string(),
        private => format!("{} ({private})", error.fault.text),
    }
}

fn abilities(it: &Capability, metadata_owner: MetadataOwner) -> Vec<String> {
    let can = |verb: Verb| {
        it.verb(verb).is_some()
            || (verb == Verb::Update && metadata_owner == MetadataOwner::Gateway)
    };
    let verbs = |wanted: bool| -> String {
        let verbs = Verb::ALL.into_iter().filter(|verb| can(*verb) == wanted);
        let verbs: Vec<&str> = verbs.map(Verb::as_str).collect();
        if verbs.is_empty() {
            "nothing".to_owned()
        } else {
            verbs.join(", ")
        }
    };
    let kinds: Vec<&str> = it.kinds.iter().map(|kind| kind.as_str()).collect();
    let yes = |it: bool| if it { "yes" } else { "no" };
    vec![
        format!("  can {}; cannot {}", verbs(true), verbs(false)),
        format!(
            "  types {}; running VMs {}; memory {}; all disks or none {}",
            kinds.join(", "),
            yes(it.online),
            yes(it.memory),
            yes(it.consistent)
        ),
    ]
}
