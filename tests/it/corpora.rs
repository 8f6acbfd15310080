//! The corpora of the fuzz targets as ordinary tests: every file is fed to the function its target fuzzes.

use std::collections::BTreeSet;
use std::fs;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;

#[path = "../../fuzz/inputs/mod.rs"]
pub(crate) mod inputs;

/// The entries of a folder by name, in order.
fn names(folder: &str) -> BTreeSet<String> {
    fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// Feeds the whole corpus of one target; says which file breaks what.
fn feed(target: &str) {
    let folder = format!("fuzz/corpus/{target}");
    let files = names(&folder);
    assert!(files.len() >= 10, "{folder} holds a corpus");
    for file in files {
        let data = fs::read(format!("{folder}/{file}")).unwrap();
        let fed = catch_unwind(AssertUnwindSafe(|| inputs::feed(target, &data)));
        assert!(fed.is_ok(), "{folder}/{file}: see the panic above");
    }
}

macro_rules! corpora {
    ($($name:ident)*) => {
        $(#[apply(test)]
        fn $name() {
            feed(stringify!($name));
        })*

        #[apply(test)]
        fn every_fuzz_target_has_a_corpus_and_a_test() {
            let tested = BTreeSet::from([$(stringify!($name).to_owned()),*]);
            let known = inputs::INPUTS.iter().map(|(name, _)| (*name).to_owned());
            assert_eq!(tested, known.collect(), "left: tests, right: inputs");
            assert_eq!(tested, names("fuzz/corpus"), "left: tests, right: corpora");
            let targets = names("fuzz/fuzz_targets");
            let targets = targets.iter().filter_map(|target| target.strip_suffix(".rs"));
            assert_eq!(tested, targets.map(str::to_owned).collect(), "left: tests, right: targets");
        }
    };
}

corpora! { accept answers basic bodies config decision jwks jwt listener passing status_query version }

#[apply(test)]
fn the_reference_reader_of_http_1_keeps_the_rules_of_rfc_9112() {
    let get = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    let with = |fields: &str, body: &str| {
        format!("PUT / HTTP/1.1\r\nHost: x\r\n{fields}\r\n\r\n{body}{get}")
    };
    let chunked = |body: &str| with("Transfer-Encoding: chunked", body);
    // name, bytes, well-formed heads
    let rows = [
        ("two requests", format!("{get}{get}"), 2),
        ("an empty line first", format!("\r\n{get}"), 1),
        ("a body with a length", with("Content-Length: 2", "{}"), 2),
        ("one length twice", with("Content-Length: 2, 2", "{}"), 2),
        ("two lengths", with("Content-Length: 2, 3", "{}"), 0),
        ("a length with a sign", with("Content-Length: +2", "{}"), 0),
        ("a body cut short", with("Content-Length: 99", "{}"), 1),
        ("chunks", chunked("2;a=b\r\n{}\r\n0\r\nX: y\r\n\r\n"), 2),
        ("a chunk line ended by LF", chunked("2\n{}\r\n0\r\n\r\n"), 1),
        ("LF in an extension", chunked("2;\n{}\r\n0\r\n\r\n"), 1),
        ("an empty size", chunked(";\r\n{}\r\n0\r\n\r\n"), 1),
        ("a trailer without a colon", chunked("0\r\nX\r\n\r\n"), 1),
        ("a chunk too long", chunked("1\r\n{}\r\n0\r\n\r\n"), 1),
        (
            "a list of codings",
            with("Transfer-Encoding: , chunked", ""),
            0,
        ),
        (
            "both framings",
            with(
                "Content-Length: 2\r\nTransfer-Encoding: chunked",
                "0\r\n\r\n",
            ),
            0,
        ),
        ("a folded line", with("X: a\r\n b", ""), 0),
        ("a space before the colon", with("X : a", ""), 0),
        ("no Host", "GET / HTTP/1.1\r\n\r\n".to_owned(), 0),
        ("two Hosts", with("Host: y", ""), 0),
        (
            "HTTP/1.0 without Host",
            "GET / HTTP/1.0\r\n\r\n".to_owned(),
            1,
        ),
        ("a space in the target", get.replace("/ ", "/a b "), 0),
    ];
    for (name, bytes, expected) in rows {
        let found = inputs::reference_http1::read(bytes.as_bytes());
        assert_eq!(found.methods.len(), expected, "{name}: {found:?}");
    }
}
