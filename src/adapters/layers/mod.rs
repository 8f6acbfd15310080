//! What is wrapped around every adapter: deadline, retry of reads, concurrency limit, breaker, metrics.

mod config;

pub use config::Config;
