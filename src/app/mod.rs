//! Puts the rooms together: builds adapters, operations, gate and listener in that order, reloads, drains in reverse.

mod active;
mod backends;
mod cluster_clock;
mod cluster_tokens;
mod doctor;
mod envelope;
mod etcd_watch;
mod handler;
mod health;
mod issuers;
mod membership;
mod operator;
mod peer;
mod probe;
mod relay;
mod running;
mod start_error;
mod term;
mod trace_export;

pub use doctor::Examination;
pub use doctor::Finding;
pub use doctor::SkippedCheck;
pub use doctor::examine_installation;
pub use doctor::examine_offline;
pub use doctor::examine_unit;
pub use operator::Decision;
pub use operator::OperatorAccess;
pub use operator::OperatorAction;
pub use operator::OperatorName;
pub use probe::ProbeReport;
pub use probe::probe;
pub use running::Running;
pub use running::start;
pub use running::start_on;
pub use start_error::StartError;
