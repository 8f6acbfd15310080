//! The log level of the running process, which operators can change.

use std::fmt;

use parking_lot::Mutex;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::Registry;
use tracing_subscriber::reload;

/// Why a level cannot be applied.
#[derive(Debug, thiserror::Error)]
pub enum LogLevelError {
    /// It is no filter.
    #[error("invalid log level")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// There is no log whose level could be changed.
    #[error("logging is not initialized")]
    NotStarted,
}

/// The level of the process: as configured, and as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLevel {
    /// The level of the configuration at the start.
    pub configured: String,
    /// The level that applies.
    pub current: String,
    /// Counts the changes: a change that was meant for a time is undone only if no other one came since.
    pub changes: u64,
}

/// What a filter has besides the level.
#[derive(Clone, Debug)]
pub(super) struct FilterParts {
    /// Directives for noisy libraries, which the level can override; may be empty.
    pub(super) quiet: &'static str,
    /// Whether every request is logged, whatever the level.
    pub(super) access: bool,
}

impl FilterParts {
    fn filter(&self, level: &str) -> Result<EnvFilter, tracing_subscriber::filter::ParseError> {
        let Self { quiet, access } = self;
        let access = if *access { "info" } else { "off" };
        EnvFilter::try_new(format!("{quiet},{level},snapgate::access={access}"))
    }
}

/// The filter of log lines.
pub(super) type ReloadableFilter = reload::Layer<EnvFilter, Registry>;

/// Changes the filter of log lines.
pub(super) struct LevelSwitch {
    parts: FilterParts,
    handle: reload::Handle<EnvFilter, Registry>,
    level: Mutex<LogLevel>,
}

impl fmt::Debug for LevelSwitch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LevelSwitch")
            .field("level", &self.level)
            .finish_non_exhaustive()
    }
}

impl LevelSwitch {
    /// The filter for this level, and what changes it.
    pub(super) fn new(
        parts: FilterParts,
        level: &str,
    ) -> Result<(ReloadableFilter, Self), LogLevelError> {
        let (filter, handle) = reload::Layer::new(parts.filter(level)?);
        let level = LogLevel {
            configured: level.to_owned(),
            current: level.to_owned(),
            changes: 0,
        };
        let level = Mutex::new(level);
        Ok((
            filter,
            Self {
                parts,
                handle,
                level,
            },
        ))
    }

    /// The level as it is.
    pub(super) fn level(&self) -> LogLevel {
        self.level.lock().clone()
    }

    /// Applies another level, or the configured one, if `only_after` changes were made before or whatever was made.
    ///
    /// # Errors
    /// [`LogLevelError::Filter`]; nothing was changed.
    pub(super) fn change(
        &self,
        level: Option<&str>,
        only_after: Option<u64>,
    ) -> Result<LogLevel, LogLevelError> {
        let mut state = self.level.lock();
        if only_after.is_some_and(|changes| changes != state.changes) {
            return Ok(state.clone());
        }
        let level = level.unwrap_or(&state.configured).to_owned();
        let filter = self.parts.filter(&level)?;
        self.handle
            .reload(filter)
            .map_err(|_gone| LogLevelError::NotStarted)?;
        state.current = level;
        state.changes = state.changes.saturating_add(1);
        Ok(state.clone())
    }
}
