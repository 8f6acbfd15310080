//! What both simulators have in common, the one in memory and the one in another process.

use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::Capability;
use crate::adapters::adapter::VerbCapability;
use crate::adapters::sim::Config;
use crate::model::BackupId;
use crate::model::BackupKind;
use crate::model::FaultKind;
use crate::model::RequestKey;
use crate::model::RunState;
use crate::model::Vm;
use crate::model::VmId;
use crate::public_text;

/// What a simulator of that configuration can do. In another process nothing can be cancelled, and updates are tasks.
pub(super) fn capability(config: &Config) -> Capability {
    let in_memory = config.simulator.is_none();
    let verb = |cancel, progress| {
        Some(VerbCapability {
            recovery: config.recovery,
            settle: config.settle,
            cancel,
            progress,
        })
    };
    Capability {
        kind: "sim",
        create: verb(in_memory, true),
        update: verb(false, !in_memory),
        delete: verb(in_memory, true),
        restore: verb(in_memory, true),
        kinds: &[BackupKind::Snapshot, BackupKind::Full],
        restore_options: &[],
        online: true,
        memory: true,
        consistent: true,
        // The protocol of a simulator in another process has no such call.
        lists_vms: in_memory,
    }
}

/// `b<number of the operation>`, which no backup of the start is called.
pub(super) fn mint_backup_id(key: RequestKey) -> Result<BackupId, AdapterError> {
    BackupId::new(&format!("b{}", key.0)).map_err(|error| {
        AdapterError::refused(
            FaultKind::Invalid,
            public_text!("The name is not usable for a backup. Choose another name."),
        )
        .because(error)
    })
}

/// A simulated VM has no properties but its id.
pub(super) fn vm(id: &VmId) -> Vm {
    Vm {
        id: id.clone(),
        name: id.as_str().to_owned(),
        description: None,
        run_state: Some(RunState::Started),
    }
}
