//! The module graph on small trees that are made up for the purpose.

use std::collections::BTreeSet;

use crate::architecture::module_graph::Dependencies;
use crate::architecture::module_graph::circles;
use crate::architecture::module_graph::dependencies;
use crate::source_tree::Files;

fn tree(files: &[(&str, &str)]) -> Files {
    let named = files
        .iter()
        .map(|(path, text)| (format!("src/{path}"), (*text).to_owned()));
    named.collect()
}

fn read(files: &[(&str, &str)]) -> Dependencies {
    dependencies(&tree(files), "src", false)
}

/// The files that a file needs.
fn needed(dependencies: &Dependencies, file: &str) -> Vec<String> {
    let files = dependencies.files.get(file).into_iter();
    files.flat_map(|files| files.keys().cloned()).collect()
}

#[apply(test)]
fn a_circle_of_three_files_is_found_and_a_chain_is_none() {
    let found = read(&[
        ("lib.rs", "mod a; mod b; mod c; mod d;"),
        ("a.rs", "use crate::b::B; pub struct A(B);"),
        ("b.rs", "pub struct B(crate::c::C);"),
        (
            "c.rs",
            "pub struct C; fn f() { let _a: Option<super::a::A> = None; }",
        ),
        ("d.rs", "use crate::a::A; pub struct D(A);"),
    ]);
    let circle = ["src/a.rs", "src/b.rs", "src/c.rs"].map(str::to_owned);
    assert_eq!(circles(&found), [BTreeSet::from(circle)], "{found:?}");
}

#[apply(test)]
fn a_re_export_leads_to_the_file_that_defines_the_name() {
    let found = read(&[
        ("lib.rs", "pub mod room; mod user;"),
        (
            "room/mod.rs",
            "mod inner; mod deep; pub use inner::Thing as Renamed; pub use deep::*;",
        ),
        ("room/inner.rs", "pub struct Thing;"),
        (
            "room/deep/mod.rs",
            "mod bottom; pub use bottom::{Bottom, other};",
        ),
        (
            "room/deep/bottom.rs",
            "pub struct Bottom; pub fn other() {}",
        ),
        (
            "user.rs",
            "use crate::room; use crate::room::Renamed; fn f(_: Renamed) { room::other(); }",
        ),
    ]);
    let expected = ["src/room/deep/bottom.rs", "src/room/inner.rs"];
    assert_eq!(needed(&found, "src/user.rs"), expected, "{found:?}");
    assert!(
        needed(&found, "src/room/mod.rs").is_empty(),
        "it only declares: {found:?}"
    );
}

#[apply(test)]
fn a_parent_that_defines_what_its_child_needs_makes_a_circle() {
    let found = read(&[
        ("lib.rs", "mod room;"),
        ("room/mod.rs", "mod child; pub struct Parent(child::Child);"),
        (
            "room/child.rs",
            "pub struct Child; fn f(_: &super::Parent) {}",
        ),
    ]);
    assert_eq!(circles(&found).len(), 1, "{found:?}");
}

#[apply(test)]
fn names_in_macros_and_inline_modules_count_and_tests_do_not() {
    let files = [
        ("lib.rs", "mod a; mod b; mod c;"),
        (
            "a.rs",
            "fn f() { println!(\"{}\", crate::b::text()); } mod inner { use crate::c::C; }",
        ),
        (
            "b.rs",
            "pub fn text() {} #[cfg(test)] mod tests { use crate::a::X; }",
        ),
        ("c.rs", "pub struct C;"),
    ];
    let found = read(&files);
    assert_eq!(
        needed(&found, "src/a.rs"),
        ["src/b.rs", "src/c.rs"],
        "{found:?}"
    );
    assert!(
        needed(&found, "src/b.rs").is_empty(),
        "tests are left out: {found:?}"
    );
    let with_tests = dependencies(&tree(&files), "src", true);
    assert_eq!(
        needed(&with_tests, "src/b.rs"),
        ["src/a.rs"],
        "{with_tests:?}"
    );
}

#[apply(test)]
fn paths_to_other_crates_are_expanded_by_their_imports() {
    let found = read(&[
        ("lib.rs", "mod a;"),
        ("a.rs", "use tokio::task; fn f() { task::spawn(async {}); }"),
    ]);
    let spawn = ["tokio", "task", "spawn"].map(str::to_owned).to_vec();
    assert!(found.external["src/a.rs"].contains(&spawn), "{found:?}");
}

#[apply(test)]
fn an_exported_macro_belongs_to_its_file() {
    let found = read(&[
        ("lib.rs", "mod a; mod b;"),
        ("a.rs", "#[macro_export] macro_rules! text { () => {} }"),
        ("b.rs", "fn f() { crate::text!(); }"),
    ]);
    assert_eq!(needed(&found, "src/b.rs"), ["src/a.rs"], "{found:?}");
}
