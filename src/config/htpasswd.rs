//! Files of `user:hash` lines, as `htpasswd -B` writes them.

use std::path::Path;

use crate::gate::PasswordHash;
use crate::model::PrincipalName;
use crate::schema::Problem;

/// One user of such a file.
pub(super) struct Entry {
    pub(super) line: usize,
    pub(super) name: PrincipalName,
    pub(super) password: PasswordHash,
}

/// The users of the file, and its problems. Blank lines and lines that begin with `#` count for nothing.
pub(super) fn read(file: &Path, text: &str) -> (Vec<Entry>, Vec<Problem>) {
    let mut entries = Vec::new();
    let mut problems = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let number = index.saturating_add(1);
        match entry(number, line) {
            Ok(done) => entries.push(done),
            Err((what, hint)) => problems.push(Problem {
                file: file.to_owned(),
                position: Some((number, 1)),
                key: String::new(),
                what,
                hint: Some(hint.to_owned()),
            }),
        }
    }
    (entries, problems)
}

fn entry(line: usize, text: &str) -> Result<Entry, (String, &'static str)> {
    let Some((name, hash)) = text.split_once(':') else {
        return Err(("missing colon".to_owned(), "write user:hash"));
    };
    let name = PrincipalName::new(name)
        .map_err(|error| (format!("user name {error}"), "choose another name"))?;
    let password = PasswordHash::new(hash.to_owned()).map_err(|error| {
        let what = format!("password hash of {name} {error}");
        (
            what,
            "create one with: htpasswd -nB USER, or snapgate hash-password",
        )
    })?;
    Ok(Entry {
        line,
        name,
        password,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "$2y$12$xd7eAg0cc/smZW1W/yBbJe5DgzGfXBJ0No0VBt4A2FAZ.1zKkTIHa";

    #[test]
    fn lines_are_users_comments_or_errors_with_their_number() {
        let text = format!(
            "# people\n\nann:{HASH}\nbob\n  # more\nc d:{HASH}\neve:secret\nzoe:{HASH}\r\n"
        );
        let (entries, problems) = read(Path::new("p"), &text);
        let names: Vec<(usize, &str)> = entries
            .iter()
            .map(|entry| (entry.line, entry.name.as_str()))
            .collect();
        assert_eq!(names, [(3, "ann"), (8, "zoe")], "good lines");
        let lines: Vec<usize> = problems
            .iter()
            .filter_map(|problem| problem.position.map(|at| at.0))
            .collect();
        assert_eq!(lines, [4, 6, 7], "bad lines");
        assert!(
            !format!("{problems:?}").contains("secret"),
            "no part of a hash is shown"
        );
    }
}
