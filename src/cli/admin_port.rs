//! The admin port of the gateway that runs on a configuration, as its operators use it.

use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;
use http::Method;
use http::header;
use serde::Deserialize;

use crate::adapters::transport;
use crate::app::OperatorAccess;
use crate::app::OperatorName;
use crate::cli::CliError;
use crate::config::Settings;
use crate::listener::OPERATOR_NAME;
use crate::model::Secret;
use crate::runtime::Clock;
use crate::runtime::SystemClock;

/// Time for making a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a running gateway may take for one response: an examination asks every backend.
const PATIENCE: Duration = Duration::from_secs(120);
/// Largest answer: a page of operations whose texts are as long as can be, or the metrics of many backends.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The admin port of a running gateway, and the token for it.
#[derive(Debug)]
pub(super) struct AdminPort {
    client: transport::Client,
    access: OperatorAccess,
}

#[derive(Deserialize)]
struct ErrorBody {
    error: String,
}

fn other(error: impl std::fmt::Display) -> CliError {
    CliError::Other(error.to_string())
}

impl AdminPort {
    /// Reads where it is; connects to nothing yet. `without` says in words why it is asked at all.
    pub(super) fn find(settings: &Settings, without: &str) -> Result<Self, CliError> {
        let file = settings.operations.operator_file();
        let access = OperatorAccess::read(&file).map_err(|error| {
            other(format!(
                "{without}: it cannot be spoken to without {}: {error}",
                file.display()
            ))
        })?;
        let client = transport::Client::new(transport::ClientSettings {
            endpoint: transport::Endpoint::Http(access.address),
            connect_timeout: CONNECT,
            body_bytes_max: ANSWER_BYTES_MAX,
        });
        let client = client.map_err(other)?;
        Ok(Self { client, access })
    }

    /// One request for operators, answered in JSON.
    pub(super) async fn ask<T: for<'de> Deserialize<'de>>(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<T, CliError> {
        let token = Secret::new(format!("Bearer {}", self.access.token.reveal()));
        let call = transport::Call::new(method, path)
            .query(query)
            .secret_header(header::AUTHORIZATION, &token)
            .map_err(other)?;
        let call = match HeaderValue::from_str(OperatorName::of_this_process().as_str()) {
            Ok(name) => call.header(OPERATOR_NAME, name),
            // An account whose name is no header: the gateway writes `operator`.
            Err(_) => call,
        };
        let body = self.call(call).await?;
        serde_json::from_slice(&body).map_err(|error| {
            other(format!(
                "the gateway is of another version and answers in another way: {error}"
            ))
        })
    }

    /// A page that needs no token, as text.
    pub(super) async fn read_page(&self, page: &str) -> Result<String, CliError> {
        let body = self
            .call(transport::Call::new(Method::GET, &[page]))
            .await?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    async fn call(&self, call: transport::Call<'_>) -> Result<Bytes, CliError> {
        let address = self.access.address;
        let by = SystemClock.deadline(PATIENCE);
        let reply = self.client.call(call, by).await.map_err(|error| {
            other(format!(
                "the gateway's admin port {address} does not answer: {error}"
            ))
        })?;
        if reply.status.is_success() {
            return Ok(reply.body);
        }
        Err(other(error_message(&reply.body).unwrap_or_else(|| {
            format!(
                "the gateway's admin port {address} answers {}",
                reply.status
            )
        })))
    }
}

fn error_message(body: &Bytes) -> Option<String> {
    let body: ErrorBody = serde_json::from_slice(body).ok()?;
    Some(body.error)
}
