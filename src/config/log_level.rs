//! `log.level`: a level, and levels of parts of the program.
//!
//! The filter behind it takes any word for the name of a part, so that a misspelt level would silence everything. Here a
//! word is a level or a part that exists.

use crate::listener::LOG_TARGETS;
use crate::model::suggest;

/// The levels, least first.
const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];
/// The program itself, and the libraries that write logs but for those of the listener.
const CRATES: &[&str] = &[
    "snapgate",
    "h2",
    "hyper",
    "hyper_util",
    "mio",
    "reqwest",
    "rustls",
    "tokio",
    "tokio_util",
    "tower",
    "tower_http",
];
/// The parts of the program.
const PARTS: &[&str] = &[
    "access",
    "adapters",
    "app",
    "audit",
    "cli",
    "client",
    "config",
    "demo",
    "etcd",
    "gate",
    "listener",
    "model",
    "operations",
    "runtime",
    "schema",
    "telemetry",
];

/// The value without spaces.
///
/// # Errors
/// The error and its hint.
pub(crate) fn check(text: &str) -> Result<String, (String, String)> {
    let mut general = None;
    let mut directives = Vec::new();
    let mut targets: Vec<&str> = Vec::new();
    for directive in text.split(',').map(str::trim) {
        let Some((target, level)) = directive.split_once('=') else {
            level_of(directive)?;
            if let Some(other) = general.replace(directive) {
                let what = format!("two general levels, {other:?} and {directive:?}");
                return Err((what, "keep one of them".to_owned()));
            }
            directives.push(directive.to_owned());
            continue;
        };
        let target = target.trim();
        target_of(target)?;
        level_of(level.trim())?;
        if targets.contains(&target) {
            let what = format!("duplicate target {target:?}");
            return Err((what, "keep one of them".to_owned()));
        }
        targets.push(target);
        directives.push(format!("{target}={}", level.trim()));
    }
    Ok(directives.join(","))
}

/// Whether nothing at all is logged at this value, which was checked.
pub(super) fn is_silent(text: &str) -> bool {
    let level = |directive: &str| {
        let level = directive.rsplit('=').next().unwrap_or_default();
        level.trim().eq_ignore_ascii_case("off")
    };
    text.split(',').all(level)
}

fn crates() -> impl Iterator<Item = &'static str> + Clone {
    CRATES.iter().copied().chain(LOG_TARGETS)
}

fn level_of(word: &str) -> Result<(), (String, String)> {
    if LEVELS.iter().any(|known| known.eq_ignore_ascii_case(word)) {
        return Ok(());
    }
    let what = format!("unknown log level {word:?} (expected error, warn, info, debug or trace)");
    let hint = if word.contains("::") || crates().any(|known| known == word) {
        format!("write {word}=debug to set the level of a part of the program")
    } else {
        let meant = suggest::nearest_or_prefix(word, LEVELS.into_iter().chain(crates()));
        meant.map_or_else(
            || "write a level such as \"info\", or \"snapgate=debug,warn\"".to_owned(),
            |known| format!("did you mean \"{known}\"?"),
        )
    };
    Err((what, hint))
}

fn target_of(target: &str) -> Result<(), (String, String)> {
    let mut segments = target.split("::");
    let first = segments.next().unwrap_or_default();
    let second = segments.next();
    let unknown = |known: &[&'static str], word: &str, prefix: &str| {
        let what = format!("unknown log target {target:?}");
        let hint = suggest::nearest(word, known.iter().copied()).map_or_else(
            || format!("expected one of {}", known.join(", ")),
            |meant| format!("did you mean \"{prefix}{meant}\"?"),
        );
        Err((what, hint))
    };
    if !crates().any(|known| known == first) {
        return unknown(&crates().collect::<Vec<_>>(), first, "");
    }
    if first != "snapgate" {
        return Ok(());
    }
    match second {
        Some("access") => Err((
            "cannot set the level of snapgate::access".to_owned(),
            "use log.access to turn the access log on or off".to_owned(),
        )),
        Some("audit") => Err((
            "cannot set the level of snapgate::audit: the audit trail is always written".to_owned(),
            "use log.audit to name its file".to_owned(),
        )),
        Some(part) if !PARTS.contains(&part) => unknown(PARTS, part, "snapgate::"),
        Some(_) | None if target.split("::").all(is_identifier) => Ok(()),
        Some(_) | None => unknown(PARTS, target, "snapgate::"),
    }
}

