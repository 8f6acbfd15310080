//! Requests to the members of one etcd cluster.
//!
//! Each endpoint has a client of its own, because the balancing channel of the library goes on asking a member that is down.
//! All requests go to one endpoint until it fails, and then to the next at once. What certainly was not applied is repeated
//! there, and so is a read; a write that may have been applied is not.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use etcd_client::Certificate;
use etcd_client::Client;
use etcd_client::ConnectOptions;
use etcd_client::Error as ClientError;
use etcd_client::GetOptions;
use etcd_client::GetResponse;
use etcd_client::KvClient;
use etcd_client::TlsOptions;
use etcd_client::Txn;
use etcd_client::TxnResponse;
use etcd_client::WatchOptions;
use etcd_client::WatchStream;
use tokio::runtime::Handle;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio::time::sleep;
use tokio::time::timeout;

use crate::etcd::config::Config;
use crate::etcd::error::EtcdError;
use crate::etcd::remedy::Access;
use crate::runtime::Tasks;

/// Time for one request on one endpoint, the connection included. A cluster that works answers within milliseconds.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);
/// Time for the connection alone, so that a request which was not sent is known as such.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(600);
/// How long a request that was not applied is repeated: longer than the election of a leader.
const REPEAT_FOR: Duration = Duration::from_secs(3);
/// Pause before all endpoints are asked again.
const PAUSE: Duration = Duration::from_millis(100);
/// etcd closes connections that ask for signs of life more often than every 5 s.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(6);
/// How long such a sign may take.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(3);

/// Largest answer in bytes: some hundred records, each with all that an adapter may have noted.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Whether a request that may have been applied can be repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    /// It reads, or doing it twice is the same as doing it once.
    Repeatable,
    /// It writes.
    Once,
}

/// One endpoint and its client.
struct Member {
    endpoint: String,
    options: ConnectOptions,
    /// Made when it is first needed, and again after a failure. Counted, so that a failure discards its own client alone.
    client: Mutex<Option<(u64, Client)>>,
}

/// The state of one member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its endpoint.
    pub endpoint: String,
    /// Its version, such as `3.5.21`.
    pub version: String,
    /// Bytes of its database, freed ones included: what the quota is compared with.
    pub database_bytes: u64,
    /// Whether the cluster has a leader that it knows.
    pub has_leader: bool,
}

/// A connection to one cluster. Clones share it.
#[derive(Clone)]
pub struct Connection(Arc<Members>);

struct Members {
    all: Vec<Member>,
    /// The index of the endpoint that is asked.
    current: AtomicUsize,
    /// The index of the endpoint that answered last.
    answered: AtomicUsize,
    clients_made: AtomicU64,
    access: Access,
    tasks: Tasks,
    runtime: Option<Handle>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let endpoints = self.0.all.iter().map(|member| &member.endpoint);
        f.debug_list().entries(endpoints).finish()
    }
}

