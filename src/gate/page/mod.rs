//! The page at `/ui/`: static files in the program, for people in a browser. It uses nothing but the public API. Deviation D44.
//!
//! With `server.page` everything at and below `/ui` is answered here, before pass-through routes are looked at. Without it
//! these paths mean nothing. No file needs credentials: they say nothing about callers, VMs or backends.

mod files;

use http::HeaderName;
use http::HeaderValue;
use http::Method;
use http::StatusCode;
use http::header;

use crate::gate::conditional;
use crate::gate::config::Limits;
use crate::gate::framing;
use crate::gate::page::files::PageFile;
use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::gate::request_body::IncomingBody;
use crate::gate::request_context::ReceivedRequest;
use crate::gate::response_draft::ResponseDraft;

/// The route in metrics and logs.
pub(super) const ROUTE_NAME: &str = "page";

const ROOT: &str = "/ui";
const METHODS: &str = "GET, HEAD";

const OPENER_POLICY: HeaderName = HeaderName::from_static("cross-origin-opener-policy");
const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

/// Files of this origin alone, nothing inline, no frames, no forms that are sent anywhere, and no markup made of text.
const CONTENT_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
     frame-ancestors 'none'; base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'";

/// On every answer of the page, refusals included.
const PAGE_HEADERS: [(HeaderName, HeaderValue); 5] = [
    (
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(CONTENT_POLICY),
    ),
    (
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    ),
    (
        header::REFERRER_POLICY,
        HeaderValue::from_static("no-referrer"),
    ),
    (OPENER_POLICY, HeaderValue::from_static("same-origin")),
    (RESOURCE_POLICY, HeaderValue::from_static("same-origin")),
];

/// What follows `/ui` in a path of the page; `None` for every other path.
pub(super) fn path_within(path: &str) -> Option<&str> {
    let rest = path.strip_prefix(ROOT)?;
    (rest.is_empty() || rest.starts_with('/')).then_some(rest)
}

/// Whether a pass-through route with this prefix loses requests to the page.
#[must_use]
pub fn takes_from_prefix(prefix: &str) -> bool {
    prefix.is_empty() || path_within(prefix).is_some()
}

/// Answers a request for `/ui` followed by `rest`.
pub(super) async fn answer(
    received: &ReceivedRequest<'_>,
    rest: &str,
    limits: &Limits,
    body: &mut IncomingBody<'_>,
) -> Result<ResponseDraft, Refusal> {
    match read_file(received, rest, limits, body).await {
        Ok(mut draft) => {
            draft.headers.extend(PAGE_HEADERS);
            Ok(draft)
        }
        Err(mut refusal) => {
            refusal.headers.extend(PAGE_HEADERS);
            Err(refusal)
        }
    }
}

async fn read_file(
    received: &ReceivedRequest<'_>,
    rest: &str,
    limits: &Limits,
    body: &mut IncomingBody<'_>,
) -> Result<ResponseDraft, Refusal> {
    let content_length = framing::check_head(&received.head, limits)?;
    let bytes_max = u64::try_from(limits.body_bytes).unwrap_or(u64::MAX);
    framing::check_content_length(content_length, bytes_max)?;
    let method = received.head.method;
    if *method != Method::GET && *method != Method::HEAD {
        return Err(Refusal::from(Code::MethodNotAllowed).with(header::ALLOW, METHODS));
    }
    body.skip().await?;
    if rest.is_empty() {
        return Ok(redirect_to_folder());
    }
    let name = rest.strip_prefix('/').unwrap_or(rest);
    let file = PageFile::find(name).ok_or_else(|| Refusal::from(Code::NoSuchRoute))?;
    let headers = received.head.headers;
    conditional::check_if_match(headers, &file.tag)?;
    let is_known = conditional::matches_if_none_match(headers, &file.tag);
    let draft = ResponseDraft::read(file.media, file.bytes.clone());
    let mut draft = draft.tagged(&file.tag, is_known);
    // The same for everybody, and asked for again each time, so that a new version is used at once.
    draft.fix(header::CACHE_CONTROL, "no-cache");
    Ok(draft)
}

/// Relative, so that it is right behind a proxy that serves the gateway below a path.
fn redirect_to_folder() -> ResponseDraft {
    let mut draft = ResponseDraft::empty(StatusCode::TEMPORARY_REDIRECT);
    draft.fix(header::LOCATION, "ui/");
    draft.fix(header::CACHE_CONTROL, "no-cache");
    draft
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_segments_are_paths_of_the_page() {
        let rows = [
            ("/ui", Some("")),
            ("/ui/", Some("/")),
            ("/ui/page.css", Some("/page.css")),
            ("/ui//", Some("//")),
            ("/uix", None),
            ("/UI/", None),
            ("/%75i/", None),
            ("//ui/", None),
            ("/", None),
            ("/vms/ui", None),
        ];
        for (path, expected) in rows {
            assert_eq!(path_within(path), expected, "{path}");
        }
    }

    #[test]
    fn prefixes_at_above_and_below_the_page_lose_requests_to_it() {
        let rows = [
            ("", true),
            ("/ui", true),
            ("/ui/x", true),
            ("/uix", false),
            ("/manager", false),
        ];
        for (prefix, expected) in rows {
            assert_eq!(takes_from_prefix(prefix), expected, "{prefix}");
        }
    }
}
