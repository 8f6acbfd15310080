//! The types that every part of the program uses: identifiers, backups, operations, principals, faults, limits, time.
//!
//! Nothing here does I/O, reads a clock or draws a random number. Values are checked once, where they
//! are made, and stay valid.

mod backup;
mod certificate;
mod fault;
mod intent;
pub mod limits;
mod operation;
mod pattern;
mod permit;
mod precondition;
mod public_text;
mod secret;
mod text;
mod time;

pub use backup::Backup;
pub use backup::BackupKind;
pub use backup::BackupPage;
pub use backup::BackupPatch;
pub use backup::BackupState;
pub use backup::Identity;
pub use backup::NewBackup;
pub use backup::Page;
pub use backup::Patch;
pub use backup::RunState;
pub use backup::Vm;
pub use certificate::CertificateName;
pub use fault::Fault;
pub use fault::FaultKind;
pub use intent::Change;
pub use intent::Intent;
pub use intent::KeyScope;
pub use intent::RestoreOptions;
pub use intent::Target;
pub use intent::Verb;
pub use operation::Evidence;
pub use operation::Fingerprint;
pub use operation::Idempotency;
pub use operation::IgnoredMembers;
pub use operation::Operation;
pub use operation::OperationSeq;
pub use operation::Phase;
pub use operation::Progress;
pub use operation::RequestKey;
pub use operation::Revision;
pub use operation::Showing;
pub use operation::TaskRef;
pub use pattern::Pattern;
pub use permit::Action;
pub use permit::ActionSet;
pub use permit::Permit;
pub use permit::Principal;
pub use precondition::Precondition;
pub use precondition::Version;
pub use public_text::PublicText;
#[doc(hidden)]
pub use public_text::check_public_template;
pub use secret::Secret;
pub use text::BackendName;
pub use text::BackupId;
pub use text::BackupName;
pub use text::Description;
pub use text::GroupName;
pub use text::IdempotencyKey;
pub use text::IssuerName;
pub use text::Note;
pub use text::PassName;
pub use text::PrincipalName;
pub use text::RequestId;
pub use text::Tag;
pub use text::TextError;
pub use text::TokenName;
pub use text::VmId;
pub use time::Deadline;
pub use time::Timestamp;