impl Connection {
    /// A connection with these settings; connects to nothing yet.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let member = |endpoint: &String| Member {
            endpoint: endpoint.clone(),
            options: options(config, endpoint),
            client: Mutex::default(),
        };
        Self(Arc::new(Members {
            all: config.endpoints.iter().map(member).collect(),
            current: AtomicUsize::new(0),
            answered: AtomicUsize::new(0),
            clients_made: AtomicU64::new(0),
            access: Access::new(config),
            tasks: Tasks::default(),
            runtime: Handle::try_current().ok(),
        }))
    }

    /// Reads keys; the answer is that of a majority of the cluster.
    ///
    /// # Errors
    /// [`EtcdError`], never [`EtcdError::LeaseExpired`].
    pub async fn read(
        &self,
        key: impl Into<Vec<u8>>,
        read_options: Option<GetOptions>,
    ) -> Result<GetResponse, EtcdError> {
        let key = key.into();
        self.run(Effect::Repeatable, |client| {
            let (key, read_options) = (key.clone(), read_options.clone());
            async move { large(&client).get(key, read_options).await }
        })
        .await
    }

    /// Runs a transaction that only reads, as of one moment.
    ///
    /// # Errors
    /// [`EtcdError`], never [`EtcdError::LeaseExpired`].
    pub async fn read_together(&self, transaction: Txn) -> Result<TxnResponse, EtcdError> {
        self.run(Effect::Repeatable, |client| {
            let transaction = transaction.clone();
            async move { large(&client).txn(transaction).await }
        })
        .await
    }

    /// Runs a transaction that writes. Never repeated once it may have been applied.
    ///
    /// # Errors
    /// [`EtcdError::Unknown`] when it may have been applied, or may still be; otherwise it was not.
    pub async fn write(&self, transaction: Txn) -> Result<TxnResponse, EtcdError> {
        self.run(Effect::Once, |mut client| {
            let transaction = transaction.clone();
            async move { client.txn(transaction).await }
        })
        .await
    }

    /// Makes a lease. One that was made twice because an answer was lost expires by itself.
    ///
    /// # Errors
    /// [`EtcdError`].
    pub async fn grant_lease(&self, lifetime: Duration) -> Result<i64, EtcdError> {
        let seconds = i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX);
        let granted = self
            .run(Effect::Repeatable, |mut client| async move {
                client.lease_grant(seconds, None).await
            })
            .await?;
        Ok(granted.id())
    }

    /// Lets a lease begin anew, once.
    ///
    /// # Errors
    /// [`EtcdError::LeaseExpired`] when it is gone for good.
    pub async fn renew_lease(&self, lease: i64) -> Result<(), EtcdError> {
        self.run(Effect::Repeatable, |mut client| async move {
            client.lease_keep_alive(lease).await.map(|_streams| ())
        })
        .await
    }

    /// Ends a lease and removes its keys.
    ///
    /// # Errors
    /// [`EtcdError::LeaseExpired`] when it is gone already.
    pub async fn revoke_lease(&self, lease: i64) -> Result<(), EtcdError> {
        self.run(Effect::Repeatable, |mut client| async move {
            client.lease_revoke(lease).await.map(|_revoked| ())
        })
        .await
    }

    /// Follows all keys that begin with this, from a revision on, which is included.
    ///
    /// The stream ends with an error when its endpoint fails; the caller goes on at the revision after the last it has seen.
    ///
    /// # Errors
    /// [`EtcdError`].
    pub async fn watch(
        &self,
        prefix: impl Into<Vec<u8>>,
        from: i64,
    ) -> Result<WatchStream, EtcdError> {
        let prefix = prefix.into();
        self.run(Effect::Repeatable, |mut client| {
            let prefix = prefix.clone();
            let watch_options = WatchOptions::new()
                .with_prefix()
                .with_start_revision(from)
                .with_progress_notify();
            async move { client.watch(prefix, Some(watch_options)).await }
        })
        .await
    }

    /// The error as a sentence for an operator, with what to do about it where that is known.
    #[must_use]
    pub fn explain(&self, error: &EtcdError) -> String {
        let text = match error {
            EtcdError::Unknown(text) => format!("no answer: {text}"),
            EtcdError::NotConnected(_)
            | EtcdError::Unavailable(_)
            | EtcdError::NoSpace(_)
            | EtcdError::Refused(_)
            | EtcdError::Compacted
            | EtcdError::LeaseExpired => error.to_string(),
        };
        match self.0.access.remedy(error) {
            Some(remedy) => format!("{text}; {remedy}"),
            None => text,
        }
    }

    /// Asks each member alone; in the order of the endpoints.
    pub async fn member_statuses(&self) -> Vec<(String, Result<MemberStatus, EtcdError>)> {
        let mut found = Vec::new();
        for (index, member) in self.0.all.iter().enumerate() {
            let status = self
                .ask(
                    index,
                    &|mut client: Client| async move { client.status().await },
                )
                .await;
            let status = status.map(|status| MemberStatus {
                endpoint: member.endpoint.clone(),
                version: status.version().to_owned(),
                database_bytes: u64::try_from(status.db_size()).unwrap_or_default(),
                has_leader: status.leader() != 0,
            });
            found.push((member.endpoint.clone(), status));
        }
        found
    }

    /// Runs a request until it was applied, may have been applied, or was refused for long enough.
    async fn run<T, R>(&self, effect: Effect, request: impl Fn(Client) -> R) -> Result<T, EtcdError>
    where
        R: Future<Output = Result<T, ClientError>>,
    {
        let give_up = Instant::now().checked_add(REPEAT_FOR);
        loop {
            for _ in &self.0.all {
                let index = self.0.current.load(Ordering::Relaxed);
                let error = match self.ask(index, &request).await {
                    Ok(answer) => {
                        self.report_answer(index);
                        return Ok(answer);
                    }
                    Err(error) => error,
                };
                if error.is_of_endpoint() {
                    self.leave(index);
                }
                let may_repeat = error.may_be_repeated()
                    || (effect == Effect::Repeatable && error.is_of_endpoint());
                if !may_repeat || give_up.is_none_or(|end| Instant::now() >= end) {
                    return Err(error);
                }
            }
            sleep(PAUSE).await;
        }
    }

    /// One attempt on one endpoint.
    async fn ask<T, R>(&self, index: usize, request: &impl Fn(Client) -> R) -> Result<T, EtcdError>
    where
        R: Future<Output = Result<T, ClientError>>,
    {
        let Some(member) = self.0.all.get(index) else {
            return Err(EtcdError::NotConnected("no endpoint".to_owned()));
        };
        let connected = timeout(REQUEST_TIMEOUT, self.client_of(member)).await;
        let (number, client) = connected.unwrap_or_else(|_elapsed| {
            let text = format!("{}: no connection in time", member.endpoint);
            Err(EtcdError::NotConnected(text))
        })?;
        let answer = match timeout(REQUEST_TIMEOUT, request(client)).await {
            Ok(answer) => answer.map_err(EtcdError::from),
            Err(_elapsed) => {
                let text = format!("{}: no answer in time", member.endpoint);
                Err(EtcdError::Unknown(text))
            }
        };
        if answer.as_ref().is_err_and(EtcdError::is_of_endpoint) {
            let mut client = member.client.lock().await;
            if client.as_ref().is_some_and(|(made, _)| *made == number) {
                *client = None;
            }
        }
        answer
    }

    async fn client_of(&self, member: &Member) -> Result<(u64, Client), EtcdError> {
        let mut client = member.client.lock().await;
        if let Some(made) = &*client {
            return Ok(made.clone());
        }
        let endpoint = [member.endpoint.clone()];
        let options = Some(member.options.clone());
        let connecting = async move { Client::connect(endpoint, options).await };
        // On the runtime of the gateway: the client has a task, and the runtime of a request may end before the client.
        let connecting = {
            let _runtime = self.0.runtime.as_ref().map(Handle::enter);
            self.0.tasks.spawn(connecting)
        };
        let made = match connecting.await {
            Ok(made) => made,
            Err(error) => return Err(EtcdError::NotConnected(error.to_string())),
        };
        // With credentials this sends them, and nothing else.
        let made = made.map_err(|error| {
            let error = EtcdError::from(error);
            if let EtcdError::Unknown(text) = error {
                return EtcdError::NotConnected(text);
            }
            error
        })?;
        let number = self.0.clients_made.fetch_add(1, Ordering::Relaxed);
        *client = Some((number, made.clone()));
        Ok((number, made))
    }

    /// Turns to the next endpoint, unless someone else did.
    fn leave(&self, index: usize) {
        let next = index
            .checked_add(1)
            .and_then(|next| next.checked_rem(self.0.all.len()))
            .unwrap_or_default();
        let order = Ordering::Relaxed;
        // When it fails, another request has left this endpoint already.
        let left = self.0.current.compare_exchange(index, next, order, order);
        tracing::debug!(endpoint = index, first = left.is_ok(), "etcd endpoint left");
    }

    /// Logs that another endpoint answers than before: once, however many were tried in between.
    fn report_answer(&self, index: usize) {
        let before = self.0.answered.swap(index, Ordering::Relaxed);
        if before != index {
            let endpoint = |at: usize| self.0.all.get(at).map(|member| member.endpoint.as_str());
            let (from, to) = (endpoint(before), endpoint(index));
            tracing::info!(from, to, "etcd endpoint changed");
        }
    }
}

