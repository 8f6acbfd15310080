//! What a failed request to etcd says about whether it was applied.

use etcd_client::Error as ClientError;
use tonic::Code;
use tonic::ConnectError;
use tonic::Status;

use crate::model::error_causes;
use crate::model::error_chain;

/// Why a request to etcd failed. The text inside is for the log only.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EtcdError {
    /// Not sent: no connection to the endpoint.
    #[error("cannot connect: {0}")]
    NotConnected(String),
    /// Not applied, and it may work later: no leader, or too many requests.
    #[error("{0}")]
    Unavailable(String),
    /// Not applied: the database has reached its quota. Writes fail until an operator makes room.
    #[error("no space: {0}")]
    NoSpace(String),
    /// It may or may not have been applied, and it may still be applied later.
    #[error("outcome unknown: {0}")]
    Unknown(String),
    /// Not applied, and it will not be: a missing right, wrong credentials, or a request that is too large.
    #[error("refused: {0}")]
    Refused(String),
    /// The history that was asked for was compacted away.
    #[error("the history was compacted")]
    Compacted,
    /// The lease has expired or was revoked.
    #[error("the lease has expired")]
    LeaseExpired,
}

impl EtcdError {
    /// Whether another endpoint may do better.
    pub(super) const fn is_of_endpoint(&self) -> bool {
        match self {
            Self::NotConnected(_) | Self::Unavailable(_) | Self::Unknown(_) => true,
            Self::NoSpace(_) | Self::Refused(_) | Self::Compacted | Self::LeaseExpired => false,
        }
    }

    /// Whether the request was certainly not applied and may be repeated, even if it writes.
    pub(super) const fn may_be_repeated(&self) -> bool {
        matches!(self, Self::NotConnected(_) | Self::Unavailable(_))
    }
}

impl From<ClientError> for EtcdError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::GRpcStatus(status) => of_status(&status),
            ClientError::InvalidArgs(text)
            | ClientError::EndpointError(text)
            | ClientError::Internal(text) => Self::Refused(text),
            ClientError::LeaseKeepAliveError(text) if text == "lease not found" => {
                Self::LeaseExpired
            }
            ClientError::InvalidUri(_)
            | ClientError::InvalidMetadataValue(_)
            | ClientError::EndpointsNotManaged => Self::Refused(error.to_string()),
            // Of the creation of a channel, before anything is sent.
            ClientError::TransportError(error) => Self::NotConnected(error_chain(&error)),
            ClientError::IoError(_)
            | ClientError::WatchError(_)
            | ClientError::Utf8Error(_)
            | ClientError::LeaseKeepAliveError(_)
            | ClientError::ElectError(_) => Self::Unknown(error.to_string()),
        }
    }
}

/// Errors of etcd before a proposal is made, by their text: their code is that of others as well.
const NOT_PROPOSED: &[&str] = &[
    "etcdserver: no leader",
    "etcdserver: not capable",
    "etcdserver: server is shutting down",
];
const NO_SPACE: &str = "etcdserver: mvcc: database space exceeded";
const LEASE_NOT_FOUND: &str = "etcdserver: requested lease not found";

fn of_status(status: &Status) -> EtcdError {
    let text = status.message().to_owned();
    if is_connect_error(status) {
        return EtcdError::NotConnected(text_of(status));
    }
    match status.code() {
        Code::ResourceExhausted if text == NO_SPACE => EtcdError::NoSpace(text),
        // Too many requests are in flight: refused before a proposal. Messages that are too large have this code too.
        Code::ResourceExhausted if text.starts_with("etcdserver: ") => EtcdError::Unavailable(text),
        Code::Unavailable if NOT_PROPOSED.contains(&text.as_str()) => EtcdError::Unavailable(text),
        Code::NotFound if text == LEASE_NOT_FOUND => EtcdError::LeaseExpired,
        Code::OutOfRange => EtcdError::Compacted,
        // The store of users changed between the check of the token and the write: a new token helps.
        Code::Unauthenticated => EtcdError::Unavailable(text),
        Code::InvalidArgument if text.contains("revision of auth store is old") => {
            EtcdError::Unavailable(text)
        }
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Unimplemented => EtcdError::Refused(text),
        // Others may come after the proposal: a time limit, a leader that changed, a connection that broke.
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => EtcdError::Unknown(text_of(status)),
    }
}

/// The message and the innermost cause. What lies between them only says that it is an error of the transport.
fn text_of(status: &Status) -> String {
    let message = status.message();
    let innermost = error_causes(status).skip(1).last();
    match innermost.map(ToString::to_string) {
        Some(cause) if !message.contains(&cause) => format!("{message}: {cause}"),
        Some(_) | None => message.to_owned(),
    }
}

fn is_connect_error(status: &Status) -> bool {
    error_causes(status).any(|cause| cause.is::<ConnectError>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_have_been_applied_is_distinguished_from_what_was_not() {
        let unavailable = "not applied";
        let unknown = "unknown";
        let refused = "refused";
        let rows = [
            (Code::Unavailable, "etcdserver: no leader", unavailable),
            (Code::Unavailable, "etcdserver: request timed out", unknown),
            (Code::Unavailable, "etcdserver: server stopped", unknown),
            (Code::Unavailable, "etcdserver: leader changed", unknown),
            (Code::Unavailable, "error reading from server: EOF", unknown),
            (Code::Cancelled, "Timeout expired", unknown),
            (Code::DeadlineExceeded, "", unknown),
            (
                Code::ResourceExhausted,
                "etcdserver: too many requests",
                unavailable,
            ),
            (Code::ResourceExhausted, NO_SPACE, "no space"),
            (
                Code::PermissionDenied,
                "etcdserver: permission denied",
                refused,
            ),
            (
                Code::InvalidArgument,
                "etcdserver: request is too large",
                refused,
            ),
            (
                Code::Unauthenticated,
                "etcdserver: invalid auth token",
                unavailable,
            ),
            (Code::NotFound, LEASE_NOT_FOUND, "lease"),
            (
                Code::OutOfRange,
                "etcdserver: mvcc: required revision has been compacted",
                "compacted",
            ),
        ];
        for (code, text, expected) in rows {
            let found = match of_status(&Status::new(code, text)) {
                EtcdError::NotConnected(_) => "not sent",
                EtcdError::Unavailable(_) => "not applied",
                EtcdError::NoSpace(_) => "no space",
                EtcdError::Unknown(_) => "unknown",
                EtcdError::Refused(_) => "refused",
                EtcdError::Compacted => "compacted",
                EtcdError::LeaseExpired => "lease",
            };
            assert_eq!(found, expected, "{code:?} {text}");
        }
    }
}
