//! `[backend.libvirt]`.

use std::sync::Arc;
use std::time::Duration;

use crate::adapters::adapter::Adapter;
use crate::adapters::kind::AdapterKind;
use crate::adapters::kind::BuildContext;
use crate::adapters::kind::BuildError;
use crate::adapters::kind::ReadContext;
use crate::adapters::libvirt::AfterRestore;
use crate::adapters::libvirt::Config;
use crate::adapters::libvirt::Libvirt;
use crate::adapters::libvirt::ManagedSave;
use crate::schema::Choice;
use crate::schema::Flag;
use crate::schema::Section;
use crate::schema::Table;
use crate::schema::declare_table;
use crate::schema::default_text;
use crate::schema::duration;

declare_table! { "libvirt", false, "The VMs of a libvirtd.",
    LIBVIRT_SOCKET: Text = "libvirt_socket", default_text("/run/libvirt/libvirt-sock", "path"), Restart,
        "The unix socket of the daemon.";
    LIBVIRT_URI: Text = "libvirt_uri", default_text("qemu:///system", "URI of a driver"), Restart,
        "The driver to open there.";
    LIBVIRT_KEEPALIVE: DurationValue = "libvirt_keepalive", duration(Duration::from_secs(5), 1, 60), Restart,
        "Interval of keep-alive messages to the daemon; after four without an answer the connection is lost.";
    LIBVIRT_TIMEOUT: DurationValue = "libvirt_timeout", duration(Duration::from_secs(3600), 60, 24 * 3600), Restart,
        "How long one create, restore or delete may take before its outcome counts as unknown.";
    AFTER_RESTORE: Choice = "after_restore", Choice { default: Some("as-before"), allowed: &["as-before", "running", "paused", "as-saved"] }, Restart,
        "The state of a VM after a restore, unless the request says otherwise.";
    MANAGED_SAVE: Choice = "managed_save", Choice { default: Some("refuse"), allowed: &["refuse", "discard"] }, Restart,
        "What a restore does when libvirt keeps memory of the VM for its next start (`virsh managedsave`), unless the request says otherwise: refuse, or discard that memory.";
    INSPECT_DISKS: Flag = "inspect_disks", Flag(true), Restart,
        "Whether QEMU and the disk images are inspected before a restore or delete. libvirt marks a running VM as tainted for it.";
}

impl AdapterKind for Config {
    const TABLE: Table = TABLE;

    fn read(section: &Section<'_>, _context: &ReadContext<'_>) -> Option<Self> {
        let socket = section.read_text(&LIBVIRT_SOCKET);
        let uri = section.read_text(&LIBVIRT_URI);
        if let Some(found) = uri.as_ref().filter(|found| !found.text.contains("://")) {
            let what = format!("{:?} is not the URI of a driver", found.text);
            section.report_text(found, what, "write libvirt_uri = \"qemu:///system\"");
        }
        let after_restore = section.read_choice(&AFTER_RESTORE);
        let managed_save = section.read_choice(&MANAGED_SAVE);
        let inspect_disks = section.read_flag(&INSPECT_DISKS);
        let keepalive = section.read_duration(&LIBVIRT_KEEPALIVE);
        let operation_timeout = section.read_duration(&LIBVIRT_TIMEOUT);
        Some(Self {
            socket: section.resolve_path(&socket?),
            uri: uri?.text,
            after_restore: AfterRestore::from_word(after_restore?)?,
            managed_save: ManagedSave::from_word(managed_save?)?,
            inspect_disks,
            keepalive,
            operation_timeout,
        })
    }

    fn is_local(&self) -> bool {
        true
    }

    fn build(&self, context: &BuildContext) -> Result<Arc<dyn Adapter>, BuildError> {
        Ok(Arc::new(Libvirt::new(
            self.clone(),
            Arc::clone(&context.clock),
            context.tasks.clone(),
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_allowed_word_has_a_meaning() {
        let words = AfterRestore::ALL.map(AfterRestore::as_str);
        assert_eq!(AFTER_RESTORE.value.allowed, words, "after_restore");
        let words = ManagedSave::ALL.map(ManagedSave::as_str);
        assert_eq!(MANAGED_SAVE.value.allowed, words, "managed_save");
    }
}
