//! Parses request bodies: a new backup, an update, a restore.

use std::collections::BTreeMap;

use crate::gate::json::Json;
use crate::gate::json::parse_object;
use crate::gate::links;
use crate::gate::negotiate::BodyEncoding;
use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::gate::request_target::decode_form_value;
use crate::model::BackupKind;
use crate::model::BackupName;
use crate::model::BackupPatch;
use crate::model::Description;
use crate::model::IgnoredMembers;
use crate::model::NewBackup;
use crate::model::Note;
use crate::model::Patch;
use crate::model::PublicText;
use crate::model::RestoreOptions;
use crate::model::Tag;
use crate::model::TextError;
use crate::model::Verb;
use crate::model::limits;
use crate::model::suggest;
use crate::public_text;

/// Members of a Backup that every change may write.
const WRITABLE: &[&str] = &["name", "description", "tags", "protected"];
/// Members of a Backup that only the server writes.
const READ_ONLY: &[&str] = &["uri", "restore", "vm", "created", "state", "size"];

fn invalid_member(field: impl Into<String>, text: PublicText) -> Refusal {
    Refusal::says(Code::InvalidMember, text).on(field.into())
}

fn parse_text<T>(
    field: &'static str,
    value: &Json,
    make: impl Fn(&str) -> Result<T, TextError>,
) -> Result<T, Refusal> {
    let Json::Text(text) = value else {
        return Err(invalid_member(
            field,
            public_text!("The value must be a string."),
        ));
    };
    make(text).map_err(|error| Refusal::invalid_text(Code::InvalidMember, field, &error))
}

/// `null` clears (Deviation D18), anything else sets.
fn parse_patch<T>(
    value: &Json,
    read: impl FnOnce(&Json) -> Result<T, Refusal>,
) -> Result<Patch<T>, Refusal> {
    if *value == Json::Null {
        Ok(Patch::Clear)
    } else {
        read(value).map(Patch::Set)
    }
}

fn parse_tags(value: &Json) -> Result<Vec<Tag>, Refusal> {
    let Json::Array(items) = value else {
        return Err(invalid_member(
            "tags",
            public_text!("The value must be an array of strings."),
        ));
    };
    if items.len() > limits::TAGS_MAX {
        return Err(invalid_member(
            "tags",
            public_text!("At most 64 tags are allowed."),
        ));
    }
    let tag = |item| parse_text("tags", item, Tag::new);
    items.iter().map(tag).collect()
}

fn parse_bool(value: &Json) -> Result<bool, Refusal> {
    match value {
        Json::Bool(parse_bool) => Ok(*parse_bool),
        Json::Null | Json::Number(_) | Json::Text(_) | Json::Array(_) | Json::Object(_) => {
            Err(invalid_member(
                "protected",
                public_text!("The value must be true or false."),
            ))
        }
    }
}

fn parse_kind(value: &Json) -> Result<BackupKind, Refusal> {
    let named = |kind: &BackupKind| matches!(value, Json::Text(text) if text == kind.as_str());
    BackupKind::ALL.into_iter().find(named).ok_or_else(|| {
        invalid_member(
            "type",
            public_text!("The value must be snapshot, full or incremental."),
        )
    })
}

/// Unknown members of a body: refused in the strict profile and where another name is probably meant, ignored otherwise.
struct UnknownMembers<'a> {
    /// The names that may be written here.
    known: Vec<&'a str>,
    strict: bool,
    ignored: IgnoredMembers,
}

impl UnknownMembers<'_> {
    fn handle(&mut self, name: &str) -> Result<(), Refusal> {
        let refused = |text: PublicText| {
            let field: String = name.chars().take(limits::IGNORED_NAME_CHARS_MAX).collect();
            Err(Refusal::says(Code::UnknownMember, text).on(field))
        };
        if let Some(near) = suggest::nearest(name, self.known.iter().copied()) {
            return refused(public_text!(
                "Unknown member: did you mean \"{near}\"? Nothing was changed."
            ));
        }
        if self.strict {
            return refused(public_text!("Unknown member; nothing was changed."));
        }
        self.ignored.push(name);
        Ok(())
    }
}

/// Everything a client may write, from POST and PUT alike.
struct ParsedBackup {
    patch: BackupPatch,
    kind: Option<BackupKind>,
    ignored: IgnoredMembers,
}

