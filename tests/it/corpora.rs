//! The corpora of the fuzz targets as ordinary tests: every file is fed to the function its target fuzzes.

use std::collections::BTreeSet;
use std::fs;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;

#[path = "../../fuzz/inputs/mod.rs"]
mod inputs;

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

corpora! { accept basic bodies config decision jwks jwt passing status_query version }
