//! `snapgate serve`: runs the gateway until a signal stops it.

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::app;
use crate::app::Running;
use crate::cli::CliError;
use crate::cli::output::Output;
use crate::cli::successor::Successor;
use crate::config;
use crate::config::FixedAddress;
use crate::config::FixedAddresses;
use crate::config::LogFormat;
use crate::config::Problems;
use crate::config::Settings;
use crate::config::Watch;
use crate::listener;
use crate::listener::Inherited;
use crate::listener::Sockets;
use crate::model::error_chain;
use crate::runtime::Clock;
use crate::runtime::Notice;
use crate::runtime::Signal;
use crate::runtime::Signals;
use crate::runtime::SystemClock;
use crate::runtime::notify;
use crate::telemetry;
use crate::telemetry::LogConfig;
use crate::telemetry::Metrics;

/// How often the configuration files are looked at.
const WATCH_EVERY: Duration = Duration::from_secs(1);
/// How long threads that read or write files may take to notice that it is over.
const THREADS_PATIENCE: Duration = Duration::from_millis(500);

/// Reads the configuration again, in the same way as the first time.
pub(super) type ConfigLoader = Arc<dyn Fn() -> Result<Settings, Problems> + Send + Sync>;

/// Serves the configuration file until a signal ends it.
pub(super) fn run(file: &Path, output: &mut Output<'_>) -> Result<(), CliError> {
    let inherited = Inherited::from_service_manager().map_err(other)?;
    // Each reload is judged by the sockets that are held, too.
    let fixed = addresses_of(&inherited);
    let trial = trial_of(&inherited, file);
    let file = file.to_owned();
    let load: ConfigLoader = Arc::new(move || config::load_at(&file, &config::environment, &fixed));
    let settings = load()?;
    warn(&settings, output)?;
    serve(settings, inherited, &load, trial, "", output)
}

/// The arguments with which a new program is tried: it must accept the configuration. `check` knows nothing of inherited sockets,
/// so with these the program must only run.
fn trial_of(inherited: &Inherited, file: &Path) -> Vec<OsString> {
    if inherited.api().is_some() || inherited.admin().is_some() {
        return vec!["version".into()];
    }
    vec!["check".into(), "--config".into(), file.into()]
}

/// Prints what is allowed but seldom meant.
pub(super) fn warn(settings: &Settings, output: &mut Output<'_>) -> io::Result<()> {
    for warning in config::warnings(settings, SystemClock.now()) {
        output.complain(&format!("warning: {warning}"))?;
    }
    Ok(())
}

/// The addresses of inherited sockets, which count instead of those in the file.
pub(super) fn addresses_of(inherited: &Inherited) -> FixedAddresses {
    let fixed = |address: Option<SocketAddr>, origin| {
        address.map(|address| FixedAddress { address, origin })
    };
    FixedAddresses {
        api: fixed(inherited.api(), "the inherited API socket"),
        admin: fixed(inherited.admin(), "the inherited admin socket"),
    }
}

/// Serves until a signal ends it. Prints `advice`, in which `HOST` stands for where the API is, and then where it
/// listens, when it is ready. `trial` are the arguments with which a new program is tried before it replaces the process.
pub(super) fn serve(
    settings: Settings,
    inherited: Inherited,
    load: &ConfigLoader,
    trial: Vec<OsString>,
    advice: &str,
    output: &mut Output<'_>,
) -> Result<(), CliError> {
    let metrics = Arc::new(Metrics::new().map_err(other)?);
    let served = match start_log(&settings, &metrics) {
        Ok(()) => run_gateway((settings, metrics), inherited, load, trial, advice, output),
        Err(error) => Err(error),
    };
    // Before the process ends or becomes another: no line that was logged is lost.
    telemetry::close_log();
    match served? {
        Some(successor) => Err(successor.take_over()),
        None => Ok(()),
    }
}

fn start_log(settings: &Settings, metrics: &Arc<Metrics>) -> Result<(), CliError> {
    let logging = &settings.logging;
    let format = match logging.format {
        LogFormat::Auto | LogFormat::Text => telemetry::LineFormat::Text,
        LogFormat::Json => telemetry::LineFormat::Json,
    };
    let log = LogConfig {
        format,
        journal: logging.format == LogFormat::Auto
            && telemetry::is_journal_stream(config::environment("JOURNAL_STREAM").as_deref()),
        level: logging.level.clone(),
        quiet: listener::QUIET,
        access: logging.access,
        queued: true,
        audit: logging.audit.clone(),
        audit_required: logging.audit_required,
    };
    telemetry::init_logging(log, Arc::clone(metrics)).map_err(other)
}

