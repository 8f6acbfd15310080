//! Rules found by the text that their patterns begin with: ten thousand grants cost what a few do.

use std::collections::BTreeMap;

use crate::model::Pattern;

/// Which rules may fit a text. A pattern fits only what begins with the text before its first `*`, so a look-up for
/// each length of such a beginning finds every rule that fits, and few that do not.
#[derive(Debug, Default)]
pub(super) struct PatternIndex {
    rules: BTreeMap<String, Vec<usize>>,
    /// The lengths of the keys, in bytes, each once.
    lengths: Vec<usize>,
}

impl PatternIndex {
    /// Of the patterns of each rule, in order. A rule fits where one of its patterns does.
    pub(super) fn new<'a>(patterns: impl Iterator<Item = &'a [Pattern]>) -> Self {
        let mut rules: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (rule, patterns) in patterns.enumerate() {
            for pattern in patterns {
                let (prefix, _) = pattern.prefix();
                rules.entry(prefix.to_owned()).or_default().push(rule);
            }
        }
        let mut lengths: Vec<usize> = rules.keys().map(String::len).collect();
        lengths.sort_unstable();
        lengths.dedup();
        Self { rules, lengths }
    }

    /// The numbers of the rules that may fit the text, all that do among them, some perhaps more than once.
    pub(super) fn candidates<'a>(&'a self, text: &'a str) -> impl Iterator<Item = usize> {
        let lengths = self.lengths.iter();
        // Within a character no prefix ends.
        let beginnings = lengths.filter_map(|length| text.get(..*length));
        let found = beginnings.filter_map(|beginning| self.rules.get(beginning));
        found.flatten().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every text of one to `most` of these characters.
    fn texts(alphabet: &[char], most: usize) -> Vec<String> {
        let mut all = vec![String::new()];
        let mut last = all.clone();
        for _ in 0..most {
            let mut longer = Vec::new();
            for text in &last {
                longer.extend(alphabet.iter().map(|letter| format!("{text}{letter}")));
            }
            last = longer;
            all.extend(last.iter().cloned());
        }
        all.remove(0);
        all
    }

    #[test]
    fn whatever_fits_is_found() {
        let patterns: Vec<Pattern> = texts(&['a', '\u{e9}', '*'], 4)
            .iter()
            .map(|text| Pattern::new(text).unwrap())
            .collect();
        // Rules of one, two and three patterns, every pattern in each kind.
        for size in 1..=3 {
            let rules: Vec<&[Pattern]> = patterns.chunks(size).collect();
            let prefixes = PatternIndex::new(rules.iter().copied());
            for text in texts(&['a', '\u{e9}', 'b'], 5) {
                let is_on = |rule: &[Pattern]| rule.iter().any(|pattern| pattern.matches(&text));
                let wanted: Vec<usize> = (0..rules.len())
                    .filter(|rule| is_on(rules[*rule]))
                    .collect();
                let mut found: Vec<usize> = prefixes.candidates(&text).collect();
                found.retain(|rule| is_on(rules[*rule]));
                found.sort_unstable();
                found.dedup();
                assert_eq!(found, wanted, "{text:?} with {size} patterns a rule");
            }
        }
    }

    #[test]
    fn what_begins_otherwise_is_not_looked_at() {
        let many: Vec<Vec<Pattern>> = (0..1000)
            .map(|number| vec![Pattern::new(&format!("vm{number:03}-*")).unwrap()])
            .collect();
        let prefixes = PatternIndex::new(many.iter().map(Vec::as_slice));
        let found: Vec<usize> = prefixes.candidates("vm123-a").collect();
        assert_eq!(found, [123], "one of a thousand");
        assert_eq!(prefixes.candidates("other").count(), 0, "none");
    }
}
