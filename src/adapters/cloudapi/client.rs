//! The requests of the API, each made from typed values.

use std::borrow::Cow;

use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::Method;
use http::header;
use percent_encoding::percent_decode_str;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::json;

use crate::adapters::cloudapi::config::Config;
use crate::adapters::cloudapi::config::ConfigError;
use crate::adapters::cloudapi::error;
use crate::adapters::cloudapi::error::NativeError;
use crate::adapters::cloudapi::link;
use crate::adapters::cloudapi::link::Link;
use crate::adapters::cloudapi::map::ListedVms;
use crate::adapters::cloudapi::wire;
use crate::adapters::transport::Call;
use crate::adapters::transport::Client;
use crate::adapters::transport::Reply;
use crate::model::BackupId;
use crate::model::Credential;
use crate::model::Deadline;
use crate::model::VmId;
use crate::model::VmRange;
use crate::model::limits;
use crate::runtime::hop_count;
use crate::runtime::work_context;

const VERSION: HeaderName = HeaderName::from_static("x-cloud-client-specification-version");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const PREFER: HeaderName = HeaderName::from_static("prefer");
const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");
/// Statuses that are looked at: while one change of a VM runs at a time, the last few are enough.
const STATUSES: &str = "20";
/// Backups of one page of a list, the most that snapgate gives.
const PAGE: &str = "1000";
/// Most pages of one list: bounds what a server that goes on for ever can cost.
const PAGES_MAX: usize = 20;
/// Longest word of a server that reaches the log.
const WORD_CHARS_MAX: usize = 80;

pub(super) type NativeResult<T> = Result<T, NativeError>;

/// One server.
#[derive(Debug)]
pub(super) struct Api {
    http: Client,
    origin: String,
    base: Vec<String>,
    credential: Option<Credential>,
    version: HeaderValue,
}

/// A change: what is asked for, and how it is recognised.
#[derive(Debug)]
pub(super) struct OutgoingChange<'a> {
    pub(super) method: Method,
    pub(super) path: &'a [&'a str],
    pub(super) body: Option<Value>,
    /// The tag of the backup that was looked at, so that no other one is changed.
    pub(super) if_match: Option<HeaderValue>,
    /// What names the request in the server's log.
    pub(super) name: &'a str,
    /// The idempotency key, where the server supports it.
    pub(super) key: Option<&'a str>,
}

/// A Status, with what its answer says about asking again.
#[derive(Debug)]
pub(super) struct StatusReply {
    pub(super) status: wire::Status,
    /// Whether the server delayed the answer until the Status changed.
    pub(super) waited: bool,
    /// After how many seconds the server wants to be asked again.
    pub(super) retry_after: Option<u64>,
}

impl Api {
    pub(super) fn new(config: &Config) -> Result<Self, ConfigError> {
        Ok(Self {
            http: config.client()?,
            origin: config.origin(),
            base: config.base.clone(),
            credential: config.credential.clone(),
            version: config.version_field()?,
        })
    }

    /// The link, if it leads to this server and below the configured path.
    pub(super) fn link(&self, uri: &str) -> Option<Link> {
        Link::new(uri, &self.origin, &self.base)
    }

    pub(super) async fn versions(&self, by: Deadline) -> NativeResult<wire::Version> {
        parse_json(&self.get(&["versions"], &[], by).await?)
    }

    pub(super) async fn vm(&self, vm: &VmId, by: Deadline) -> NativeResult<wire::Vm> {
        parse_json(&self.get(&["vms", vm.as_str()], &[], by).await?)
    }

    /// The VMs after an id, at least as many as are wanted unless there are no more.
    ///
    /// A page may be shorter than what was asked for, or empty, and have a next one: the server's cursor is taken from its link.
    pub(super) async fn vms(&self, range: &VmRange, by: Deadline) -> NativeResult<ListedVms> {
        let limit = range.wanted().to_string();
        let mut found = ListedVms {
            vms: Vec::new(),
            more: true,
            complete: true,
        };
        let mut cursor: Option<String> = None;
        for _ in 0..PAGES_MAX {
            let mut query = vec![("limit", limit.as_str())];
            match &cursor {
                Some(cursor) => query.push(("cursor", cursor)),
                None => query.extend(range.after.as_ref().map(|id| ("after", id.as_str()))),
            }
            let answer = self.get(&["vms"], &query, by).await?;
            let page: wire::Vms = parse_json(&answer)?;
            found.vms.extend(page.vms);
            found.complete &= page.complete;
            let next = next_cursor(&answer.headers);
            found.more = next.is_some();
            if next.is_none() || found.vms.len() >= range.wanted() {
                return Ok(found);
            }
            cursor = next;
        }
        Err(NativeError::InvalidAnswer(format!(
            "more than {PAGES_MAX} pages without as many VMs as were asked for"
        )))
    }

