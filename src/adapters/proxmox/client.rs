//! The native calls. Every one names its node; reads are tried at every configured node of the cluster.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use http::Method;
use http::header::AUTHORIZATION;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::adapters::proxmox::error::NativeError;
use crate::adapters::proxmox::wire;
use crate::adapters::transport::Call;
use crate::adapters::transport::Client;
use crate::adapters::transport::Reply;
use crate::model::Credential;
use crate::model::Deadline;

type NativeResult<T> = Result<T, NativeError>;

/// Which kind of guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GuestKind {
    /// A virtual machine.
    Qemu,
    /// A container.
    Lxc,
}

impl GuestKind {
    /// The segment of paths.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::Lxc => "lxc",
        }
    }
}

/// A guest, and the node that has it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Guest {
    pub(super) node: String,
    pub(super) kind: GuestKind,
    /// Its number in decimal digits.
    pub(super) vmid: String,
    pub(super) is_template: bool,
}

/// The API of one cluster.
#[derive(Debug)]
pub(super) struct Api {
    nodes: Vec<Client>,
    credential: Credential,
}

/// One request, for whichever node.
#[derive(Clone, Copy)]
struct NodeRequest<'a> {
    method: &'a Method,
    path: &'a [&'a str],
    query: &'a [(&'a str, &'a str)],
    body: Option<&'a BTreeMap<&'a str, &'a str>>,
}

impl<'a> NodeRequest<'a> {
    const fn new(method: &'a Method, path: &'a [&'a str]) -> Self {
        Self {
            method,
            path,
            query: &[],
            body: None,
        }
    }

    const fn query(self, query: &'a [(&'a str, &'a str)]) -> Self {
        Self { query, ..self }
    }

    const fn body(self, body: &'a BTreeMap<&'a str, &'a str>) -> Self {
        Self {
            body: Some(body),
            ..self
        }
    }
}

#[derive(Deserialize)]
struct Envelope {
    #[serde(default)]
    data: Value,
    #[serde(default)]
    message: Option<String>,
    #[serde(default)]
    errors: Option<BTreeMap<String, Value>>,
}

impl Api {
    pub(super) const fn new(nodes: Vec<Client>, credential: Credential) -> Self {
        Self { nodes, credential }
    }

    pub(super) async fn version(&self, by: Deadline) -> NativeResult<wire::Version> {
        self.get(&["version"], &[], by).await
    }

    /// Every guest that the token may see.
    pub(super) async fn guests(&self, by: Deadline) -> NativeResult<Vec<wire::Resource>> {
        self.get(&["cluster", "resources"], &[("type", "vm")], by)
            .await
    }

    /// The rights of the token on one path; none where it has none.
    pub(super) async fn permissions(
        &self,
        path: &str,
        by: Deadline,
    ) -> NativeResult<BTreeSet<String>> {
        let data: Value = self
            .get(&["access", "permissions"], &[("path", path)], by)
            .await?;
        // A map of paths to maps of rights; an empty map may arrive as an empty list or as nothing. What is inherited stands
        // under the path itself, or under the one that it comes from.
        let applies = |of: &str| {
            of == path
                || of == "/"
                || path
                    .strip_prefix(of)
                    .is_some_and(|rest| rest.starts_with('/'))
        };
        let paths = data.as_object().into_iter().flatten();
        let rights = paths
            .filter(|(of, _)| applies(of))
            .filter_map(|(_, rights)| rights.as_object());
        Ok(rights.flat_map(|rights| rights.keys().cloned()).collect())
    }

    /// Every storage of every node that the token may see.
    pub(super) async fn storages(&self, by: Deadline) -> NativeResult<Vec<wire::StorageResource>> {
        self.get(&["cluster", "resources"], &[("type", "storage")], by)
            .await
    }

    pub(super) async fn nodes(&self, by: Deadline) -> NativeResult<Vec<wire::Node>> {
        self.get(&["nodes"], &[], by).await
    }

    pub(super) async fn status(&self, guest: &Guest, by: Deadline) -> NativeResult<wire::Status> {
        self.get(&guest.path(&["status", "current"]), &[], by).await
    }

    pub(super) async fn config(
        &self,
        guest: &Guest,
        by: Deadline,
    ) -> NativeResult<wire::GuestConfig> {
        self.get(&guest.path(&["config"]), &[], by).await
    }

    /// Every key of the configuration, as a plan reads the disks.
    pub(super) async fn all_of_config(
        &self,
        guest: &Guest,
        by: Deadline,
    ) -> NativeResult<BTreeMap<String, Value>> {
        self.get(&guest.path(&["config"]), &[], by).await
    }

