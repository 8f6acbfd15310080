//! The tables of the configuration file, and every key in them but those of one kind of backend: one file for each table.

pub(super) mod authentication;
pub(super) mod backend;
pub(super) mod certificate;
pub(super) mod client_certificate;
pub(super) mod cluster;
pub(super) mod etcd;
mod forms;
pub(super) mod grant;
pub(super) mod group;
pub(super) mod insecure;
pub(super) mod issuer;
pub(super) mod limits;
pub(super) mod lockout;
pub(super) mod log;
pub(super) mod operations;
pub(super) mod passthrough;
pub(super) mod rate;
pub(super) mod server;
pub(super) mod specification;
pub(super) mod tls;
pub(super) mod tracing;
pub(super) mod user;

use crate::schema::Table;

/// Every table, in the order of the documentation.
pub(super) const ALL: &[Table] = &[
    server::TABLE,
    certificate::TABLE,
    tls::TABLE,
    specification::TABLE,
    authentication::TABLE,
    lockout::TABLE,
    user::TABLE,
    client_certificate::TABLE,
    group::TABLE,
    issuer::TABLE,
    grant::TABLE,
    operations::TABLE,
    etcd::TABLE,
    cluster::TABLE,
    backend::TABLE,
    passthrough::TABLE,
    limits::TABLE,
    rate::TABLE,
    log::TABLE,
    tracing::TABLE,
    insecure::TABLE,
];