/// Reads a Backup. `creating`: whether `type` may be written.
fn parse_backup(body: &[u8], creating: bool, strict: bool) -> Result<ParsedBackup, Refusal> {
    let mut patch = BackupPatch::default();
    let mut wanted = None;
    let mut known = WRITABLE.to_vec();
    if creating {
        known.push("type");
    }
    let mut unknown = UnknownMembers {
        known,
        strict,
        ignored: IgnoredMembers::default(),
    };
    for (name, value) in parse_object(body)? {
        match name.as_str() {
            "name" => patch.name = Some(parse_text("name", &value, BackupName::new)?),
            "description" => {
                let read = |value: &Json| parse_text("description", value, Description::new);
                patch.description = parse_patch(&value, read)?;
            }
            "tags" => patch.tags = parse_patch(&value, parse_tags)?,
            "protected" => patch.protected = parse_patch(&value, parse_bool)?,
            "type" if creating => {
                wanted = (value != Json::Null)
                    .then(|| parse_kind(&value))
                    .transpose()?;
            }
            // Clients send back what a GET returned; that does not mean that they want to change these members.
            other if READ_ONLY.contains(&other) || other == "type" => {
                if strict {
                    let text = public_text!("The member is read-only; nothing was changed.");
                    return Err(Refusal::says(Code::UnknownMember, text).on(name));
                }
            }
            other => unknown.handle(other)?,
        }
    }
    Ok(ParsedBackup {
        patch,
        kind: wanted,
        ignored: unknown.ignored,
    })
}

/// The body of a PUT.
pub(super) fn parse_update(
    body: &[u8],
    strict: bool,
) -> Result<(BackupPatch, IgnoredMembers), Refusal> {
    let ParsedBackup { patch, ignored, .. } = parse_backup(body, false, strict)?;
    if patch.is_empty() {
        return Err(Refusal::from(Code::NothingToUpdate));
    }
    Ok((patch, ignored))
}

/// The body of a create.
pub(super) fn parse_create(
    body: &[u8],
    strict: bool,
) -> Result<(NewBackup, IgnoredMembers), Refusal> {
    let ParsedBackup {
        patch,
        kind,
        ignored,
    } = parse_backup(body, true, strict)?;
    let name = patch
        .name
        .ok_or_else(|| Refusal::from(Code::MissingMember).on("name"))?;
    let new = NewBackup {
        name,
        description: patch.description.apply(None),
        kind,
        tags: patch.tags.apply(None).unwrap_or_default(),
        protected: patch.protected.apply(None).unwrap_or_default(),
    };
    Ok((new, ignored))
}

/// What a restore asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct RestoreRequest {
    pub(super) note: Option<Note>,
    pub(super) options: RestoreOptions,
    pub(super) ignored: IgnoredMembers,
}

/// The body of a restore. `known` are the options of the adapter; other pairs are ignored unless strict.
pub(super) fn parse_restore(
    body: &[u8],
    encoding: BodyEncoding,
    known: &[(&str, &str)],
    strict: bool,
) -> Result<RestoreRequest, Refusal> {
    let pairs = match encoding {
        BodyEncoding::Json if body.is_empty() => Vec::new(),
        BodyEncoding::Json | BodyEncoding::Form => parse_pairs(body, encoding)?,
    };
    read_restore_pairs(pairs, known, strict)
}

/// What a plan is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PlanRequest {
    pub(super) verb: Verb,
    /// The options of a restore; none for a delete.
    pub(super) options: RestoreOptions,
    pub(super) ignored: IgnoredMembers,
}

/// The body of a plan: `op`, and the pairs of the restore. A note is allowed, so that the same pairs can be sent twice, and not kept.
pub(super) fn parse_plan(
    body: &[u8],
    encoding: BodyEncoding,
    known: &[(&str, &str)],
    strict: bool,
) -> Result<PlanRequest, Refusal> {
    let mut pairs = parse_pairs(body, encoding)?;
    let found = pairs.iter().position(|(name, _)| name == "op");
    let (_, op) = match found {
        Some(at) => pairs.remove(at),
        None => return Err(Refusal::from(Code::MissingMember).on("op")),
    };
    let verb = PLANNED_VERBS.into_iter().find(|verb| {
        // As in the parameter of the same name on the list of Statuses.
        matches!(&op, Json::Text(text) if text.eq_ignore_ascii_case(links::op(*verb)))
    });
    let verb = verb.ok_or_else(|| {
        invalid_member(
            "op",
            public_text!("The value must be \"restore-Backup\" or \"delete-Backup\"."),
        )
    })?;
    let known = match verb {
        Verb::Restore => known,
        Verb::Create | Verb::Update | Verb::Delete => &[],
    };
    let restore = read_restore_pairs(pairs, known, strict)?;
    Ok(PlanRequest {
        verb,
        options: restore.options,
        ignored: restore.ignored,
    })
}

