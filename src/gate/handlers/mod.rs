//! What is done with an authenticated request: reads, plans, changes, Statuses and cancellation.

mod accepted;
mod backend_vms;
mod backup_list;
mod backup_query;
mod cancel;
mod capabilities;
mod change;
mod current_state;
mod events;
mod idempotency;
mod operation_access;
mod permissions;
mod plan;
mod public_pages;
mod read;
mod status_list;
mod status_query;
mod statuses;
mod vm_query;
mod vms;
mod waiting;

pub(super) use cancel::cancel_operation;
pub(super) use capabilities::read_capabilities;
pub(super) use change::change;
pub(super) use permissions::read_permissions;
pub(super) use plan::make_plan;
pub(super) use public_pages::read_public;
pub(super) use read::list_backups;
pub(super) use read::read_backup;
pub(super) use read::read_vm;
pub(super) use statuses::read_statuses;
pub(super) use vms::list_vms;
