//! The command line: what can be asked for, and which status it ends with.

mod admin_port;
mod audit;
mod check;
mod client;
mod cluster;
mod commands;
mod config_file;
mod demo;
mod doctor;
mod effect;
mod error;
mod explain;
mod folders;
mod generate;
mod grouped_help;
mod hash_password;
mod health;
mod init;
mod input;
mod log_level;
mod operations;
mod output;
mod serve;
mod store;
mod successor;
mod support_bundle;
mod token;
mod token_store;
mod top;

pub use commands::main;
pub(crate) use error::CliError;
