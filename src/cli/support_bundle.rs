//! `snapgate support-bundle`: what a support request needs, in one archive without secrets.

use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Read;
use std::io::Seek;
use std::io::SeekFrom;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;

use clap::Args;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::Method;
use serde_json::Value;
use serde_json::json;

use crate::app::OperatorAccess;
use crate::app::OperatorName;
use crate::cli::CliError;
use crate::cli::admin_port::AdminPort;
use crate::cli::config_file::ConfigFile;
use crate::cli::doctor;
use crate::cli::output::Output;
use crate::config;
use crate::config::Settings;
use crate::model::Secret;
use crate::runtime::Clock;
use crate::runtime::SystemClock;

/// The end of a log file or audit trail that is taken.
const TAIL_BYTES: u64 = 1024 * 1024;
/// The last lines of the journal that are taken.
const JOURNAL_LINES: &str = "5000";
/// Operations that are listed.
const OPERATIONS: &str = "200";

/// What to collect, and where to put it.
#[derive(Debug, Args)]
pub(super) struct BundleArguments {
    #[command(flatten)]
    config: ConfigFile,
    /// The archive to write [default: snapgate-support.tar.gz]
    #[arg(long, value_name = "FILE", default_value = "snapgate-support.tar.gz")]
    output: PathBuf,
    /// A file with log lines; may be repeated [default: the journal of the unit]
    #[arg(long, value_name = "FILE")]
    log: Vec<PathBuf>,
    /// The unit of systemd
    #[arg(long, value_name = "UNIT", default_value = "snapgate.service")]
    unit: String,
}

/// The files of an archive, and what none of them may hold.
#[derive(Debug, Default)]
struct Bundle {
    files: Vec<(String, String)>,
    secrets: Vec<Secret>,
}

impl Bundle {
    /// Adds a file, or why there is none.
    fn add(&mut self, name: &str, text: Result<String, String>) {
        let text = text.unwrap_or_else(|why| format!("not collected: {why}\n"));
        self.files.push((name.to_owned(), text));
    }

    /// Writes the archive, which only this account can read. Nothing is overwritten.
    fn write(&self, path: &Path, now: u64) -> io::Result<()> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        let mut archive = tar::Builder::new(GzEncoder::new(file, Compression::default()));
        for (name, text) in &self.files {
            let text = config::scrub(text, &self.secrets);
            let mut header = tar::Header::new_gnu();
            header.set_size(u64::try_from(text.len()).unwrap_or(u64::MAX));
            header.set_mode(0o600);
            header.set_mtime(now);
            let name = format!("snapgate-support/{name}");
            archive.append_data(&mut header, name, text.as_bytes())?;
        }
        archive.into_inner()?.finish()?.sync_all()
    }
}

/// Collects everything and writes the archive.
pub(super) fn run(arguments: &BundleArguments, output: &mut Output<'_>) -> Result<(), CliError> {
    let mut bundle = Bundle::default();
    let redacted = config::redact(&arguments.config.path(), &config::environment);
    let redacted = redacted.map(|redacted| {
        bundle.secrets = redacted.secrets;
        redacted.text
    });
    bundle.add("configuration.toml", redacted);
    bundle.add("about.json", Ok(about()));
    bundle.add(
        "unit.txt",
        doctor::read_unit(&arguments.unit)
            .ok_or_else(|| format!("systemd has no unit {}", arguments.unit)),
    );
    match config::load(&arguments.config.path(), &config::environment) {
        Ok(settings) => collect(&settings, arguments, &mut bundle)?,
        Err(problems) => bundle.add("problems.txt", Ok(format!("{problems}\n"))),
    }
    add_logs(arguments, &mut bundle);
    let now = SystemClock.now().as_millis().wrapping_div(1000);
    let path = &arguments.output;
    bundle
        .write(path, now)
        .map_err(|error| CliError::Other(format!("cannot write {}: {error}", path.display())))?;
    let names: Vec<&str> = bundle.files.iter().map(|(name, _)| name.as_str()).collect();
    output.print(&format!("{}: {}\n", path.display(), names.join(", ")))?;
    Ok(output.complain(
        "It holds names of users, VMs and hosts, and addresses of clients, but no passwords, tokens or keys. Look through it before you send it.",
    )?)
}

