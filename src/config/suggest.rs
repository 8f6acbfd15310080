//! The known word nearest to a mistyped one.

/// The known word that takes the fewest edits, if these are few enough for a slip.
pub(super) fn nearest<'k>(word: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    let most = word
        .chars()
        .count()
        .saturating_add(1)
        .wrapping_div(3)
        .max(1);
    known
        .map(|it| (distance(word, it), it))
        .filter(|(edits, it)| *edits <= most || (word.len() > 3 && word.starts_with(it)))
        .min()
        .map(|(_, it)| it)
}

/// How many letters must be inserted, removed or replaced.
fn distance(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.chars().count()).collect();
    for (done, letter) in from.chars().enumerate() {
        let mut diagonal = done;
        let mut left = done.saturating_add(1);
        let mut next = vec![left];
        for (other, above) in to.chars().zip(row.iter().copied().skip(1)) {
            let replaced = diagonal.saturating_add(usize::from(letter != other));
            left = replaced
                .min(above.saturating_add(1))
                .min(left.saturating_add(1));
            next.push(left);
            diagonal = above;
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_recognised_and_other_words_are_not() {
        let known = ["listen", "admin", "drain", "drain_notice", "password_hash"];
        let rows = [
            ("lisen", Some("listen")),
            ("Listen", Some("listen")),
            ("drian", Some("drain")),
            ("drains", Some("drain")),
            ("password_hash_file", Some("password_hash")),
            ("colour", None),
        ];
        for (word, expected) in rows {
            assert_eq!(nearest(word, known.into_iter()), expected, "{word}");
        }
    }
}
