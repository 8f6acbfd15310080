//! snapgate: one small, safe backup and restore API in front of the VM managers people already run.
//!
//! The rooms and who may enter which are told in `docs/architecture.md`.

pub mod adapters;
pub mod app;
pub mod cli;
pub mod config;
pub mod demo;
pub mod gate;
pub mod listener;
pub mod model;
pub mod operations;
pub mod runtime;
pub mod telemetry;
