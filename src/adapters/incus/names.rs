//! Names and paths of LXD and Incus: which are safe to use, and what they say.

/// Longest name that every version takes.
const NAME_BYTES_MAX: usize = 64;
/// What snapshots made by a gateway begin with; a number follows.
const MINTED_PREFIX: &str = "snapgate-";
/// Whether the name of an instance, snapshot or project is one that no version misreads.
///
/// Some versions take `..` for a folder and destroy what is beside it, and can never remove a name with `%` again.
pub(super) fn is_safe_name(name: &str) -> bool {
    let end = |character: Option<char>| character.is_some_and(|end| end.is_ascii_alphanumeric());
    name.len() <= NAME_BYTES_MAX
        && end(name.chars().next())
        && end(name.chars().next_back())
        && !name.contains("..")
        && name
            .chars()
            .all(|character| character.is_ascii_alphanumeric() || "._-".contains(character))
}

/// The number of an operation in a path such as `/1.0/operations/4a08d9d0-4654-40d9-8e54-45e563d00409?project=p`.
pub(super) fn operation_id(path: &str) -> Option<&str> {
    let id = path
        .strip_prefix("/1.0/operations/")?
        .split('?')
        .next()
        .unwrap_or_default();
    let digits = |digit: char| digit.is_ascii_hexdigit() || digit == '-';
    (id.len() == 36 && id.chars().all(digits)).then_some(id)
}

/// Whether a gateway chose that name.
pub(super) fn is_minted(snapshot: &str) -> bool {
    snapshot
        .strip_prefix(MINTED_PREFIX)
        .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The name alone, without what some versions put before it.
pub(super) fn last_segment(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

/// The volume of an instance's root disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct VolumePath {
    /// The pool it lies in.
    pub(super) pool: String,
    /// `container` or `virtual-machine`.
    pub(super) kind: String,
    /// The instance.
    pub(super) vm: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dangerous_names_are_not_strict() {
        let long = "a".repeat(64);
        let longer = "a".repeat(65);
        let rows = [
            ("web01", true),
            ("a", true),
            ("snap.0_x-1", true),
            (long.as_str(), true),
            (longer.as_str(), false),
            ("", false),
            (".", false),
            ("..", false),
            ("a..b", false),
            (".hidden", false),
            ("end.", false),
            ("-a", false),
            ("a/b", false),
            ("../x", false),
            ("a%b", false),
            ("a%2fb", false),
            ("a b", false),
            ("a\\b", false),
            ("a?b", false),
            ("\u{fc}n\u{ef}", false),
        ];
        for (name, expected) in rows {
            assert_eq!(is_safe_name(name), expected, "{name:?}");
        }
    }

    #[test]
    fn operations_are_named_by_their_number_only() {
        let id = "4a08d9d0-4654-40d9-8e54-45e563d00409";
        let rows = [
            (format!("/1.0/operations/{id}"), Some(id)),
            (format!("/1.0/operations/{id}?project=p"), Some(id)),
            (format!("/1.0/instances/{id}"), None),
            ("/1.0/operations/../instances".to_owned(), None),
            (String::new(), None),
        ];
        for (path, expected) in rows {
            assert_eq!(operation_id(&path), expected, "{path}");
        }
    }
}
