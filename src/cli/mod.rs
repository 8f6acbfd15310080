//! The command line: what can be asked for, and which status it ends with.

mod audit;
mod check;
mod client;
mod commands;
mod config_file;
mod demo;
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
mod operations;
mod output;
mod serve;
mod successor;
mod token;

pub use commands::main;
pub(crate) use error::CliError;
