//! What the tests of the operations share.

mod records;
mod scripted_adapter;
mod setup;

pub(super) use records::NOW;
pub(super) use records::TEST_TIMEOUT;
pub(super) use records::backend;
pub(super) use records::backup;
pub(super) use records::delete;
pub(super) use records::idempotency;
pub(super) use records::new_backup;
pub(super) use records::operation;
pub(super) use records::permit;
pub(super) use records::restore;
pub(super) use records::submission;
pub(super) use records::target;
pub(super) use records::task_ref;
pub(super) use records::test_deadline;
pub(super) use records::update;
pub(super) use scripted_adapter::BeginReply;
pub(super) use scripted_adapter::Reply;
pub(super) use scripted_adapter::ScriptedAdapter;
pub(super) use setup::TestSetup;
