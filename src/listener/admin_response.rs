//! Responses of the admin port.

use http::Response;
use http::StatusCode;
use http::header;
use http::header::HeaderValue;

/// A response with exact framing. Without `with_body` it declares the length of the content but has no body, as for HEAD.
pub(super) fn framed_response(
    status: StatusCode,
    media_type: &'static str,
    content: Vec<u8>,
    with_body: bool,
) -> Response<Vec<u8>> {
    let length = content.len();
    let mut response = Response::new(if with_body { content } else { Vec::new() });
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(header::CONTENT_LENGTH, length.into());
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