/// Program and system.
fn about() -> String {
    let system = rustix::system::uname();
    let text = |part: &std::ffi::CStr| part.to_string_lossy().into_owned();
    let distribution = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let distribution = distribution
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="));
    let about = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "kernel": text(system.release()),
        "machine": text(system.machine()),
        "distribution": distribution.map(|name| name.trim_matches('"')),
        "user": OperatorName::of_this_process().as_str(),
        "time": SystemClock.now().to_string(),
    });
    format!("{about:#}\n")
}

/// What a valid configuration leads to: findings, and what the running gateway says.
fn collect(
    settings: &Settings,
    arguments: &BundleArguments,
    bundle: &mut Bundle,
) -> Result<(), CliError> {
    note_secrets(settings, bundle);
    let found = doctor::examine(settings, &arguments.unit);
    let found = found.map(|found| found.report());
    bundle.add("doctor.txt", found.map_err(|error| error.to_string()));
    if let Some(audit) = &settings.logging.audit {
        bundle.add("audit.jsonl", read_tail(audit));
    }
    let gateway = match AdminPort::find(settings, "no gateway runs on this configuration") {
        Ok(gateway) => gateway,
        Err(error) => {
            bundle.add("metrics.txt", Err(error.to_string()));
            return Ok(());
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        for page in ["metrics", "readyz", "version"] {
            let text = gateway.read_page(page).await;
            let name = format!("{page}.txt");
            bundle.add(&name, text.map_err(|error| error.to_string()));
        }
        let query = [("limit", OPERATIONS)];
        for (name, path, query) in [
            ("operations.json", ["operations"], &query[..]),
            ("log-level.json", ["log-level"], &[]),
        ] {
            let answer = gateway.ask::<Value>(Method::GET, &path, query).await;
            let text = answer.map(|answer| format!("{answer:#}\n"));
            bundle.add(name, text.map_err(|error| error.to_string()));
        }
    });
    Ok(())
}

/// Adds the secrets that are not values of the configuration file: whole files, and the token of the admin port.
fn note_secrets(settings: &Settings, bundle: &mut Bundle) {
    for file in &settings.secrets {
        let text = std::fs::read_to_string(&file.path).unwrap_or_default();
        // Lines of keys and hashes; a key in PEM has many.
        let lines = text.lines().map(str::trim);
        let words = lines.flat_map(|line| line.split([':', '"', ' ', ',']));
        let long = words.filter(|word| word.len() >= 16);
        bundle
            .secrets
            .extend(long.map(|word| Secret::new(word.to_owned())));
    }
    if let Ok(access) = OperatorAccess::read(&settings.operations.operator_file()) {
        bundle.secrets.push(access.token);
    }
}

/// The last log lines.
fn add_logs(arguments: &BundleArguments, bundle: &mut Bundle) {
    for (index, file) in arguments.log.iter().enumerate() {
        bundle.add(&format!("log-{index}.txt"), read_tail(file));
    }
    if arguments.log.is_empty() {
        let wanted = [
            "--unit",
            &arguments.unit,
            "--lines",
            JOURNAL_LINES,
            "--no-pager",
            "--output",
            "short-iso",
        ];
        let lines = doctor::run_program("journalctl", &wanted);
        let lines =
            lines.ok_or_else(|| "the journal cannot be read; name files with --log".to_owned());
        bundle.add("log.txt", lines);
    }
}

/// The last whole lines of a file.
fn read_tail(path: &Path) -> Result<String, String> {
    let read = || -> io::Result<String> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        let begin = length.saturating_sub(TAIL_BYTES);
        file.seek(SeekFrom::Start(begin))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Ok(match text.split_once('\n') {
            Some((_, rest)) if begin > 0 => rest.to_owned(),
            Some(_) | None => text,
        })
    };
    read().map_err(|error| format!("cannot read {}: {error}", path.display()))
}
