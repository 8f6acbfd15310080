//! Writes a JSON document for people and for `diff`: members in order, and whatever fits on one line on one line.

#![expect(
    clippy::arithmetic_side_effects,
    reason = "columns of a document are few"
)]

use serde_json::Value;

/// The longest line, unless one text alone is longer.
const COLUMNS: usize = 140;

/// The document as text that ends with a line end.
pub(super) fn print(document: &Value) -> String {
    let mut text = String::new();
    write_value(document, 0, 0, &mut text);
    text.push('\n');
    text
}

/// Writes a value that begins at a column, in lines that are indented at least so far.
fn write_value(value: &Value, indent: usize, column: usize, text: &mut String) {
    let line = on_one_line(value);
    // One column is kept for the comma behind it.
    if indent > 0 && column + line.len() < COLUMNS {
        text.push_str(&line);
        return;
    }
    match value {
        Value::Object(members) => {
            let members = members.iter().map(|(name, value)| {
                let name = format!("{}: ", Value::from(name.as_str()));
                (name, value)
            });
            write_lines(members, ['{', '}'], indent, text);
        }
        Value::Array(items) if items.iter().all(is_short) => write_filled(items, indent, text),
        Value::Array(items) => {
            let items = items.iter().map(|item| (String::new(), item));
            write_lines(items, ['[', ']'], indent, text);
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => text.push_str(&line),
    }
}

/// Each entry on lines of its own.
fn write_lines<'a>(
    entries: impl Iterator<Item = (String, &'a Value)>,
    [open, close]: [char; 2],
    indent: usize,
    text: &mut String,
) {
    let inner = indent + 2;
    text.push(open);
    for (position, (name, value)) in entries.enumerate() {
        text.push_str(if position == 0 { "\n" } else { ",\n" });
        text.push_str(&" ".repeat(inner));
        text.push_str(&name);
        write_value(value, inner, inner + name.len(), text);
    }
    text.push('\n');
    text.push_str(&" ".repeat(indent));
    text.push(close);
}

/// As many items on each line as fit.
fn write_filled(items: &[Value], indent: usize, text: &mut String) {
    let start = format!("\n{}", " ".repeat(indent + 2));
    text.push('[');
    let mut column = COLUMNS;
    for (position, item) in items.iter().enumerate() {
        let item = on_one_line(item);
        if column + item.len() + 2 > COLUMNS {
            let separator = if position == 0 { "" } else { "," };
            text.push_str(separator);
            text.push_str(&start);
            column = indent + 2;
        } else {
            text.push_str(", ");
            column += 2;
        }
        text.push_str(&item);
        column += item.len();
    }
    text.push('\n');
    text.push_str(&" ".repeat(indent));
    text.push(']');
}

/// Whether it is no object or array.
const fn is_short(value: &Value) -> bool {
    match value {
        Value::Object(_) | Value::Array(_) => false,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => true,
    }
}

fn on_one_line(value: &Value) -> String {
    match value {
        Value::Object(members) if members.is_empty() => "{}".to_owned(),
        Value::Object(members) => {
            let one = |(name, value): (&String, &Value)| {
                format!("{}: {}", Value::from(name.as_str()), on_one_line(value))
            };
            let members: Vec<String> = members.iter().map(one).collect();
            format!("{{ {} }}", members.join(", "))
        }
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(on_one_line).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.to_string(),
    }
}

#[test]
fn what_fits_on_one_line_is_on_one_line() {
    let long = vec!["a word of the list"; 9];
    let value = serde_json::json!({ "a": { "b": [1, 2], "c": {} }, "d": long });
    let expected = r#"{
  "a": { "b": [1, 2], "c": {} },
  "d": [
    "a word of the list", "a word of the list", "a word of the list", "a word of the list", "a word of the list", "a word of the list",
    "a word of the list", "a word of the list", "a word of the list"
  ]
}
"#;
    let found = print(&value);
    assert_eq!(
        found, expected,
        "short values in one line, long lists filled"
    );
    let read: Value = serde_json::from_str(&found).unwrap();
    assert_eq!(read, value, "the same value");
}