    /// The snapshots, without the entry that stands for the present state.
    pub(super) async fn snapshots(
        &self,
        guest: &Guest,
        by: Deadline,
    ) -> NativeResult<Vec<wire::Snapshot>> {
        let all: Vec<wire::Snapshot> = self.get(&guest.path(&["snapshot"]), &[], by).await?;
        let real = all.into_iter().filter(|entry| entry.name != "current");
        Ok(real.collect())
    }

    pub(super) async fn create_snapshot(
        &self,
        guest: &Guest,
        name: &str,
        description: &str,
        with_memory: bool,
        by: Deadline,
    ) -> NativeResult<String> {
        let mut body = BTreeMap::from([("snapname", name), ("description", description)]);
        if with_memory {
            body.insert("vmstate", "1");
        }
        let path = guest.path(&["snapshot"]);
        self.begin(NodeRequest::new(&Method::POST, &path).body(&body), by)
            .await
    }

    pub(super) async fn describe_snapshot(
        &self,
        guest: &Guest,
        name: &str,
        description: &str,
        by: Deadline,
    ) -> NativeResult<()> {
        let body = BTreeMap::from([("description", description)]);
        let path = guest.path(&["snapshot", name, "config"]);
        self.change(NodeRequest::new(&Method::PUT, &path).body(&body), by)
            .await?;
        Ok(())
    }

    pub(super) async fn delete_snapshot(
        &self,
        guest: &Guest,
        name: &str,
        by: Deadline,
    ) -> NativeResult<String> {
        // A body of DELETE is answered with 501.
        let path = guest.path(&["snapshot", name]);
        self.begin(
            NodeRequest::new(&Method::DELETE, &path).query(&[("force", "0")]),
            by,
        )
        .await
    }

    pub(super) async fn roll_back(
        &self,
        guest: &Guest,
        name: &str,
        start: bool,
        by: Deadline,
    ) -> NativeResult<String> {
        let body = BTreeMap::from([("start", if start { "1" } else { "0" })]);
        let path = guest.path(&["snapshot", name, "rollback"]);
        self.begin(NodeRequest::new(&Method::POST, &path).body(&body), by)
            .await
    }

    /// The archives of one guest on one storage, as its node sees them.
    pub(super) async fn archives(
        &self,
        guest: &Guest,
        storage: &str,
        by: Deadline,
    ) -> NativeResult<Vec<wire::Volume>> {
        let path = ["nodes", &guest.node, "storage", storage, "content"];
        let query = [("content", "backup"), ("vmid", guest.vmid.as_str())];
        self.get(&path, &query, by).await
    }

    /// One archive with all of its notes.
    pub(super) async fn archive(
        &self,
        guest: &Guest,
        storage: &str,
        volume: &str,
        by: Deadline,
    ) -> NativeResult<wire::Volume> {
        let path = ["nodes", &guest.node, "storage", storage, "content", volume];
        self.get(&path, &[], by).await
    }

    pub(super) async fn change_archive(
        &self,
        guest: &Guest,
        storage: &str,
        volume: &str,
        body: &BTreeMap<&str, &str>,
        by: Deadline,
    ) -> NativeResult<()> {
        let path = ["nodes", &guest.node, "storage", storage, "content", volume];
        self.change(NodeRequest::new(&Method::PUT, &path).body(body), by)
            .await?;
        Ok(())
    }

    /// `None`: it is removed already. The call does not wait (`delay`): then a failure of the task, which may have removed a
    /// part, would look like a refusal, and its warnings would be lost.
    pub(super) async fn delete_archive(
        &self,
        guest: &Guest,
        storage: &str,
        volume: &str,
        by: Deadline,
    ) -> NativeResult<Option<String>> {
        let path = ["nodes", &guest.node, "storage", storage, "content", volume];
        let data = self
            .change(NodeRequest::new(&Method::DELETE, &path), by)
            .await?;
        Ok(data.as_str().map(str::to_owned))
    }

    /// `None`: the node does not have the guest any more, and nothing was begun.
    pub(super) async fn back_up(
        &self,
        guest: &Guest,
        body: &BTreeMap<&str, &str>,
        by: Deadline,
    ) -> NativeResult<Option<String>> {
        let path = ["nodes", &guest.node, "vzdump"];
        let request = NodeRequest::new(&Method::POST, &path).body(body);
        let begun = self.begin(request, by).await?;
        // A node that has none of the guests says `OK`, and makes no task.
        Ok(Some(begun).filter(|upid| upid != "OK"))
    }

    /// Makes the guest anew from an archive, over the present one.
    pub(super) async fn restore_archive(
        &self,
        guest: &Guest,
        body: &BTreeMap<&str, &str>,
        by: Deadline,
    ) -> NativeResult<String> {
        let path = ["nodes", &guest.node, guest.kind.as_str()];
        self.begin(NodeRequest::new(&Method::POST, &path).body(body), by)
            .await
    }

