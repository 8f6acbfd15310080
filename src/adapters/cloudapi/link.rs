//! Links that a server sends: taken apart, never followed as they are.
//!
//! Nothing of another host, and nothing outside the configured path, is ever asked for: what is left of a link are path
//! segments and query pairs, and the request is made of these anew.

use percent_encoding::percent_decode_str;

use crate::model::BackupId;
use crate::model::VmId;
use crate::model::limits;

/// Where a Status is, below the configured address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// The segments of its path below the configured one, decoded.
    pub(super) path: Vec<String>,
    /// Names and values of its query, decoded.
    pub(super) query: Vec<(String, String)>,
}

impl Link {
    /// From an absolute path, or a URL of the configured origin. `base` are the segments of the configured path; a
    /// path that does not begin with them is taken as relative to them. `None` for everything else.
    pub(super) fn new(uri: &str, origin: &str, base: &[String]) -> Option<Self> {
        let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'#' | b'\\');
        if uri.len() > limits::LINK_BYTES_MAX || !uri.bytes().all(plain) {
            return None;
        }
        let local = path_of_origin(uri, origin)?;
        let (path, query) = local.split_once('?').unwrap_or((local, ""));
        let mut path = split_path(path)?;
        if path.starts_with(base) {
            path.drain(..base.len());
        }
        let pairs = query.split('&').filter(|part| !part.is_empty());
        let query = pairs.map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((
                decode_segment(&name.replace('+', " "))?,
                decode_segment(&value.replace('+', " "))?,
            ))
        });
        Some(Self {
            path,
            query: query.collect::<Option<_>>()?,
        })
        .filter(|link| !link.path.is_empty())
    }
}

/// The path and query of a link to this origin.
fn path_of_origin<'a>(uri: &'a str, origin: &str) -> Option<&'a str> {
    let rest = if uri.starts_with('/') {
        uri
    } else {
        let (start, rest) = uri.split_at_checked(origin.len())?;
        rest.strip_prefix('/')?;
        if !start.eq_ignore_ascii_case(origin) {
            return None;
        }
        rest
    };
    (!rest.starts_with("//")).then_some(rest)
}

/// The segments of an absolute path, each decoded once. None is empty, or a dot segment in any spelling.
fn split_path(path: &str) -> Option<Vec<String>> {
    path.strip_prefix('/')?
        .split('/')
        .map(|part| {
            decode_segment(part).filter(|segment| !matches!(segment.as_str(), "" | "." | ".."))
        })
        .collect()
}

fn decode_segment(text: &str) -> Option<String> {
    let text = percent_decode_str(text).decode_utf8().ok()?;
    (!text.chars().any(char::is_control)).then(|| text.into_owned())
}

/// The VM and the backup that a link of a Backup names. It is not followed, so it may be of any host.
pub(super) fn backup_in_link(uri: &str) -> Option<(VmId, BackupId)> {
    let path = match uri.split_once("://") {
        Some((_, rest)) => rest.find('/').and_then(|at| rest.get(at..))?,
        None => uri,
    };
    let all = split_path(path.split(['?', '#']).next()?)?;
    let [.., vms, vm, backups, backup] = all.as_slice() else {
        return None;
    };
    let named = vms == "vms" && backups == "backups";
    let ids = VmId::new(vm).ok().zip(BackupId::new(backup).ok());
    ids.filter(|_| named)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_stay_on_the_configured_origin_and_below_its_path() {
        let base = ["east".to_owned()];
        let long = format!("/statuses?seq={}", "1".repeat(3000));
        let rows: &[(&str, Option<&str>)] = &[
            (
                "/statuses?op=back_up&seq=7",
                Some("statuses ? op=back_up seq=7"),
            ),
            ("/east/statuses?seq=7", Some("statuses ? seq=7")),
            (
                "https://Lab.example:8443/statuses?seq=7",
                Some("statuses ? seq=7"),
            ),
            ("/statuses?vm=a%2Fb&b=c+d", Some("statuses ? vm=a/b b=c d")),
            ("/jobs/a%2Fb", Some("jobs a/b ?")),
            ("https://lab.example:8443.evil.example/statuses", None),
            ("https://lab.example:8443@evil.example/statuses", None),
            ("https://evil.example/statuses?seq=7", None),
            ("http://lab.example:8443/statuses?seq=7", None),
            ("//evil.example/statuses", None),
            ("https://lab.example:8443//evil.example/", None),
            ("/statuses/../admin", None),
            ("/statuses/%2e%2e/admin", None),
            ("/statuses\\..\\admin", None),
            ("/sta tuses", None),
            ("/statuses?seq=%00", None),
            ("/statuses#x", None),
            ("statuses?seq=7", None),
            ("", None),
            ("/", None),
            (&long, None),
        ];
        for (uri, expected) in rows {
            let found = Link::new(uri, "https://lab.example:8443", &base).map(|link| {
                let pairs = link
                    .query
                    .iter()
                    .map(|(name, value)| format!(" {name}={value}"));
                format!("{} ?{}", link.path.join(" "), pairs.collect::<String>())
            });
            assert_eq!(found.as_deref(), *expected, "{uri}");
        }
    }

    #[test]
    fn backups_are_named_by_the_end_of_their_link() {
        let rows = [
            ("http://other.example/vms/1/backups/456", Some("1 456")),
            ("/vms/1/backups/456", Some("1 456")),
            ("/east/vms/a%2Fb/backups/x%20y?z", Some("a/b x y")),
            ("http://other.example", None),
            ("/vms/1/backups", None),
            ("/vms/1/backups/..", None),
            ("/vms/1/restores/456", None),
        ];
        for (uri, expected) in rows {
            let found = backup_in_link(uri).map(|(vm, backup)| format!("{vm} {backup}"));
            assert_eq!(found.as_deref(), expected, "{uri}");
        }
    }
}