    /// One backup with its tag; `None` when the VM has no such backup.
    pub(super) async fn backup(
        &self,
        vm: &VmId,
        backup: &BackupId,
        by: Deadline,
    ) -> NativeResult<Option<(wire::Backup, Option<HeaderValue>)>> {
        let path = ["vms", vm.as_str(), "backups", backup.as_str()];
        match self.get(&path, &[], by).await {
            Ok(answer) => {
                let tag = answer.headers.get(header::ETAG);
                // A weak tag never fits a condition.
                let tag = tag.filter(|tag| tag.as_bytes().starts_with(b"\"")).cloned();
                Ok(Some((parse_json(&answer)?, tag)))
            }
            Err(error) if error.is_missing() && !error.is_missing_vm() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Every backup of the VM, page by page. A link to the next page only says that there is one: it is never followed.
    pub(super) async fn backups(&self, vm: &VmId, by: Deadline) -> NativeResult<Vec<wire::Backup>> {
        let path = ["vms", vm.as_str(), "backups"];
        let mut all: Vec<wire::Backup> = Vec::new();
        let mut after: Option<BackupId> = None;
        for _ in 0..PAGES_MAX {
            let mut query = vec![("limit", PAGE)];
            query.extend(after.as_ref().map(|id| ("after", id.as_str())));
            let answer = self.get(&path, &query, by).await?;
            let page: wire::Backups = parse_json(&answer)?;
            let last = page
                .backups
                .last()
                .and_then(|backup| link::backup_in_link(&backup.uri));
            all.extend(page.backups);
            if !has_next(&answer.headers) {
                return Ok(all);
            }
            let Some((_, last)) = last.filter(|(_, id)| after.as_ref() != Some(id)) else {
                return Err(NativeError::InvalidAnswer(
                    "a list has a next page but no new backups".to_owned(),
                ));
            };
            after = Some(last);
        }
        Err(NativeError::InvalidAnswer(format!(
            "a list has more than {PAGES_MAX} pages"
        )))
    }

    /// The newest Statuses of the gateway's own user for that operation on that VM.
    pub(super) async fn statuses(
        &self,
        op: &str,
        vm: &VmId,
        by: Deadline,
    ) -> NativeResult<Vec<wire::Status>> {
        // A server that lists what the user may see narrows the list by `principal`; one that lists the user's own ignores it.
        let query = [
            ("op", op),
            ("vm", vm.as_str()),
            ("limit", STATUSES),
            ("principal", "me"),
        ];
        let answer = self.get(&["statuses"], &query, by).await?;
        Ok(parse_json::<wire::Statuses>(&answer)?.statuses)
    }

    /// Whether the server lists Statuses and takes the credentials.
    pub(super) async fn check_status_list(&self, by: Deadline) -> NativeResult<()> {
        let answer = self.get(&["statuses"], &[("limit", "1")], by).await?;
        parse_json::<wire::Statuses>(&answer).map(drop)
    }

    /// One Status; with `wait` the answer may be held back for so many seconds until it changes.
    pub(super) async fn status(
        &self,
        link: &Link,
        wait: Option<&'static str>,
        by: Deadline,
    ) -> NativeResult<StatusReply> {
        let path: Vec<&str> = link.path.iter().map(String::as_str).collect();
        let query = query_pairs(link);
        let mut call = Call::new(Method::GET, &[]);
        if let Some(wait) = wait {
            call = call.header(PREFER, HeaderValue::from_static(wait));
        }
        let answer = self.send(call, &path, &query, by).await?;
        parse_status_reply(&answer)
    }

    pub(super) async fn cancel(&self, link: &Link, by: Deadline) -> NativeResult<()> {
        let path: Vec<&str> = link.path.iter().map(String::as_str).collect();
        let query = query_pairs(link);
        let call = Call::new(Method::DELETE, &[]);
        self.send(call, &path, &query, by).await.map(drop)
    }

    pub(super) async fn change(
        &self,
        change: OutgoingChange<'_>,
        by: Deadline,
    ) -> NativeResult<StatusReply> {
        let mut call = Call::new(change.method, &[]).header(REQUEST_ID, header_value(change.name)?);
        if let Some(key) = change.key {
            call = call.header(IDEMPOTENCY_KEY, header_value(key)?);
        }
        if let Some(tag) = change.if_match {
            call = call.header(header::IF_MATCH, tag);
        }
        if let Some(body) = change.body {
            call = call.json(body.to_string().into_bytes());
        }
        parse_status_reply(&self.send(call, change.path, &[], by).await?)
    }

    /// What the server says that a restore or a delete would do; `None` where it makes no plans.
    pub(super) async fn plan(
        &self,
        vm: &VmId,
        backup: &BackupId,
        op: &str,
        by: Deadline,
    ) -> NativeResult<Option<wire::Plan>> {
        let path = ["vms", vm.as_str(), "backups", backup.as_str(), "plan"];
        let body = json!({ "op": op }).to_string().into_bytes();
        let call = Call::new(Method::POST, &[]).json(body);
        match self.send(call, &path, &[], by).await {
            // A server that answers every POST alike has no plans either.
            Ok(answer) => Ok(parse_json(&answer).ok()),
            Err(error) if error.has_no_plans() => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn get(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
        by: Deadline,
    ) -> NativeResult<Reply> {
        self.send(Call::new(Method::GET, &[]), path, query, by)
            .await
    }

    /// Sends the request below the configured path. Whatever is not a success is an error.
    async fn send(
        &self,
        call: Call<'_>,
        path: &[&str],
        query: &[(&str, &str)],
        by: Deadline,
    ) -> NativeResult<Reply> {
        let passed = hop_count::current();
        if passed >= limits::HOPS_MAX {
            return Err(NativeError::Loop(passed));
        }
        let mut whole: Vec<&str> = self.base.iter().map(String::as_str).collect();
        whole.extend(path);
        let mut call = call
            .to(&whole)
            .query(query)
            .header(VERSION, self.version.clone())
            .header(header::ACCEPT, HeaderValue::from_static("application/json"))
            .header(
                hop_count::HEADER,
                HeaderValue::from(u16::from(passed.saturating_add(1))),
            );
        // A server that trusts this gateway continues the trace of the request or operation.
        if let Some(trace) = work_context::current_trace()
            && let Ok(value) = HeaderValue::try_from(trace.to_string())
        {
            call = call.header(TRACE_PARENT, value);
        }
        if let Some(credential) = &self.credential {
            call = call.secret_header(header::AUTHORIZATION, credential.value())?;
        }
        let reply = self.http.call(call, by).await?;
        let status = reply.status;
        if status.is_success() {
            return Ok(reply);
        }
        if status.is_redirection() {
            return Err(NativeError::Redirect(status.as_u16()));
        }
        let messages: Option<wire::Messages> = serde_json::from_slice(&reply.body).ok();
        let first = messages.and_then(|all| all.message.into_iter().next());
        let (code, text_of_message) = first.map(|one| (one.code, one.text)).unwrap_or_default();
        Err(NativeError::Refused {
            status: status.as_u16(),
            code: code.map(|code| truncate_word(&code)),
            message: text_of_message.and_then(|text| error::publishable_message(&text)),
            request: header_text(&reply.headers, &REQUEST_ID).map(truncate_word),
        })
    }
}

fn query_pairs(link: &Link) -> Vec<(&str, &str)> {
    let all = link.query.iter();
    all.map(|(name, value)| (name.as_str(), value.as_str()))
        .collect()
}

fn header_value(of: &str) -> NativeResult<HeaderValue> {
    HeaderValue::from_str(of).map_err(|error| NativeError::InvalidAnswer(error.to_string()))
}

fn parse_json<T: DeserializeOwned>(answer: &Reply) -> NativeResult<T> {
    serde_json::from_slice(&answer.body)
        .map_err(|error| NativeError::InvalidAnswer(error.to_string()))
}

fn parse_status_reply(answer: &Reply) -> NativeResult<StatusReply> {
    let applied = header_text(&answer.headers, &PREFERENCE_APPLIED);
    Ok(StatusReply {
        status: parse_json(answer)?,
        waited: applied.is_some_and(|applied| applied.contains("wait")),
        retry_after: header_text(&answer.headers, &header::RETRY_AFTER)
            .and_then(|text| text.parse().ok()),
    })
}

fn header_text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|header| header.to_str().ok())
}

fn truncate_word(text: &str) -> String {
    text.chars().take(WORD_CHARS_MAX).collect()
}

/// The cursor in the link to a next page (RFC 8288). Nothing else of the link is used, so that it leads nowhere else.
fn next_cursor(headers: &HeaderMap) -> Option<String> {
    let links = headers.get_all(header::LINK).iter();
    let links = links.filter_map(|value| value.to_str().ok());
    let next = links.filter_map(|link| {
        let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
        let is_next = parameters.split(';').any(|part| {
            let named = part.trim().strip_prefix("rel=");
            named.is_some_and(|named| named.trim_matches('"') == "next")
        });
        let (_, query) = target.split_once('?')?;
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let (_, cursor) = pairs.find(|(name, _)| *name == "cursor")?;
        is_next.then(|| percent_decode_str(cursor).decode_utf8().ok())?
    });
    let mut next = next.filter(|cursor| cursor.len() <= limits::LINK_BYTES_MAX);
    next.next().map(Cow::into_owned)
}

/// Whether there is a link to a next page (RFC 8288).
fn has_next(headers: &HeaderMap) -> bool {
    let all = headers.get_all(header::LINK).iter();
    all.filter_map(|value| value.to_str().ok()).any(|links| {
        links.split(';').any(|part| {
            let part = part.split(',').next().unwrap_or(part);
            let named = part.trim().strip_prefix("rel=");
            named.is_some_and(|named| named.trim_matches('"') == "next")
        })
    })
}
