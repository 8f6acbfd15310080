//! Chooses the method of authentication by what the request presents, and turns a denial into a refusal.

use std::sync::Arc;

use http::HeaderMap;
use http::header::WWW_AUTHENTICATE;

use crate::gate::authn::basic::PasswordUsers;
use crate::gate::authn::caller::AuthContext;
use crate::gate::authn::caller::AuthenticatedCaller;
use crate::gate::authn::certificate::CertificateIdentities;
use crate::gate::authn::credentials::BasicCredentials;
use crate::gate::authn::credentials::PresentedCredentials;
use crate::gate::authn::denial::CredentialsDenied;
use crate::gate::authn::denial::DenialReason;
use crate::gate::authn::denial::DenialResponse;
use crate::gate::authn::jwt::Issuers;
use crate::gate::authn::token::ApiTokens;
use crate::gate::authn::token_digest::is_api_token;
use crate::gate::authn::token_digest::is_api_token_password;
use crate::gate::config::Config;
use crate::gate::process_state::ProcessState;
use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::model::CertificateName;
use crate::telemetry::Metrics;

const BASIC_CHALLENGE: &str = r#"Basic realm="snapgate", charset="UTF-8""#;
const BEARER_CHALLENGE: &str = r#"Bearer realm="snapgate""#;

/// Every caller of one configuration.
#[derive(Debug)]
pub(in crate::gate) struct Authenticator {
    users: PasswordUsers,
    tokens: ApiTokens,
    certificates: CertificateIdentities,
    issuers: Issuers,
    /// Whether bearer tokens are accepted beside Basic (Deviation D22).
    accepts_bearer: bool,
}

impl Authenticator {
    pub(in crate::gate) fn new(config: &Config, shared: &ProcessState) -> Self {
        let users = PasswordUsers::new(config, shared);
        let issuers = Issuers::new(config);
        let tokens = ApiTokens::new(config, |name| users.find_caller(name));
        shared.record_tokens(tokens.all());
        Self {
            users,
            tokens,
            certificates: CertificateIdentities::new(config),
            accepts_bearer: config.credentials.tokens.is_some() || !issuers.is_empty(),
            issuers,
        }
    }

    /// Identifies the caller. The refusal is the same for all invalid credentials; the reason is for the operator only.
    pub(in crate::gate) async fn identify(
        &self,
        headers: &HeaderMap,
        certificate: &[CertificateName],
        context: AuthContext<'_>,
    ) -> Result<Arc<AuthenticatedCaller>, CredentialsDenied> {
        match PresentedCredentials::from_headers(headers) {
            Some(Ok(PresentedCredentials::Basic(credentials))) => {
                self.identify_by_password(&credentials, context).await
            }
            Some(Ok(PresentedCredentials::Bearer(text))) => match self.tokens.find(text, context) {
                Ok(found) => Ok(found),
                // A text in the form of an API token cannot be a JSON Web Token: the issuers need not look at it.
                Err(denied) if self.issuers.is_empty() || is_api_token(text) => Err(denied),
                Err(_) => self.issuers.find(text, context).await,
            },
            // Credentials take precedence over a certificate, even invalid ones: a caller must never act as another one
            // than it claims to be.
            Some(Err(reason)) => Err(CredentialsDenied::invalid(reason)),
            None => self.certificates.find(certificate, context),
        }
    }

    async fn identify_by_password(
        &self,
        credentials: &BasicCredentials,
        context: AuthContext<'_>,
    ) -> Result<Arc<AuthenticatedCaller>, CredentialsDenied> {
        let (name, password) = credentials
            .name_and_password()
            .ok_or_else(|| CredentialsDenied::invalid(DenialReason::Malformed))?;
        if is_api_token_password(password) {
            return self.tokens.find_as_password(name, password, context);
        }
        self.users.authenticate(name, password, context).await
    }

    /// The refusal for denied credentials; counts the denial.
    pub(in crate::gate) fn refusal(
        &self,
        denied: &CredentialsDenied,
        metrics: &Metrics,
    ) -> Refusal {
        metrics
            .callers
            .record_refused_credentials(denied.reason.as_str());
        match denied.answer {
            DenialResponse::RetryLater(after) => {
                metrics.callers.record_credential_check("locked_out");
                Refusal::from(Code::TooManyAttempts).retry_after(after)
            }
            DenialResponse::KeysUnavailable => {
                metrics.callers.record_credential_check("no_keys");
                Refusal::from(Code::KeysUnavailable)
            }
            DenialResponse::QueueFull => {
                metrics.callers.record_credential_check("queue_full");
                Refusal::from(Code::LoginQueueFull)
            }
            DenialResponse::Unauthenticated => {
                metrics.callers.record_credential_check("refused");
                let refusal =
                    Refusal::from(Code::Unauthenticated).with(WWW_AUTHENTICATE, BASIC_CHALLENGE);
                if self.accepts_bearer {
                    refusal.with(WWW_AUTHENTICATE, BEARER_CHALLENGE)
                } else {
                    refusal
                }
            }
        }
    }
}
