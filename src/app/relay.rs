//! Hands requests to the active gateway over the peer channel.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use bytes::BytesMut;
use http::HeaderMap;
use http::HeaderName;
use http::Method;
use http::header;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio::time::sleep;
use tokio::time::timeout_at;

use crate::adapters::transport::BuildError;
use crate::adapters::transport::Call;
use crate::adapters::transport::Client;
use crate::adapters::transport::ClientIdentity;
use crate::adapters::transport::ClientSettings;
use crate::adapters::transport::Endpoint;
use crate::adapters::transport::StreamedReply;
use crate::adapters::transport::TransportError;
use crate::adapters::transport::Trust;
use crate::app::active::ActiveOperations;
use crate::app::envelope::ENVELOPE;
use crate::app::envelope::Envelope;
use crate::app::envelope::NOT_ACTIVE;
use crate::app::envelope::PATH;
use crate::cluster::ClusterView;
use crate::cluster::Leader;
use crate::config::PeerChannel;
use crate::gate::BodyStream;
use crate::gate::Relay;
use crate::gate::RelayAnswer;
use crate::gate::RelayFailure;
use crate::gate::RelayRequest;
use crate::model::Deadline;
use crate::runtime::Clock;
use crate::telemetry::Metrics;

/// How long a request waits for an active gateway that takes it: a handover takes less.
const HOLD: Duration = Duration::from_secs(3);
/// Pause between two tries.
const PAUSE: Duration = Duration::from_millis(50);
/// Time for connecting to a gateway, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Time for the whole of an answer, beyond the longest wait that a request may ask for.
const ANSWER_PATIENCE: Duration = Duration::from_secs(60);
/// How long the answer of a gateway is waited for that is no longer the active one.
const LAST_ANSWER_PATIENCE: Duration = Duration::from_secs(2);
/// Time between two pieces of an answer that is no stream.
const PIECE_PATIENCE: Duration = Duration::from_secs(30);
/// Largest body of an answer in bytes: a page of the longest list is smaller.
const BODY_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Header fields that concern one connection, or that the channel makes anew.
const OF_THE_CONNECTION: [HeaderName; 9] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::EXPECT,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
];

/// Hands requests to the active gateway.
#[derive(Debug)]
pub(crate) struct PeerRelay {
    channel: PeerChannel,
    view: watch::Receiver<ClusterView>,
    active: Arc<ActiveOperations>,
    /// How long a gateway that hangs may keep the lease.
    lease: Duration,
    longest_wait: Duration,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    /// The client of the gateway that was active last, by its address.
    client: Mutex<Option<(String, Client)>>,
}

/// Why one try brought no answer.
enum Miss {
    /// The gateway does not have the request.
    NotSent,
    /// It may have it.
    Unknown,
}

