//! `[backend.sim]`.

use std::sync::Arc;
use std::time::Duration;

use crate::adapters::adapter::Adapter;
use crate::adapters::adapter::Recovery;
use crate::adapters::kind::AdapterKind;
use crate::adapters::kind::BuildContext;
use crate::adapters::kind::BuildError;
use crate::adapters::kind::ReadContext;
use crate::adapters::kind::WarningContext;
use crate::adapters::sim::Config;
use crate::adapters::sim::Remote;
use crate::adapters::sim::Sim;
use crate::model::VmId;
use crate::schema::Choice;
use crate::schema::Section;
use crate::schema::Table;
use crate::schema::TextList;
use crate::schema::declare_table;
use crate::schema::duration;
use crate::schema::integer;
use crate::schema::optional_text;

declare_table! { "sim", false, "VMs in memory, for demos, tests and benchmarks.",
    SIMULATED_VMS: TextList = "simulated_vms", TextList { default: Some(&[]), form: "ids" }, Restart,
        "Its VMs.", Shown = "[\"web01\", \"web02\"]";
    SIMULATED_BACKUPS: Integer = "simulated_backups", integer(1, 0, 10_000), Restart,
        "Backups of each VM at the start.";
    DURATION: DurationValue = "duration", duration(Duration::from_secs(1), 0, 3600), Restart,
        "How long a change takes.";
    SIMULATOR: Text = "simulator", optional_text("in memory", "`unix:PATH`"), Restart,
        "The socket of a simulator that runs as a process of its own, for crash tests; it then holds the VMs and backups.",
        Commented = "\"unix:/run/simulator.sock\"";
    RECOVERY: Choice = "recovery", Choice { default: Some("replay-safe"), allowed: Recovery::WORDS }, Restart,
        "How the outcome of a call is learned when its answer was lost; it must be true of the simulator.";
    SETTLE: DurationValue = "settle", duration(Duration::ZERO, 0, 3600), Restart,
        "How long after a lost answer a change may still begin.";
}

/// Keys that have no meaning for a simulator of its own, which has its VMs itself.
const IN_MEMORY: [&str; 3] = [SIMULATED_VMS.name, SIMULATED_BACKUPS.name, DURATION.name];

impl AdapterKind for Config {
    const TABLE: Table = TABLE;

    fn read(section: &Section<'_>, _context: &ReadContext<'_>) -> Option<Self> {
        let mut vms = Vec::new();
        for found in section.read_distinct_texts(&SIMULATED_VMS) {
            match VmId::new(&found.text) {
                Ok(vm) => vms.push(vm),
                Err(error) => section.report_text(&found, error.to_string(), ""),
            }
        }
        let simulator = section.read_text(&SIMULATOR).and_then(|mut found| {
            let path = found.text.strip_prefix("unix:").map(str::to_owned);
            let Some(path) = path.filter(|path| !path.is_empty()) else {
                let hint = "write simulator = \"unix:/folder/socket\"";
                section.report_text(&found, "is not the address of a socket", hint);
                return None;
            };
            found.text = path;
            Some(section.resolve_path(&found))
        });
        if simulator.is_some() {
            for name in IN_MEMORY.iter().filter(|name| section.has(name)) {
                let hint = "remove it, or remove simulator";
                section.report_key(name, "has no effect with simulator", hint);
            }
        }
        let backups = section.read_u32(&SIMULATED_BACKUPS);
        let duration = section.read_duration(&DURATION);
        let recovery = section.read_choice(&RECOVERY);
        let settle = section.read_duration(&SETTLE);
        Some(Self {
            vms,
            backups,
            duration,
            simulator,
            recovery: Recovery::from_word(recovery?)?,
            settle,
        })
    }

    fn is_local(&self) -> bool {
        // A simulator in this process is another one in each gateway.
        self.simulator.is_none()
    }

    fn build(&self, context: &BuildContext) -> Result<Arc<dyn Adapter>, BuildError> {
        Ok(match Remote::new(self) {
            Some(remote) => Arc::new(remote),
            None => Arc::new(Sim::new(
                self,
                Arc::clone(&context.clock),
                context.tasks.clone(),
            )),
        })
    }

    fn warnings(&self, context: &WarningContext<'_>) -> Vec<String> {
        let is_placed = |vm: &VmId| {
            context
                .vms
                .iter()
                .any(|pattern| pattern.matches(vm.as_str()))
        };
        let unplaced = self.vms.iter().filter(|vm| !is_placed(vm));
        unplaced
            .map(|vm| format!("no pattern in vms matches the simulated VM {vm}"))
            .collect()
    }
}
