//! The connection to etcd: endpoints, TLS, credentials, time limits, and what an error says about whether a request was
//! applied. What is stored there, and under which keys, is the matter of the rooms above.
//!
//! | to | use |
//! |---|---|
//! | read or write | [`Connection`] |
//! | be the only one who writes | [`LeaderLock`], and [`LeaderTerm::compare`] in each transaction |

mod config;
mod connection;
mod error;
mod leader_lock;
mod remedy;

pub use config::Config;
pub use config::Credentials;
pub use config::Identity;
pub use connection::Connection;
pub use connection::MemberStatus;
pub use error::EtcdError;
pub use leader_lock::Attempt;
pub use leader_lock::LeaderLock;
pub use leader_lock::LeaderTerm;

pub use etcd_client::Compare;
pub use etcd_client::CompareOp;
pub use etcd_client::EventType;
pub use etcd_client::GetOptions;
pub use etcd_client::GetResponse;
pub use etcd_client::KeyValue;
pub use etcd_client::PutOptions;
pub use etcd_client::Txn;
pub use etcd_client::TxnOp;
pub use etcd_client::TxnOpResponse;
pub use etcd_client::TxnResponse;
pub use etcd_client::WatchStream;