impl PeerRelay {
    /// Hands requests to the gateway that the view names.
    pub(crate) fn new(
        channel: PeerChannel,
        (view, active): (watch::Receiver<ClusterView>, Arc<ActiveOperations>),
        (lease, longest_wait): (Duration, Duration),
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            channel,
            view,
            active,
            lease,
            longest_wait,
            clock,
            metrics,
            client: Mutex::default(),
        }
    }

    /// The client of this gateway; connections are kept as long as it is the active one.
    fn client_of(&self, address: &str) -> Result<Client, BuildError> {
        let mut known = self.client.lock();
        if let Some((of, client)) = &*known
            && of == address
        {
            return Ok(client.clone());
        }
        let client = Client::new(ClientSettings {
            endpoint: Endpoint::Https {
                authority: address.to_owned(),
                trust: Trust::Authorities(self.channel.authorities.as_bytes().to_vec()),
                identity: Some(ClientIdentity {
                    certificates: self.channel.certificates.as_bytes().to_vec(),
                    key: self.channel.key.clone(),
                }),
            },
            connect_timeout: CONNECT_TIMEOUT,
            body_bytes_max: BODY_BYTES_MAX,
        })?;
        *known = Some((address.to_owned(), client.clone()));
        Ok(client)
    }

    /// The active gateway as soon as one is known.
    async fn find_leader(&self, until: Instant) -> Result<Leader, RelayFailure> {
        let mut view = self.view.clone();
        loop {
            if self.active.has_begun() {
                return Err(RelayFailure::Here);
            }
            if let ClusterView::Standby(leader) = &*view.borrow_and_update() {
                return Ok(leader.clone());
            }
            // The term of this gateway may begin without a change of the view.
            let changed = async {
                tokio::select! {
                    changed = view.changed() => changed.is_ok(),
                    () = sleep(PAUSE) => true,
                }
            };
            match timeout_at(until, changed).await {
                Ok(true) => {}
                Ok(false) | Err(_) => return Err(RelayFailure::NotSent),
            }
        }
    }

    /// One try. Given up when another gateway has become the active one.
    async fn ask(&self, leader: &Leader, request: &RelayRequest<'_>) -> Result<RelayAnswer, Miss> {
        let (Some(address), Some(envelope)) = (&leader.address, Envelope::of(request).to_value())
        else {
            return Err(Miss::NotSent);
        };
        let client = self.client_of(address).map_err(|error| {
            tracing::error!(%error, "no client for the active gateway");
            Miss::NotSent
        })?;
        let mut headers = without_connection(request.headers);
        headers.insert(ENVELOPE, envelope);
        let mut call = Call::new(request.method.clone(), &[])
            .with_raw_target(shown_target(request.target))
            .with_headers(headers);
        if let Some(body) = &request.body {
            call = call.with_body(body.to_vec());
        }
        let patience = self.longest_wait.saturating_add(ANSWER_PATIENCE);
        let by = self.clock.deadline(patience);
        let mut view = self.view.clone();
        view.mark_unchanged();
        let replaced = async {
            let changed = view.wait_for(|view| match view {
                ClusterView::Standby(now) => now.attempt != leader.attempt,
                ClusterView::Active => true,
                ClusterView::Vacant | ClusterView::Unknown => false,
            });
            // An error means that this gateway knows no more of its cluster, not that there is another leader.
            if changed.await.is_err() {
                std::future::pending::<()>().await;
            }
            // A gateway that stepped down answers what it has; one that died or hangs does not.
            sleep(LAST_ANSWER_PATIENCE).await;
        };
        let answer = tokio::select! {
            biased;
            answer = take_answer(&client, call, by) => answer,
            () = replaced => return Err(Miss::Unknown),
        };
        match answer {
            Ok(answer) if answer.headers.contains_key(NOT_ACTIVE) => Err(Miss::NotSent),
            Ok(answer) => Ok(answer),
            Err(error) => {
                tracing::info!(active = %leader.name, %error, "active gateway did not answer");
                Err(if error.was_sent() {
                    Miss::Unknown
                } else {
                    Miss::NotSent
                })
            }
        }
    }

    async fn relay_until_answered(
        &self,
        request: &RelayRequest<'_>,
    ) -> Result<RelayAnswer, RelayFailure> {
        // A key makes a change the same as a read: asking twice is asking once.
        let is_repeatable = request.method == Method::GET
            || request.method == Method::HEAD
            || request.headers.contains_key("idempotency-key");
        let begun = Instant::now();
        let held_until = begun.checked_add(HOLD).unwrap_or(begun);
        let bound = HOLD.saturating_add(self.lease);
        let mut until = held_until;
        let mut was_sent = false;
        loop {
            let leader = match self.find_leader(until).await {
                Ok(leader) => leader,
                Err(RelayFailure::NotSent) if was_sent => return Err(RelayFailure::Unknown),
                Err(failure) => return Err(failure),
            };
            match self.ask(&leader, request).await {
                Ok(answer) => return Ok(answer),
                Err(Miss::NotSent) => {}
                Err(Miss::Unknown) if is_repeatable => {
                    // It may be the end of that gateway, whose lease has to run out first.
                    until = begun.checked_add(bound).unwrap_or(begun);
                    was_sent = request.method != Method::GET && request.method != Method::HEAD;
                }
                Err(Miss::Unknown) => return Err(RelayFailure::Unknown),
            }
            if Instant::now() >= until {
                return Err(if was_sent {
                    RelayFailure::Unknown
                } else {
                    RelayFailure::NotSent
                });
            }
            sleep(PAUSE).await;
        }
    }
}

