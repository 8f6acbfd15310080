//! `/operations` on the admin port: what an operator does with stored operations while the gateway runs.
//!
//! Unlike the rest of the port it shows what callers did and changes what is kept, so it wants a token that only those
//! know who may read the store itself. A page in a browser on the same machine has neither the token nor, without
//! being asked first (`OPTIONS`, which is refused), a way to send the header it goes in.

use std::fmt;
use std::net::IpAddr;

use async_trait::async_trait;
use http::HeaderMap;
use http::HeaderName;
use http::Method;
use http::Response;
use http::StatusCode;
use http::header;
use http::header::HeaderValue;
use percent_encoding::percent_decode_str;
use serde_json::Value;
use serde_json::json;

use crate::listener::admin::framed_response;
use crate::model::OperationSeq;
use crate::model::Showing;
use crate::model::limits;

const JSON: &str = "application/json";
/// The header in which `snapgate operations` names the account of the system that runs it.
pub const OPERATOR_NAME: HeaderName = HeaderName::from_static("x-snapgate-operator");
/// Longest name of an operator.
const NAME_BYTES_MAX: usize = 255;

/// Who asks, as far as that is known: the token has been checked.
#[derive(Clone, Copy, Debug)]
pub struct OperatorCaller<'a> {
    /// What the caller says its name is.
    pub name: Option<&'a str>,
    /// Where the connection comes from.
    pub address: Option<IpAddr>,
}

/// Why an operator's wish was not fulfilled, in a sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OperatorError {
    /// There is none of that number.
    #[error("{0}")]
    NoSuchOperation(String),
    /// It is in a phase in which this cannot be done.
    #[error("{0}")]
    Conflict(String),
    /// The store cannot answer at present.
    #[error("{0}")]
    Unavailable(String),
}

/// What operators ask of a running gateway: implemented by the application. Operations are JSON objects.
#[async_trait]
pub trait Operator: fmt::Debug + Send + Sync {
    /// Whether this is the token of this process. Takes as long for every other text of that length.
    fn is_token(&self, token: &[u8]) -> bool;

    /// Operations older than `before`, newest first, 1..=[`limits::PAGE_MAX`] at most.
    async fn list(
        &self,
        showing: Showing,
        before: Option<OperationSeq>,
        limit: u16,
    ) -> Result<Vec<Value>, OperatorError>;

    /// One operation.
    async fn show(&self, seq: OperationSeq) -> Result<Value, OperatorError>;

    /// Notes, durably and in the audit trail, that the unknown outcome was looked into; once, however often it is asked.
    async fn acknowledge(
        &self,
        seq: OperationSeq,
        caller: OperatorCaller<'_>,
    ) -> Result<Value, OperatorError>;

    /// Records, durably and in the audit trail, that the operation is to be stopped.
    async fn cancel(
        &self,
        seq: OperationSeq,
        caller: OperatorCaller<'_>,
    ) -> Result<Value, OperatorError>;

