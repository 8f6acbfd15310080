//! The requests of `docs/api.md` are answered as the page says.
//!
//! Its blocks of shell lines run in order against a demo; the block after each is what they print. `UPDATE_GOLDEN=1` rewrites the
//! answers. Times, numbers of operations, tags and the ids of requests differ from run to run, so that only their form is compared, and `...`
//! stands for anything.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::harness::Process;
use crate::requirements::require_programs;

const PAGE: &str = "docs/api.md";

/// A part of the page.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    /// Text for people.
    Text(String),
    /// Shell lines that are run.
    Lines(String),
    /// What the lines before it print.
    Answer(String),
}

/// The parts of a page: fences of `sh`, fences of nothing, and the rest.
fn parts_of(page: &str) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut text = String::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        let fence: Option<fn(String) -> Part> = match line {
            "```sh" => Some(Part::Lines),
            "```" => Some(Part::Answer),
            _ => None,
        };
        let Some(part) = fence else {
            text.push_str(line);
            text.push('\n');
            continue;
        };
        parts.push(Part::Text(std::mem::take(&mut text)));
        let inner = lines.by_ref().take_while(|line| *line != "```");
        parts.push(part(inner.map(|line| format!("{line}\n")).collect()));
    }
    parts.push(Part::Text(text));
    parts
}

fn page_of(parts: &[Part]) -> String {
    let one = |part: &Part| match part {
        Part::Text(text) => text.clone(),
        Part::Lines(text) => format!("```sh\n{text}```\n"),
        Part::Answer(text) => format!("```\n{text}```\n"),
    };
    parts.iter().map(one).collect()
}

/// The text without what differs from run to run.
fn form_of(text: &str) -> String {
    let mut form = String::new();
    let mut word = String::new();
    // A blank at the end closes the last word.
    for character in text.chars().chain([' ']) {
        if character.is_ascii_alphanumeric() || "-:.".contains(character) {
            word.push(character);
            continue;
        }
        form.push_str(placeholder_of(&word).unwrap_or(&word));
        word.clear();
        form.push(character);
    }
    form.trim_end().to_owned()
}

/// What stands for a word that differs from run to run.
fn placeholder_of(word: &str) -> Option<&'static str> {
    let is_digits = |word: &str| word.bytes().all(|byte| byte.is_ascii_digit());
    let is_hexadecimal = |word: &str| word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let (first, rest) = word.split_once('-').unwrap_or((word, ""));
    if word.len() >= 20 && word.contains('T') && word.ends_with('Z') && is_digits(first) {
        Some("TIME")
    } else if word.len() == 8 && word.starts_with("20") && is_digits(word) {
        // In the name of the demo's backup.
        Some("DATE")
    } else if first.len() > 10 && is_digits(first) && is_digits(rest) {
        // Of an operation, and of a revision of it.
        Some("NUMBER")
    } else if first.len() >= 12 && is_hexadecimal(first) && is_hexadecimal(rest) {
        // Of a request or a fingerprint; a tag.
        Some("ID")
    } else if word.len() > 9 && word.strip_prefix(':').is_some_and(is_digits) {
        // Free bytes: the disk images of the demo are smaller.
        Some(":BYTES")
    } else {
        None
    }
}

/// Whether an answer is as the page says, whose `...` stands for anything.
fn is_as_written(written: &str, found: &str) -> bool {
    let (written, found) = (form_of(written), form_of(found));
    let mut rest = found.as_str();
    let mut pieces = written.split("...").peekable();
    let Some(first) = pieces.next() else {
        return false;
    };
    let Some(after) = rest.strip_prefix(first) else {
        return false;
    };
    rest = after;
    while let Some(piece) = pieces.next() {
        let at = if pieces.peek().is_none() {
            rest.ends_with(piece).then(|| rest.len() - piece.len())
        } else {
            rest.find(piece)
        };
        let Some(at) = at else {
            return false;
        };
        (_, rest) = rest.split_at(at + piece.len());
    }
    rest.is_empty()
}

