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
            assert_eq!(one, two, "the same file, the same mistakes");
            assert!(!one.list().is_empty(), "a mistake is told");
            let lines = data.split(|data| *data == b'\n').count();
            for it in one.list().iter().filter(|it| it.file == path) {
                let place = it.position.map_or(1, |(line, _)| line);
                assert!((1..=lines).contains(&place), "a place in the file: {it:?}");
                assert!(is_plain(&it.key), "plain text: {it:?}");
                assert!(is_plain(&it.what), "plain text: {it:?}");
                assert!(
                    is_plain(it.hint.as_deref().unwrap_or_default()),
                    "plain text: {it:?}"
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
