//! From a request target to a route: nothing is normalised, and nothing is decoded twice.
//!
//! Deviation D12: besides the paths of the source there are a list of backups, POST on it, both spellings of
//! `back_up`, and lists of Statuses.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::model::BackupId;
use crate::model::Target;
use crate::model::VmId;

/// What a route is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One backup.
    Backup,
    /// The restore of a VM from a backup.
    Restore,
    /// The backups of a VM.
    Backups,
    /// Making a backup, in the source's own place.
    BackUp,
    /// One VM.
    Vm,
    /// Statuses.
    Statuses,
    /// The versions of specification and implementation.
    Versions,
}

/// One route: the table that requests are matched with, and that tests walk.
#[derive(Clone, Copy, Debug)]
pub struct RouteSpec {
    /// A bounded word for metrics and logs.
    pub name: &'static str,
    /// The path, with `{vm}` and `{b}` for identifiers.
    pub template: &'static str,
    /// The methods besides OPTIONS.
    pub methods: &'static [&'static str],
    /// The value of `Allow`.
    pub allow: &'static str,
    /// What it is about.
    pub kind: Kind,
}

impl RouteSpec {
    /// Whether it is one of the Backup routes, whose requests name a specification version.
    #[must_use]
    pub const fn is_versioned(&self) -> bool {
        match self.kind {
            Kind::Backup | Kind::Restore | Kind::Backups | Kind::BackUp | Kind::Vm => true,
            Kind::Statuses | Kind::Versions => false,
        }
    }
}

const READ: &[&str] = &["GET", "HEAD"];
const READ_ALLOW: &str = "GET, HEAD, OPTIONS";
const POST_ALLOW: &str = "POST, OPTIONS";

/// Every route.
pub const ROUTES: &[RouteSpec] = &[
    RouteSpec {
        name: "backup",
        template: "/vms/{vm}/backups/{b}",
        methods: &["GET", "HEAD", "PUT", "DELETE"],
        allow: "GET, HEAD, PUT, DELETE, OPTIONS",
        kind: Kind::Backup,
    },
    RouteSpec {
        name: "restore",
        template: "/vms/{vm}/backups/{b}/restore",
        methods: &["POST"],
        allow: POST_ALLOW,
        kind: Kind::Restore,
    },
    RouteSpec {
        name: "backups",
        template: "/vms/{vm}/backups",
        methods: &["GET", "HEAD", "POST"],
        allow: "GET, HEAD, POST, OPTIONS",
        kind: Kind::Backups,
    },
    RouteSpec {
        name: "back_up",
        template: "/back_up",
        methods: &["POST"],
        allow: POST_ALLOW,
        kind: Kind::BackUp,
    },
    RouteSpec {
        name: "back_up",
        template: "/back-up",
        methods: &["POST"],
        allow: POST_ALLOW,
        kind: Kind::BackUp,
    },
    RouteSpec {
        name: "vm",
        template: "/vms/{vm}",
        methods: READ,
        allow: READ_ALLOW,
        kind: Kind::Vm,
    },
    RouteSpec {
        name: "statuses",
        template: "/statuses",
        methods: &["GET", "HEAD", "DELETE"],
        allow: "GET, HEAD, DELETE, OPTIONS",
        kind: Kind::Statuses,
    },
    RouteSpec {
        name: "versions",
        template: "/versions",
        methods: READ,
        allow: READ_ALLOW,
        kind: Kind::Versions,
    },
    RouteSpec {
        name: "versions",
        template: "/version",
        methods: READ,
        allow: READ_ALLOW,
        kind: Kind::Versions,
    },
];

/// A target taken apart, still encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Parts<'a> {
    /// The path; `*` for the asterisk form.
    pub(super) path: &'a str,
    /// What follows the first `?`.
    pub(super) query: &'a str,
}