/// Serves until a signal ends it. Gives the program that replaces this one, if there is one.
fn run_gateway(
    (settings, metrics): (Settings, Arc<Metrics>),
    inherited: Inherited,
    load: &ConfigLoader,
    trial: Vec<OsString>,
    advice: &str,
    output: &mut Output<'_>,
) -> Result<Option<Successor>, CliError> {
    // Bound before anything else is made: a port in use changes nothing.
    let sockets = Sockets::bind(&settings.listener, inherited).map_err(other)?;
    let successor = Successor::new(&sockets, trial)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(settings.threads)
        .enable_all()
        .thread_name("snapgate")
        .build()?;
    let ended = runtime.block_on(async {
        let mut signals = Signals::new()?;
        let running = app::start_on(settings, sockets, metrics)
            .await
            .map_err(other)?;
        let (api, admin) = (running.api(), running.admin());
        output.print(&advice.replace("HOST", &api.to_string()))?;
        output.print(&format!(
            "listening on {}://{api}\nadmin on http://{admin}\n",
            running.scheme()
        ))?;
        notify_manager(Notice::Ready);
        let ending = watch(&running, load, &mut signals, &successor).await;
        // Without a successor the copies of the sockets end here: connections from now on are refused, not left waiting.
        let is_replaced = matches!(ending, Ok(Ending::Replace));
        let successor = Some(successor).filter(|_| is_replaced);
        let successor = drain(running, &mut signals, successor).await;
        ending.map(|_| successor)
    });
    // What still works on files is picked up again after the next start.
    runtime.shutdown_timeout(THREADS_PATIENCE);
    ended
}

/// How the gateway ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// The process ends.
    Stop,
    /// The program file is started in place of the process.
    Replace,
}

/// Ends the gateway. A signal to stop cuts it short, or takes back that it is replaced; gives the successor unless that happened.
async fn drain(
    running: Running,
    signals: &mut Signals,
    mut successor: Option<Successor>,
) -> Option<Successor> {
    notify_manager(match successor {
        Some(_) => Notice::Reloading,
        None => Notice::Stopping,
    });
    tracing::info!("stopping");
    let mut drain = std::pin::pin!(running.drain());
    loop {
        tokio::select! {
            drained = &mut drain => {
                let took_ms = u64::try_from(drained.took.as_millis()).unwrap_or(u64::MAX);
                tracing::info!(cut = drained.cut, took_ms, "stopped");
                return successor;
            }
            signal = signals.next() => match signal {
                Signal::Reload | Signal::Replace => {}
                Signal::Stop | Signal::StopNow => {
                    if successor.take().is_none() {
                        tracing::warn!("stopped immediately");
                        return None;
                    }
                    notify_manager(Notice::Stopping);
                }
            },
        }
    }
}

/// Reloads on a signal or when a file changed; returns when it is time to stop.
async fn watch(
    running: &Running,
    load: &ConfigLoader,
    signals: &mut Signals,
    successor: &Successor,
) -> Result<Ending, CliError> {
    let (files, hash) = running.loaded();
    let mut watch = Watch::new(files, hash);
    loop {
        tokio::select! {
            signal = signals.next() => match signal {
                Signal::Stop | Signal::StopNow => return Ok(Ending::Stop),
                Signal::Replace if successor.is_usable().await => return Ok(Ending::Replace),
                Signal::Replace => {
                    let (files, hash) = running.loaded();
                    watch = Watch::new(files, hash);
                    continue;
                }
                Signal::Reload => {}
            },
            _changed = watch.changed(WATCH_EVERY) => {}
            () = running.failed() => {
                return Err(CliError::Other(
                    "the operation store failed; see the log; its contents are unchanged".to_owned(),
                ));
            }
        }
        notify_manager(Notice::Reloading);
        let load = Arc::clone(load);
        let loaded = tokio::task::spawn_blocking(move || {
            let loaded = load();
            let again = loaded
                .as_ref()
                .err()
                .map(|loaded| Watch::from_now(loaded.files().to_vec()));
            (loaded, again)
        });
        match loaded.await {
            Ok((loaded, again)) => {
                running.reload(loaded);
                let (files, hash) = running.loaded();
                watch = again.unwrap_or_else(|| Watch::new(files, hash));
            }
            Err(error) => {
                tracing::error!(%error, "configuration not read");
                let (files, hash) = running.loaded();
                watch = Watch::new(files, hash);
            }
        }
        notify_manager(Notice::Ready);
    }
}

fn notify_manager(notice: Notice) {
    if let Err(error) = notify(notice) {
        tracing::warn!(%error, "service manager not notified");
    }
}

/// A failure as one sentence, with its causes.
pub(super) fn other(error: impl std::error::Error + 'static) -> CliError {
    CliError::Other(error_chain(&error))
}
