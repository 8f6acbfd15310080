//! Why a gateway does not start.

use crate::listener::SocketError;
use crate::model::BackendName;
use crate::operations::OpenError;
use crate::telemetry::MetricsError;

/// Why the gateway could not be put together. Each is one sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A port cannot be listened on.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// A port cannot be served.
    #[error("cannot start to serve")]
    Server(#[from] crate::listener::StartError),
    /// The store of operations cannot be opened.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The API tokens of the cluster cannot be read.
    #[error("cannot read the API tokens of the cluster: {0}")]
    Tokens(String),
    /// The metric catalogue is inconsistent: a defect.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// A backend cannot be used.
    #[error("cannot create the adapter of backend {name}")]
    Backend {
        /// Which.
        name: BackendName,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The system has no randomness.
    #[error("the system gives no random numbers")]
    Random(#[from] getrandom::Error),
}
