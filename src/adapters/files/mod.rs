//! VMs as directories of disk images.

mod config;

pub use config::Config;