/// Runs shell lines as a reader would paste them, with the demo's address in place of the page's.
fn run_lines(lines: &str, folder: &Path, gateway: &Process) -> String {
    let address = gateway.api.to_string();
    let lines = lines.replace("127.0.0.1:8080", &address);
    let output = Command::new("bash")
        .args(["-c", &lines])
        .current_dir(folder)
        .output()
        .unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    let printed = printed
        .replace(&address, "127.0.0.1:8080")
        .replace('\r', "");
    // An answer without a line end is shown with one.
    format!("{}\n", printed.trim_end_matches('\n'))
}

#[apply(test)]
fn every_request_of_the_page_is_answered_as_it_says() {
    require_programs(&["bash", "curl"]);
    let home = tempfile::tempdir().unwrap();
    let demo = home.path().join("snapgate-demo");
    let ports = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let gateway =
        Process::start(&[&["demo", "--dir", demo.to_str().unwrap()], &ports[..]].concat());
    let page = fs::read_to_string(PAGE).unwrap();
    let mut parts = parts_of(&page);
    let mut printed: Option<String> = None;
    let mut wrong = Vec::new();
    let mut count = 0;
    for part in &mut parts {
        match part {
            Part::Text(_) => {}
            Part::Lines(lines) => {
                count += 1;
                printed = Some(run_lines(lines, home.path(), &gateway));
            }
            Part::Answer(answer) => {
                let found = printed.take().unwrap_or_default();
                if !is_as_written(answer, &found) {
                    wrong.push(format!("-- written\n{answer}-- found\n{found}"));
                    *answer = found;
                }
            }
        }
    }
    if std::env::var_os("UPDATE_GOLDEN").is_some() && !wrong.is_empty() {
        fs::write(PAGE, page_of(&parts)).unwrap();
        return;
    }
    assert!(count > 15, "the page is read: {count}");
    assert!(
        wrong.is_empty(),
        "{PAGE}; UPDATE_GOLDEN=1 rewrites the answers\n{}",
        wrong.join("\n")
    );
}

#[apply(test)]
fn the_page_is_read_into_parts() {
    let page = "Text\n\n```sh\ncurl -s http://127.0.0.1:8080/\n```\n\n```\n{}\n```\nEnd\n";
    let parts = parts_of(page);
    assert_eq!(
        parts[1],
        Part::Lines("curl -s http://127.0.0.1:8080/\n".to_owned()),
        "lines"
    );
    assert_eq!(parts[3], Part::Answer("{}\n".to_owned()), "answer");
    assert_eq!(page_of(&parts), page, "and back");
    let rows = [
        ("seq=118529990508675072", "seq=118529990508675999", true),
        ("2026-11-24T01:55:50Z", "2027-01-24T01:55:50.123Z", true),
        ("\"a\": 1", "\"a\": 2", false),
        ("\"4ea62ace64b8-c\"", "\"4ea62ace64b9-1f\"", true),
        ("id: 118529990508675072-3", "id: 118529990508675999-5", true),
        ("\"web01_20261124\"", "\"web01_20270101\"", true),
        ("\"web01\"", "\"web02\"", false),
        ("\"free\":9663676416", "\"free\":110243676416", true),
        ("\"size\":16777216", "\"size\":16777217", false),
        (
            "HTTP/1.1 200 OK\n...\n{}",
            "HTTP/1.1 200 OK\nDate: x\n\n{}",
            true,
        ),
        (
            "HTTP/1.1 200 OK\n...\n{}",
            "HTTP/1.1 404 Not Found\nDate: x\n\n{}",
            false,
        ),
        ("200\n...\n{}", "200\nx\n\n{\"a\":1}", false),
    ];
    for (written, found, expected) in rows {
        assert_eq!(
            is_as_written(written, found),
            expected,
            "{written:?} and {found:?}"
        );
    }
}
