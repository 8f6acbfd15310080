//! One record of the audit trail, as a line that carries the hash of the line before it.

use std::net::IpAddr;

use data_encoding::HEXLOWER;
use ring::digest;
use serde::Serialize;
use serde::Serializer;

use crate::model::Timestamp;
use crate::model::TraceId;
use crate::telemetry::escape;

/// The origin of a request as recorded in the trail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuditClient {
    /// A network address.
    Address(IpAddr),
    /// A process on the machine of the gateway.
    Local,
}

impl Serialize for AuditClient {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Address(address) => to.collect_str(address),
            Self::Local => to.serialize_str("local"),
        }
    }
}

/// One record. Every record has every member; one without a value is `null`. Text from clients is escaped by the JSON
/// encoding. A record must not contain secrets.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct AuditRecord<'a> {
    /// The time of the decision; written as RFC 3339.
    #[serde(serialize_with = "serialize_display")]
    pub time: Timestamp,
    /// The authenticated caller; `None` if there is none.
    pub principal: Option<&'a str>,
    /// The API token that authenticated the caller, if it was one.
    pub token: Option<&'a str>,
    /// The user name of a failed login.
    pub claimed: Option<&'a str>,
    /// The origin of the request.
    pub client: Option<AuditClient>,
    /// The requested action, for instance `restore`.
    pub action: &'a str,
    /// The backend, once the VM was placed on one.
    pub backend: Option<&'a str>,
    /// The VM.
    pub vm: Option<&'a str>,
    /// The backup.
    pub backup: Option<&'a str>,
    /// The note of the caller.
    pub note: Option<&'a str>,
    /// `asked`, `accepted`, `joined`, `refused`, or the outcome of the operation.
    pub outcome: &'a str,
    /// The stable code of the refusal.
    pub code: Option<&'a str>,
    /// Why credentials were refused, or the fault that ended the operation.
    pub reason: Option<&'a str>,
    /// The operation number; written as a string, because JSON readers lose digits beyond 2^53.
    #[serde(serialize_with = "serialize_optional_display")]
    pub operation: Option<u64>,
    /// The id of the request.
    pub request: Option<&'a str>,
    /// The trace that the request or operation is a part of.
    #[serde(serialize_with = "serialize_optional_display")]
    pub trace_id: Option<TraceId>,
}

impl AuditRecord<'_> {
    /// A record with these members alone; the others are `None`.
    #[must_use]
    pub const fn new<'a>(time: Timestamp, action: &'a str, outcome: &'a str) -> AuditRecord<'a> {
        AuditRecord {
            time,
            principal: None,
            token: None,
            claimed: None,
            client: None,
            action,
            backend: None,
            vm: None,
            backup: None,
            note: None,
            outcome,
            code: None,
            reason: None,
            operation: None,
            request: None,
            trace_id: None,
        }
    }
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands in a reference"
)]
fn serialize_display<S: Serializer>(time: &Timestamp, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(time)
}

#[expect(clippy::ref_option, reason = "serde hands in a reference")]
fn serialize_optional_display<S: Serializer, T: std::fmt::Display>(
    value: &Option<T>,
    to: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => to.collect_str(value),
        None => to.serialize_none(),
    }
}

/// The record as one line without its line feed. `previous` is the hash of the line before it.
pub(super) fn encode_line(
    record: &AuditRecord<'_>,
    previous: Option<&str>,
) -> Result<String, serde_json::Error> {
    #[derive(Serialize)]
    struct Chained<'a> {
        #[serde(flatten)]
        record: &'a AuditRecord<'a>,
        previous: Option<&'a str>,
    }
    serde_json::to_string(&Chained { record, previous }).map(escape::escape_json)
}

/// The SHA-256 of a line without its line feed, in hexadecimal as printed by `sha256sum`.
pub(super) fn line_hash(line: &[u8]) -> String {
    HEXLOWER.encode(digest::digest(&digest::SHA256, line).as_ref())
}
