//! Our code for each kind of VM manager, behind one port.
//!
//! One folder per kind; no adapter knows another. `layers/` wraps any adapter; `transport/` is what those share that
//! speak HTTP.

pub mod adapter;
pub mod annotations;
pub mod cloudapi;
pub mod description_trailer;
pub mod files;
pub mod incus;
pub mod layers;
pub mod libvirt;
pub mod proxmox;
pub mod qemu;
pub mod sim;
pub mod transport;
