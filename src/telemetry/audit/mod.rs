//! The audit trail: who changed or tried to change what, and the outcome. One JSON object per line, whatever the log
//! format. Each record carries the hash of the one before it, so that later edits can be found.

mod file;
mod record;
#[cfg(test)]
mod tests;
mod trail;
mod verify;

pub use record::AuditClient;
pub use record::AuditRecord;
pub use trail::AuditTrail;
pub use trail::AuditWriteError;
pub use verify::Verified;
pub use verify::VerifyError;
pub use verify::verify;