    /// The tasks of one guest on one node, newest first.
    pub(super) async fn tasks(
        &self,
        node: &str,
        query: &[(&str, &str)],
        by: Deadline,
    ) -> NativeResult<Vec<wire::Task>> {
        self.get(&["nodes", node, "tasks"], query, by).await
    }

    pub(super) async fn task(
        &self,
        node: &str,
        upid: &str,
        by: Deadline,
    ) -> NativeResult<wire::Task> {
        self.get(&["nodes", node, "tasks", upid, "status"], &[], by)
            .await
    }

    /// The last lines of the log of a task.
    pub(super) async fn log(
        &self,
        node: &str,
        upid: &str,
        by: Deadline,
    ) -> NativeResult<Vec<wire::LogLine>> {
        let query = [("start", "0"), ("limit", "5000")];
        self.get(&["nodes", node, "tasks", upid, "log"], &query, by)
            .await
    }

    pub(super) async fn stop_task(&self, node: &str, upid: &str, by: Deadline) -> NativeResult<()> {
        let path = ["nodes", node, "tasks", upid];
        self.change(NodeRequest::new(&Method::DELETE, &path), by)
            .await?;
        Ok(())
    }

    async fn get<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
        by: Deadline,
    ) -> NativeResult<T> {
        let request = NodeRequest::new(&Method::GET, path).query(query);
        let data = self
            .ask_each(request, NativeError::may_read_elsewhere, by)
            .await?;
        serde_json::from_value(data).map_err(|error| NativeError::InvalidAnswer(error.to_string()))
    }

    /// A change that becomes a task: its UPID.
    async fn begin(&self, request: NodeRequest<'_>, by: Deadline) -> NativeResult<String> {
        let data = self.change(request, by).await?;
        data.as_str()
            .map(str::to_owned)
            .ok_or_else(|| NativeError::InvalidAnswer(format!("no task id: {data}")))
    }

    /// A change. Another node is asked only where the one before provably began nothing.
    async fn change(&self, request: NodeRequest<'_>, by: Deadline) -> NativeResult<Value> {
        self.ask_each(request, NativeError::may_change_elsewhere, by)
            .await
    }

    /// Asks the nodes in turn. After a failure the next node is tried only where `may_try_next` says that this cannot
    /// repeat an effect.
    async fn ask_each(
        &self,
        request: NodeRequest<'_>,
        may_try_next: impl Fn(&NativeError) -> bool + Send,
        by: Deadline,
    ) -> NativeResult<Value> {
        let mut last = None;
        for node in &self.nodes {
            match self.ask(node, request, by).await {
                Err(error) if may_try_next(&error) => last = Some(error),
                other => return other,
            }
        }
        Err(last.unwrap_or_else(|| NativeError::InvalidAnswer("no node".to_owned())))
    }

    async fn ask(
        &self,
        node: &Client,
        request: NodeRequest<'_>,
        by: Deadline,
    ) -> NativeResult<Value> {
        let mut path = vec!["api2", "json"];
        path.extend(request.path);
        let mut call = Call::new(request.method.clone(), &path)
            .query(request.query)
            .secret_header(AUTHORIZATION, self.credential.value())?;
        if let Some(body) = request.body {
            // A body of known length: chunked ones are answered with 501.
            let json = serde_json::to_vec(body)
                .map_err(|error| NativeError::InvalidAnswer(error.to_string()))?;
            call = call.json(json);
        }
        let reply = node.call(call, by).await?;
        let envelope = serde_json::from_slice::<Envelope>(&reply.body);
        if reply.status.is_success() {
            return envelope
                .map(|envelope| envelope.data)
                .map_err(|error| NativeError::InvalidAnswer(error.to_string()));
        }
        Err(refusal(reply, envelope.ok()))
    }
}

/// What a refusal says. Its body may be empty; older servers say it beside the status only.
fn refusal(reply: Reply, envelope: Option<Envelope>) -> NativeError {
    let (message, errors) =
        envelope.map_or((None, None), |envelope| (envelope.message, envelope.errors));
    let text = |value: Value| {
        value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned)
    };
    let fields = errors.unwrap_or_default().into_iter();
    NativeError::Refused {
        status: reply.status.as_u16(),
        text: message
            .or(reply.reason)
            .unwrap_or_default()
            .trim()
            .to_owned(),
        fields: fields.map(|(name, value)| (name, text(value))).collect(),
    }
}

impl Guest {
    fn path<'a>(&'a self, rest: &[&'a str]) -> Vec<&'a str> {
        let mut path = vec!["nodes", &self.node, self.kind.as_str(), &self.vmid];
        path.extend(rest);
        path
    }
}
