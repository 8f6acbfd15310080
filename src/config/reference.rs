//! The declarations of all keys as documentation: tables for `docs/configuration.md`, and `config/reference.toml`.

use crate::config::tables;
use crate::schema::Description;
use crate::schema::Example;
use crate::schema::Table;
use crate::schema::TakesEffect;

/// A table, and the table that it stands in.
#[derive(Clone, Copy)]
struct PlacedTable<'a> {
    table: &'a Table,
    parent: Option<&'a Table>,
}

/// Every table, each followed by those in it.
fn all_tables() -> Vec<PlacedTable<'static>> {
    let mut all = Vec::new();
    for table in tables::ALL {
        all.push(PlacedTable {
            table,
            parent: None,
        });
        let parent = Some(table);
        all.extend(
            table
                .nested
                .iter()
                .map(|table| PlacedTable { table, parent }),
        );
    }
    all
}

impl PlacedTable<'_> {
    fn heading(&self) -> String {
        let name = self.table.name;
        match self.parent {
            Some(parent) => format!("[{}.{name}]", parent.name),
            None if self.table.repeated => format!("[[{name}]]"),
            None => format!("[{name}]"),
        }
    }

    fn keys(&self) -> impl Iterator<Item = Description> {
        self.table.keys.iter().map(|key| key.describe())
    }
}

/// Every key in Markdown tables.
#[must_use]
pub fn keys_as_markdown() -> String {
    all_tables().iter().map(markdown_of).collect()
}

fn markdown_of(placed: &PlacedTable<'_>) -> String {
    let (heading, help) = (placed.heading(), placed.table.help);
    let level = if placed.parent.is_some() {
        "####"
    } else {
        "###"
    };
    let rows: String = placed.keys().map(|key| markdown_row(&key)).collect();
    format!(
        "{level} `{heading}`\n\n{help}\n\n| key | value | default | applies | meaning |\n|---|---|---|---|---|\n{rows}\n"
    )
}

fn markdown_row(key: &Description) -> String {
    let default = key.default.as_ref().map_or_else(
        || key.without_default.to_owned(),
        |default| format!("`{default}`"),
    );
    let (name, form, help) = (key.name, &key.form, key.help);
    let takes_effect = takes_effect(key.takes_effect);
    format!("| `{name}` | {form} | {default} | {takes_effect} | {help} |\n")
}

const fn takes_effect(when: TakesEffect) -> &'static str {
    match when {
        TakesEffect::Reload => "on reload",
        TakesEffect::Restart => "on restart",
    }
}

/// Every key in a file that can be loaded, each with its meaning, form and default.
#[must_use]
pub fn keys_as_toml() -> String {
    let tables: String = all_tables().iter().map(toml_of).collect();
    format!(
        "# Every key of snapgate, with its meaning, its form, its default and when a change of it applies.\n\
         # Keys that are left out have their defaults; config/minimal.toml is a better start than this file.\n{tables}"
    )
}

fn toml_of(placed: &PlacedTable<'_>) -> String {
    let (help, heading) = (placed.table.help.replace('`', ""), placed.heading());
    let is_comment = is_comment(placed);
    let mark = if is_comment { "#" } else { "" };
    let keys: String = placed
        .keys()
        .map(|key| toml_key(&key, is_comment))
        .collect();
    format!("\n# {help}\n{mark}{heading}\n{keys}")
}

/// Whether a table is a comment as a whole: an optional one, or that of a kind other than the one shown.
fn is_comment(placed: &PlacedTable<'_>) -> bool {
    let Some(parent) = placed.parent else {
        let is_commented = |key: Description| matches!(key.example, Example::Commented(_));
        return placed.table.repeated && placed.keys().all(is_commented);
    };
    let quoted = format!("\"{}\"", placed.table.name);
    let mut parent_keys = parent.keys.iter().map(|key| key.describe().example);
    !parent_keys.any(|example| matches!(example, Example::Shown(value) if value == quoted))
}

fn toml_key(key: &Description, is_comment: bool) -> String {
    let (name, form, help) = (
        key.name,
        key.form.replace('`', ""),
        key.help.replace('`', ""),
    );
    let absent = key.without_default.replace('`', "");
    let default = match &key.default {
        Some(default) => format!("default: {default}"),
        None if absent.starts_with("required") => absent,
        None => format!("default: {absent}"),
    };
    let (mark, value) = match key.example {
        Example::Default => ("", key.default.clone().unwrap_or_default()),
        Example::Shown(value) => ("", value.to_owned()),
        Example::Commented(value) => ("#", value.to_owned()),
    };
    let mark = if is_comment { "#" } else { mark };
    let takes_effect = takes_effect(key.takes_effect);
    format!("# {help}\n# {form}; {default}; applies {takes_effect}\n{mark}{name} = {value}\n")
}
