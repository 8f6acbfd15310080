//! The one HTTP client of adapters whose VM manager has a REST interface, and of key sets that are fetched.
//!
//! A call goes to the configured place and nowhere else: no redirects, no proxies of the environment, no names or
//! credentials from it. Every call has a deadline and every answer a largest size. An error says whether bytes may have
//! reached the VM manager. HTTP/1.1 over TLS 1.2 or later, over a unix socket, or to a port of this machine.

mod error;
mod fault;
mod leased_body;
mod server;
mod server_url;
mod shown_certificate;
mod tls;
pub(crate) mod tls_keys;

#[cfg(test)]
mod tests;

pub use error::BuildError;
pub use error::TransportError;
pub use fault::timed_out_text;
pub use fault::unexpected_answer;
pub use server::Address;
pub use server::ClientFiles;
pub use server::Server;
pub use server::ServerError;
pub use server::ServerTrust;
pub use server_url::ServerOrigin;
pub use server_url::ServerUrl;
pub use server_url::UrlError;
pub(crate) use shown_certificate::read_shown_fingerprint;
pub use tls::ClientIdentity;
pub use tls::Pin;
pub use tls::Trust;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use bytes::BytesMut;
use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::Method;
use http::StatusCode;
use percent_encoding::AsciiSet;
use percent_encoding::NON_ALPHANUMERIC;
use percent_encoding::utf8_percent_encode;

use crate::adapters::transport::leased_body::LeasedBody;
use crate::model::Deadline;
use crate::model::Secret;
use crate::model::error_chain;
use crate::runtime::lease;

/// Everything but the unreserved characters of RFC 3986, section 2.3.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');
/// How long a connection to a port that is not used is kept.
const IDLE: Duration = Duration::from_secs(20);

/// Where a VM manager listens.
#[derive(Clone, Debug)]
pub enum Endpoint {
    /// A unix socket; its file permissions decide who may connect.
    Unix(PathBuf),
    /// Plain HTTP, to a port of this machine: nothing on the way keeps it from being read.
    Http(SocketAddr),
    /// TLS.
    Https {
        /// Host and port, for instance `lab.example.com:8443`.
        authority: String,
        /// How the server proves who it is.
        trust: Trust,
        /// How the gateway proves who it is.
        identity: Option<ClientIdentity>,
    },
}

/// What a client is made from.
#[derive(Clone, Debug)]
pub struct ClientSettings {
    /// Where the VM manager listens.
    pub endpoint: Endpoint,
    /// Time for making a connection, TLS included.
    pub connect_timeout: Duration,
    /// Largest body of an answer in bytes.
    pub body_bytes_max: usize,
}

/// A client of one VM manager. Clones share its connections.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    body_bytes_max: usize,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The client inside may hold credentials.
        f.debug_struct("Client")
            .field("base", &self.base)
            .finish_non_exhaustive()
    }
}

/// One request.
#[derive(Debug)]
pub struct Call<'a> {
    method: Method,
    path: &'a [&'a str],
    query: &'a [(&'a str, &'a str)],
    /// Stands for both.
    raw_target: Option<&'a str>,
    headers: HeaderMap,
    body: Option<Vec<u8>>,
}

impl<'a> Call<'a> {
    /// A request for the path made of these segments, each as it is: it is escaped on the way.
    #[must_use]
    pub fn new(method: Method, path: &'a [&'a str]) -> Self {
        Self {
            method,
            path,
            query: &[],
            raw_target: None,
            headers: HeaderMap::new(),
            body: None,
        }
    }

    /// For the path made of these segments instead.
    #[must_use]
    pub const fn to(mut self, path: &'a [&'a str]) -> Self {
        self.path = path;
        self
    }

    /// With these names and values after the `?`, each as it is.
    #[must_use]
    pub const fn query(mut self, query: &'a [(&'a str, &'a str)]) -> Self {
        self.query = query;
        self
    }

    /// For this path and query instead, as they are: they begin with `/`, and come from the configuration alone.
    #[must_use]
    pub const fn with_raw_target(mut self, target: &'a str) -> Self {
        self.raw_target = Some(target);
        self
    }

    /// With these header fields instead of all others.
    #[must_use]
    pub fn with_headers(mut self, headers: HeaderMap) -> Self {
        self.headers = headers;
        self
    }

    /// With this body, of whatever type the header fields say.
    #[must_use]
    pub fn with_body(mut self, body: Vec<u8>) -> Self {
        self.body = Some(body);
        self
    }

    /// With this header field.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// With this header field, which is never printed.
    ///
    /// # Errors
    /// [`TransportError::Unsendable`] when it holds characters that a header field cannot.
    pub fn secret_header(self, name: HeaderName, value: &Secret) -> Result<Self, TransportError> {
        let mut value = HeaderValue::from_str(value.reveal())
            .map_err(|error| TransportError::Unsendable(error.to_string()))?;
        value.set_sensitive(true);
        Ok(self.header(name, value))
    }

    /// With this JSON text as its body.
    #[must_use]
    pub fn json(mut self, body: Vec<u8>) -> Self {
        self.headers.insert(
            http::header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        self.body = Some(body);
        self
    }
}

/// The head of an answer whose body comes in pieces.
#[derive(Debug)]
pub struct StreamedReply {
    /// The status.
    pub status: StatusCode,
    /// The header fields.
    pub headers: HeaderMap,
    answer: reqwest::Response,
}

impl StreamedReply {
    /// The next piece; `None` at the end. Whoever calls sets a time limit.
    ///
    /// # Errors
    /// [`TransportError::Lost`].
    pub async fn next(&mut self) -> Result<Option<Bytes>, TransportError> {
        self.answer.chunk().await.map_err(TransportError::from_body)
    }
}

