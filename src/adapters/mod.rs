//! Our code for each kind of VM manager, behind one port.
//!
//! One folder per kind; no adapter knows another. `layers/` wraps any adapter.

pub mod annotations;
pub mod files;
pub mod layers;
pub mod port;
pub mod qemu;
pub mod sim;
