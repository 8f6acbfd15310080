//! snapgate: one small, safe backup and restore API in front of the VM managers people already run.
//!
//! `docs/architecture.md` describes the rooms, and which may import which.

pub mod adapters;
pub mod app;
pub mod cli;
pub mod client;
pub mod cluster;
pub mod config;
pub mod demo;
pub mod etcd;
pub mod gate;
pub mod listener;
pub mod model;
pub mod operations;
pub mod runtime;
mod schema;
pub mod telemetry;
