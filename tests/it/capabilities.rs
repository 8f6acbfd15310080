//! The table of what adapters can do, in docs/adapters.md, says what the code says.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use snapgate::adapters::adapter::Adapter;
use snapgate::adapters::adapter::Capability;
use snapgate::adapters::adapter::Recovery;
use snapgate::adapters::cloudapi;
use snapgate::adapters::cloudapi::CloudApi;
use snapgate::adapters::files;
use snapgate::adapters::files::Files;
use snapgate::adapters::incus;
use snapgate::adapters::incus::Incus;
use snapgate::adapters::layers::Annotate;
use snapgate::adapters::libvirt;
use snapgate::adapters::libvirt::Libvirt;
use snapgate::adapters::qemu;
use snapgate::adapters::qemu::Qemu;
use snapgate::adapters::sim;
use snapgate::adapters::sim::Sim;
use snapgate::adapters::transport;
use snapgate::model::BackendName;
use snapgate::model::Verb;
use snapgate::runtime::SystemClock;
use snapgate::runtime::Tasks;

use crate::memory_annotations::MemoryAnnotations;

const DOCUMENT: &str = "docs/adapters.md";
const BEGIN: &str =
    "<!-- capabilities: begin, generated from the code by tests/it/capabilities.rs -->\n";
const END: &str = "<!-- capabilities: end -->";

/// Every adapter there is.
fn all() -> Vec<Capability> {
    let folder = tempfile::tempdir().unwrap();
    let config = files::Config {
        root: folder.path().join("vms"),
        backups: folder.path().join("backups"),
        new_folders: true,
    };
    fs::create_dir(&config.root).unwrap();
    fs::create_dir(&config.backups).unwrap();
    let files = Files::new(config, SystemClock::shared(), Tasks::default()).unwrap();
    let sim = Sim::new(
        &sim::Config::default(),
        SystemClock::shared(),
        Tasks::default(),
    );
    let libvirt = Libvirt::new(
        libvirt::Config::default(),
        SystemClock::shared(),
        Tasks::default(),
    );
    let incus = incus::Config {
        address: transport::Address::Unix("/nowhere".into()),
        project: "default".to_owned(),
        connect_timeout: Duration::from_secs(1),
    };
    let incus = Incus::new(&incus, SystemClock::shared()).unwrap();
    let qemu = qemu::Config {
        qmp: "/run/{vm}.qmp".to_owned(),
        ..qemu::Config::default()
    };
    let qemu = Qemu::new(qemu, SystemClock::shared(), Tasks::default());
    let qemu = Annotate::new(
        BackendName::new("qemu").unwrap(),
        Arc::new(qemu),
        Arc::<MemoryAnnotations>::default(),
        SystemClock::shared(),
    );
    // What can be done depends on what the server is configured to be; this is the default.
    let cloudapi = cloudapi::Config {
        address: transport::Address::Unix("/nowhere".into()),
        base: Vec::new(),
        credential: None,
        version: "0.1".to_owned(),
        recovery: Recovery::Listable,
        connect_timeout: Duration::from_secs(1),
    };
    let cloudapi = CloudApi::new(&cloudapi, SystemClock::shared()).unwrap();
    let made: [Arc<dyn Adapter>; 6] = [
        Arc::new(cloudapi),
        Arc::new(files),
        Arc::new(incus),
        Arc::new(libvirt),
        Arc::new(qemu),
        Arc::new(sim),
    ];
    made.iter()
        .map(|adapter| adapter.capability().clone())
        .collect()
}

fn yes(is_true: bool) -> &'static str {
    if is_true { "yes" } else { "no" }
}

fn table(all: &[Capability]) -> String {
    let mut text = String::from(
        "| kind | verb | lost answers | settle | cancel | progress |\n|---|---|---|---|---|---|\n",
    );
    for capability in all {
        for verb in Verb::ALL {
            text.push_str(&match capability.verb(verb) {
                Some(can) => format!(
                    "| `{}` | {} | {} | {:?} | {} | {} |\n",
                    capability.kind,
                    verb.as_str(),
                    can.recovery.as_str(),
                    can.settle,
                    yes(can.cancel),
                    yes(can.progress),
                ),
                None => format!(
                    "| `{}` | {} | not possible | | | |\n",
                    capability.kind,
                    verb.as_str()
                ),
            });
        }
    }
    text.push_str("\n| kind | types of backup | running VMs | memory | all disks or none | lists VMs | restore options |\n|---|---|---|---|---|---|---|\n");
    for capability in all {
        let kinds: Vec<&str> = capability.kinds.iter().map(|kind| kind.as_str()).collect();
        let options: Vec<&str> = capability
            .restore_options
            .iter()
            .map(|(name, _)| *name)
            .collect();
        text.push_str(&format!(
            "| `{}` | {} | {} | {} | {} | {} | {} |\n",
            capability.kind,
            kinds.join(", "),
            yes(capability.online),
            yes(capability.memory),
            yes(capability.consistent),
            yes(capability.lists_vms),
            options.join(", "),
        ));
    }
    text
}

#[apply(test)]
fn the_table_of_capabilities_is_that_of_the_code() {
    let document = fs::read_to_string(DOCUMENT).unwrap();
    let (before, rest) = document.split_once(BEGIN).unwrap();
    let (written, after) = rest.split_once(END).unwrap();
    let made = table(&all());
    if std::env::var("UPDATE_GOLDEN").is_ok() {
        fs::write(DOCUMENT, format!("{before}{BEGIN}{made}{END}{after}")).unwrap();
        return;
    }
    assert_eq!(
        written, made,
        "{DOCUMENT} differs; UPDATE_GOLDEN=1 rewrites it"
    );
}
