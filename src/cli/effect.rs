//! Whether the gateway that runs on a configuration uses its files as they are now.

use std::fs::File;
use std::fs::TryLockError;
use std::io;
use std::path::Path;
use std::time::Duration;

use http::Method;

use crate::adapters::transport;
use crate::app::OperatorAccess;
use crate::cli::CliError;
use crate::config;
use crate::config::Settings;
use crate::runtime::Clock;
use crate::runtime::SystemClock;

/// How long a gateway may take to read its files again: it looks for changes every second.
const PATIENCE: Duration = Duration::from_secs(10);
/// Time between two questions.
const PAUSE: Duration = Duration::from_millis(50);
/// Time for making a connection to the admin port.
const CONNECT: Duration = Duration::from_secs(2);
/// Largest answer: the metrics of a gateway with many backends.
const METRICS_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What a changed file of the configuration means for the gateway.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// No gateway runs on the store of this configuration.
    NoGateway,
    /// The running gateway uses it.
    InUse,
    /// It is not known whether it is used already, and why.
    Unconfirmed(String),
}

/// Waits until the gateway uses the files of the configuration as they are now.
pub(super) fn wait(file: &Path, settings: &Settings) -> Result<Effect, CliError> {
    let access = match OperatorAccess::read(&settings.operations.operator_file()) {
        Ok(access) => access,
        Err(error) => return Ok(without_access(settings, &error.to_string())),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    Ok(runtime.block_on(confirmed(file, settings, &access)))
}

async fn confirmed(file: &Path, settings: &Settings, access: &OperatorAccess) -> Effect {
    let client = transport::Client::new(transport::ClientSettings {
        endpoint: transport::Endpoint::Http(access.address),
        connect_timeout: CONNECT,
        body_bytes_max: METRICS_BYTES_MAX,
    });
    let client = match client {
        Ok(client) => client,
        Err(error) => return Effect::Unconfirmed(error.to_string()),
    };
    let by = SystemClock.deadline(PATIENCE);
    loop {
        let call = transport::Call::new(Method::GET, &["metrics"]);
        let answer = match client.call(call, by).await {
            Ok(answer) => String::from_utf8_lossy(&answer.body).into_owned(),
            Err(error) => {
                let why = format!("its admin port {} does not answer: {error}", access.address);
                return without_access(settings, &why);
            }
        };
        // Read anew each time: another command may have changed a file meanwhile.
        let hash = match config::load(file, &config::environment) {
            Ok(now) => now.hash,
            Err(_problems) => {
                let why = "the configuration is invalid; run snapgate check";
                return Effect::Unconfirmed(why.to_owned());
            }
        };
        if answer.contains(&format!("snapgate_config_info{{hash=\"{hash}\"}} 1")) {
            return Effect::InUse;
        }
        if SystemClock.instant() >= by.instant() {
            let why = "it still uses an older configuration; see its log";
            return Effect::Unconfirmed(why.to_owned());
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Without an answer of a gateway, its lock of the store says whether there is one.
fn without_access(settings: &Settings, why: &str) -> Effect {
    let Some(store) = settings.operations.store.file() else {
        return Effect::Unconfirmed(why.to_owned());
    };
    let mut lock = store.as_os_str().to_owned();
    lock.push(".lock");
    match File::open(Path::new(&lock)) {
        Ok(lock) => match lock.try_lock_shared() {
            Ok(()) => Effect::NoGateway,
            Err(TryLockError::WouldBlock | TryLockError::Error(_)) => {
                Effect::Unconfirmed(why.to_owned())
            }
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Effect::NoGateway,
        Err(_) => Effect::Unconfirmed(why.to_owned()),
    }
}
