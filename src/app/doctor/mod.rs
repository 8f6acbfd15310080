//! `snapgate doctor`: what is wrong with an installation, or about to be, why that matters, and what to do.
//!
//! What only the running process can know (its backends, its sandbox, its store) is examined by the gateway itself, on request
//! of its admin port; everything else by the command. Without a gateway the command does it all.

mod backends;
mod etcd_members;
mod finding;
mod live;
mod machine;
mod offline;
mod sandbox;
mod settings;
mod unit;

pub use finding::Examination;
pub use finding::Finding;
pub use finding::SkippedCheck;
pub(crate) use live::LiveDoctor;
pub use offline::examine_installation;
pub use offline::examine_offline;
pub use offline::examine_unit;
