//! The known word that a mistyped one is probably meant for.

/// A known word of at most so many letters is meant by one that differs in one edit alone: `note` is not `name`.
const SHORT_CHARS_MAX: usize = 4;

/// The known word that takes the fewest edits, if these are few enough for a slip; in capitals or not.
///
/// An edit inserts, removes or replaces a letter, or swaps it with the next one.
pub(crate) fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let lower = word.to_lowercase();
    let near = known.into_iter().filter_map(|known| {
        let most: usize = if known.len() <= SHORT_CHARS_MAX { 1 } else { 2 };
        // A long word is not compared letter by letter: callers choose its length.
        if lower.len() > known.len().saturating_add(most.saturating_mul(4)) {
            return None;
        }
        let edits = strsim::osa_distance(&lower, known);
        (edits <= most).then_some((edits, known))
    });
    near.min().map(|(_, known)| known)
}

/// [`nearest`], or else the known word that a longer one begins with.
pub(crate) fn nearest_or_prefix<'k>(
    word: &str,
    known: impl IntoIterator<Item = &'k str> + Clone,
) -> Option<&'k str> {
    let is_prefix = |known: &&str| known.len() >= SHORT_CHARS_MAX && word.starts_with(known);
    nearest(word, known.clone()).or_else(|| known.into_iter().find(is_prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_recognised_and_other_words_are_not() {
        let known = ["listen", "admin", "drain", "name", "tags", "description"];
        let rows = [
            ("tags", Some("tags")),
            ("tag", Some("tags")),
            ("tasg", Some("tags")),
            ("togs", Some("tags")),
            ("note", None),
            ("", None),
            ("lisen", Some("listen")),
            ("Listen", Some("listen")),
            ("drian", Some("drain")),
            ("drains", Some("drain")),
            ("descriptoin", Some("description")),
            ("description_of_the_backup", None),
            ("colour", None),
        ];
        for (word, expected) in rows {
            assert_eq!(nearest(word, known), expected, "{word}");
        }
    }

    #[test]
    fn a_known_word_with_an_ending_is_recognised_where_prefixes_count() {
        let known = ["drain", "password_hash"];
        let found = nearest_or_prefix("password_hash_file", known);
        assert_eq!(found, Some("password_hash"), "prefix");
        assert_eq!(nearest_or_prefix("lisen", known), None, "neither");
    }
}