#[async_trait]
impl Relay for PeerRelay {
    async fn relay(&self, request: &RelayRequest<'_>) -> Result<RelayAnswer, RelayFailure> {
        let result = self.relay_until_answered(request).await;
        self.metrics.cluster.record_relayed(match &result {
            Ok(_) => "answered",
            Err(RelayFailure::Here) => "here",
            Err(RelayFailure::NotSent) => "not-sent",
            Err(RelayFailure::Unknown) => "unknown",
        });
        result
    }
}

/// The target on the channel, for the log there alone: what counts is in the envelope.
fn shown_target(target: &[u8]) -> &str {
    let text = str::from_utf8(target).ok();
    let is_plain = |text: &&str| {
        text.starts_with('/')
            && text
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && byte != b'#')
    };
    text.filter(is_plain).unwrap_or(PATH)
}

/// The header fields without those of the connection, and those that its `Connection` names.
fn without_connection(headers: &HeaderMap) -> HeaderMap {
    let mut kept = headers.clone();
    for value in headers.get_all(header::CONNECTION) {
        let named = value.to_str().unwrap_or_default().split(',');
        for name in named.filter_map(|name| name.trim().parse::<HeaderName>().ok()) {
            kept.remove(name);
        }
    }
    for name in OF_THE_CONNECTION {
        kept.remove(name);
    }
    kept
}

/// The answer as it is handed to the client: whole, unless it is a stream of events.
async fn take_answer(
    client: &Client,
    call: Call<'_>,
    by: Deadline,
) -> Result<RelayAnswer, TransportError> {
    let mut reply = client.begin(call, by).await?;
    let content_length = reply.headers.get(header::CONTENT_LENGTH).cloned();
    let mut headers = without_connection(&reply.headers);
    if let Some(length) = content_length {
        headers.insert(header::CONTENT_LENGTH, length);
    }
    let content_type = headers.get(header::CONTENT_TYPE);
    let is_stream =
        content_type.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
    let status = reply.status;
    if is_stream {
        let pieces: Box<dyn BodyStream> = Box::new(RelayedPieces(Some(reply)));
        return Ok(RelayAnswer {
            status,
            headers,
            body: Bytes::new(),
            pieces: Some(pieces),
        });
    }
    let mut body = BytesMut::new();
    loop {
        let piece = tokio::time::timeout(PIECE_PATIENCE, reply.next()).await;
        let Some(piece) = piece.map_err(|_elapsed| TransportError::TimedOut)?? else {
            break;
        };
        if body.len().saturating_add(piece.len()) > BODY_BYTES_MAX {
            return Err(TransportError::TooLarge(BODY_BYTES_MAX));
        }
        body.extend_from_slice(&piece);
    }
    Ok(RelayAnswer {
        status,
        headers,
        body: body.freeze(),
        pieces: None,
    })
}

/// A stream of events of the active gateway. It ends when that gateway ends it or is lost; the client goes on with `Last-Event-ID`.
#[derive(Debug)]
struct RelayedPieces(Option<StreamedReply>);

#[async_trait]
impl BodyStream for RelayedPieces {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            match self.0.as_mut()?.next().await {
                Ok(Some(piece)) if piece.is_empty() => {}
                Ok(Some(piece)) => return Some(piece),
                Ok(None) | Err(_) => self.0 = None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn the_log_of_the_active_gateway_shows_targets_that_can_be_sent() {
        let rows: [(&[u8], &str); 5] = [
            (b"/vms/1?limit=2", "/vms/1?limit=2"),
            (b"http://host/vms", PATH),
            (b"/vms/\xff", PATH),
            (b"/a b", PATH),
            (b"*", PATH),
        ];
        for (target, expected) in rows {
            assert_eq!(shown_target(target), expected, "{target:?}");
        }
    }

    #[test]
    fn fields_of_the_connection_stay_behind() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "x-hop, close"),
            ("x-hop", "1"),
            ("te", "trailers"),
            ("content-length", "5"),
            ("accept", "a/b"),
            ("x-forwarded-for", "203.0.113.9"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        headers.append("accept", HeaderValue::from_static("c/d"));
        let kept = without_connection(&headers);
        let mut names: Vec<&str> = kept.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            ["accept", "accept", "x-forwarded-for"],
            "in order, repeated"
        );
    }
}
