//! Every claim of the threat model points to a test that exists, and what is claimed of the package itself holds.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

const TEST_ATTRIBUTES: [&str; 3] = ["#[test]", "#[tokio::test", "#[apply(test)]"];

/// Names of the test functions in the text of a file.
fn tests_in(text: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut is_test = false;
    for line in text.lines().map(str::trim_start) {
        if TEST_ATTRIBUTES
            .iter()
            .any(|attribute| line.starts_with(attribute))
        {
            is_test = true;
        } else if is_test && !line.starts_with("#[") {
            let name = line
                .trim_start_matches("pub ")
                .trim_start_matches("async ")
                .strip_prefix("fn ");
            let name = name.and_then(|name| name.split('(').next());
            names.extend(name.map(str::to_owned));
            is_test = false;
        }
    }
    names
}

fn all_tests() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut pending = vec![
        Path::new("src").to_owned(),
        Path::new("tests/it").to_owned(),
    ];
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(&path).unwrap();
            pending.extend(entries.map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            names.append(&mut tests_in(&fs::read_to_string(&path).unwrap()));
        }
    }
    names
}

/// The rows of tables whose last column is headed `test`: the claim, and the names in that column.
fn claims(page: &str) -> Vec<(String, Vec<String>)> {
    let mut found = Vec::new();
    let mut is_table_of_claims = false;
    for line in page.lines() {
        let Some(cells) = line
            .strip_prefix("| ")
            .and_then(|rest| rest.strip_suffix(" |"))
        else {
            is_table_of_claims &= line.starts_with('|');
            continue;
        };
        let (rest, last) = cells.rsplit_once(" | ").unwrap();
        if last == "tests" || last == "test" {
            is_table_of_claims = true;
        } else if is_table_of_claims {
            let names = last.split('`').skip(1).step_by(2).map(str::to_owned);
            found.push((rest.to_owned(), names.collect()));
        }
    }
    found
}

#[apply(test)]
fn every_claim_points_to_tests_that_exist() {
    let page = fs::read_to_string("docs/security.md").unwrap();
    let claims = claims(&page);
    assert!(claims.len() > 30, "the page is read: {claims:?}");
    let known = all_tests();
    let mut wrong = Vec::new();
    for (claim, names) in claims {
        if names.is_empty() {
            wrong.push(format!("no test: {claim}"));
        }
        for name in names.iter().filter(|name| !known.contains(*name)) {
            wrong.push(format!("no such test: {name}: {claim}"));
        }
    }
    assert!(wrong.is_empty(), "docs/security.md:\n{}", wrong.join("\n"));
}

#[apply(test)]
fn there_is_one_provider_of_cryptography() {
    let locked = fs::read_to_string("Cargo.lock").unwrap();
    let packages: BTreeSet<&str> = locked
        .lines()
        .filter_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'))
        .collect();
    assert!(packages.contains("ring"), "the provider there is");
    for other in [
        "aws-lc-rs",
        "aws-lc-sys",
        "boring-sys",
        "native-tls",
        "openssl",
        "openssl-sys",
        "s2n-tls-sys",
    ] {
        assert!(!packages.contains(other), "a second provider: {other}");
    }
}

#[apply(test)]
fn unsafe_code_and_panics_are_forbidden() {
    let manifest = fs::read_to_string("Cargo.toml").unwrap();
    for rule in [
        "unsafe_code = \"forbid\"",
        "unwrap_used = \"deny\"",
        "expect_used = \"deny\"",
        "panic = \"deny\"",
        "indexing_slicing = \"deny\"",
        "string_slice = \"deny\"",
        "cast_possible_truncation = \"deny\"",
        "let_underscore_must_use = \"deny\"",
    ] {
        assert!(
            manifest.lines().any(|line| line == rule),
            "Cargo.toml: {rule}"
        );
    }
}