/// What plans are made of: the changes that lose data.
const PLANNED_VERBS: [Verb; 2] = [Verb::Restore, Verb::Delete];

fn parse_pairs(body: &[u8], encoding: BodyEncoding) -> Result<Vec<(String, Json)>, Refusal> {
    match encoding {
        BodyEncoding::Json => parse_object(body),
        BodyEncoding::Form => parse_form(body),
    }
}

fn read_restore_pairs(
    pairs: Vec<(String, Json)>,
    known: &[(&str, &str)],
    strict: bool,
) -> Result<RestoreRequest, Refusal> {
    if pairs.len() > limits::RESTORE_OPTIONS_MAX {
        let text = public_text!("At most 32 pairs are allowed.");
        return Err(Refusal::says(Code::InvalidMember, text));
    }
    let mut note = None;
    let mut options = BTreeMap::new();
    let mut unknown = UnknownMembers {
        known: std::iter::once("note")
            .chain(known.iter().map(|(name, _)| *name))
            .collect(),
        strict,
        ignored: IgnoredMembers::default(),
    };
    for (name, value) in pairs {
        if name == "note" {
            note = Some(parse_text("note", &value, Note::new)?);
        } else if known.iter().any(|(key, _)| *key == name) {
            let text = match value {
                Json::Text(text) | Json::Number(text) => text,
                Json::Bool(parse_bool) => parse_bool.to_string(),
                Json::Null => continue,
                Json::Array(_) | Json::Object(_) => {
                    return Err(invalid_member(
                        name,
                        public_text!("The value must be a string, a number or a boolean."),
                    ));
                }
            };
            options.insert(name, text);
        } else {
            unknown.handle(&name)?;
        }
    }
    Ok(RestoreRequest {
        note,
        options: RestoreOptions(options),
        ignored: unknown.ignored,
    })
}

