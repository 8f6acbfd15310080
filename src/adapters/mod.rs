//! The adapters: one folder for each kind of VM manager, behind one trait.
//!
//! No adapter imports another. `kind.rs` is the contract between a kind and the configuration, `registry.rs` lists the kinds,
//! `layers/` wraps any adapter, and `transport/` is shared by those that speak HTTP.

pub mod adapter;
pub mod annotations;
pub mod backup_listing;
pub mod checks;
pub mod cloudapi;
pub mod description_trailer;
pub mod files;
pub mod incus;
pub(crate) mod kind;
pub mod layers;
pub mod libvirt;
pub mod proxmox;
pub mod qemu;
pub mod registry;
pub mod sim;
pub mod transport;
pub(crate) mod vm_list_cache;