/// Takes the target apart: origin form, absolute form with http or https, or `*`.
pub(super) fn parts(target: &[u8]) -> Result<Parts<'_>, Refusal> {
    let malformed = || Refusal::from(Code::MalformedTarget);
    let question = target.iter().position(|byte| *byte == b'?');
    let (before, query) = target
        .split_at_checked(question.unwrap_or(target.len()))
        .unwrap_or_default();
    let is_allowed = before.iter().all(|byte| is_target_byte(*byte))
        && query
            .iter()
            .all(|byte| is_target_byte(*byte) || is_browser_query_byte(*byte));
    let text = str::from_utf8(target).ok().filter(|_| is_allowed);
    let text = text.ok_or_else(malformed)?;
    if !is_well_encoded(text.as_bytes()) {
        return Err(malformed());
    }
    if text == "*" {
        return Ok(Parts {
            path: "*",
            query: "",
        });
    }
    let origin = if text.starts_with('/') {
        text
    } else {
        let (scheme, rest) = text.split_once("://").ok_or_else(malformed)?;
        if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
            return Err(malformed());
        }
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at_checked(end).ok_or_else(malformed)?;
        if !is_authority(authority) {
            return Err(malformed());
        }
        path
    };
    let (path, query) = origin.split_once('?').unwrap_or((origin, ""));
    // Brackets belong to IPv6 addresses. Browsers leave those of forms in queries as they are.
    // By bytes, which is quicker: every request passes here.
    if path.as_bytes().contains(&b'[') || path.as_bytes().contains(&b']') {
        return Err(malformed());
    }
    let path = if path.is_empty() { "/" } else { path };
    Ok(Parts { path, query })
}

/// Whether the byte may be in a target (RFC 3986 appendix A). Fragments are never sent.
const fn is_target_byte(byte: u8) -> bool {
    byte.is_ascii_graphic()
        && !matches!(
            byte,
            b'"' | b'#' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}'
        )
}

/// Whether browsers leave this byte in a query although RFC 3986 does not allow it there (WHATWG URL, query percent-encode set).
const fn is_browser_query_byte(byte: u8) -> bool {
    matches!(byte, b'^' | b'`' | b'{' | b'|' | b'}')
}

/// Whether a query has bytes that only browsers leave in it. Routes of this API refuse them; pass-through encodes them.
pub(super) fn is_browser_query(query: &str) -> bool {
    query.bytes().any(is_browser_query_byte)
}

/// The query with those bytes percent-encoded, so that every reader agrees on its target.
pub(super) fn encode_browser_query(query: &str) -> String {
    let mut encoded = String::with_capacity(query.len().saturating_add(16));
    for character in query.chars() {
        match character {
            '^' => encoded.push_str("%5E"),
            '`' => encoded.push_str("%60"),
            '{' => encoded.push_str("%7B"),
            '|' => encoded.push_str("%7C"),
            '}' => encoded.push_str("%7D"),
            other => encoded.push(other),
        }
    }
    encoded
}

/// Whether the text is a host with perhaps a port, and nothing else.
pub(super) fn is_authority(text: &str) -> bool {
    let is_port =
        |it: &str| it.parse::<u16>().is_ok() && it.bytes().all(|byte| byte.is_ascii_digit());
    // Most are a name or an IPv4 address, which need no parser.
    let is_plain = |it: u8| it.is_ascii_alphanumeric() || it == b'-' || it == b'.';
    let colon = text.bytes().position(|byte| byte == b':');
    let (host, port) = text
        .split_at_checked(colon.unwrap_or(text.len()))
        .unwrap_or_default();
    if !host.is_empty() && host.bytes().all(is_plain) {
        return port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
    }
    let Ok(authority) = text.parse::<http::uri::Authority>() else {
        return false;
    };
    let host = authority.host();
    let port = text.strip_prefix(host).unwrap_or(text);
    !host.is_empty() && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port))
}

fn is_well_encoded(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|it| *it == b'%') {
        let Some([_, high, low, after @ ..]) = rest.get(at..) else {
            return false;
        };
        if !high.is_ascii_hexdigit() || !low.is_ascii_hexdigit() {
            return false;
        }
        rest = after;
    }
    true
}

/// A route with the identifiers in its path.
#[derive(Clone, Debug)]
pub(super) struct Route {
    pub(super) spec: &'static RouteSpec,
    pub(super) place: Place,
}

/// The identifiers in a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    None,
    Vm(VmId),
    Backup(Target),
}

/// Finds the route of a path.
pub(super) fn find(path: &str) -> Result<Route, Refusal> {
    for spec in ROUTES {
        if let Some(ids) = capture(spec.template, path) {
            return Ok(Route {
                spec,
                place: place(ids)?,
            });
        }
    }
    Err(Refusal::from(Code::NoSuchRoute))
}