fn is_identifier(segment: &str) -> bool {
    let is_word = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    !segment.is_empty() && segment.chars().all(is_word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_or_a_part_that_does_not_exist_is_refused() {
        let rows = [
            (
                "verbose",
                "unknown log level \"verbose\" (expected error, warn, info, debug or trace)",
            ),
            ("warning", "unknown log level \"warning\""),
            ("3", "unknown log level \"3\""),
            ("snapgate", "unknown log level \"snapgate\""),
            ("snapgate::gate", "unknown log level \"snapgate::gate\""),
            ("info,", "unknown log level \"\""),
            ("", "unknown log level \"\""),
            ("info;debug", "unknown log level \"info;debug\""),
            ("info,debug", "two general levels"),
            ("snapgate=verbose", "unknown log level \"verbose\""),
            ("snapgate=", "unknown log level \"\""),
            ("snapgate=debug=info", "unknown log level \"debug=info\""),
            ("snapgat=debug", "unknown log target \"snapgat\""),
            ("=debug", "unknown log target \"\""),
            (
                "snapgate::acess=off",
                "unknown log target \"snapgate::acess\"",
            ),
            ("snapgate::=off", "unknown log target \"snapgate::\""),
            ("snapgate::adapters::=debug", "unknown log target"),
            ("snapgate[request]=debug", "unknown log target"),
            ("[{vm=7}]=debug", "unknown log target"),
            (
                "snapgate=info,snapgate=debug",
                "duplicate target \"snapgate\"",
            ),
            (
                "snapgate::access=off",
                "cannot set the level of snapgate::access",
            ),
            (
                "snapgate::audit=off",
                "cannot set the level of snapgate::audit",
            ),
        ];
        for (text, expected) in rows {
            let (what, hint) = check(text).unwrap_err();
            assert!(what.starts_with(expected), "{text:?}: {what}");
            assert!(!hint.is_empty(), "{text:?}: says what to do");
        }
    }

    #[test]
    fn levels_in_any_case_and_existing_parts_are_accepted() {
        for text in [
            "info",
            "WARN",
            "Debug",
            "off",
            "snapgate=debug,warn",
            "warn, snapgate::adapters::files=trace",
            "info,hyper=off",
        ] {
            let found = check(text).unwrap();
            assert_eq!(found, text.replace(' ', ""), "{text:?}");
            let filter = tracing_subscriber::EnvFilter::builder().parse(&found);
            assert!(filter.is_ok(), "{text:?} is a filter");
        }
    }

    #[test]
    fn near_misses_are_named() {
        let rows = [
            ("degub", "debug"),
            ("warning", "warn"),
            ("snapgat=info", "snapgate"),
            ("snapgate::adapter=info", "snapgate::adapters"),
        ];
        for (text, expected) in rows {
            let (_, hint) = check(text).unwrap_err();
            assert_eq!(hint, format!("did you mean \"{expected}\"?"), "{text}");
        }
    }

    #[test]
    fn silence_is_recognised() {
        let rows = [
            ("off", true),
            ("OFF,snapgate=off", true),
            ("off,snapgate=error", false),
            ("error", false),
        ];
        for (text, expected) in rows {
            assert_eq!(is_silent(text), expected, "{text}");
        }
    }

    #[test]
    fn the_parts_are_the_modules_of_the_program() {
        let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        for entry in std::fs::read_dir(source).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            if ["lib", "main", "alloc"].contains(&name.as_str()) {
                continue;
            }
            assert!(PARTS.contains(&name.as_str()), "{name} is missing in PARTS");
        }
    }
}
