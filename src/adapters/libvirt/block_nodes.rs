//! What QEMU says about the disks of a running VM.

use std::path::Path;

use serde::Deserialize;

use crate::adapters::adapter::AdapterError;
use crate::adapters::libvirt::client::Client;
use crate::adapters::libvirt::definition_checks::refuse;
use crate::adapters::libvirt::error;
use crate::adapters::libvirt::native::Domain;
use crate::model::Deadline;
use crate::model::FaultKind;
use crate::public_text;

/// An image that QEMU has open.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct BlockNode {
    #[serde(default)]
    node_name: String,
    /// Whether it is only read, as an image below another one is.
    #[serde(default)]
    pub(crate) ro: bool,
    #[serde(default)]
    dirty_bitmaps: Vec<serde_json::Value>,
    image: NodeImage,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct NodeImage {
    #[serde(default)]
    filename: String,
    #[serde(default)]
    format: String,
    #[serde(default)]
    snapshots: Vec<NodeSnapshot>,
}

/// A snapshot within an image.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct NodeSnapshot {
    /// QEMU's number for it.
    #[serde(default)]
    pub(crate) id: String,
    /// Its name.
    pub(crate) name: String,
    vm_state_size: u64,
}

impl NodeSnapshot {
    /// Whether the VM's memory is in it.
    pub(crate) const fn has_memory(&self) -> bool {
        self.vm_state_size > 0
    }
}

impl BlockNode {
    /// Its snapshots.
    pub(crate) fn snapshots(&self) -> &[NodeSnapshot] {
        &self.image.snapshots
    }

    /// Whether QEMU records which parts of it change.
    pub(crate) fn has_bitmaps(&self) -> bool {
        !self.ro && !self.dirty_bitmaps.is_empty()
    }

    /// Whether it is the image of this path, and not merely the file that an image lies in.
    pub(crate) fn is_image(&self, path: &Path) -> bool {
        let is_file = matches!(self.image.format.as_str(), "file" | "host_device");
        !is_file && Path::new(&self.image.filename) == path
    }
}

#[derive(Debug, Deserialize)]
struct Reply<T> {
    #[serde(rename = "return")]
    value: T,
}

/// Everything that QEMU has open.
///
/// # Errors
/// Whatever keeps QEMU from answering.
pub(crate) async fn query_block_nodes(
    client: &Client,
    domain: &Domain,
    by: Deadline,
) -> Result<Vec<BlockNode>, AdapterError> {
    let command = r#"{"execute":"query-named-block-nodes","arguments":{"flat":true}}"#;
    let reply = client.ask_qemu(domain, command, by).await;
    parse(&reply?)
}

/// Whether nothing copies, merges or mirrors the VM's disks.
///
/// # Errors
/// [`FaultKind::Busy`] naming the kind of job, or whatever keeps QEMU from answering.
pub(crate) async fn check_no_block_job(
    client: &Client,
    domain: &Domain,
    by: Deadline,
) -> Result<(), AdapterError> {
    #[derive(Deserialize)]
    struct Job {
        #[serde(rename = "type", default)]
        kind: String,
    }
    let command = r#"{"execute":"query-block-jobs"}"#;
    let reply = client.ask_qemu(domain, command, by).await;
    let jobs = parse::<Vec<Job>>(&reply?)?;
    let Some(job) = jobs.first() else {
        return Ok(());
    };
    let kind = match job.kind.as_str() {
        kind @ ("commit" | "stream" | "mirror" | "backup") => kind,
        _other => "block",
    };
    Err(refuse(
        FaultKind::Busy,
        public_text!(
            "A {kind} job is running on the VM's disks; nothing was changed. Wait until it ends, or cancel it."
        ),
    ))
}

fn parse<T: serde::de::DeserializeOwned>(reply: &str) -> Result<T, AdapterError> {
    match serde_json::from_str::<Reply<T>>(reply) {
        Ok(reply) => Ok(reply.value),
        Err(error) => {
            Err(refuse(FaultKind::BackendFailed, error::unreadable_answer()).because(error))
        }
    }
}

/// Nodes as QEMU writes them, for tests.
///
/// # Errors
/// When it is no answer.
#[cfg(test)]
pub(crate) fn parse_for_tests(reply: &str) -> Result<Vec<BlockNode>, AdapterError> {
    parse(reply)
}