    /// Notes, in the log and the audit trail, that a request came without the token: `missing`, `malformed` or
    /// `unknown_token`.
    fn denied(&self, reason: &'static str, client: Option<IpAddr>);
}

/// What a path names.
enum OperatorRoute<'a> {
    All,
    One(&'a str),
    Acknowledge(&'a str),
    Cancel(&'a str),
}

impl<'a> OperatorRoute<'a> {
    fn of(path: &'a str) -> Option<Self> {
        let rest = path.strip_prefix("/operations")?;
        if rest.is_empty() {
            return Some(Self::All);
        }
        let (seq, action) = match rest.strip_prefix('/')?.split_once('/') {
            Some((seq, action)) => (seq, Some(action)),
            None => (rest.strip_prefix('/')?, None),
        };
        match action {
            _ if seq.is_empty() => None,
            None => Some(Self::One(seq)),
            Some("acknowledge") => Some(Self::Acknowledge(seq)),
            Some("cancel") => Some(Self::Cancel(seq)),
            Some(_) => None,
        }
    }

    const fn allow(&self) -> &'static str {
        match self {
            Self::All | Self::One(_) => "GET",
            Self::Acknowledge(_) | Self::Cancel(_) => "POST",
        }
    }
}

/// Answers what is asked below `/operations`; `None` for every other path.
pub(super) async fn answer(
    operator: &dyn Operator,
    method: &Method,
    uri: &http::Uri,
    headers: &HeaderMap,
    peer: Option<IpAddr>,
) -> Option<Response<Vec<u8>>> {
    let place = OperatorRoute::of(uri.path())?;
    if method.as_str() != place.allow() {
        let mut refused = refusal(StatusCode::METHOD_NOT_ALLOWED, "method not allowed");
        let allow = HeaderValue::from_static(place.allow());
        refused.headers_mut().insert(header::ALLOW, allow);
        return Some(refused);
    }
    if let Err(reason) = check_token(operator, headers) {
        operator.denied(reason, peer);
        let mut refused = refusal(
            StatusCode::UNAUTHORIZED,
            "the token of this process is needed: `snapgate operations` reads it from the file beside the store",
        );
        let challenge = HeaderValue::from_static("Bearer realm=\"snapgate operations\"");
        refused
            .headers_mut()
            .insert(header::WWW_AUTHENTICATE, challenge);
        return Some(refused);
    }
    let done = match place {
        OperatorRoute::All => match query(uri.query().unwrap_or_default()) {
            Ok((showing, before, limit)) => operator
                .list(showing, before, limit)
                .await
                .map(|found| json!({ "operations": found })),
            Err(why) => return Some(refusal(StatusCode::BAD_REQUEST, &why)),
        },
        OperatorRoute::One(text)
        | OperatorRoute::Acknowledge(text)
        | OperatorRoute::Cancel(text) => {
            let seq = match number("seq", text) {
                Ok(seq) => seq,
                Err(why) => return Some(refusal(StatusCode::BAD_REQUEST, &why)),
            };
            let name = headers.get(OPERATOR_NAME);
            let name = name.and_then(|value| value.to_str().ok());
            let caller = OperatorCaller {
                name: name.filter(|name| name.len() <= NAME_BYTES_MAX),
                address: peer,
            };
            match place {
                OperatorRoute::All | OperatorRoute::One(_) => operator.show(seq).await,
                OperatorRoute::Acknowledge(_) => operator.acknowledge(seq, caller).await,
                OperatorRoute::Cancel(_) => operator.cancel(seq, caller).await,
            }
        }
    };
    Some(match done {
        Ok(value) => framed_response(
            StatusCode::OK,
            JSON,
            format!("{value}\n").into_bytes(),
            true,
        ),
        Err(error) => {
            let status = match error {
                OperatorError::NoSuchOperation(_) => StatusCode::NOT_FOUND,
                OperatorError::Conflict(_) => StatusCode::CONFLICT,
                OperatorError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            };
            refusal(status, &error.to_string())
        }
    })
}

fn refusal(status: StatusCode, why: &str) -> Response<Vec<u8>> {
    let body = format!("{}\n", json!({ "error": why }));
    framed_response(status, JSON, body.into_bytes(), true)
}

/// Why the request may not be answered.
fn check_token(operator: &dyn Operator, headers: &HeaderMap) -> Result<(), &'static str> {
    if !headers.contains_key(header::AUTHORIZATION) {
        return Err("missing");
    }
    let token = bearer(headers).ok_or("malformed")?;
    if operator.is_token(token) {
        Ok(())
    } else {
        Err("unknown_token")
    }
}

/// The token of the one `Authorization` header.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next().filter(|_| values.next().is_none())?;
    let (scheme, token) = value.as_bytes().split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token)
}

/// `state`, `before` and `limit`; a sentence that names what is wrong.
fn query(text: &str) -> Result<(Showing, Option<OperationSeq>, u16), String> {
    let (mut showing, mut before, mut limit) = (Showing::All, None, limits::PAGE);
    for pair in text.split('&').filter(|part| !part.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = percent_decode_str(value).decode_utf8_lossy();
        match name {
            "state" => {
                showing = Showing::parse(&value)
                    .ok_or_else(|| "state is unknown, unfinished or all".to_owned())?;
            }
            "before" => before = Some(number("before", &value)?),
            "limit" => {
                let range = 1..=limits::PAGE_MAX;
                let read = value.parse().ok().filter(|value| range.contains(value));
                limit = read.ok_or_else(|| format!("limit is 1 to {}", limits::PAGE_MAX))?;
            }
            _ => {
                return Err(format!(
                    "there is no parameter {name:?}: state, before, limit"
                ));
            }
        }
    }
    Ok((showing, before, limit))
}

