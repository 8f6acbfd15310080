//! Ids for the completion of shells, from the gateway itself. A gateway that does not answer in time completes nothing.

use std::ffi::OsStr;
use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use clap_complete::CompletionCandidate;

use crate::cli::client::connection::ConnectionArguments;
use crate::cli::client::connection::find_connection;
use crate::client::ClientError;
use crate::client::Gateway;
use crate::client::LATEST;
use crate::client::Patience;
use crate::client::Unobserved;
use crate::config;

/// The longest time a person waits for a completion without noticing.
const TIME_MAX: Duration = Duration::from_millis(300);
/// Most candidates that are asked for: more are of no use to a person.
const CANDIDATES_MAX: usize = 200;

/// The VMs whose ids or names begin with what was typed.
pub(super) fn complete_vm(typed: &OsStr) -> Vec<CompletionCandidate> {
    let typed = typed.to_string_lossy().into_owned();
    let words = words();
    let found = within_time(&words, async |gateway| {
        let list = gateway
            .list_vms(&[], CANDIDATES_MAX, &mut Unobserved)
            .await?;
        let ids = list.vms.into_iter().map(|vm| (vm.id, vm.name));
        Ok(ids.collect())
    });
    candidates(&typed, found)
}

/// The backups of the VM on the command line whose ids or names begin with what was typed.
pub(super) fn complete_backup(typed: &OsStr) -> Vec<CompletionCandidate> {
    let typed = typed.to_string_lossy().into_owned();
    let words = words();
    let Some(vm) = vm_in(&words).map(str::to_owned) else {
        return Vec::new();
    };
    let mut found = vec![(LATEST.to_owned(), "the newest that can be used".to_owned())];
    found.extend(within_time(&words, async move |gateway| {
        let vm = gateway.choose_vm(&vm, &mut Unobserved).await?.id;
        let filter = [("sort", "-created")];
        let listed = gateway
            .list_backups(&vm, &filter, CANDIDATES_MAX, &mut Unobserved)
            .await?;
        let ids = listed.into_iter().map(|backup| (backup.id, backup.name));
        Ok(ids.collect())
    }));
    candidates(&typed, found)
}

/// Ids with their names as descriptions.
type Ids = Vec<(String, String)>;

fn candidates(typed: &str, found: Ids) -> Vec<CompletionCandidate> {
    let fits = |(id, name): &(String, String)| id.starts_with(typed) || name.starts_with(typed);
    let found = found.into_iter().filter(fits);
    // A word that does not begin as what was typed replaces nothing: then the name itself is offered.
    let candidate = |(id, name): (String, String)| {
        if id.starts_with(typed) {
            CompletionCandidate::new(id).help(Some(name.into()))
        } else {
            CompletionCandidate::new(name).help(Some(id.into()))
        }
    };
    found.map(candidate).collect()
}

/// What the gateway says in time; nothing otherwise.
fn within_time<F>(words: &[String], ask: impl FnOnce(Gateway) -> F) -> Ids
where
    F: Future<Output = Result<Ids, ClientError>>,
{
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let Ok(runtime) = runtime else {
        return Ids::new();
    };
    let found = runtime.block_on(async {
        let asked = async {
            let mut connection = find_connection(&typed_options(words), &config::environment)?;
            connection.patience = Patience::of(Duration::ZERO);
            ask(Gateway::new(connection)?).await
        };
        tokio::time::timeout(TIME_MAX, asked).await
    });
    // A name server that does not answer holds a thread.
    runtime.shutdown_background();
    found.ok().and_then(Result::ok).unwrap_or_default()
}

/// The words of the command line that is completed: those after `--`.
fn words() -> Vec<String> {
    let arguments = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
    arguments.skip_while(|word| word != "--").skip(1).collect()
}

/// Options of the connection, of those that are followed by a value.
const OPTIONS: [&str; 9] = [
    "--url",
    "--user",
    "--password-file",
    "--token-file",
    "--ca",
    "--cert",
    "--key",
    "--profile",
    "--retry-for",
];

/// The options of the connection among the words. What is incomplete is left out.
fn typed_options(words: &[String]) -> ConnectionArguments {
    let value = |option: &str| {
        let mut words = words.iter();
        while let Some(word) = words.next() {
            if word == option {
                return words.next().cloned();
            }
            let joined = word.strip_prefix(option);
            if let Some(value) = joined.and_then(|rest| rest.strip_prefix('=')) {
                return Some(value.to_owned());
            }
        }
        None
    };
    // What would be read from standard input is not there while a command line is typed.
    let path = |option: &str| value(option).filter(|path| path != "-").map(PathBuf::from);
    ConnectionArguments {
        url: value("--url"),
        user: value("--user"),
        password_file: path("--password-file"),
        token_file: path("--token-file"),
        ca: path("--ca"),
        cert: path("--cert"),
        key: path("--key"),
        profile: value("--profile"),
        ..ConnectionArguments::default()
    }
}

/// The VM among the words: the third that is no option nor the value of one, after `snapgate backup restore`.
fn vm_in(words: &[String]) -> Option<&str> {
    let mut plain = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if OPTIONS.contains(&word.as_str()) {
            words.next();
        } else if !word.starts_with('-') {
            plain.push(word.as_str());
        }
    }
    plain.get(3).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words_of(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn the_vm_and_the_connection_are_read_from_the_words() {
        let rows = [
            ("snapgate backup restore web01 ", Some("web01"), None),
            (
                "snapgate backup --url https://a show --yes web01 x",
                Some("web01"),
                Some("https://a"),
            ),
            (
                "snapgate backup show --url=https://a web01",
                Some("web01"),
                Some("https://a"),
            ),
            ("snapgate backup restore", None, None),
        ];
        for (line, vm, url) in rows {
            let words = words_of(line);
            assert_eq!(vm_in(&words), vm, "{line}");
            assert_eq!(typed_options(&words).url.as_deref(), url, "{line}");
        }
    }

    #[test]
    fn ids_and_names_that_begin_as_typed_are_offered() {
        let found = || {
            vec![
                ("33333".to_owned(), "web01".to_owned()),
                ("444".to_owned(), "db".to_owned()),
            ]
        };
        let rows = [("3", vec!["33333"]), ("w", vec!["web01"]), ("x", vec![])];
        for (typed, expected) in rows {
            let values: Vec<String> = candidates(typed, found())
                .iter()
                .map(|candidate| candidate.get_value().to_string_lossy().into_owned())
                .collect();
            assert_eq!(values, expected, "{typed:?}");
        }
    }
}
