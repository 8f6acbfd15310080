//! A VM manager in memory with scripted delays, progress and faults, for demos, tests and benchmarks.

mod config;

pub use config::Config;
