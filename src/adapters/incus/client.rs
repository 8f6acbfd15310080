//! The native calls, each for one project.

use std::collections::BTreeMap;

use http::HeaderValue;
use http::Method;
use http::header::ETAG;
use http::header::IF_MATCH;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::json;

use crate::adapters::incus::error::NativeError;
use crate::adapters::incus::map;
use crate::adapters::incus::wire;
use crate::adapters::transport::Call;
use crate::adapters::transport::Client;
use crate::model::Deadline;

/// The expiry of snapshots that the daemon never removes by itself.
pub(super) const NEVER: &str = "0001-01-01T00:00:00Z";

/// The volume of an instance's root disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct VolumePath {
    /// The pool it lies in.
    pub(super) pool: String,
    /// `container` or `virtual-machine`.
    pub(super) kind: String,
    /// The instance.
    pub(super) vm: String,
}

/// What became of a call that changes something.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// It is done.
    Done,
    /// This operation was begun.
    Operation(String),
}

/// The native calls, each for one project.
#[derive(Debug)]
pub(super) struct Api {
    http: Client,
    project: String,
}

type Answer<T> = Result<T, NativeError>;

impl Api {
    pub(super) const fn new(http: Client, project: String) -> Self {
        Self { http, project }
    }

    pub(super) async fn server(&self, by: Deadline) -> Answer<wire::Server> {
        read(self.ask(Method::GET, &["1.0"], &[], None, by).await?.0)
    }

    pub(super) async fn instance(&self, vm: &str, by: Deadline) -> Answer<wire::Instance> {
        self.look(&["1.0", "instances", vm], false, by).await
    }

    /// An instance, and the tag by which a later change of it is noticed.
    pub(super) async fn tagged_instance(
        &self,
        vm: &str,
        by: Deadline,
    ) -> Answer<(wire::Instance, Option<HeaderValue>)> {
        let path = ["1.0", "instances", vm];
        let (envelope, etag) = self.ask(Method::GET, &path, &[], None, by).await?;
        Ok((read(envelope)?, etag))
    }

    /// A storage pool.
    pub(super) async fn pool(&self, name: &str, by: Deadline) -> Answer<wire::Pool> {
        self.look(&["1.0", "storage-pools", name], false, by).await
    }

    /// Has the daemon read a file from the storage of the instance, which fails where that storage cannot be mounted.
    pub(super) async fn read_storage(&self, vm: &str, by: Deadline) -> Answer<()> {
        let path = ["1.0", "instances", vm, "metadata"];
        self.ask(Method::GET, &path, &[], None, by)
            .await
            .map(|_metadata| ())
    }

    /// Sets the time at which the daemon removes a snapshot by itself.
    pub(super) async fn set_expiry(
        &self,
        vm: &str,
        snapshot: &str,
        at: &str,
        by: Deadline,
    ) -> Answer<Sent> {
        let path = ["1.0", "instances", vm, "snapshots", snapshot];
        let body = json!({ "expires_at": at });
        self.change(Method::PUT, &path, Some(&body), by).await
    }

    pub(super) async fn snapshots(&self, vm: &str, by: Deadline) -> Answer<Vec<wire::Snapshot>> {
        self.look(&["1.0", "instances", vm, "snapshots"], true, by)
            .await
    }

    pub(super) async fn snapshot(
        &self,
        vm: &str,
        snapshot: &str,
        by: Deadline,
    ) -> Answer<Option<wire::Snapshot>> {
        let path = ["1.0", "instances", vm, "snapshots", snapshot];
        optional(self.look(&path, false, by).await)
    }

    pub(super) async fn volumes(&self, of: &VolumePath, by: Deadline) -> Answer<Vec<wire::Volume>> {
        let path = [
            "1.0",
            "storage-pools",
            &of.pool,
            "volumes",
            &of.kind,
            &of.vm,
            "snapshots",
        ];
        self.look(&path, true, by).await
    }

    /// The volume of one snapshot, and the tag by which a later change of it is noticed.
    pub(super) async fn volume(
        &self,
        of: &VolumePath,
        snapshot: &str,
        by: Deadline,
    ) -> Answer<Option<(wire::Volume, Option<HeaderValue>)>> {
        let path = volume_path(of, snapshot);
        let answer = self.ask(Method::GET, &path, &[], None, by).await;
        let Some((envelope, etag)) = optional(answer)? else {
            return Ok(None);
        };
        Ok(Some((read(envelope)?, etag)))
    }

    /// Replaces the description of the volume of one snapshot, unless it was changed since the tag was read.
    pub(super) async fn describe(
        &self,
        of: &VolumePath,
        snapshot: &str,
        description: &str,
        etag: Option<HeaderValue>,
        by: Deadline,
    ) -> Answer<Sent> {
        let path = volume_path(of, snapshot);
        let query = [("project", self.project.as_str())];
        let mut call = Call::new(Method::PUT, &path).query(&query).json(
            json!({ "description": description })
                .to_string()
                .into_bytes(),
        );
        if let Some(etag) = etag {
            call = call.header(IF_MATCH, etag);
        }
        sent(&self.send(call, by).await?.0)
    }

    /// Sets one key of the configuration of an instance.
    pub(super) async fn configure(
        &self,
        vm: &str,
        key: &str,
        value: &str,
        by: Deadline,
    ) -> Answer<Sent> {
        let body = json!({ "config": { key: value } });
        self.change(Method::PATCH, &["1.0", "instances", vm], Some(&body), by)
            .await
    }

    pub(super) async fn create(&self, vm: &str, snapshot: &str, by: Deadline) -> Answer<Sent> {
        let path = ["1.0", "instances", vm, "snapshots"];
        // Without an expiry of its own the snapshot would get the one of `snapshots.expiry`.
        let body = json!({ "name": snapshot, "stateful": false, "expires_at": NEVER });
        self.change(Method::POST, &path, Some(&body), by).await
    }

