//! What is done with an authenticated request: reads, changes, Statuses and cancellation.

mod accepted;
mod all_statuses;
mod backup_list;
mod cancel;
mod change;
mod current_state;
mod event_stream;
mod events;
mod idempotency;
mod operation_access;
mod read;
mod status_query;
mod statuses;
mod waiting;

pub(super) use cancel::cancel_operation;
pub(super) use change::change;
pub(super) use read::list_backups;
pub(super) use read::read_backup;
pub(super) use read::read_versions;
pub(super) use read::read_vm;
pub(super) use statuses::read_statuses;