/// The encoded identifiers of a path that fits the template.
fn capture<'a>(template: &str, path: &'a str) -> Option<[Option<&'a str>; 2]> {
    let mut ids = [None; 2];
    let mut free = ids.iter_mut();
    let mut rest = path;
    for wanted in template.split('/').skip(1) {
        let after = rest.strip_prefix('/')?;
        let end = after.bytes().position(|byte| byte == b'/');
        let (segment, left) = after.split_at_checked(end.unwrap_or(after.len()))?;
        rest = left;
        if wanted.starts_with('{') {
            if let Some(slot) = free.next() {
                *slot = Some(segment);
            }
        } else if wanted != segment {
            return None;
        }
    }
    rest.is_empty().then_some(ids)
}

fn place(ids: [Option<&str>; 2]) -> Result<Place, Refusal> {
    let nothing = |_| Refusal::from(Code::NoSuchRoute);
    Ok(match ids {
        [Some(vm), Some(backup)] => Place::Backup(Target {
            vm: VmId::new(&decode(vm)?).map_err(nothing)?,
            backup: BackupId::new(&decode(backup)?).map_err(nothing)?,
        }),
        [Some(vm), None] => Place::Vm(VmId::new(&decode(vm)?).map_err(nothing)?),
        [None, _] => Place::None,
    })
}

fn decode(segment: &str) -> Result<Cow<'_, str>, Refusal> {
    percent_decode_str(segment)
        .decode_utf8()
        .map_err(|_not_utf_8| Refusal::from(Code::MalformedTarget))
}

/// The decoded value of a query parameter that may be given once.
pub(super) fn parameter<'a>(
    query: &'a str,
    name: &'static str,
) -> Result<Option<Cow<'a, str>>, Refusal> {
    let mut found = None;
    for pair in query.split('&') {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if key != name {
            continue;
        }
        if found.is_some() {
            return Err(
                Refusal::says(Code::InvalidParameter, "The parameter is given twice.").on(name),
            );
        }
        found = Some(form_value(value).ok_or_else(|| {
            Refusal::says(Code::InvalidParameter, "The value is not UTF-8.").on(name)
        })?);
    }
    Ok(found)
}

