//! `snapgate check`: every mistake of a configuration, or what it amounts to.

use std::path::Path;

use crate::cli::CliError;
use crate::cli::output::Output;
use crate::config;
use crate::config::Backend;
use crate::config::BackendKind;
use crate::config::Settings;

/// Prints a summary and warnings.
pub(super) fn run(file: &Path, output: &mut Output<'_>) -> Result<(), CliError> {
    let settings = config::load(file, &config::environment)?;
    output.print(&summary(&settings))?;
    for it in config::warnings(&settings) {
        output.complain(&format!("warning: {it}"))?;
    }
    Ok(())
}

fn summary(settings: &Settings) -> String {
    let mut lines = vec![
        format!("listen    {}", settings.listener.listen),
        format!("admin     {}", settings.listener.admin),
        format!("links     {}", settings.gate.public_url.as_str()),
    ];
    for backend in &settings.backends {
        let vms: Vec<&str> = settings
            .gate
            .placements
            .iter()
            .filter(|it| it.backend == backend.name)
            .map(|it| it.pattern.as_str())
            .collect();
        lines.push(format!(
            "backend   {} ({}): {}",
            backend.name,
            kind(backend),
            vms.join(", ")
        ));
    }
    lines.push(format!(
        "users     {}",
        settings.gate.credentials.users.len()
    ));
    lines.push(format!("grants    {}", settings.gate.grants.len()));
    lines.push(format!("hash      {}", settings.hash));
    lines.push(String::new());
    lines.join("\n")
}

const fn kind(backend: &Backend) -> &'static str {
    match backend.kind {
        BackendKind::Files(_) => "files",
        BackendKind::Libvirt(_) => "libvirt",
        BackendKind::Incus(_) => "incus",
        BackendKind::Sim(_) => "sim",
        BackendKind::Qemu(_) => "qemu",
    }
}
