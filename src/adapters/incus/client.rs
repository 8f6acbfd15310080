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
use crate::adapters::incus::names;
use crate::adapters::incus::names::VolumePath;
use crate::adapters::incus::wire;
use crate::adapters::transport::Call;
use crate::adapters::transport::Client;
use crate::adapters::transport::TransportError;
use crate::model::Deadline;

/// The expiry of snapshots that the daemon never removes by itself.
pub(super) const NEVER: &str = "0001-01-01T00:00:00Z";

/// What became of a call that changes something.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum AcceptedChange {
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

type NativeResult<T> = Result<T, NativeError>;

impl Api {
    pub(super) const fn new(http: Client, project: String) -> Self {
        Self { http, project }
    }

    pub(super) async fn server(&self, by: Deadline) -> NativeResult<wire::Server> {
        parse_metadata(self.ask(Method::GET, &["1.0"], &[], None, by).await?.0)
    }

    pub(super) async fn instance(&self, vm: &str, by: Deadline) -> NativeResult<wire::Instance> {
        self.read_as(&["1.0", "instances", vm], false, by).await
    }

    /// Every instance of the project with its status; without it where there are so many that their descriptions are too large.
    pub(super) async fn instances(&self, by: Deadline) -> NativeResult<Vec<wire::ListedInstance>> {
        let path = ["1.0", "instances"];
        match self.read_as(&path, true, by).await {
            Err(NativeError::Transport(TransportError::TooLarge(_))) => {}
            other => return other,
        }
        let links: Vec<String> = self.read_as(&path, false, by).await?;
        let name = |link: &String| {
            let path = link.split('?').next().unwrap_or_default();
            wire::ListedInstance {
                name: names::last_segment(path).to_owned(),
                status: String::new(),
            }
        };
        Ok(links.iter().map(name).collect())
    }

    /// An instance, and the tag by which a later change of it is noticed.
    pub(super) async fn tagged_instance(
        &self,
        vm: &str,
        by: Deadline,
    ) -> NativeResult<(wire::Instance, Option<HeaderValue>)> {
        let path = ["1.0", "instances", vm];
        let (envelope, etag) = self.ask(Method::GET, &path, &[], None, by).await?;
        Ok((parse_metadata(envelope)?, etag))
    }

    /// A storage pool.
    pub(super) async fn pool(&self, name: &str, by: Deadline) -> NativeResult<wire::Pool> {
        self.read_as(&["1.0", "storage-pools", name], false, by)
            .await
    }

    /// Has the daemon read a file from the storage of the instance, which fails where that storage cannot be mounted.
    pub(super) async fn read_storage(&self, vm: &str, by: Deadline) -> NativeResult<()> {
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
    ) -> NativeResult<AcceptedChange> {
        let path = ["1.0", "instances", vm, "snapshots", snapshot];
        let body = json!({ "expires_at": at });
        self.change(Method::PUT, &path, Some(&body), by).await
    }

    pub(super) async fn snapshots(
        &self,
        vm: &str,
        by: Deadline,
    ) -> NativeResult<Vec<wire::Snapshot>> {
        self.read_as(&["1.0", "instances", vm, "snapshots"], true, by)
            .await
    }

    pub(super) async fn snapshot(
        &self,
        vm: &str,
        snapshot: &str,
        by: Deadline,
    ) -> NativeResult<Option<wire::Snapshot>> {
        let path = ["1.0", "instances", vm, "snapshots", snapshot];
        missing_as_none(self.read_as(&path, false, by).await)
    }

    pub(super) async fn volumes(
        &self,
        of: &VolumePath,
        by: Deadline,
    ) -> NativeResult<Vec<wire::Volume>> {
        let path = [
            "1.0",
            "storage-pools",
            &of.pool,
            "volumes",
            &of.kind,
            &of.vm,
            "snapshots",
        ];
        self.read_as(&path, true, by).await
    }

    /// The volume of one snapshot, and the tag by which a later change of it is noticed.
    pub(super) async fn volume(
        &self,
        of: &VolumePath,
        snapshot: &str,
        by: Deadline,
    ) -> NativeResult<Option<(wire::Volume, Option<HeaderValue>)>> {
        let path = volume_path(of, snapshot);
        let answer = self.ask(Method::GET, &path, &[], None, by).await;
        let Some((envelope, etag)) = missing_as_none(answer)? else {
            return Ok(None);
        };
        Ok(Some((parse_metadata(envelope)?, etag)))
    }

    /// Replaces the description of the volume of one snapshot, unless it was changed since the tag was read.
    pub(super) async fn describe(
        &self,
        of: &VolumePath,
        snapshot: &str,
        description: &str,
        etag: Option<HeaderValue>,
        by: Deadline,
    ) -> NativeResult<AcceptedChange> {
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
        accepted_change(&self.send(call, by).await?.0)
    }

