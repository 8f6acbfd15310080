//! Whom a client trusts, and the certificate by which it proves who it is.

use std::sync::Arc;

use rustls::ClientConfig;
use rustls::RootCertStore;
use rustls::crypto::ring as provider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;

use crate::client::ClientError;
use crate::model::Secret;

/// Whom a client trusts.
#[derive(Clone, Debug)]
pub enum Trust {
    /// The authorities of the system.
    System,
    /// These authorities alone (PEM).
    Authorities(Vec<u8>),
}

/// A client certificate and its key, both PEM.
#[derive(Clone, Debug)]
pub struct ClientIdentity {
    /// The certificate, and those between it and an authority.
    pub certificates: Vec<u8>,
    /// The key of the first one.
    pub key: Secret,
}

/// The configuration of TLS. Without TLS nothing is trusted and nothing is read.
pub(super) fn client_config(
    is_tls: bool,
    trust: &Trust,
    identity: Option<&ClientIdentity>,
) -> Result<ClientConfig, ClientError> {
    let unusable = |error: rustls::Error| ClientError::Usage(format!("TLS: {error}"));
    let builder = ClientConfig::builder_with_provider(Arc::new(provider::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(unusable)?;
    let roots = match trust {
        // The store of the system is read for nothing else: that takes milliseconds.
        Trust::System if is_tls => system_authorities()?,
        Trust::System => RootCertStore::empty(),
        Trust::Authorities(pem) => authorities(pem)?,
    };
    let builder = builder.with_root_certificates(roots);
    let Some(identity) = identity else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = certificates(&identity.certificates, "--cert")?;
    // The parser's error is dropped: its text could hold a part of the key.
    let key = PrivateKeyDer::from_pem_slice(identity.key.reveal().as_bytes())
        .ok()
        .ok_or_else(|| ClientError::Usage("--key: no private key in PEM form".to_owned()))?;
    builder
        .with_client_auth_cert(chain, key)
        .map_err(|error| ClientError::Usage(format!("--cert and --key: {error}")))
}

fn system_authorities() -> Result<RootCertStore, ClientError> {
    let mut roots = RootCertStore::empty();
    // Single certificates that cannot be used are common in the stores of systems.
    let found = rustls_native_certs::load_native_certs();
    let (added, _ignored) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        return Err(ClientError::Usage(
            "this system has no certificate authorities; install ca-certificates, or name one with --ca".to_owned(),
        ));
    }
    Ok(roots)
}

fn authorities(pem: &[u8]) -> Result<RootCertStore, ClientError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem, "--ca")? {
        roots
            .add(certificate)
            .map_err(|error| ClientError::Usage(format!("--ca: {error}")))?;
    }
    Ok(roots)
}

fn certificates(pem: &[u8], option: &str) -> Result<Vec<CertificateDer<'static>>, ClientError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|error| ClientError::Usage(format!("{option}: {error}")))?;
    if found.is_empty() {
        let text = format!("{option}: no certificate in PEM form");
        return Err(ClientError::Usage(text));
    }
    Ok(found)
}
