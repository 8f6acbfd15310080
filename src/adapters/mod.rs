//! The adapters: one folder for each kind of VM manager, behind one trait.
//!
//! No adapter imports another. `kind.rs` is the contract between a kind and the configuration, `registry.rs` lists the kinds, `rights.rs` and `survey.rs`
//! are what a kind may answer besides,
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
pub(crate) mod rights;
pub mod sim;
pub(crate) mod survey;
pub mod transport;
pub(crate) mod vm_list_cache;
