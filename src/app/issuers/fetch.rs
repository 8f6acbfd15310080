//! One fetch of one key set, bounded in time and size.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::HeaderMap;
use http::HeaderValue;
use http::Method;
use http::StatusCode;
use http::header;

use crate::adapters::transport::Call;
use crate::adapters::transport::Client;
use crate::adapters::transport::TransportError;
use crate::config::KeySource;
use crate::gate::KeySet;
use crate::model::limits;
use crate::runtime::Clock;

/// A set as it was fetched.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) keys: KeySet,
    /// How long the answer says that it counts as new.
    pub(super) max_age: Option<Duration>,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    /// No answer came.
    #[error("{0}")]
    Transport(#[from] TransportError),
    /// The client could not be made: its certificates were good when the configuration was read.
    #[error("{0}")]
    Client(String),
    /// The answer is another one than 200.
    #[error("status {0}")]
    Status(StatusCode),
    /// The answer holds no set that can be used.
    #[error("the answer {0}")]
    Set(String),
}

impl FetchError {
    /// A word for metrics.
    pub(super) const fn kind(&self) -> &'static str {
        match self {
            Self::Transport(TransportError::TooLarge(_)) | Self::Set(_) => "unusable",
            Self::Transport(_) | Self::Client(_) => "no_answer",
            Self::Status(_) => "status",
        }
    }

    /// For the operator, with the remedy where there is one.
    pub(super) fn message(&self) -> String {
        match self {
            Self::Status(status) if status.is_redirection() => {
                format!("{self}: redirects are not followed, name the address it leads to")
            }
            Self::Transport(TransportError::Untrusted(_)) => {
                format!("{self}: name the authority that signed it as jwks_ca")
            }
            Self::Transport(_) | Self::Client(_) | Self::Status(_) | Self::Set(_) => {
                self.to_string()
            }
        }
    }
}

/// Where a set comes from.
#[async_trait]
pub(super) trait Fetch: Send + Sync {
    /// Fetches it once.
    async fn fetch(&self) -> Result<Fetched, FetchError>;
}

/// A server that is asked by HTTP.
pub(super) struct Remote {
    client: Result<Client, String>,
    target: String,
    clock: Arc<dyn Clock>,
}

impl Remote {
    pub(super) fn new(source: &KeySource, clock: Arc<dyn Clock>) -> Self {
        Self {
            client: source.endpoint.client().map_err(|error| error.to_string()),
            target: source.target.clone(),
            clock,
        }
    }
}

#[async_trait]
impl Fetch for Remote {
    async fn fetch(&self) -> Result<Fetched, FetchError> {
        let client = self.client.as_ref();
        let client = client.map_err(|error| FetchError::Client(error.clone()))?;
        let call = Call::new(Method::GET, &[])
            .with_raw_target(&self.target)
            .header(header::ACCEPT, HeaderValue::from_static(TAKEN))
            .header(header::USER_AGENT, HeaderValue::from_static("snapgate"));
        let by = self.clock.deadline(limits::ISSUER_FETCH_TIMEOUT);
        let reply = client.call(call, by).await?;
        if reply.status != StatusCode::OK {
            return Err(FetchError::Status(reply.status));
        }
        let text = std::str::from_utf8(&reply.body);
        let text = text.map_err(|_not_utf8| FetchError::Set("is not UTF-8 text".to_owned()))?;
        Ok(Fetched {
            keys: KeySet::parse(text).map_err(FetchError::Set)?,
            max_age: max_age(&reply.headers),
        })
    }
}

/// The media types of key sets (RFC 7517, section 8.5).
const TAKEN: &str = "application/jwk-set+json, application/json";

/// The `max-age` of Cache-Control (RFC 9111, section 5.2.2.1); `None` where there is none that is a number.
pub(super) fn max_age(headers: &HeaderMap) -> Option<Duration> {
    let all = headers.get_all(header::CACHE_CONTROL).iter();
    let mut all = all
        .filter_map(|header| header.to_str().ok())
        .flat_map(|text| text.split(','));
    all.find_map(|directive| {
        let (name, value) = directive.trim().split_once('=')?;
        let seconds = name.eq_ignore_ascii_case("max-age").then_some(value)?;
        seconds
            .trim_matches('"')
            .parse()
            .ok()
            .map(Duration::from_secs)
    })
}

/// Fetches the keys of an issuer once and describes the result, for `snapgate check --probe`.
///
/// # Errors
/// The reason, for the operator, why no keys could be fetched.
pub(crate) async fn look(source: &KeySource, clock: &Arc<dyn Clock>) -> Result<String, String> {
    let found = Remote::new(source, Arc::clone(clock)).fetch().await;
    let name = &source.issuer;
    match found {
        Ok(fetched) => {
            let keys = match fetched.keys.len() {
                1 => "1 key".to_owned(),
                many => format!("{many} keys"),
            };
            Ok(format!(
                "issuer {name}: {keys} from {}",
                source.display_url()
            ))
        }
        Err(error) => Err(format!(
            "issuer {name}: no keys from {}: {}",
            source.display_url(),
            error.message()
        )),
    }
}
