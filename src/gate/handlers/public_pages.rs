//! What is served without credentials: the versions, the description of the API, and the page at `/`. Deviation D27.

use std::sync::LazyLock;

use bytes::Bytes;
use http::header;

use crate::gate::conditional;
use crate::gate::config::Config;
use crate::gate::handlers::read::conditional_response;
use crate::gate::negotiate;
use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::gate::request_body::IncomingBody;
use crate::gate::request_context::ReceivedRequest;
use crate::gate::response_draft::ResponseDraft;
use crate::gate::route::Endpoint;
use crate::gate::route::Route;
use crate::gate::wire;

/// The description of the API, as it is in the documentation of this version.
const DOCUMENT: &[u8] = include_bytes!("../../../docs/openapi.json");

/// Its entity tag: the document is the same as long as the program is.
static DOCUMENT_TAG: LazyLock<String> = LazyLock::new(|| conditional::entity_tag(DOCUMENT));

/// Nothing is loaded, run, framed or sent from the page.
const PAGE_POLICY: &str =
    "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The page for people, where it is served.
const PAGE_LINK: (&str, &str) = ("/ui/", "the page: VMs, backups, restore");

/// Where a reader of the page at `/` goes: a path below the public URL, and what is there.
const LINKS: &[(&str, &str)] = &[
    ("/openapi.json", "the description of the API (OpenAPI)"),
    ("/versions", "the versions of specification and program"),
];

pub(in crate::gate) async fn read_public(
    received: &ReceivedRequest<'_>,
    endpoint: &Endpoint,
    route: &Route,
    config: &Config,
    body: &mut IncomingBody<'_>,
) -> Result<ResponseDraft, Refusal> {
    let headers = received.head.headers;
    let media = negotiate::choose_media_type(headers, endpoint.response, received.is_strict)?;
    body.skip().await?;
    match route {
        Route::Versions => {
            let versions = wire::versions(&config.specification.supported);
            Ok(ResponseDraft::read(media, versions))
        }
        Route::Document => {
            conditional_response(headers, media, Bytes::from_static(DOCUMENT), &DOCUMENT_TAG)
        }
        Route::Root => {
            let page = root_page(config.public_url.as_str(), config.page);
            let tag = conditional::entity_tag(&page);
            let mut draft = conditional_response(headers, media, page, &tag)?;
            draft.fix(header::CONTENT_SECURITY_POLICY, PAGE_POLICY);
            draft.fix(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
            draft.fix(header::REFERRER_POLICY, "no-referrer");
            Ok(draft)
        }
        // The table gives these something to be permitted.
        Route::Backup(_)
        | Route::Restore(_)
        | Route::Plan(_)
        | Route::Backups(_)
        | Route::BackUp
        | Route::Vms
        | Route::Vm(_)
        | Route::Capabilities(_)
        | Route::Permissions
        | Route::Statuses => Err(Refusal::from(Code::NoSuchRoute)),
    }
}

/// The page at `/`, for a person who has only the address. It says nothing about callers, VMs or backends.
fn root_page(public_url: &str, has_page: bool) -> Bytes {
    let base = escaped(public_url);
    let shown = has_page.then_some(&PAGE_LINK).into_iter().chain(LINKS);
    let links = shown.map(|(path, what)| {
        format!("<li><a href=\"{base}{path}\"><code>{path}</code></a>: {what}</li>\n")
    });
    let links: String = links.collect();
    let version = env!("CARGO_PKG_VERSION");
    let page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>snapgate</title>\n</head>\n<body>\n\
         <h1>snapgate</h1>\n\
         <p>This is an HTTP API for backups of VMs: list, create, update, delete and restore. Requests need credentials, which an \
         operator of this gateway gives you.</p>\n\
         <ul>\n{links}</ul>\n\
         <p>The manual is the folder <code>docs</code> of the source of version {version}; begin with <code>docs/README.md</code>.</p>\n\
         </body>\n</html>\n"
    );
    page.into()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
