//! `snapgate health`: the health check of container files and units, where there is no curl.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;
use http::Method;
use http::StatusCode;

use crate::adapters::transport;
use crate::cli::CliError;
use crate::cli::output::Output;
use crate::runtime::Clock;
use crate::runtime::SystemClock;

/// Longest wait for the whole answer. Health checks of containers give up after 30 seconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// Largest answer: one line.
const ANSWER_BYTES_MAX: usize = 4096;

/// Which gateway to ask, and what.
#[derive(Debug, Args)]
pub(super) struct HealthCheck {
    /// The gateway's admin port
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8970")]
    admin: SocketAddr,
    /// Ask whether it accepts new operations (/readyz), not only whether it is alive (/healthz)
    #[arg(long)]
    ready: bool,
}

/// Prints the gateway's answer; an error unless the answer is yes.
pub(super) fn run(check: &HealthCheck, output: &mut Output<'_>) -> Result<(), CliError> {
    let client = transport::Client::new(transport::ClientSettings {
        endpoint: transport::Endpoint::Http(check.admin),
        connect_timeout: PATIENCE,
        body_bytes_max: ANSWER_BYTES_MAX,
    });
    let client = client.map_err(|error| CliError::Other(error.to_string()))?;
    let page = if check.ready { "readyz" } else { "healthz" };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let segments = [page];
    let call = transport::Call::new(Method::GET, &segments);
    let asked = client.call(call, SystemClock.deadline(PATIENCE));
    let answer = runtime.block_on(asked).map_err(|error| {
        CliError::Other(format!(
            "the admin port {} does not answer: {error}",
            check.admin
        ))
    })?;
    let text = String::from_utf8_lossy(&answer.body);
    if answer.status == StatusCode::OK {
        return Ok(output.print(&text)?);
    }
    Err(CliError::Other(format!(
        "the gateway at {} answers {}: {}",
        check.admin,
        answer.status.as_u16(),
        text.trim_end()
    )))
}
