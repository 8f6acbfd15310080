//! A client of the public API, of this gateway or of any server that speaks it: HTTP, profiles, names of VMs and backups, and
//! waiting that survives restarts of the gateway. It knows nothing of how the gateway works; `cli/client` is built on it.
//!
//! Every change is sent with an idempotency key and repeated until there is an answer. The end of an operation is followed by its
//! stream of events, which is resumed where it broke off, and by polling where there is no stream.

mod changes;
mod choice;
mod error;
mod event_parser;
mod follow;
mod gateway;
mod gateway_url;
mod observer;
mod patience;
mod profiles;
mod reads;
mod request;
mod tls;
mod watch;
mod wire;

pub use changes::ChangeRequest;
pub use changes::new_idempotency_key;
pub use choice::ChosenVm;
pub use choice::LATEST;
pub use error::ClientError;
pub use error::Refusal;
pub use follow::Follower;
pub use gateway::Connection;
pub use gateway::Gateway;
pub use gateway_url::GatewayUrl;
pub use gateway_url::GatewayUrlError;
pub use gateway_url::TargetError;
pub use gateway_url::path_of;
pub use gateway_url::with_query;
pub use observer::Observer;
pub use observer::Unobserved;
pub use patience::Patience;
pub use profiles::DEFAULT_PROFILE;
pub use profiles::Profile;
pub use profiles::ProfileError;
pub use profiles::ProfileFile;
pub use profiles::read_secret;
pub use reads::Filter;
pub use reads::VmList;
pub use tls::ClientIdentity;
pub use tls::Trust;
pub use watch::Watcher;
pub use watch::watch;
pub use wire::Backup;
pub use wire::LastBackup;
pub use wire::ListedVm;
pub use wire::Losses;
pub use wire::Needs;
pub use wire::Outcome;
pub use wire::Permission;
pub use wire::Plan;
pub use wire::PlanRefusal;
pub use wire::PlannedBackup;
pub use wire::PlannedDisk;
pub use wire::PlannedDuration;
pub use wire::PlannedVm;
pub use wire::Status;
pub use wire::Vm;