/// For answers with many records.
fn large(client: &Client) -> KvClient {
    client
        .kv_client()
        .max_decoding_message_size(ANSWER_BYTES_MAX)
}

fn options(config: &Config, endpoint: &str) -> ConnectOptions {
    let mut made = ConnectOptions::new()
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_keep_alive(KEEP_ALIVE_EVERY, KEEP_ALIVE_TIMEOUT)
        .with_require_leader(true)
        .with_auto_token_refresh(true);
    if let Some(credentials) = &config.credentials {
        made = made.with_user(&*credentials.username, credentials.password.reveal());
    }
    if endpoint.starts_with("https://") {
        let mut tls = TlsOptions::new().domain_name(host_of(endpoint));
        if let Some(authorities) = &config.authorities {
            tls = tls.ca_certificate(Certificate::from_pem(authorities.as_bytes()));
        }
        if let Some(identity) = &config.identity {
            tls = tls.identity(etcd_client::Identity::from_pem(
                identity.certificates.as_bytes(),
                identity.key.reveal(),
            ));
        }
        made = made.with_tls(tls);
    }
    made
}

/// The name that the certificate must have: the host of the endpoint, without the brackets of an IPv6 address.
fn host_of(endpoint: &str) -> String {
    let uri: Result<http::Uri, _> = endpoint.parse();
    let host = uri.ok().and_then(|uri| uri.host().map(str::to_owned));
    let host = host.unwrap_or_default();
    host.trim_matches(['[', ']']).to_owned()
}