/// Decodes a value as forms write it: `+` is a space. `None` when it is not UTF-8.
pub(super) fn form_value(value: &str) -> Option<Cow<'_, str>> {
    if value.contains('+') {
        let spaced = value.replace('+', " ");
        let decoded = percent_decode_str(&spaced).decode_utf8().ok()?;
        return Some(Cow::Owned(decoded.into_owned()));
    }
    percent_decode_str(value).decode_utf8().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_of_browsers_are_encoded_and_others_stay_as_they_are() {
        let rows = [
            ("", ""),
            ("a=b&c[]=%7B", "a=b&c[]=%7B"),
            ("a={b|c}^`d", "a=%7Bb%7Cc%7D%5E%60d"),
        ];
        for (query, expected) in rows {
            assert_eq!(encode_browser_query(query), expected, "{query:?}");
            assert_eq!(is_browser_query(query), query != expected, "{query:?}");
        }
    }

    fn walk(target: &str) -> Result<(&'static str, Place), Code> {
        let parts = parts(target.as_bytes()).map_err(|error| error.code())?;
        let route = find(parts.path).map_err(|error| error.code())?;
        Ok((route.spec.name, route.place))
    }

    fn backup(vm: &str, id: &str) -> Place {
        Place::Backup(Target {
            vm: VmId::new(vm).unwrap(),
            backup: BackupId::new(id).unwrap(),
        })
    }

    #[test]
    fn targets_become_routes_or_refusals() {
        let vm = |id: &str| Place::Vm(VmId::new(id).unwrap());
        let long = format!("/vms/{}", "x".repeat(256));
        let rows = [
            (
                "/vms/33333/backups/456",
                Ok(("backup", backup("33333", "456"))),
            ),
            (
                "/vms/a%2Fb/backups/%C3%A9",
                Ok(("backup", backup("a/b", "\u{e9}"))),
            ),
            (
                "/vms/a%252Fb/backups/1",
                Ok(("backup", backup("a%2Fb", "1"))),
            ),
            ("http://h:1/vms/1?x=%20", Ok(("vm", vm("1")))),
            ("HTTPS://h/back-up?vm=1", Ok(("back_up", Place::None))),
            (
                "/vms/1/backups/2/restore",
                Ok(("restore", backup("1", "2"))),
            ),
            ("/statuses?seq=1", Ok(("statuses", Place::None))),
            ("/", Err(Code::NoSuchRoute)),
            ("http://h", Err(Code::NoSuchRoute)),
            ("/vms/1/", Err(Code::NoSuchRoute)),
            ("//vms/1", Err(Code::NoSuchRoute)),
            ("/vms//backups", Err(Code::NoSuchRoute)),
            ("/vms/../backups", Err(Code::NoSuchRoute)),
            ("/vms/%2e%2E/backups/1", Err(Code::NoSuchRoute)),
            ("/vms/./backups/1", Err(Code::NoSuchRoute)),
            ("/vms/a%00b", Err(Code::NoSuchRoute)),
            ("/VMS/1", Err(Code::NoSuchRoute)),
            ("/vms/1/backups/2/restore/3", Err(Code::NoSuchRoute)),
            (long.as_str(), Err(Code::NoSuchRoute)),
            ("/vms/%ff", Err(Code::MalformedTarget)),
            ("/vms/%4", Err(Code::MalformedTarget)),
            ("/vms/%zz", Err(Code::MalformedTarget)),
            ("/vms/\u{e9}", Err(Code::MalformedTarget)),
            ("/vms/1#x", Err(Code::MalformedTarget)),
            ("/vms/1?#", Err(Code::MalformedTarget)),
            ("http://h#x", Err(Code::MalformedTarget)),
            ("http://h/#", Err(Code::MalformedTarget)),
            ("/vms\\1", Err(Code::MalformedTarget)),
            ("/vms/\"1\"", Err(Code::MalformedTarget)),
            ("/vms/<1>", Err(Code::MalformedTarget)),
            ("/vms/1^", Err(Code::MalformedTarget)),
            ("/vms/`1", Err(Code::MalformedTarget)),
            ("/vms/{1}", Err(Code::MalformedTarget)),
            ("/vms/1|2", Err(Code::MalformedTarget)),
            ("/vms/[1]", Err(Code::MalformedTarget)),
            // Only pass-through routes take such a query.
            ("/vms/1?a={}", Ok(("vm", vm("1")))),
            ("/vms/1?a=<>", Err(Code::MalformedTarget)),
            ("/vms/1?a=\\", Err(Code::MalformedTarget)),
            ("/vms/1?a[]=1", Ok(("vm", vm("1")))),
            ("http://[::1]/vms/1", Ok(("vm", vm("1")))),
            ("http://[::1/vms/1", Err(Code::MalformedTarget)),
            ("*x", Err(Code::MalformedTarget)),
            ("h:443", Err(Code::MalformedTarget)),
            ("/vms/1 2", Err(Code::MalformedTarget)),
            ("vms/1", Err(Code::MalformedTarget)),
            ("ftp://h/vms/1", Err(Code::MalformedTarget)),
            ("http://u@h/vms/1", Err(Code::MalformedTarget)),
            ("http:///vms/1", Err(Code::MalformedTarget)),
            ("", Err(Code::MalformedTarget)),
        ];
        for (target, expected) in rows {
            assert_eq!(walk(target), expected, "{target}");
        }
    }

    #[test]
    fn parameters_are_decoded_once_and_given_once() {
        let rows: [(&str, Result<Option<&str>, Code>); 6] = [
            ("vm=1", Ok(Some("1"))),
            ("a=b&vm=x%26y+z", Ok(Some("x&y z"))),
            ("vms=1", Ok(None)),
            ("vm", Ok(Some(""))),
            ("vm=1&vm=1", Err(Code::InvalidParameter)),
            ("vm=%ff", Err(Code::InvalidParameter)),
        ];
        for (query, expected) in rows {
            let found = parameter(query, "vm").map_err(|error| error.code());
            assert_eq!(
                found.as_ref().map(Option::as_deref),
                expected.as_ref().copied(),
                "{query}"
            );
        }
    }

    #[test]
    fn allow_says_what_the_methods_say() {
        for spec in ROUTES {
            let expected = format!("{}, OPTIONS", spec.methods.join(", "));
            assert_eq!(spec.allow, expected, "{}", spec.template);
        }
    }
}
