//! How many gateways forwarded a request before this one, which ends forwarding loops.
//!
//! A gateway may be the VM manager of another gateway. Each one that forwards a request sends its count in [`HEADER`]; beyond
//! [`limits::HOPS_MAX`](crate::model::limits::HOPS_MAX) the request is refused. The count of the request at hand is local to its
//! task, so that an HTTP client deep in an adapter finds it without passing it through every call.

use std::future::Future;

use http::HeaderMap;
use http::HeaderName;

/// The header field that carries the count from gateway to gateway.
pub const HEADER: HeaderName = HeaderName::from_static("x-cloud-hops");

tokio::task_local! {
    static HOPS: u8;
}

/// The count in the headers of a request; 0 without one that can be parsed.
#[must_use]
pub fn of(headers: &HeaderMap) -> u8 {
    let value = headers.get(HEADER).and_then(|header| header.to_str().ok());
    value.and_then(|value| value.parse().ok()).unwrap_or(0)
}

/// Runs the work as part of a request that this many gateways forwarded.
pub async fn within<F: Future>(hops: u8, work: F) -> F::Output {
    HOPS.scope(hops, work).await
}

/// How many gateways forwarded the request that this is part of; 0 outside of requests.
#[must_use]
pub fn current() -> u8 {
    HOPS.try_with(|hops| *hops).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[tokio::test]
    async fn the_count_of_a_request_is_visible_to_its_work_alone() {
        let rows = [
            (None, 0),
            (Some("3"), 3),
            (Some("999"), 0),
            (Some("-1"), 0),
            (Some("x"), 0),
        ];
        for (value, expected) in rows {
            let mut headers = HeaderMap::new();
            if let Some(value) = value {
                headers.insert(HEADER, HeaderValue::from_static(value));
            }
            let found = within(of(&headers), async { current() }).await;
            assert_eq!(found, expected, "{value:?}");
        }
        assert_eq!(current(), 0, "outside of requests");
    }
}
