//! The commands that call a gateway over its public API, of this program or of any server that speaks it. See `docs/client.md`.

mod backup;
mod completion;
mod confirm;
mod connection;
mod ending;
mod login;
mod progress;
mod report;
mod run;
mod status;
mod text;
mod vm;

pub(super) use backup::BackupArguments;
pub(super) use backup::run_backup;
pub(super) use login::LoginArguments;
pub(super) use login::run_login;
pub(super) use status::StatusArguments;
pub(super) use status::run_status;
pub(super) use vm::VmArguments;
pub(super) use vm::run_vm;
