//! One gateway: a request is sent to it until it answers or the patience is over.

use std::error::Error as StdError;
use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use bytes::BytesMut;
use http::HeaderName;
use http::HeaderValue;
use http::Method;
use http::StatusCode;
use http::header;

use crate::client::ClientError;
use crate::client::error::Refusal;
use crate::client::gateway_url::GatewayUrl;
use crate::client::gateway_url::LOCAL_NAME;
use crate::client::gateway_url::local_addresses;
use crate::client::observer::Observer;
use crate::client::patience::Failure;
use crate::client::patience::Interruption;
use crate::client::patience::Outage;
use crate::client::patience::Patience;
use crate::client::request::Answer;
use crate::client::request::Request;
use crate::client::tls;
use crate::client::tls::ClientIdentity;
use crate::client::tls::Trust;
use crate::model::Credential;
use crate::model::error_causes;
use crate::model::error_chain;

const VERSION: HeaderName = HeaderName::from_static("x-cloud-client-specification-version");
/// The version that every server of this interface supports.
const VERSION_SPOKEN: HeaderValue = HeaderValue::from_static("0.1");
/// Time for making a connection, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for a whole answer beyond what the gateway was asked to hold it back.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest silence of a stream: a gateway sends something every 15 seconds.
const SILENCE_MAX: Duration = Duration::from_secs(45);
/// Largest answer: a page of backups with the longest descriptions and tags.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Codes with which another try is useful after a while. Not `TooManyAttempts`: each try with a wrong password makes it last longer.
const TEMPORARY: &[&str] = &["RateLimited", "TooManyAtOnce"];

/// How a gateway is reached.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Where it is.
    pub url: GatewayUrl,
    /// Who asks; `None` for a client certificate alone, or for what needs no credentials.
    pub credential: Option<Credential>,
    /// Whom to trust.
    pub trust: Trust,
    /// The client certificate.
    pub identity: Option<ClientIdentity>,
    /// How long it is asked again while it does not answer.
    pub patience: Patience,
}

