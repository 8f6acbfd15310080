//! The command line: what can be asked for, and which status it ends with.

mod admin_port;
mod audit;
mod check;
mod commands;
mod demo;
mod doctor;
mod effect;
mod error;
mod explain;
mod folders;
mod hash_password;
mod init;
mod input;
mod log_level;
mod operations;
mod output;
mod serve;
mod support_bundle;
mod token;
mod top;

pub use commands::main;
pub(crate) use error::CliError;