/// The whole answer to one request, whatever its status.
#[derive(Debug)]
pub struct Reply {
    /// The status.
    pub status: StatusCode,
    /// The text beside the status, where the server sent one of its own. Proxmox VE says there why it refused.
    pub reason: Option<String>,
    /// The header fields.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Client {
    /// A client; connects to nothing yet.
    ///
    /// # Errors
    /// [`BuildError`] when a certificate or key cannot be used.
    pub fn new(settings: ClientSettings) -> Result<Self, BuildError> {
        let builder = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .no_proxy()
            .referer(false)
            .connect_timeout(settings.connect_timeout)
            .pool_idle_timeout(IDLE);
        let (builder, base) = match settings.endpoint {
            Endpoint::Unix(path) => {
                let unused = tls::client_config(Trust::NoServer, None)?;
                // Connections are not kept: where they are, one may be made for a call that then takes another one, and
                // lie there without a byte. LXD takes no other connection to its socket until it has read some.
                let builder = builder
                    .tls_backend_preconfigured(unused)
                    .unix_socket(path)
                    .pool_max_idle_per_host(0);
                (builder, "http://localhost".to_owned())
            }
            Endpoint::Http(address) => {
                let unused = tls::client_config(Trust::NoServer, None)?;
                let builder = builder.tls_backend_preconfigured(unused);
                (builder, format!("http://{address}"))
            }
            Endpoint::Https {
                authority,
                trust,
                identity,
            } => {
                let tls = tls::client_config(trust, identity)?;
                let builder = builder.tls_backend_preconfigured(tls).https_only(true);
                (builder, format!("https://{authority}"))
            }
        };
        let http = builder
            .build()
            .map_err(|error| BuildError::Client(error_chain(&error)))?;
        reqwest::Url::parse(&base).map_err(|error| BuildError::Address(error.to_string()))?;
        Ok(Self {
            http,
            base,
            body_bytes_max: settings.body_bytes_max,
        })
    }

    /// Sends the request and reads the whole answer.
    ///
    /// # Errors
    /// [`TransportError`]; [`TransportError::was_sent`] says whether the VM manager may have seen the request.
    pub async fn call(&self, call: Call<'_>, by: Deadline) -> Result<Reply, TransportError> {
        let until = tokio::time::Instant::from_std(by.instant());
        if tokio::time::Instant::now() >= until || lease::check_current().is_err() {
            return Err(TransportError::TooLate);
        }
        let url = match call.raw_target {
            Some(target) => format!("{}{target}", self.base),
            None => self.url(call.path, call.query)?,
        };
        let has_effect = call.method != Method::GET && call.method != Method::HEAD;
        let mut request = self.http.request(call.method, url).headers(call.headers);
        match lease::current().filter(|_| has_effect) {
            Some(lease) => {
                let body = LeasedBody::new(call.body.unwrap_or_default(), lease);
                request = request.body(reqwest::Body::wrap(body));
            }
            None => {
                if let Some(body) = call.body {
                    request = request.body(body);
                }
            }
        }
        tokio::time::timeout_at(until, self.exchange(request))
            .await
            .unwrap_or(Err(TransportError::TimedOut))
    }

    /// Sends the request and returns as soon as the head of the answer is there.
    ///
    /// # Errors
    /// [`TransportError`]; [`TransportError::was_sent`] says whether the server may have seen the request.
    pub async fn begin(
        &self,
        call: Call<'_>,
        by: Deadline,
    ) -> Result<StreamedReply, TransportError> {
        let until = tokio::time::Instant::from_std(by.instant());
        let url = match call.raw_target {
            Some(target) => format!("{}{target}", self.base),
            None => self.url(call.path, call.query)?,
        };
        let mut request = self.http.request(call.method, url).headers(call.headers);
        if let Some(body) = call.body {
            request = request.body(body);
        }
        let answer = tokio::time::timeout_at(until, request.send()).await;
        let answer = answer.map_err(|_elapsed| TransportError::TimedOut)?;
        let answer = answer.map_err(TransportError::from_request)?;
        Ok(StreamedReply {
            status: answer.status(),
            headers: answer.headers().clone(),
            answer,
        })
    }

    async fn exchange(&self, request: reqwest::RequestBuilder) -> Result<Reply, TransportError> {
        let mut answer = request.send().await.map_err(TransportError::from_request)?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let reason = answer.extensions().get::<hyper::ext::ReasonPhrase>();
        let reason = reason.map(|text| String::from_utf8_lossy(text.as_bytes()).into_owned());
        let mut body = BytesMut::new();
        while let Some(part) = answer.chunk().await.map_err(TransportError::from_body)? {
            if body.len().saturating_add(part.len()) > self.body_bytes_max {
                return Err(TransportError::TooLarge(self.body_bytes_max));
            }
            body.extend_from_slice(&part);
        }
        Ok(Reply {
            status,
            reason,
            headers,
            body: body.freeze(),
        })
    }

    /// The whole address. A segment that address libraries would drop is refused.
    fn url(&self, path: &[&str], query: &[(&str, &str)]) -> Result<String, TransportError> {
        let mut url = self.base.clone();
        for segment in path {
            if matches!(*segment, "" | "." | "..") {
                return Err(TransportError::Unsendable(format!(
                    "path segment {segment:?}"
                )));
            }
            url.push('/');
            url.extend(utf8_percent_encode(segment, ESCAPED));
        }
        for (index, (name, value)) in query.iter().enumerate() {
            url.push(if index == 0 { '?' } else { '&' });
            url.extend(utf8_percent_encode(name, ESCAPED));
            url.push('=');
            url.extend(utf8_percent_encode(value, ESCAPED));
        }
        Ok(url)
    }
}
