//! Findings in the configuration and the files that it names.

use crate::app::doctor::finding::Examination;
use crate::app::doctor::finding::Finding;
use crate::config;
use crate::config::Settings;
use crate::config::WarningSubject;
use crate::model::Timestamp;

/// The word of the check.
const fn check_of(subject: WarningSubject) -> &'static str {
    match subject {
        WarningSubject::SecretFiles => "secrets",
        WarningSubject::Certificates => "certificates",
        WarningSubject::Folders => "folders",
        WarningSubject::Settings => "configuration",
    }
}

const SUBJECTS: [WarningSubject; 4] = [
    WarningSubject::Settings,
    WarningSubject::SecretFiles,
    WarningSubject::Certificates,
    WarningSubject::Folders,
];

/// Why warnings about this matter, and what to do where the warning does not say that itself.
const fn explanation(subject: WarningSubject) -> (&'static str, &'static str) {
    match subject {
        WarningSubject::SecretFiles => (
            "A user who can read it can act as a caller or as the gateway, and one who can write it decides who may.",
            "Correct the mode of the file.",
        ),
        WarningSubject::Certificates => (
            "Clients that check the certificate refuse to connect.",
            "Replace the certificate and its key; the gateway loads them by itself.",
        ),
        WarningSubject::Folders => (
            "Requests for these VMs are answered with 503, or their backups and restores fail.",
            "Mount the file system, or correct owner and mode of the folder.",
        ),
        WarningSubject::Settings => (
            "The setting is valid and rarely intended.",
            "Change the key that the finding names, or keep it if it is meant.",
        ),
    }
}

/// Checks what `snapgate check` warns of.
pub(super) fn check_settings(settings: &Settings, now: Timestamp, into: &mut Examination) {
    let warnings = config::warnings_by_subject(settings, now);
    for subject in SUBJECTS {
        let check = check_of(subject);
        let about = warnings.iter().filter(|(of, _)| *of == subject);
        let found = about.map(|(_, warning)| {
            let (why, fallback) = explanation(subject);
            // Warnings that have a command or a remedy end with it, behind a semicolon.
            let (what, remedy) = match warning.rsplit_once("; ") {
                Some((what, remedy)) if !remedy.is_empty() => (what, capitalize(remedy)),
                Some(_) | None => (warning.as_str(), fallback.to_owned()),
            };
            Finding::new(check, what, why, remedy)
        });
        into.add(check, found.collect::<Vec<_>>());
    }
}

/// A fragment as a sentence.
fn capitalize(fragment: &str) -> String {
    let mut letters = fragment.chars();
    let first = letters.next().map(|first| first.to_ascii_uppercase());
    let sentence: String = first.into_iter().chain(letters).collect();
    // A command is not followed by a full stop, which a reader would paste.
    if sentence.contains("run: ") || sentence.starts_with("Run: ") || sentence.ends_with('.') {
        sentence
    } else {
        format!("{sentence}.")
    }
}
