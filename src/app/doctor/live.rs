//! The part of an examination that the running gateway makes of itself.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::app::active::ActiveOperations;
use crate::app::doctor::backends::check_backend;
use crate::app::doctor::etcd_members::check_etcd;
use crate::app::doctor::finding::Examination;
use crate::app::doctor::finding::Finding;
use crate::app::doctor::machine;
use crate::app::doctor::sandbox;
use crate::app::doctor::settings::check_settings;
use crate::config::Settings;
use crate::model::OperatorQuery;
use crate::operations::Operations;
use crate::operations::OperationsApi;
use crate::operations::StoreAttention;
use crate::runtime::Clock;

/// Examines the gateway that it is a part of.
#[derive(Debug)]
pub(crate) struct LiveDoctor {
    pub(crate) settings: Arc<Mutex<Settings>>,
    pub(crate) active: Arc<ActiveOperations>,
    pub(crate) clock: Arc<dyn Clock>,
}

impl LiveDoctor {
    /// What is wrong, as far as this process can find out.
    pub(crate) async fn examine(&self) -> Examination {
        let settings = self.settings.lock().clone();
        let now = self.clock.now();
        let (about, folders) = {
            let settings = settings.clone();
            // Reads the metadata of many files.
            let look = move || {
                let mut about = Examination::default();
                check_settings(&settings, now, &mut about);
                let folders = machine::written_folders(&settings);
                about.add(machine::DISK, machine::check_disks(&folders));
                let store = settings.operations.store.file();
                about.add(
                    machine::STORE,
                    store.and_then(machine::check_store_file_system),
                );
                about.add(sandbox::SANDBOX, sandbox::check_own_sandbox(&folders));
                about.add(sandbox::SANDBOX, sandbox::check_foreign_images(&settings));
                about.add(sandbox::RIGHTS, sandbox::check_own_rights(&settings));
                (about, folders.len())
            };
            tokio::task::spawn_blocking(look).await.unwrap_or_default()
        };
        let mut about = about;
        tracing::debug!(folders, "examined");
        check_etcd(&settings, &mut about).await;
        let Some(term) = self.active.term() else {
            about.skip(machine::STORE, "this gateway is on standby".to_owned());
            about.skip("backends", "this gateway is on standby".to_owned());
            return about;
        };
        self.check_operations(&term.operations, &mut about).await;
        for backend in &settings.backends {
            let handle = term
                .backends
                .iter()
                .find(|handle| handle.name == backend.name);
            match handle {
                Some(handle) => {
                    check_backend(
                        &settings,
                        backend,
                        &*handle.adapter,
                        &self.clock,
                        &mut about,
                    )
                    .await;
                }
                None => about.skip(
                    "backends",
                    format!("{}: it is used after a restart", backend.name),
                ),
            }
        }
        about
    }

    /// The store, the clock against its records, and what waits for an operator.
    async fn check_operations(&self, operations: &Operations, about: &mut Examination) {
        let is_writable = operations.is_ready();
        about.add(
            machine::STORE,
            (!is_writable).then(|| {
                Finding::new(
                    machine::STORE,
                    "the store takes no writes",
                    "Changes are refused, and running operations are not followed.",
                    "See the log and the runbook SnapgateStoreErrors.",
                )
            }),
        );
        match operations.attention().await {
            Ok(attention) => about.add(machine::STORE, needs_attention(attention)),
            Err(error) => about.skip(machine::STORE, error.to_string()),
        }
        let newest = OperatorQuery {
            limit: 1,
            ..OperatorQuery::default()
        };
        if let Ok(newest) = operations.list_for_operator(&newest).await {
            let written: Vec<_> = newest
                .iter()
                .map(|operation| (format!("operation {}", operation.seq), operation.created))
                .collect();
            about.add(
                machine::CLOCK,
                machine::check_clock(self.clock.now(), &written),
            );
        }
    }
}

/// Records that need an operator.
pub(super) fn needs_attention(attention: StoreAttention) -> Vec<Finding> {
    let StoreAttention { unknown, set_aside } = attention;
    let mut found = Vec::new();
    if unknown > 0 {
        found.push(Finding::new(
            machine::STORE,
            format!("{unknown} operations have an unknown outcome"),
            "The VMs may have been changed, and no operator has inspected them.",
            "Run: snapgate operations list --state unknown; inspect the VMs, then acknowledge (runbook SnapgateOutcomeUnknown).",
        ));
    }
    if set_aside > 0 {
        found.push(Finding::new(
            machine::STORE,
            format!("{set_aside} records cannot be read by this version"),
            "Their Statuses are missing, and unfinished ones are not continued.",
            "See the runbook SnapgateRecordsSetAside.",
        ));
    }
    found
}
