//! Puts the rooms together: builds adapters, operations, gate and listener in that order, reloads, drains in reverse.

mod backends;
mod handler;
mod health;
mod issuers;
mod operator;
mod probe;
mod running;
mod start_error;

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
