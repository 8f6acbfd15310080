//! Configuration files.

use std::fs;
use std::sync::OnceLock;

use snapgate::config;
use snapgate::model::Timestamp;
use tempfile::TempDir;

/// The bytes as a configuration file.
pub(crate) fn config(data: &[u8]) {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| tempfile::tempdir().unwrap());
    let thread = format!("{:?}.toml", std::thread::current().id());
    let path = folder.path().join(thread);
    fs::write(&path, data).unwrap();
    let environment = |name: &str| (name == "WORD").then(|| "from outside".to_owned());
    let (once, twice) = (
        config::load(&path, &environment),
        config::load(&path, &environment),
    );
    match (once, twice) {
        (Ok(one), Ok(two)) => {
            assert_eq!(one.hash, two.hash, "the same file, the same hash");
            let needed = config::restart_needed(&one, &two);
            assert!(needed.is_empty(), "nothing differs: {needed:?}");
            for text in config::warnings(&one, Timestamp::from_millis(0)) {
                assert!(is_plain(&text), "a warning of one plain line: {text:?}");
            }
        }
        (Err(one), Err(two)) => {
            assert_eq!(one, two, "the same file, the same problems");
            assert!(!one.list().is_empty(), "a problem is reported");
            let lines = data.split(|data| *data == b'\n').count();
            for problem in one.list().iter().filter(|problem| problem.file == path) {
                let place = problem.position.map_or(1, |(line, _)| line);
                assert!(
                    (1..=lines).contains(&place),
                    "a place in the file: {problem:?}"
                );
                assert!(is_plain(&problem.key), "plain text: {problem:?}");
                assert!(is_plain(&problem.what), "plain text: {problem:?}");
                assert!(
                    is_plain(problem.hint.as_deref().unwrap_or_default()),
                    "plain text: {problem:?}"
                );
            }
        }
        (one, two) => panic!("two readings differ: {one:?} {two:?}"),
    }
}

/// Nothing in it moves a cursor or starts a line of its own.
fn is_plain(text: &str) -> bool {
    !text.chars().any(char::is_control)
}