/// One gateway.
pub struct Gateway {
    http: reqwest::Client,
    url: GatewayUrl,
    /// The value of `Authorization`.
    authorization: Option<HeaderValue>,
    patience: Patience,
    /// Whether it has answered anything.
    has_answered: AtomicBool,
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

/// What a gateway answers where a stream was asked for.
#[derive(Debug)]
pub(super) enum StreamAnswer {
    /// The stream.
    Stream(EventBody),
    /// There is nothing more to come.
    Over,
    /// The server has no streams.
    NotOffered,
}

/// The body of a stream.
#[derive(Debug)]
pub(super) struct EventBody(reqwest::Response);

/// What comes next in a stream.
#[derive(Debug)]
pub(super) enum Piece {
    /// Some bytes.
    Bytes(Bytes),
    /// Its end, and why where that is not in order.
    End(Option<String>),
    /// Nothing, for longer than a gateway is ever silent.
    Silence,
}

impl Gateway {
    /// A client of the gateway; connects to nothing yet.
    ///
    /// # Errors
    /// [`ClientError::Usage`] when a certificate or key cannot be used.
    pub fn new(connection: Connection) -> Result<Self, ClientError> {
        let Connection {
            url,
            credential,
            trust,
            identity,
            patience,
        } = connection;
        let tls = tls::client_config(url.is_tls(), &trust, identity.as_ref())?;
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            // Credentials go to the gateway alone: neither to where a redirect points nor through a proxy of the environment.
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .referer(false)
            .retry(reqwest::retry::never())
            .resolve_to_addrs(LOCAL_NAME, &local_addresses())
            .connect_timeout(CONNECT_TIMEOUT)
            .user_agent(concat!("snapgate/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| ClientError::Usage(error_chain(&error)))?;
        let authorization = credential.as_ref().map(header_value).transpose()?;
        Ok(Self {
            http,
            url,
            authorization,
            patience,
            has_answered: AtomicBool::new(false),
        })
    }

    /// Where it is.
    #[must_use]
    pub const fn url(&self) -> &GatewayUrl {
        &self.url
    }

    /// How long an outage may last now.
    pub(super) fn patience(&self) -> Duration {
        if self.has_answered.load(Ordering::Relaxed) {
            self.patience.after_contact
        } else {
            self.patience.before_contact
        }
    }

    /// Sends the request until there is an answer. Only a request that may be repeated may be sent: a read, or a change with
    /// an idempotency key.
    pub(super) async fn send(
        &self,
        request: &Request,
        observer: &mut dyn Observer,
    ) -> Result<Answer, ClientError> {
        let mut outage = Outage::new();
        loop {
            match self.try_once(request).await {
                Ok(answer) => return Ok(answer),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Temporary(interruption)) => {
                    self.pause(&mut outage, interruption, observer).await?;
                }
            }
        }
    }

    /// Waits before the next try.
    ///
    /// # Errors
    /// When the patience is over.
    pub(super) async fn pause(
        &self,
        outage: &mut Outage,
        interruption: Interruption,
        observer: &mut dyn Observer,
    ) -> Result<(), ClientError> {
        let why = interruption.why.clone();
        let pause = outage.next_pause(interruption, self.patience())?;
        observer.on_interruption(&why, pause);
        tokio::time::sleep(pause).await;
        Ok(())
    }

    /// Sends the request once.
    pub(super) async fn try_once(&self, request: &Request) -> Result<Answer, Failure> {
        let time = ANSWER_TIMEOUT.saturating_add(request.hold);
        let answer = tokio::time::timeout(time, self.exchange(request)).await;
        let answer = answer.unwrap_or_else(|_elapsed| Err(interrupted("no answer in time", true)));
        let answer = answer?;
        self.has_answered.store(true, Ordering::Relaxed);
        judge(answer)
    }

    async fn exchange(&self, request: &Request) -> Result<Answer, Failure> {
        let accept = HeaderValue::from_static("application/json");
        let answer = self.request(request, accept).send().await;
        read_whole(answer.map_err(failed)?).await
    }

    /// Asks for a stream of events, once.
    pub(super) async fn open_stream(&self, request: &Request) -> Result<StreamAnswer, Failure> {
        let accept = HeaderValue::from_static("text/event-stream");
        let sent = self.request(request, accept).send();
        let Ok(answer) = tokio::time::timeout(ANSWER_TIMEOUT, sent).await else {
            return Err(interrupted("no answer in time", true));
        };
        let answer = answer.map_err(failed)?;
        self.has_answered.store(true, Ordering::Relaxed);
        match answer.status() {
            StatusCode::NO_CONTENT => return Ok(StreamAnswer::Over),
            StatusCode::NOT_ACCEPTABLE => return Ok(StreamAnswer::NotOffered),
            StatusCode::OK => {
                let kind = answer.headers().get(header::CONTENT_TYPE);
                let is_stream =
                    kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
                return Ok(if is_stream {
                    StreamAnswer::Stream(EventBody(answer))
                } else {
                    StreamAnswer::NotOffered
                });
            }
            _ => {}
        }
        let Ok(answer) = tokio::time::timeout(ANSWER_TIMEOUT, read_whole(answer)).await else {
            return Err(interrupted("no answer in time", true));
        };
        judge(answer?)?;
        // Some other success: no gateway answers so, and polling finds out what it means.
        Ok(StreamAnswer::NotOffered)
    }

    fn request(&self, request: &Request, accept: HeaderValue) -> reqwest::RequestBuilder {
        let address = self.url.address(&request.target);
        let mut builder = self.http.request(request.method.clone(), address);
        builder = builder
            .header(VERSION, VERSION_SPOKEN)
            .header(header::ACCEPT, accept)
            .headers(request.headers.clone());
        if let Some(value) = &self.authorization {
            builder = builder.header(header::AUTHORIZATION, value.clone());
        }
        match &request.body {
            Some(body) => builder.body(body.clone()),
            // A POST without a body needs its length all the same (411).
            None if request.method == Method::POST => builder.header(header::CONTENT_LENGTH, 0),
            None => builder,
        }
    }
}

impl EventBody {
    /// What comes next.
    pub(super) async fn next(&mut self) -> Piece {
        match tokio::time::timeout(SILENCE_MAX, self.0.chunk()).await {
            Ok(Ok(Some(bytes))) => Piece::Bytes(bytes),
            Ok(Ok(None)) => Piece::End(None),
            Ok(Err(error)) => Piece::End(Some(error_chain(&error.without_url()))),
            Err(_elapsed) => Piece::Silence,
        }
    }
}

async fn read_whole(mut answer: reqwest::Response) -> Result<Answer, Failure> {
    let (status, headers) = (answer.status(), answer.headers().clone());
    let mut body = BytesMut::new();
    while let Some(piece) = answer.chunk().await.map_err(failed)? {
        if body.len().saturating_add(piece.len()) > ANSWER_BYTES_MAX {
            let text = format!("an answer is longer than {ANSWER_BYTES_MAX} bytes");
            return Err(Failure::Final(ClientError::Invalid(text)));
        }
        body.extend_from_slice(&piece);
    }
    Ok(Answer {
        status,
        headers,
        body: body.freeze(),
    })
}

/// Whether an answer is one that can be used, a refusal, or a reason to try again.
fn judge(answer: Answer) -> Result<Answer, Failure> {
    let status = answer.status;
    if status.is_success() || status == StatusCode::NOT_MODIFIED {
        return Ok(answer);
    }
    if status.is_redirection() || status.is_informational() {
        let text = format!("it answers {status}; name the URL of the gateway itself");
        return Err(Failure::Final(ClientError::Invalid(text)));
    }
    let refusal = Refusal::from_answer(status.as_u16(), &answer.body);
    let is_of_gateway = !refusal.code.is_empty();
    // Without a code it is a proxy that answers in place of a gateway that is being restarted.
    let is_temporary = match status {
        StatusCode::SERVICE_UNAVAILABLE => true,
        StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT => !is_of_gateway,
        _ => TEMPORARY.contains(&refusal.code.as_str()),
    };
    if !is_temporary {
        return Err(Failure::Final(ClientError::Refused(Box::new(refusal))));
    }
    Err(Failure::Temporary(Interruption {
        why: refusal.text.clone(),
        pause: answer.retry_after(),
        // A proxy may have passed the request on before it gave up.
        was_sent: !is_of_gateway,
        refusal: is_of_gateway.then(|| Box::new(refusal)),
    }))
}

pub(super) fn interrupted(why: &str, was_sent: bool) -> Failure {
    Failure::Temporary(Interruption {
        why: why.to_owned(),
        pause: None,
        was_sent,
        refusal: None,
    })
}

fn header_value(credential: &Credential) -> Result<HeaderValue, ClientError> {
    let mut value = HeaderValue::from_str(credential.value().reveal())
        .map_err(|error| ClientError::Usage(error_chain(&error)))?;
    value.set_sensitive(true);
    Ok(value)
}

/// A request or answer that broke off.
fn failed(error: reqwest::Error) -> Failure {
    let error = error.without_url();
    if error.is_builder() {
        return Failure::Final(ClientError::Usage(error_chain(&error)));
    }
    if let Some(why) = tls_problem(&error) {
        // Another try meets the same certificate.
        let why = format!("the TLS connection cannot be made: {why}");
        let was_sent = false;
        return Failure::Final(ClientError::Unreachable { why, was_sent });
    }
    interrupted(&error_chain(&error), !error.is_connect())
}

/// Why TLS ended the connection, where it was TLS that did, and what helps.
fn tls_problem(error: &(dyn StdError + 'static)) -> Option<String> {
    error_causes(error).find_map(|cause| match cause.downcast_ref() {
        Some(rustls::Error::InvalidCertificate(why)) => Some(format!(
            "{why}; name the authority that signed the server's certificate with --ca"
        )),
        Some(rustls::Error::AlertReceived(alert)) => {
            Some(format!("the server ended it ({alert:?})"))
        }
        Some(_) | None => None,
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;

    fn judged(status: u16, code: &str) -> &'static str {
        let body = if code.is_empty() {
            "<html>".to_owned()
        } else {
            format!(r#"{{"message":[{{"code":"{code}","text":"No."}}]}}"#)
        };
        let answer = Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: HeaderMap::new(),
            body: body.into(),
        };
        match judge(answer) {
            Ok(_) => "used",
            Err(Failure::Temporary(Interruption { was_sent: true, .. })) => {
                "again, perhaps received"
            }
            Err(Failure::Temporary(_)) => "again",
            Err(Failure::Final(ClientError::Refused(_))) => "refused",
            Err(Failure::Final(_)) => "no gateway",
        }
    }

    #[test]
    fn answers_are_used_refused_or_waited_through() {
        let rows = [
            (200, "", "used"),
            (202, "", "used"),
            (304, "", "used"),
            (301, "", "no gateway"),
            (401, "Unauthenticated", "refused"),
            (404, "", "refused"),
            (409, "Busy", "refused"),
            (429, "RateLimited", "again"),
            (429, "TooManyAtOnce", "again"),
            (429, "TooManyAttempts", "refused"),
            (500, "InternalError", "refused"),
            (502, "BackendFailed", "refused"),
            (502, "", "again, perhaps received"),
            (503, "Stopping", "again"),
            (503, "", "again, perhaps received"),
            (504, "BackendTimeout", "refused"),
            (504, "", "again, perhaps received"),
        ];
        for (status, code, expected) in rows {
            assert_eq!(judged(status, code), expected, "{status} {code}");
        }
    }
}
