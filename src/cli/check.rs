//! `snapgate check`: validates a configuration and prints a summary.

use std::path::Path;
use std::sync::Arc;

use crate::app;
use crate::cli::CliError;
use crate::cli::output::Output;
use crate::config;
use crate::config::Settings;
use crate::gate::Issuer;
use crate::listener::Certificate;
use crate::listener::Tls;
use crate::runtime::Clock;
use crate::runtime::SystemClock;
use crate::telemetry::Metrics;

/// Prints a summary and warnings, and what each backend and issuer answers if they are to be probed.
pub(super) fn run(file: &Path, probe: bool, output: &mut Output<'_>) -> Result<(), CliError> {
    let settings = config::load(file, &config::environment)?;
    output.print(&summary(&settings))?;
    for warning in config::warnings(&settings, SystemClock.now()) {
        output.complain(&format!("warning: {warning}"))?;
    }
    if probe {
        run_probe(&settings, output)?;
    }
    Ok(())
}

fn run_probe(settings: &Settings, output: &mut Output<'_>) -> Result<(), CliError> {
    let metrics = Arc::new(Metrics::new().map_err(|error| CliError::Other(error.to_string()))?);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let reports = runtime.block_on(app::probe(settings, &metrics));
    runtime.shutdown_background();
    let mut failed = 0_usize;
    for report in &reports {
        failed = failed.saturating_add(usize::from(!report.is_healthy));
        output.print(&format!("{}\n", report.lines.join("\n")))?;
    }
    if failed == 0 {
        return Ok(());
    }
    let what = if settings.key_sources.is_empty() {
        "backends"
    } else {
        "backends and issuers"
    };
    Err(CliError::Other(format!(
        "{failed} of {} {what} failed",
        reports.len()
    )))
}

fn summary(settings: &Settings) -> String {
    let mut lines = vec![
        format!("listen    {}", settings.listener.listen),
        format!("admin     {}", settings.listener.admin),
        format!("links     {}", settings.gate.public_url.as_str()),
    ];
    lines.extend(settings.listener.tls.iter().flat_map(certificates));
    for backend in &settings.backends {
        let vms: Vec<&str> = settings
            .gate
            .placements
            .iter()
            .filter(|placement| placement.backend == backend.name)
            .map(|placement| placement.pattern.as_str())
            .collect();
        lines.push(format!(
            "backend   {} ({}): {}",
            backend.name,
            backend.config.kind(),
            vms.join(", ")
        ));
    }
    lines.push(format!(
        "users     {}",
        settings.gate.credentials.users.len()
    ));
    lines.extend(issuers(settings));
    lines.push(format!("grants    {}", settings.gate.grants.len()));
    lines.push(format!("hash      {}", settings.hash));
    lines.push(String::new());
    lines.join("\n")
}

/// A line for each issuer.
fn issuers(settings: &Settings) -> Vec<String> {
    let line = |issuer: &Issuer| {
        let name = &issuer.name;
        let source = settings
            .key_sources
            .iter()
            .find(|source| source.issuer == *name);
        match source {
            Some(source) => format!("issuer    {name}: keys from {}", source.display_url()),
            None => format!(
                "issuer    {name}: keys from a file, {}",
                issuer.keys.key_count(SystemClock.instant())
            ),
        }
    };
    let all = settings.gate.credentials.issuers.iter();
    all.map(line).collect()
}

/// A line for each certificate.
fn certificates(tls: &Tls) -> Vec<String> {
    let line = |certificate: &Certificate| {
        let (_, ends) = certificate.validity();
        format!("tls       {} until {ends}", certificate.names().join(", "))
    };
    tls.certificates().iter().map(line).collect()
}
