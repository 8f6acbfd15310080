//! The specification version of a request: one logical header under three names.
//!
//! Deviation D1: required on the Backup routes. Deviation D2: every route takes all three names.

use http::HeaderMap;
use http::HeaderName;

use crate::gate::config::OnMissingVersion;
use crate::gate::config::Specification;
use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::model::limits;
use crate::public_text;

/// The three names.
pub(super) static NAMES: [HeaderName; 3] = [
    HeaderName::from_static("x-cloud-client-specification-version"),
    HeaderName::from_static("x-compute-client-specification-version"),
    ECHO,
];

/// The header in which every response says which version it follows.
pub(super) const ECHO: HeaderName = HeaderName::from_static("x-cloud-specification-version");

/// The index, among the supported versions, of the version that a request follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SpecVersion(pub(super) usize);

/// Chooses the version; the newest where none is asked for and none is needed.
pub(super) fn choose(
    headers: &HeaderMap,
    rule: &Specification,
    required: bool,
) -> Result<SpecVersion, Refusal> {
    let newest = rule.supported.len().saturating_sub(1);
    let mut found = versions(headers)?
        .into_iter()
        .filter(|version| !version.is_empty());
    let first = found.next();
    if found.any(|list| Some(&list) != first.as_ref()) {
        return Err(Refusal::from(Code::ConflictingSpecificationVersion));
    }
    let Some(asked) = first else {
        return match rule.on_missing {
            OnMissingVersion::Reject if required => Err(Refusal::from(
                Code::MissingSpecificationVersion,
            )
            .hint(public_text!(
                "Send X-Cloud-Client-Specification-Version with one of {}.",
                rule.supported.join(", ")
            ))),
            OnMissingVersion::Reject | OnMissingVersion::AssumeCurrent => Ok(SpecVersion(newest)),
        };
    };
    asked
        .iter()
        .find_map(|version| rule.supported.iter().position(|known| known == version))
        .map(SpecVersion)
        .ok_or_else(|| {
            Refusal::from(Code::UnsupportedSpecificationVersion).hint(public_text!(
                "Supported versions: {}.",
                rule.supported.join(", ")
            ))
        })
}

/// All versions under each of the names; none when the name is absent.
fn versions(headers: &HeaderMap) -> Result<[Vec<&str>; 3], Refusal> {
    let malformed = || Refusal::from(Code::MalformedSpecificationVersion);
    let mut found = [const { Vec::new() }; 3];
    let mut bytes = [0_usize; 3];
    // One look at every field costs less than three look-ups of long names.
    for (name, value) in headers {
        let Some(index) = NAMES.iter().position(|known| known == name) else {
            continue;
        };
        let (Some(list), Some(bytes)) = (found.get_mut(index), bytes.get_mut(index)) else {
            continue;
        };
        *bytes = bytes.saturating_add(value.len());
        if *bytes > limits::SPECIFICATION_VERSION_BYTES_MAX {
            return Err(malformed());
        }
        let text = str::from_utf8(value.as_bytes()).map_err(|_not_utf_8| malformed())?;
        for version in text.split(',').map(str::trim_ascii) {
            if !is_version(version) {
                return Err(malformed());
            }
            list.push(version);
        }
    }
    Ok(found)
}

/// One to three groups of digits.
fn is_version(text: &str) -> bool {
    let mut groups = 1_u8;
    let mut is_empty = true;
    for byte in text.bytes() {
        match byte {
            b'0'..=b'9' => is_empty = false,
            b'.' if !is_empty && groups < 3 => {
                groups = groups.saturating_add(1);
                is_empty = true;
            }
            _ => return false,
        }
    }
    !is_empty
}

#[cfg(test)]
mod tests {
    use http::HeaderName;
    use http::HeaderValue;

    use super::*;

    /// Headers, and the version chosen.
    type Row<'a> = (&'a [(&'a str, &'a str)], Result<&'a str, Code>);

    const CLOUD: &str = "x-cloud-client-specification-version";
    const COMPUTE: &str = "x-compute-client-specification-version";
    const BARE: &str = "x-cloud-specification-version";

    fn run(given: &[(&str, &str)], required: bool) -> Result<String, Code> {
        let mut headers = HeaderMap::new();
        for (name, value) in given {
            headers.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_bytes(value.as_bytes()).unwrap(),
            );
        }
        let rule = Specification::default();
        choose(&headers, &rule, required)
            .map(|version| rule.supported[version.0].clone())
            .map_err(|error| error.code())
    }

    #[test]
    fn versions_are_chosen_or_refused() {
        let long = "1".repeat(65);
        let rows: &[Row<'_>] = &[
            (&[(CLOUD, "0.1")], Ok("0.1")),
            (&[(COMPUTE, " 0.8 ")], Ok("0.8")),
            (&[(BARE, "0.2")], Ok("0.2")),
            (&[(CLOUD, "9.9, 0.2,0.1")], Ok("0.2")),
            (&[(CLOUD, "9.9"), (CLOUD, "0.8")], Ok("0.8")),
            (&[(CLOUD, "0.1"), (COMPUTE, "0.1")], Ok("0.1")),
            (
                &[(CLOUD, "0.1"), (COMPUTE, "0.2")],
                Err(Code::ConflictingSpecificationVersion),
            ),
            (
                &[(CLOUD, "0.1"), (BARE, "x")],
                Err(Code::MalformedSpecificationVersion),
            ),
            (&[(CLOUD, "")], Err(Code::MalformedSpecificationVersion)),
            (&[(CLOUD, "0.1,")], Err(Code::MalformedSpecificationVersion)),
            (&[(CLOUD, "0..1")], Err(Code::MalformedSpecificationVersion)),
            (
                &[(CLOUD, "1.2.3.4")],
                Err(Code::MalformedSpecificationVersion),
            ),
            (&[(CLOUD, "v1")], Err(Code::MalformedSpecificationVersion)),
            (
                &[(CLOUD, "\u{e9}")],
                Err(Code::MalformedSpecificationVersion),
            ),
            (&[(CLOUD, &long)], Err(Code::MalformedSpecificationVersion)),
            (
                &[(CLOUD, "1.0.0")],
                Err(Code::UnsupportedSpecificationVersion),
            ),
            (&[], Err(Code::MissingSpecificationVersion)),
        ];
        for (given, expected) in rows {
            let found = run(given, true);
            assert_eq!(found.as_deref(), expected.as_deref(), "{given:?}");
        }
        assert_eq!(
            run(&[], false).as_deref(),
            Ok("0.8"),
            "not needed: the newest"
        );
    }

    #[test]
    fn the_permissive_reading_takes_the_newest() {
        let rule = Specification {
            on_missing: OnMissingVersion::AssumeCurrent,
            ..Specification::default()
        };
        let found = choose(&HeaderMap::new(), &rule, true).map(|version| version.0);
        assert_eq!(found.ok(), Some(2), "the last one");
    }
}
