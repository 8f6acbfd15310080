//! What the metrics of a gateway say at one moment.

use std::collections::BTreeMap;

/// The series of `/metrics`: name, labels as written, value.
#[derive(Clone, Debug, Default)]
pub(super) struct Sample {
    series: Vec<(String, BTreeMap<String, String>, f64)>,
}

impl Sample {
    /// Reads the Prometheus text format. What is not understood is left out.
    pub(super) fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        Self {
            series: lines.filter_map(parse_series).collect(),
        }
    }

    /// The sum of the series of that name for which the labels are as wanted.
    pub(super) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let fitting = self.series.iter().filter(|(series, has, _)| {
            let fits =
                |(label, value): &(&str, &str)| has.get(*label).is_some_and(|has| has == value);
            series == name && labels.iter().all(fits)
        });
        // The sum of nothing is a negative zero, which would be shown as one.
        fitting.map(|(_, _, value)| value).sum::<f64>() + 0.0
    }

    /// The sum of the series of that name for which a label fits.
    pub(super) fn sum_where(&self, name: &str, label: &str, fits: impl Fn(&str) -> bool) -> f64 {
        let of_name = self.series.iter().filter(|(series, _, _)| series == name);
        let fitting = of_name.filter(|(_, has, _)| has.get(label).is_some_and(|value| fits(value)));
        // The sum of nothing is a negative zero, which would be shown as one.
        fitting.map(|(_, _, value)| value).sum::<f64>() + 0.0
    }

    /// Every value of a label of that series, each once.
    pub(super) fn values_of(&self, name: &str, label: &str) -> Vec<String> {
        let of_name = self.series.iter().filter(|(series, _, _)| series == name);
        let mut values: Vec<String> = of_name
            .filter_map(|(_, has, _)| has.get(label).cloned())
            .collect();
        values.sort();
        values.dedup();
        values
    }
}

/// One line: `name{label="value",...} number`.
fn parse_series(line: &str) -> Option<(String, BTreeMap<String, String>, f64)> {
    let (series, value) = line.rsplit_once(' ')?;
    let value = value.parse().ok()?;
    let Some((name, labels)) = series.split_once('{') else {
        return Some((series.to_owned(), BTreeMap::new(), value));
    };
    let mut rest = labels.strip_suffix('}')?;
    let mut found = BTreeMap::new();
    while let Some((label, behind)) = rest.split_once("=\"") {
        let mut text = String::new();
        let mut letters = behind.char_indices();
        let mut end = behind.len();
        while let Some((at, letter)) = letters.next() {
            match letter {
                '"' => {
                    end = at;
                    break;
                }
                '\\' => match letters.next() {
                    Some((_, 'n')) => text.push('\n'),
                    Some((_, escaped)) => text.push(escaped),
                    None => return None,
                },
                plain => text.push(plain),
            }
        }
        found.insert(label.trim_start_matches(',').to_owned(), text);
        rest = behind.get(end.checked_add(1)?..)?;
    }
    Some((name.to_owned(), found, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_read_and_summed() {
        let text = "# HELP a b\na{x=\"1\",y=\"p\\\"q, r\"} 2\na{x=\"2\",y=\"\"} 3.5\nb 7\nbroken\nc{x=\"1} 1\n";
        let sample = Sample::parse(text);
        assert!((sample.sum("a", &[]) - 5.5).abs() < 0.01, "all");
        assert!((sample.sum("a", &[("x", "1")]) - 2.0).abs() < 0.01, "one");
        assert!(
            (sample.sum("a", &[("y", "p\"q, r")]) - 2.0).abs() < 0.01,
            "escaped"
        );
        assert!((sample.sum("b", &[]) - 7.0).abs() < 0.01, "without labels");
        assert!(sample.sum("c", &[]).abs() < 0.01, "broken");
        assert_eq!(sample.values_of("a", "x"), ["1", "2"], "values");
        let fitting = sample.sum_where("a", "x", |value| value == "2");
        assert!((fitting - 3.5).abs() < 0.01, "where");
    }
}
