//! Whom a client trusts, and how it proves who it is.

use std::fmt;
use std::sync::Arc;

use data_encoding::HEXLOWER;
use rustls::CertificateError;
use rustls::ClientConfig;
use rustls::DigitallySignedStruct;
use rustls::RootCertStore;
use rustls::SignatureScheme;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::client::danger::ServerCertVerified;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring as provider;
use rustls::crypto::verify_tls12_signature;
use rustls::crypto::verify_tls13_signature;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::ServerName;
use rustls::pki_types::UnixTime;
use rustls::pki_types::pem::PemObject;

use crate::adapters::transport::BuildError;
use crate::model::Secret;

/// The SHA-256 of one certificate.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Pin([u8; 32]);

impl Pin {
    /// From 64 hexadecimal digits, with or without `:` between pairs.
    ///
    /// # Errors
    /// [`BuildError::Fingerprint`] when it is anything else.
    pub fn from_hex(text: &str) -> Result<Self, BuildError> {
        let digits: Vec<u8> = text
            .bytes()
            .filter(|byte| *byte != b':')
            .map(|byte| {
                char::from(byte)
                    .to_digit(16)
                    .and_then(|digit| u8::try_from(digit).ok())
            })
            .collect::<Option<_>>()
            .ok_or(BuildError::Fingerprint)?;
        let bytes: Vec<u8> = digits
            .chunks_exact(2)
            .map(|pair| pair.iter().fold(0, |byte, digit| (byte << 4) | digit))
            .collect();
        match <[u8; 32]>::try_from(bytes) {
            Ok(bytes) if digits.len() == 64 => Ok(Self(bytes)),
            Ok(_) | Err(_) => Err(BuildError::Fingerprint),
        }
    }

    /// Of the first certificate of a PEM text.
    ///
    /// # Errors
    /// [`BuildError::Certificate`] when there is none.
    pub fn from_pem(pem: &[u8]) -> Result<Self, BuildError> {
        CertificateDer::from_pem_slice(pem)
            .map(|certificate| Self::from_der(&certificate))
            .map_err(|error| BuildError::Certificate(error.to_string()))
    }

    /// 64 hexadecimal digits.
    #[must_use]
    pub fn to_hex(self) -> String {
        format!("{self:?}")
    }

    pub(super) fn from_der(certificate: &[u8]) -> Self {
        let mut bytes = [0; 32];
        let digest = ring::digest::digest(&ring::digest::SHA256, certificate);
        for (to, from) in bytes.iter_mut().zip(digest.as_ref()) {
            *to = *from;
        }
        Self(bytes)
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&HEXLOWER.encode_display(&self.0), f)
    }
}

/// How a server proves who it is.
#[derive(Clone, Debug)]
pub enum Trust {
    /// By having exactly this certificate; its names and dates do not matter.
    Pin(Pin),
    /// By a certificate for the name in the address, signed by one of these authorities (PEM).
    Authorities(Vec<u8>),
    /// No server is trusted.
    NoServer,
}

/// How the gateway proves who it is.
#[derive(Clone, Debug)]
pub struct ClientIdentity {
    /// Its certificate, and those between it and an authority, as PEM.
    pub certificates: Vec<u8>,
    /// The key of the first certificate, as PEM.
    pub key: Secret,
}

/// The configuration of TLS.
pub(super) fn client_config(
    trust: Trust,
    identity: Option<ClientIdentity>,
) -> Result<ClientConfig, BuildError> {
    let crypto = Arc::new(provider::default_provider());
    let unusable = |error: rustls::Error| BuildError::Client(error.to_string());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&crypto))
        .with_safe_default_protocol_versions()
        .map_err(unusable)?;
    let builder = match trust {
        Trust::Pin(pin) => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Pinned { pin, crypto })),
        Trust::Authorities(pem) => builder.with_root_certificates(authorities(&pem)?),
        Trust::NoServer => builder.with_root_certificates(RootCertStore::empty()),
    };
    let Some(identity) = identity else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = certificates(&identity.certificates)?;
    // The parser's error is dropped: its text could hold a part of the key.
    let key = PrivateKeyDer::from_pem_slice(identity.key.reveal().as_bytes())
        .ok()
        .ok_or_else(|| BuildError::Identity("there is no private key in PEM form".to_owned()))?;
    builder
        .with_client_auth_cert(chain, key)
        .map_err(|error| BuildError::Identity(error.to_string()))
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, BuildError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|error| BuildError::Certificate(error.to_string()))?;
    if found.is_empty() {
        let text = "there is no certificate in PEM form".to_owned();
        return Err(BuildError::Certificate(text));
    }
    Ok(found)
}

fn authorities(pem: &[u8]) -> Result<RootCertStore, BuildError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem)? {
        roots
            .add(certificate)
            .map_err(|error| BuildError::Certificate(error.to_string()))?;
    }
    Ok(roots)
}

/// Trusts one certificate by its hash, whatever names and dates it has.
#[derive(Debug)]
struct Pinned {
    pin: Pin,
    crypto: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if Pin::from_der(end_entity) == self.pin {
            Ok(ServerCertVerified::assertion())
        } else {
            let why = CertificateError::ApplicationVerificationFailure;
            Err(rustls::Error::InvalidCertificate(why))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.crypto.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.crypto.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let known = &self.crypto.signature_verification_algorithms;
        known.supported_schemes()
    }
}
