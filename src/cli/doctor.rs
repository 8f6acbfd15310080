//! `snapgate doctor`: examines an installation, with the help of the gateway where one runs.

use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;

use clap::Args;
use http::Method;

use crate::app;
use crate::app::Examination;
use crate::app::Finding;
use crate::app::OperatorAccess;
use crate::cli::CliError;
use crate::cli::admin_port::AdminPort;
use crate::cli::config_file::ConfigFile;
use crate::cli::output::Output;
use crate::config;
use crate::config::Settings;
use crate::runtime::SystemClock;
use crate::telemetry::Metrics;

/// The unit of the package.
const UNIT: &str = "snapgate.service";

/// What to examine.
#[derive(Debug, Args)]
pub(super) struct DoctorArguments {
    #[command(flatten)]
    config: ConfigFile,
    /// The unit of systemd: a name, or the file of a unit with its drop-ins in FILE.d
    #[arg(long, value_name = "UNIT", default_value = UNIT)]
    unit: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Examines and prints; whether nothing was found.
pub(super) fn run(arguments: &DoctorArguments, output: &mut Output<'_>) -> Result<bool, CliError> {
    let settings = config::load(&arguments.config.path(), &config::environment)?;
    let found = examine(&settings, &arguments.unit)?;
    let text = if arguments.json {
        format!("{}\n", serde_json::json!(found))
    } else {
        found.report()
    };
    output.print(&text)?;
    Ok(found.findings.is_empty())
}

/// Examines everything that can be examined from here.
pub(super) fn examine(settings: &Settings, unit: &str) -> Result<Examination, CliError> {
    let clock = SystemClock::shared();
    let mut about = app::examine_installation(settings, clock.now());
    about.merge(examine_unit(settings, unit));
    about.merge(examine_clock());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let by_gateway = if OperatorAccess::read(&settings.operations.operator_file()).is_ok() {
        let gateway = AdminPort::find(settings, "no gateway runs on this configuration")?;
        runtime.block_on(gateway.ask::<Examination>(Method::GET, &["doctor"], &[]))
    } else {
        let metrics = Metrics::new().map_err(|error| CliError::Other(error.to_string()))?;
        let metrics = Arc::new(metrics);
        let found = app::examine_offline(settings, &clock, &metrics);
        Ok(runtime.block_on(found))
    };
    runtime.shutdown_background();
    match by_gateway {
        Ok(found) => about.merge(found),
        // A gateway that was killed leaves the file behind; one that hangs is worth a finding of its own.
        Err(error) => about.merge(Examination {
            checked: vec!["gateway".to_owned()],
            skipped: Vec::new(),
            findings: vec![Finding {
                check: "gateway".to_owned(),
                what: error.to_string(),
                why: "The gateway was killed, or does not answer its admin port; backends and store were not examined.".to_owned(),
                remedy: format!(
                    "Start the gateway, or remove {} if none runs.",
                    settings.operations.operator_file().display()
                ),
            }],
        }),
    }
    Ok(about)
}

/// The text of the unit with its drop-ins; `None` where there is none.
pub(super) fn read_unit(unit: &str) -> Option<String> {
    if !unit.contains('/') {
        return run_program("systemctl", &["cat", unit]);
    }
    let mut text = std::fs::read_to_string(unit).ok()?;
    let folder = format!("{unit}.d");
    let entries = std::fs::read_dir(Path::new(&folder)).into_iter().flatten();
    let mut drop_ins: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    // In the order in which systemd reads them.
    drop_ins.sort();
    for file in drop_ins {
        let is_drop_in = file.extension().is_some_and(|ending| ending == "conf");
        if is_drop_in && let Ok(more) = std::fs::read_to_string(&file) {
            text.push('\n');
            text.push_str(&more);
        }
    }
    Some(text)
}

/// Compares the unit with what the configuration needs.
fn examine_unit(settings: &Settings, unit: &str) -> Examination {
    match read_unit(unit) {
        Some(text) => app::examine_unit(settings, &text),
        None => skipped("sandbox", format!("systemd has no unit {unit}")),
    }
}

/// Whether the clock of the machine is synchronized, where systemd knows.
fn examine_clock() -> Examination {
    let arguments = ["show", "--property=NTPSynchronized", "--value"];
    match run_program("timedatectl", &arguments).as_deref().map(str::trim) {
        Some("yes") => Examination {
            checked: vec!["clock".to_owned()],
            ..Examination::default()
        },
        Some("no") => Examination {
            checked: vec!["clock".to_owned()],
            skipped: Vec::new(),
            findings: vec![Finding {
                check: "clock".to_owned(),
                what: "the clock of this machine is not synchronized".to_owned(),
                why: "Lifetimes of tokens, certificates and Statuses are judged wrongly once it drifts.".to_owned(),
                remedy: "Run: timedatectl set-ntp true, or set up chrony.".to_owned(),
            }],
        },
        Some(_) | None => skipped(
            "clock",
            "whether the clock is synchronized is not known without systemd-timedated".to_owned(),
        ),
    }
}

fn skipped(check: &str, reason: String) -> Examination {
    Examination {
        skipped: vec![app::SkippedCheck {
            check: check.to_owned(),
            reason,
        }],
        ..Examination::default()
    }
}

/// What a program prints; `None` when it is not installed or fails.
pub(super) fn run_program(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let is_good = output.status.success();
    is_good.then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
