//! The known member that a mistyped one is probably meant for.

/// A known name of at most so many letters is meant by one that differs in one edit alone: `note` is not `name`.
const SHORT_CHARS_MAX: usize = 4;

/// The known name that takes the fewest edits, if these are few enough for a slip; in capitals or not.
pub(super) fn nearest<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    let lower = name.to_lowercase();
    let edits_max = |known: &str| -> usize { if known.len() <= SHORT_CHARS_MAX { 1 } else { 2 } };
    let near = known.iter().filter_map(|known| {
        let most = edits_max(known);
        // A long name is not compared letter by letter.
        let is_close = lower.len() <= known.len().saturating_add(most.saturating_mul(4));
        let edits = if is_close {
            distance(&lower, known)
        } else {
            usize::MAX
        };
        (edits <= most).then_some((edits, *known))
    });
    near.min().map(|(_, known)| known)
}

/// How many letters must be inserted, removed, replaced, or swapped with the next one.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let first: Vec<usize> = (0..=to.len()).collect();
    let (mut before_last, mut last) = (first.clone(), first);
    let mut previous = None;
    for (done, letter) in from.chars().enumerate() {
        let mut row = vec![done.saturating_add(1)];
        for (place, other) in to.iter().enumerate() {
            let at = |of: &[usize], index: usize| of.get(index).copied().unwrap_or(usize::MAX);
            let next = place.saturating_add(1);
            let replaced = at(&last, place).saturating_add(usize::from(letter != *other));
            let mut least = replaced
                .min(at(&last, next).saturating_add(1))
                .min(at(&row, place).saturating_add(1));
            let swapped = place.checked_sub(1).filter(|earlier| {
                to.get(*earlier) == Some(&letter) && previous == Some(*other) && done > 0
            });
            if let Some(earlier) = swapped {
                least = least.min(at(&before_last, earlier).saturating_add(1));
            }
            row.push(least);
        }
        before_last = std::mem::replace(&mut last, row);
        previous = Some(letter);
    }
    last.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_counted() {
        for (from, to, edits) in [
            ("tags", "tags", 0),
            ("tag", "tags", 1),
            ("tagss", "tags", 1),
            ("tasg", "tags", 1),
            ("togs", "tags", 1),
            ("note", "name", 2),
            ("", "name", 4),
            ("ab", "ba", 1),
            ("descriptoin", "description", 1),
        ] {
            assert_eq!(distance(from, to), edits, "{from} {to}");
        }
    }
}