    /// Sets one key of the configuration of an instance.
    pub(super) async fn configure(
        &self,
        vm: &str,
        key: &str,
        value: &str,
        by: Deadline,
    ) -> NativeResult<AcceptedChange> {
        let body = json!({ "config": { key: value } });
        self.change(Method::PATCH, &["1.0", "instances", vm], Some(&body), by)
            .await
    }

    pub(super) async fn create(
        &self,
        vm: &str,
        snapshot: &str,
        by: Deadline,
    ) -> NativeResult<AcceptedChange> {
        let path = ["1.0", "instances", vm, "snapshots"];
        // Without an expiry of its own the snapshot would get the one of `snapshots.expiry`.
        let body = json!({ "name": snapshot, "stateful": false, "expires_at": NEVER });
        self.change(Method::POST, &path, Some(&body), by).await
    }

    pub(super) async fn delete(
        &self,
        vm: &str,
        snapshot: &str,
        by: Deadline,
    ) -> NativeResult<AcceptedChange> {
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
    ) -> NativeResult<AcceptedChange> {
        if !names::is_safe_name(snapshot) {
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
        accepted_change(&self.send(call, by).await?.0)
    }

    /// Every operation of the project that is still known, running or not.
    pub(super) async fn operations(&self, by: Deadline) -> NativeResult<Vec<wire::Task>> {
        let all: Option<BTreeMap<String, Vec<wire::Task>>> =
            self.read_as(&["1.0", "operations"], true, by).await?;
        Ok(all.unwrap_or_default().into_values().flatten().collect())
    }

    /// One operation; `None` some seconds after it ended.
    pub(super) async fn operation(
        &self,
        id: &str,
        by: Deadline,
    ) -> NativeResult<Option<wire::Task>> {
        let path = ["1.0", "operations", id];
        let answer = missing_as_none(self.ask(Method::GET, &path, &[], None, by).await)?;
        answer
            .map(|(envelope, _)| parse_metadata(envelope))
            .transpose()
    }

    /// Returns when the operation ended, after so many seconds, or when it cannot be waited for. What is answered
    /// differs from version to version, so that it is not looked at.
    pub(super) async fn wait(&self, id: &str, seconds: &str, by: Deadline) -> NativeResult<()> {
        let path = ["1.0", "operations", id, "wait"];
        match self
            .ask(Method::GET, &path, &[("timeout", seconds)], None, by)
            .await
        {
            Ok(_) | Err(NativeError::Refused { .. }) => Ok(()),
            Err(error @ (NativeError::Transport(_) | NativeError::InvalidAnswer(_))) => Err(error),
        }
    }

    async fn read_as<T: DeserializeOwned>(
        &self,
        path: &[&str],
        recursive: bool,
        by: Deadline,
    ) -> NativeResult<T> {
        let recursion: &[(&str, &str)] = if recursive {
            &[("recursion", "1")]
        } else {
            &[]
        };
        parse_metadata(self.ask(Method::GET, path, recursion, None, by).await?.0)
    }

    async fn change(
        &self,
        method: Method,
        path: &[&str],
        body: Option<&Value>,
        by: Deadline,
    ) -> NativeResult<AcceptedChange> {
        accepted_change(&self.ask(method, path, &[], body, by).await?.0)
    }

    async fn ask(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
        body: Option<&Value>,
        by: Deadline,
    ) -> NativeResult<(wire::Envelope, Option<HeaderValue>)> {
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
    ) -> NativeResult<(wire::Envelope, Option<HeaderValue>)> {
        let reply = self.http.call(call, by).await?;
        let envelope: wire::Envelope = serde_json::from_slice(&reply.body).map_err(|error| {
            NativeError::InvalidAnswer(format!("HTTP status {}: {error}", reply.status.as_u16()))
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

fn parse_metadata<T: DeserializeOwned>(envelope: wire::Envelope) -> NativeResult<T> {
    serde_json::from_value(envelope.metadata)
        .map_err(|error| NativeError::InvalidAnswer(error.to_string()))
}

fn missing_as_none<T>(answer: NativeResult<T>) -> NativeResult<Option<T>> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.is_missing() => Ok(None),
        Err(error) => Err(error),
    }
}

fn accepted_change(envelope: &wire::Envelope) -> NativeResult<AcceptedChange> {
    match envelope.kind {
        wire::Kind::Sync => Ok(AcceptedChange::Done),
        wire::Kind::Async | wire::Kind::Error => names::operation_id(&envelope.operation)
            .map(|id| AcceptedChange::Operation(id.to_owned()))
            .ok_or_else(|| {
                NativeError::InvalidAnswer(format!("operation {:?}", envelope.operation))
            }),
    }
}
