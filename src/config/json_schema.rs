//! The declarations of all keys as JSON Schema, by which editors complete and check a configuration file.

use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use crate::config::tables;
use crate::schema::Table;

/// The JSON Schema of a configuration file, as `config/schema.json` has it.
#[must_use]
pub fn keys_as_json_schema() -> String {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for table in tables::ALL {
        let object = object_of(table);
        let is_required = object.get("required").is_some() && !table.repeated;
        if is_required {
            required.push(table.name);
        }
        let schema = if table.repeated {
            json!({ "type": "array", "items": object })
        } else {
            object
        };
        properties.insert(table.name.to_owned(), schema);
    }
    let schema = json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Configuration of snapgate",
        "type": "object",
        "additionalProperties": false,
        "required": required,
        "properties": properties,
    });
    format!("{schema:#}\n")
}

/// The schema of one table, or of each of its repetitions.
fn object_of(table: &Table) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    // Older files have the keys of a nested table in the outer one. Those of the same name may differ, so any value is valid.
    for nested in table.nested {
        for key in nested.keys {
            let text = format!("Older form; write it in [{}.{}].", table.name, nested.name);
            let flat = json!({ "description": text, "deprecated": true });
            properties.insert(key.name().to_owned(), flat);
        }
    }
    for nested in table.nested {
        let mut object = object_of(nested);
        // A key that must be there may be in the outer table.
        if let Some(members) = object.as_object_mut() {
            members.remove("required");
        }
        properties.insert(nested.name.to_owned(), object);
    }
    for key in table.keys {
        let schema = key.schema();
        if schema.is_required {
            required.push(key.name());
        }
        properties.insert(key.name().to_owned(), schema.value);
    }
    let mut object = json!({
        "type": "object",
        "description": table.help.replace('`', ""),
        "additionalProperties": false,
        "properties": properties,
    });
    if let Some(members) = object.as_object_mut() {
        if !required.is_empty() {
            members.insert("required".to_owned(), json!(required));
        }
        let of_kinds: Vec<Value> = table.nested.iter().filter_map(required_of_kind).collect();
        if !of_kinds.is_empty() {
            members.insert("allOf".to_owned(), json!(of_kinds));
        }
    }
    object
}

/// What a backend of this kind must have, in the table of the kind or, in older files, beside it; `None` if nothing.
fn required_of_kind(kind: &Table) -> Option<Value> {
    let required = kind.keys.iter().filter(|key| key.schema().is_required);
    let required: Vec<Value> = required
        .map(|key| {
            let key = key.name();
            let nested = json!({ "required": [kind.name], "properties": { kind.name: { "required": [key] } } });
            json!({ "anyOf": [nested, { "required": [key] }] })
        })
        .collect();
    if required.is_empty() {
        return None;
    }
    let chosen_by = tables::backend::KIND.name;
    Some(json!({
        "if": { "required": [chosen_by], "properties": { chosen_by: { "const": kind.name } } },
        "then": { "allOf": required },
    }))
}