fn parse_form(body: &[u8]) -> Result<Vec<(String, Json)>, Refusal> {
    let malformed = || Refusal::from(Code::MalformedForm);
    let text = str::from_utf8(body).map_err(|_not_utf_8| malformed())?;
    let mut pairs: Vec<(String, Json)> = Vec::new();
    for pair in text.split('&').filter(|part| !part.is_empty()) {
        if pairs.len() > limits::RESTORE_OPTIONS_MAX {
            return Err(malformed());
        }
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = decode_form_value(name).ok_or_else(malformed)?.into_owned();
        let value = decode_form_value(value).ok_or_else(malformed)?.into_owned();
        if pairs.iter().any(|(key, _)| *key == name) {
            return Err(malformed());
        }
        pairs.push((name, Json::Text(value)));
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patched(body: &str, strict: bool) -> Result<BackupPatch, (Code, Option<String>)> {
        parse_update(body.as_bytes(), strict)
            .map(|(patch, _)| patch)
            .map_err(|error| (error.code(), error.field.map(std::borrow::Cow::into_owned)))
    }

    #[test]
    fn updates_are_partial() {
        let tag = |text: &str| Tag::new(text).unwrap();
        let tags = BackupPatch {
            tags: Patch::Set(vec![tag("foo"), tag("bar")]),
            ..BackupPatch::default()
        };
        let cleared = BackupPatch {
            description: Patch::Clear,
            tags: Patch::Clear,
            protected: Patch::Clear,
            ..BackupPatch::default()
        };
        let field = |code, text: &str| Err((code, Some(text.to_owned())));
        let many = format!("{{\"tags\":[{}\"a\"]}}", "\"a\",".repeat(64));
        let long = format!("{{\"name\":\"{}\"}}", "x".repeat(256));
        let rows = [
            (r#"{ "tags" : [ "foo", "bar" ] }"#, false, Ok(tags.clone())),
            (r#"{"tags":["foo","bar"],"uri":7,"x":{}}"#, false, Ok(tags)),
            (
                r#"{"description":null,"tags":null,"protected":null}"#,
                false,
                Ok(cleared),
            ),
            (
                r#"{"uri":"x","type":"full"}"#,
                false,
                Err((Code::NothingToUpdate, None)),
            ),
            ("{}", false, Err((Code::NothingToUpdate, None))),
            (
                r#"{"name":null}"#,
                false,
                field(Code::InvalidMember, "name"),
            ),
            (r#"{"name":""}"#, false, field(Code::InvalidMember, "name")),
            (long.as_str(), false, field(Code::InvalidMember, "name")),
            (r#"{"tags":"a"}"#, false, field(Code::InvalidMember, "tags")),
            (r#"{"tags":[1]}"#, false, field(Code::InvalidMember, "tags")),
            (many.as_str(), false, field(Code::InvalidMember, "tags")),
            (
                r#"{"protected":"true"}"#,
                false,
                field(Code::InvalidMember, "protected"),
            ),
            (
                r#"{"description":1}"#,
                false,
                field(Code::InvalidMember, "description"),
            ),
            (
                r#"{"tags":[],"uri":"x"}"#,
                true,
                field(Code::UnknownMember, "uri"),
            ),
            (
                r#"{"tags":[],"x":1}"#,
                true,
                field(Code::UnknownMember, "x"),
            ),
            (
                r#"{"type":"full"}"#,
                true,
                field(Code::UnknownMember, "type"),
            ),
        ];
        for (body, strict, expected) in rows {
            assert_eq!(patched(body, strict), expected, "{body} strict={strict}");
        }
    }

    /// What becomes of a member beside a good one: ignored, passed over in silence, or another name is probably meant.
    #[test]
    #[expect(clippy::too_many_lines, reason = "one story, step by step")]
    fn a_member_that_is_not_known_is_named_and_a_near_miss_is_refused() {
        // member, in an update, in a create
        let meant = |name: &str| {
            Err(Some(format!(
                "did you mean \"{name}\"? Nothing was changed."
            )))
        };
        let ignored = || Ok(true);
        let silent = || Ok(false);
        let rows = [
            ("nam", meant("name"), meant("name")),
            ("Name", meant("name"), meant("name")),
            ("tag", meant("tags"), meant("tags")),
            ("Tags", meant("tags"), meant("tags")),
            ("TAGS", meant("tags"), meant("tags")),
            ("tasg", meant("tags"), meant("tags")),
            ("descripton", meant("description"), meant("description")),
            ("desription ", meant("description"), meant("description")),
            ("protectd", meant("protected"), meant("protected")),
            ("protect", meant("protected"), meant("protected")),
            ("typ", ignored(), meant("type")),
            ("type", silent(), silent()),
            ("uri", silent(), silent()),
            ("restore", silent(), silent()),
            ("vm", silent(), silent()),
            ("created", silent(), silent()),
            ("state", silent(), silent()),
            ("size", silent(), silent()),
            ("note", ignored(), ignored()),
            ("owner", ignored(), ignored()),
            ("id", ignored(), ignored()),
            ("desc", ignored(), ignored()),
            ("", ignored(), ignored()),
            ("x\u{202e}", ignored(), ignored()),
        ];
        for (member, updated, created) in rows {
            let value = if member == "type" { "full" } else { "v" };
            let good = r#""name":"good","tags":[]"#;
            let body = format!("{{{good},{}:\"{value}\"}}", serde_json::json!(member));
            let outcome = |found: Result<IgnoredMembers, Refusal>| match found {
                Ok(ignored) => {
                    let names: Vec<&str> = ignored.iter().collect();
                    assert!(names.is_empty() || names == [member], "{member}: {names:?}");
                    Ok(!names.is_empty())
                }
                Err(refusal) => {
                    assert_eq!(refusal.code(), Code::UnknownMember, "{member}");
                    assert_eq!(refusal.field.as_deref(), Some(member), "{member}: named");
                    let parts = refusal.text.split_once(": ");
                    Err(parts.map(|(_, meant)| meant.to_owned()))
                }
            };
            let found = outcome(parse_update(body.as_bytes(), false).map(|(_, ignored)| ignored));
            assert_eq!(found, updated, "{member} in an update");
            let found = outcome(parse_create(body.as_bytes(), false).map(|(_, ignored)| ignored));
            assert_eq!(found, created, "{member} in a create");
        }
        let many: String = (0..100)
            .map(|number| format!(",\"x{}{number}\":1", "y".repeat(200)))
            .collect();
        let body = format!("{{\"tags\":[]{many}}}");
        let (_, ignored) = parse_update(body.as_bytes(), false).unwrap();
        assert_eq!(
            ignored.iter().count(),
            limits::IGNORED_MAX,
            "so many are named"
        );
        let longest = ignored.iter().map(|name| name.chars().count()).max();
        assert_eq!(
            longest,
            Some(limits::IGNORED_NAME_CHARS_MAX),
            "each so long"
        );
    }

    #[test]
    fn pairs_of_a_restore_are_treated_in_the_same_way_in_both_forms() {
        let known = [("power_on", "")];
        for (member, expected) in [
            ("not", Err("note")),
            ("Note", Err("note")),
            ("poweron", Err("power_on")),
            ("reason", Ok(())),
        ] {
            let bodies = [
                (BodyEncoding::Json, format!("{{\"{member}\":\"v\"}}")),
                (BodyEncoding::Form, format!("{member}=v")),
            ];
            for (encoding, body) in bodies {
                let found = parse_restore(body.as_bytes(), encoding, &known, false);
                match (found, expected) {
                    (Ok(found), Ok(())) => {
                        let names: Vec<&str> = found.ignored.iter().collect();
                        assert_eq!(names, [member], "{body}");
                    }
                    (Err(refusal), Err(meant)) => {
                        assert!(refusal.text.contains(meant), "{body}: {}", refusal.text);
                        assert_eq!(refusal.code(), Code::UnknownMember, "{body}");
                    }
                    (found, _) => panic!("{body}: {found:?}"),
                }
            }
        }
    }

    #[test]
    fn creates_need_a_name_and_may_choose_a_type() {
        let rows = [
            (r#"{"name":"a"}"#, Ok(None)),
            (
                r#"{"name":"a","type":"incremental"}"#,
                Ok(Some(BackupKind::Incremental)),
            ),
            (r#"{"name":"a","type":null}"#, Ok(None)),
            (r#"{"name":"a","type":"FULL"}"#, Err(Code::InvalidMember)),
            (r#"{"description":"a"}"#, Err(Code::MissingMember)),
            ("[]", Err(Code::MalformedJson)),
        ];
        for (body, expected) in rows {
            let found = parse_create(body.as_bytes(), false).map(|(new, _)| new.kind);
            assert_eq!(found.map_err(|error| error.code()), expected, "{body}");
        }
    }

    #[test]
    fn restores_take_pairs_in_two_forms() {
        use BodyEncoding::Form;
        use BodyEncoding::Json;
        let known = [("mode", ""), ("force", "")];
        let rows = [
            (
                r#"{"note":"Restore to known state"}"#,
                Json,
                false,
                Ok((Some("Restore to known state"), "")),
            ),
            ("", Json, false, Ok((None, ""))),
            (
                r#"{"mode":"a","force":true,"x":[]}"#,
                Json,
                false,
                Ok((None, "force=true mode=a ")),
            ),
            (r#"{"mode":null}"#, Json, false, Ok((None, ""))),
            (
                "note=a+b%26c&mode=1",
                Form,
                false,
                Ok((Some("a b&c"), "mode=1 ")),
            ),
            (r#"{"note":1}"#, Json, false, Err(Code::InvalidMember)),
            (r#"{"mode":[1]}"#, Json, false, Err(Code::InvalidMember)),
            (r#"{"x":1}"#, Json, true, Err(Code::UnknownMember)),
            ("a=1&a=2", Form, false, Err(Code::MalformedForm)),
            ("a=%ff", Form, false, Err(Code::MalformedForm)),
            ("{", Json, false, Err(Code::MalformedJson)),
        ];
        for (body, encoding, strict, expected) in rows {
            let found = parse_restore(body.as_bytes(), encoding, &known, strict);
            let found = found.map_err(|error| error.code()).map(|restore| {
                let pairs = restore.options.0.iter();
                let pairs: String = pairs
                    .map(|(name, value)| format!("{name}={value} "))
                    .collect();
                (restore.note.map(|note| note.as_str().to_owned()), pairs)
            });
            let expected =
                expected.map(|(note, pairs)| (note.map(str::to_owned), pairs.to_owned()));
            assert_eq!(found, expected, "{body}");
        }
    }
}