    pub(super) async fn delete(&self, vm: &str, snapshot: &str, by: Deadline) -> Answer<Sent> {
        let path = ["1.0", "instances", vm, "snapshots", snapshot];
        self.change(Method::DELETE, &path, None, by).await
    }

    /// Restores an instance, unless its configuration was changed since the tag was read. Without the name of a snapshot
    /// the same call would wipe the instance's configuration, so the name is checked here once more.
    pub(super) async fn restore(
        &self,
        vm: &str,
        snapshot: &str,
        stateful: bool,
        etag: Option<HeaderValue>,
        by: Deadline,
    ) -> Answer<Sent> {
        if !map::is_strict(snapshot) {
            return Err(NativeError::Refused {
                code: 400,
                text: "not the name of a snapshot".to_owned(),
            });
        }
        let body = if stateful {
            json!({ "restore": snapshot, "stateful": true })
        } else {
            json!({ "restore": snapshot })
        };
        let query = [("project", self.project.as_str())];
        let path = ["1.0", "instances", vm];
        let mut call = Call::new(Method::PUT, &path)
            .query(&query)
            .json(body.to_string().into_bytes());
        if let Some(etag) = etag {
            call = call.header(IF_MATCH, etag);
        }
        sent(&self.send(call, by).await?.0)
    }

    /// Every operation of the project that is still known, running or not.
    pub(super) async fn operations(&self, by: Deadline) -> Answer<Vec<wire::Task>> {
        let all: Option<BTreeMap<String, Vec<wire::Task>>> =
            self.look(&["1.0", "operations"], true, by).await?;
        Ok(all.unwrap_or_default().into_values().flatten().collect())
    }

    /// One operation; `None` some seconds after it ended.
    pub(super) async fn operation(&self, id: &str, by: Deadline) -> Answer<Option<wire::Task>> {
        let path = ["1.0", "operations", id];
        let answer = optional(self.ask(Method::GET, &path, &[], None, by).await)?;
        answer.map(|(envelope, _)| read(envelope)).transpose()
    }

    /// Returns when the operation ended, after so many seconds, or when it cannot be waited for. What is answered
    /// differs from version to version, so that it is not looked at.
    pub(super) async fn wait(&self, id: &str, seconds: &str, by: Deadline) -> Answer<()> {
        let path = ["1.0", "operations", id, "wait"];
        match self
            .ask(Method::GET, &path, &[("timeout", seconds)], None, by)
            .await
        {
            Ok(_) | Err(NativeError::Refused { .. }) => Ok(()),
            Err(error @ (NativeError::Transport(_) | NativeError::Nonsense(_))) => Err(error),
        }
    }

    async fn look<T: DeserializeOwned>(
        &self,
        path: &[&str],
        recursive: bool,
        by: Deadline,
    ) -> Answer<T> {
        let recursion: &[(&str, &str)] = if recursive {
            &[("recursion", "1")]
        } else {
            &[]
        };
        read(self.ask(Method::GET, path, recursion, None, by).await?.0)
    }

    async fn change(
        &self,
        method: Method,
        path: &[&str],
        body: Option<&Value>,
        by: Deadline,
    ) -> Answer<Sent> {
        sent(&self.ask(method, path, &[], body, by).await?.0)
    }

    async fn ask(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
        body: Option<&Value>,
        by: Deadline,
    ) -> Answer<(wire::Envelope, Option<HeaderValue>)> {
        let mut all = vec![("project", self.project.as_str())];
        all.extend(query);
        let mut call = Call::new(method, path).query(&all);
        if let Some(body) = body {
            call = call.json(body.to_string().into_bytes());
        }
        self.send(call, by).await
    }

    async fn send(
        &self,
        call: Call<'_>,
        by: Deadline,
    ) -> Answer<(wire::Envelope, Option<HeaderValue>)> {
        let reply = self.http.call(call, by).await?;
        let envelope: wire::Envelope = serde_json::from_slice(&reply.body).map_err(|error| {
            NativeError::Nonsense(format!("HTTP status {}: {error}", reply.status.as_u16()))
        })?;
        match envelope.kind {
            wire::Kind::Sync | wire::Kind::Async => {
                Ok((envelope, reply.headers.get(ETAG).cloned()))
            }
            wire::Kind::Error => Err(NativeError::Refused {
                code: envelope.error_code,
                text: envelope.error,
            }),
        }
    }
}

fn volume_path<'a>(of: &'a VolumePath, snapshot: &'a str) -> [&'a str; 8] {
    [
        "1.0",
        "storage-pools",
        &of.pool,
        "volumes",
        &of.kind,
        &of.vm,
        "snapshots",
        snapshot,
    ]
}

fn read<T: DeserializeOwned>(envelope: wire::Envelope) -> Answer<T> {
    serde_json::from_value(envelope.metadata)
        .map_err(|error| NativeError::Nonsense(error.to_string()))
}

fn optional<T>(answer: Answer<T>) -> Answer<Option<T>> {
    match answer {
        Ok(it) => Ok(Some(it)),
        Err(error) if error.is_missing() => Ok(None),
        Err(error) => Err(error),
    }
}

fn sent(envelope: &wire::Envelope) -> Answer<Sent> {
    match envelope.kind {
        wire::Kind::Sync => Ok(Sent::Done),
        wire::Kind::Async | wire::Kind::Error => map::operation_id(&envelope.operation)
            .map(|id| Sent::Operation(id.to_owned()))
            .ok_or_else(|| NativeError::Nonsense(format!("operation {:?}", envelope.operation))),
    }
}
