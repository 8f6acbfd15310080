//! How many gateways passed a request on before this one: what ends a circle of gateways.

use std::future::Future;

use http::HeaderMap;
use http::HeaderName;

/// The header field that says it, from gateway to gateway.
pub const HEADER: HeaderName = HeaderName::from_static("x-cloud-hops");

tokio::task_local! {
    static PASSED: u8;
}

/// The number that a request carries; 0 when it carries none that can be read.
#[must_use]
pub fn of(headers: &HeaderMap) -> u8 {
    let value = headers.get(HEADER).and_then(|header| header.to_str().ok());
    value.and_then(|value| value.parse().ok()).unwrap_or(0)
}

/// Does the work as part of a request that so many gateways passed on.
pub async fn within<F: Future>(passed: u8, work: F) -> F::Output {
    PASSED.scope(passed, work).await
}

/// How many gateways passed on the request that this is part of; 0 outside of requests.
#[must_use]
pub fn current() -> u8 {
    PASSED.try_with(|it| *it).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[tokio::test]
    async fn the_number_of_a_request_is_known_to_its_work_alone() {
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
