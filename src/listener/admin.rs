//! The admin port: `/metrics`, `/healthz`, `/readyz`, `/version` and `/operations`, for operators and their tools.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use http::Method;
use http::Response;
use http::StatusCode;
use http::header;
use http::header::HeaderValue;
use pingora::apps::http_app::ServeHttp;
use pingora::protocols::http::ServerSession;

use crate::listener::Limits;
use crate::listener::admin_response::framed_response;
use crate::listener::connection_phase;
use crate::listener::operator;
use crate::listener::operator::Operator;
use crate::telemetry::Metrics;

const TEXT: &str = "text/plain; charset=utf-8";

/// Reports whether the gateway should receive requests.
pub trait Readiness: fmt::Debug + Send + Sync {
    /// Whether it is ready.
    ///
    /// # Errors
    /// The reason why it is not, as a short sentence for operators.
    fn readiness(&self) -> Result<(), String>;
}

/// The Pingora application of the admin port.
#[derive(Debug)]
pub(super) struct AdminPages {
    pub(super) readiness: Arc<dyn Readiness>,
    pub(super) operator: Arc<dyn Operator>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) limits: Limits,
}

/// A page: status, media type and content.
type AdminPage = (StatusCode, &'static str, Vec<u8>);

impl AdminPages {
    fn find_page(&self, path: &str) -> Option<AdminPage> {
        match path {
            "/metrics" => Some((
                StatusCode::OK,
                Metrics::CONTENT_TYPE,
                self.metrics.encode_text(),
            )),
            "/healthz" => Some((StatusCode::OK, TEXT, b"ok\n".to_vec())),
            "/readyz" => Some(match self.readiness.readiness() {
                Ok(()) => (StatusCode::OK, TEXT, b"ready\n".to_vec()),
                Err(reason) => (
                    StatusCode::SERVICE_UNAVAILABLE,
                    TEXT,
                    format!("not ready: {reason}\n").into_bytes(),
                ),
            }),
            "/version" => {
                let version = serde_json::json!({
                    "name": env!("CARGO_PKG_NAME"),
                    "version": env!("CARGO_PKG_VERSION"),
                });
                let text = format!("{version}\n").into_bytes();
                Some((StatusCode::OK, "application/json", text))
            }
            _ => None,
        }
    }

    fn build_page(&self, method: &Method, path: &str) -> Response<Vec<u8>> {
        let Some((status, media_type, content)) = self.find_page(path) else {
            return framed_response(StatusCode::NOT_FOUND, TEXT, b"not found\n".to_vec(), true);
        };
        if *method != Method::GET && *method != Method::HEAD {
            let mut refused = framed_response(
                StatusCode::METHOD_NOT_ALLOWED,
                TEXT,
                b"method not allowed\n".to_vec(),
                true,
            );
            refused
                .headers_mut()
                .insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refused;
        }
        framed_response(status, media_type, content, *method == Method::GET)
    }
}

#[async_trait]
impl ServeHttp for AdminPages {
    async fn response(&self, session: &mut ServerSession) -> Response<Vec<u8>> {
        connection_phase::mark_request_begun();
        // One request per connection: a scrape every few seconds needs no more, and no connection is idle when the gateway stops.
        session.set_keepalive(None);
        session.set_write_timeout(Some(self.limits.write_timeout));
        let head = session.req_header();
        let head_only = head.method == Method::HEAD;
        let peer = session.client_addr().and_then(|address| address.as_inet());
        let peer = peer.map(std::net::SocketAddr::ip);
        let operators = operator::handle_request(
            &*self.operator,
            &head.method,
            &head.uri,
            &head.headers,
            peer,
        );
        let mut response = match operators.await {
            Some(response) => response,
            None => self.build_page(&head.method, head.uri.path()),
        };
        if head_only {
            response.body_mut().clear();
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Fixed(Result<(), String>);

    impl Readiness for Fixed {
        fn readiness(&self) -> Result<(), String> {
            self.0.clone()
        }
    }

    #[test]
    fn every_path_and_method_has_its_answer() {
        let rows = [
            ("GET", "/healthz", Ok(()), 200, "ok\n"),
            ("HEAD", "/healthz", Ok(()), 200, ""),
            ("GET", "/readyz", Ok(()), 200, "ready\n"),
            (
                "GET",
                "/readyz",
                Err("draining"),
                503,
                "not ready: draining\n",
            ),
            ("GET", "/healthz", Err("draining"), 200, "ok\n"),
            ("POST", "/readyz", Ok(()), 405, "method not allowed\n"),
            ("GET", "/", Ok(()), 404, "not found\n"),
            ("DELETE", "/metric", Ok(()), 404, "not found\n"),
            ("GET", "/metrics/", Ok(()), 404, "not found\n"),
        ];
        for (method, path, ready, status, body) in rows {
            let pages = AdminPages {
                readiness: Arc::new(Fixed(ready.map_err(str::to_owned))),
                operator: Arc::new(crate::listener::tests::NoOperations),
                metrics: Arc::new(Metrics::new().unwrap()),
                limits: Limits::default(),
            };
            let answer = pages.build_page(&method.parse().unwrap(), path);
            assert_eq!(answer.status(), status, "{method} {path}: status");
            assert_eq!(
                String::from_utf8_lossy(answer.body()),
                body,
                "{method} {path}: body"
            );
            assert_eq!(
                answer.headers().contains_key(header::ALLOW),
                status == 405,
                "{method} {path}: Allow exactly with 405"
            );
        }
    }
}
