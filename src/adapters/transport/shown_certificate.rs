//! The certificate that a server shows to every client, for an operator to compare before any credential is sent.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustls::CertificateError;
use rustls::ClientConfig;
use rustls::DigitallySignedStruct;
use rustls::SignatureScheme;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::client::danger::ServerCertVerified;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring as provider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::ServerName;
use rustls::pki_types::UnixTime;

use crate::adapters::transport::BuildError;
use crate::adapters::transport::Pin;
use crate::model::error_chain;

/// The SHA-256 of the certificate of an HTTPS server, which proves nothing until an operator has compared it.
///
/// The handshake ends with the certificate: no request is ever sent on that connection.
///
/// # Errors
/// When no certificate is shown in time.
pub(crate) async fn read_shown_fingerprint(
    authority: &str,
    timeout: Duration,
) -> Result<Pin, BuildError> {
    let crypto = Arc::new(provider::default_provider());
    let recorder = Arc::new(Recorder {
        crypto: Arc::clone(&crypto),
        shown: Mutex::new(None),
    });
    let unusable = |error: &dyn std::error::Error| BuildError::Client(error.to_string());
    let verifier: Arc<dyn ServerCertVerifier> = Arc::<Recorder>::clone(&recorder);
    let tls = ClientConfig::builder_with_provider(crypto)
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(&error))?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    let client = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .no_proxy()
        .https_only(true)
        .timeout(timeout)
        .tls_backend_preconfigured(tls)
        .build()
        .map_err(|error| unusable(&error))?;
    let answer = client.get(format!("https://{authority}/")).send().await;
    let shown = *recorder.shown.lock();
    match (shown, answer) {
        (Some(pin), _) => Ok(pin),
        (None, Err(error)) => Err(BuildError::Address(error_chain(&error.without_url()))),
        (None, Ok(_)) => Err(BuildError::Certificate("none was shown".to_owned())),
    }
}

/// Keeps the certificate and refuses it.
#[derive(Debug)]
struct Recorder {
    crypto: Arc<CryptoProvider>,
    shown: Mutex<Option<Pin>>,
}

fn refused() -> rustls::Error {
    rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)
}

impl ServerCertVerifier for Recorder {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        *self.shown.lock() = Some(Pin::from_der(end_entity));
        Err(refused())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(refused())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(refused())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.crypto
            .signature_verification_algorithms
            .supported_schemes()
    }
}