fn number(name: &str, text: &str) -> Result<OperationSeq, String> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let read = text.parse().ok().filter(|_| digits);
    read.and_then(OperationSeq::new)
        .ok_or_else(|| format!("{name} is not the number of an operation: {text:?}"))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Says what it was asked.
    #[derive(Debug, Default)]
    struct Echo(Mutex<Option<OperatorError>>, Mutex<Vec<&'static str>>);

    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    impl Echo {
        fn says(&self, text: String) -> Result<Value, OperatorError> {
            let fails = self.0.lock().unwrap().clone();
            fails.map_or(Ok(Value::String(text)), Err)
        }
    }

    #[async_trait]
    impl Operator for Echo {
        fn is_token(&self, token: &[u8]) -> bool {
            token == b"t0"
        }
        async fn list(
            &self,
            showing: Showing,
            before: Option<OperationSeq>,
            limit: u16,
        ) -> Result<Vec<Value>, OperatorError> {
            let before = before.map(OperationSeq::number);
            Ok(vec![self.says(format!("{showing:?} {before:?} {limit}"))?])
        }
        async fn show(&self, seq: OperationSeq) -> Result<Value, OperatorError> {
            self.says(format!("show {seq}"))
        }
        async fn acknowledge(
            &self,
            seq: OperationSeq,
            caller: OperatorCaller<'_>,
        ) -> Result<Value, OperatorError> {
            assert_eq!(caller.address, Some(PEER), "where it comes from");
            let by = caller.name.map(|name| format!(" by {name}"));
            self.says(format!("acknowledge {seq}{}", by.unwrap_or_default()))
        }
        fn denied(&self, reason: &'static str, client: Option<IpAddr>) {
            assert_eq!(client, Some(PEER), "where it comes from");
            self.1.lock().unwrap().push(reason);
        }
        async fn cancel(
            &self,
            seq: OperationSeq,
            _caller: OperatorCaller<'_>,
        ) -> Result<Value, OperatorError> {
            self.says(format!("cancel {seq}"))
        }
    }

    async fn ask(echo: &Echo, line: &str, token: &str) -> Option<(u16, String)> {
        let (method, uri) = line.split_once(' ').unwrap();
        let mut headers = HeaderMap::new();
        for value in token.split('|').filter(|part| !part.is_empty()) {
            headers.append(header::AUTHORIZATION, value.parse().unwrap());
        }
        let (method, uri) = (method.parse().unwrap(), uri.parse().unwrap());
        let found = answer(echo, &method, &uri, &headers, Some(PEER)).await?;
        let body = String::from_utf8(found.body().clone()).unwrap();
        Some((found.status().as_u16(), body.trim_end().to_owned()))
    }

    #[tokio::test]
    async fn wishes_are_read_and_bad_ones_named() {
        let echo = Echo::default();
        let rows = [
            ("GET /operations", 200, r#"{"operations":["All None 100"]}"#),
            (
                "GET /operations?state=unknown&limit=7&before=9",
                200,
                r#"{"operations":["Unknown Some(9) 7"]}"#,
            ),
            ("GET /operations/5", 200, r#""show 5""#),
            ("POST /operations/5/acknowledge", 200, r#""acknowledge 5""#),
            ("POST /operations/5/cancel", 200, r#""cancel 5""#),
            ("GET /operations/5/cancel", 405, "method"),
            ("POST /operations/x/cancel", 400, "seq"),
            ("GET /operations?state=lost", 400, "state"),
            ("GET /operations?limit=0", 400, "limit"),
            ("GET /operations?limit=1001", 400, "limit"),
            ("GET /operations?before=x", 400, "before"),
            ("GET /operations?seq=1", 400, "seq"),
            ("GET /operations/0", 400, "seq"),
            ("GET /operations/+5", 400, "seq"),
            ("POST /operations/x/acknowledge", 400, "seq"),
            ("POST /operations", 405, "method"),
            ("DELETE /operations/5", 405, "method"),
            ("GET /operations/5/acknowledge", 405, "method"),
            ("OPTIONS /operations/5/acknowledge", 405, "method"),
        ];
        for (line, status, expected) in rows {
            let (found, body) = ask(&echo, line, "Bearer t0").await.expect(line);
            assert_eq!(found, status, "{line}: {body}");
            assert!(body.contains(expected), "{line}: {body}");
        }
        for line in [
            "GET /operation",
            "GET /operations/",
            "GET /operations/5/",
            "POST /operations//cancel",
            "POST /operations/5/cancel/",
            "POST /operations/5/restart",
            "GET /metrics",
        ] {
            let found = ask(&echo, line, "Bearer t0").await;
            assert_eq!(found, None, "{line}: not here");
        }
    }

    #[tokio::test]
    async fn nothing_is_told_or_done_without_the_token() {
        let echo = Echo::default();
        for (token, reason) in [
            ("", "missing"),
            ("Bearer t1", "unknown_token"),
            ("Bearer ", "unknown_token"),
            ("t0", "malformed"),
            ("Basic t0", "malformed"),
            ("Bearer t0|Bearer t0", "malformed"),
        ] {
            for line in [
                "GET /operations",
                "GET /operations/5",
                "POST /operations/5/acknowledge",
                "POST /operations/5/cancel",
            ] {
                let (status, body) = ask(&echo, line, token).await.unwrap();
                assert_eq!(status, 401, "{line} with {token:?}: {body}");
                let noted = echo.1.lock().unwrap().pop();
                assert_eq!(noted, Some(reason), "{line} with {token:?}: noted");
            }
        }
    }

    #[tokio::test]
    async fn what_cannot_be_done_is_told_with_its_status() {
        let rows = [
            (OperatorError::NoSuchOperation("none".to_owned()), 404),
            (OperatorError::Conflict("known".to_owned()), 409),
            (OperatorError::Unavailable("busy".to_owned()), 503),
        ];
        for (error, status) in rows {
            let echo = Echo(Mutex::new(Some(error.clone())), Mutex::default());
            for line in [
                "GET /operations",
                "GET /operations/5",
                "POST /operations/5/acknowledge",
                "POST /operations/5/cancel",
            ] {
                let (found, body) = ask(&echo, line, "Bearer t0").await.unwrap();
                assert_eq!(found, status, "{line}");
                assert!(body.contains(&error.to_string()), "{line}: {body}");
            }
        }
    }
}
