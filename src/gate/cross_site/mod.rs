//! Requests that pages of other sites make in a browser: which are refused, and which pages may read the answers.

mod cors;
mod rule;

pub(super) use cors::add_cors_headers;
pub(super) use cors::add_preflight_headers;
pub(super) use cors::readable_by;
pub(super) use rule::CrossSiteRule;
pub(super) use rule::RequestOrigin;
