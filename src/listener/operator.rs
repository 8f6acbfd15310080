//! `/operations`, `/log-level` and `/doctor` on the admin port: lets an operator list, acknowledge and cancel stored operations,
//! change the log level and have the gateway examined while it runs.
//!
//! Unlike the rest of the port it shows what callers did and changes what is stored, so it requires a token that only accounts
//! with access to the store can read. A web page in a browser on the same machine has neither the token nor a way to send its
//! header without a preflight (`OPTIONS`), which is refused.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

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

use crate::listener::admin_response::framed_response;
use crate::model::OperationSeq;
use crate::model::OperatorQuery;
use crate::model::limits;

const JSON: &str = "application/json";
/// The header in which `snapgate operations` sends the name of the system account that runs it.
pub const OPERATOR_NAME: HeaderName = HeaderName::from_static("x-snapgate-operator");
/// Bytes in the name of an operator.
const NAME_BYTES_MAX: usize = 255;

/// The caller, whose token has been checked.
#[derive(Clone, Copy, Debug)]
pub struct OperatorCaller<'a> {
    /// The name that the caller claims.
    pub name: Option<&'a str>,
    /// The remote address of the connection.
    pub address: Option<IpAddr>,
}

/// Why a request of an operator failed, in a sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OperatorError {
    /// No operation has this number.
    #[error("{0}")]
    NoSuchOperation(String),
    /// The state of the operation does not allow this.
    #[error("{0}")]
    Conflict(String),
    /// The request asks for something that does not exist.
    #[error("{0}")]
    Invalid(String),
    /// The store is unavailable.
    #[error("{0}")]
    Unavailable(String),
}

/// How the log level is to be changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogLevelChange {
    /// The new level, as `log.level` has it; the configured one when absent.
    pub level: Option<String>,
    /// For how long; until the next change or restart when absent.
    pub duration: Option<Duration>,
}

/// What becomes of this gateway in its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterChange {
    /// It gives the leadership up.
    StepDown,
    /// It gives the leadership up and leaves it to others until a restart or [`ClusterChange::Return`].
    Drain,
    /// It takes part in elections again.
    Return,
}

impl ClusterChange {
    /// The word of the audit trail, and of the path on the admin port.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::StepDown => "step-down",
            Self::Drain => "drain",
            Self::Return => "return",
        }
    }
}

/// The interface for operators of a running gateway, implemented by the application. Operations are JSON objects.
#[async_trait]
pub trait Operator: fmt::Debug + Send + Sync {
    /// Whether this is the token of this process, compared in constant time.
    fn is_token(&self, token: &[u8]) -> bool;

    /// Operations, newest first.
    async fn list(&self, query: OperatorQuery) -> Result<Vec<Value>, OperatorError>;

    /// One operation with everything that is stored of it.
    async fn show(&self, seq: OperationSeq) -> Result<Value, OperatorError>;

    /// Records, durably and in the audit trail, that an operator has examined the unknown outcome. Idempotent.
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

    /// The log level: as configured, and as it is.
    async fn log_level(&self) -> Result<Value, OperatorError>;

    /// Changes the log level of the process, and records that in the audit trail.
    async fn change_log_level(
        &self,
        change: LogLevelChange,
        caller: OperatorCaller<'_>,
    ) -> Result<Value, OperatorError>;

    /// What is wrong or about to be, as far as only the running gateway can find out.
    async fn examine(&self) -> Result<Value, OperatorError>;

    /// The part of this gateway in its cluster.
    async fn cluster(&self) -> Result<Value, OperatorError>;

    /// Changes that part, and records that in the audit trail.
    async fn change_cluster(
        &self,
        change: ClusterChange,
        caller: OperatorCaller<'_>,
    ) -> Result<Value, OperatorError>;

    /// Records in the log and the audit trail that a request had no valid token. `reason` is `missing`, `malformed` or
    /// `unknown_token`.
    fn denied(&self, reason: &'static str, client: Option<IpAddr>);
}

/// A path for operators.
enum OperatorRoute<'a> {
    LogLevel,
    Doctor,
    Cluster,
    ChangeCluster(ClusterChange),
    All,
    One(&'a str),
    Acknowledge(&'a str),
    Cancel(&'a str),
}

impl<'a> OperatorRoute<'a> {
    fn parse(path: &'a str) -> Option<Self> {
        match path {
            "/log-level" => return Some(Self::LogLevel),
            "/doctor" => return Some(Self::Doctor),
            "/cluster" => return Some(Self::Cluster),
            "/cluster/step-down" => return Some(Self::ChangeCluster(ClusterChange::StepDown)),
            "/cluster/drain" => return Some(Self::ChangeCluster(ClusterChange::Drain)),
            "/cluster/return" => return Some(Self::ChangeCluster(ClusterChange::Return)),
            _ => {}
        }
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

    /// The methods, as `Allow` lists them.
    const fn allowed_methods(&self) -> &'static str {
        match self {
            Self::LogLevel => "GET, POST",
            Self::Doctor | Self::Cluster | Self::All | Self::One(_) => "GET",
            Self::Acknowledge(_) | Self::Cancel(_) | Self::ChangeCluster(_) => "POST",
        }
    }
}

/// Handles a request for operators; `None` for every other path.
pub(super) async fn handle_request(
    operator: &dyn Operator,
    method: &Method,
    uri: &http::Uri,
    headers: &HeaderMap,
    peer: Option<IpAddr>,
) -> Option<Response<Vec<u8>>> {
    let route = OperatorRoute::parse(uri.path())?;
    let mut allowed = route.allowed_methods().split(", ");
    if !allowed.any(|allowed| allowed == method.as_str()) {
        let mut refused = error_response(StatusCode::METHOD_NOT_ALLOWED, "method not allowed");
        let allow = HeaderValue::from_static(route.allowed_methods());
        refused.headers_mut().insert(header::ALLOW, allow);
        return Some(refused);
    }
    // After the method, so that the preflight of a browser is refused without a token.
    if let Err(reason) = check_token(operator, headers) {
        operator.denied(reason, peer);
        return Some(unauthorized_response());
    }
    let caller = OperatorCaller {
        name: operator_name(headers),
        address: peer,
    };
    let query = uri.query().unwrap_or_default();
    let done = perform(operator, method, &route, query, caller).await;
    Some(match done {
        Ok(value) => framed_response(
            StatusCode::OK,
            JSON,
            format!("{value}\n").into_bytes(),
            true,
        ),
        Err((status, cause)) => error_response(status, &cause),
    })
}

/// Performs the request; a status and a sentence if that fails.
async fn perform(
    operator: &dyn Operator,
    method: &Method,
    route: &OperatorRoute<'_>,
    query: &str,
    caller: OperatorCaller<'_>,
) -> Result<Value, (StatusCode, String)> {
    let bad_request = |cause| (StatusCode::BAD_REQUEST, cause);
    let done = match route {
        OperatorRoute::LogLevel if *method == Method::POST => {
            let change = parse_log_level_change(query).map_err(bad_request)?;
            operator.change_log_level(change, caller).await
        }
        OperatorRoute::LogLevel => operator.log_level().await,
        OperatorRoute::Doctor => operator.examine().await,
        OperatorRoute::Cluster => operator.cluster().await,
        OperatorRoute::ChangeCluster(change) => operator.change_cluster(*change, caller).await,
        OperatorRoute::All => {
            let query = parse_list_query(query).map_err(bad_request)?;
            operator
                .list(query)
                .await
                .map(|operations| json!({ "operations": operations }))
        }
        OperatorRoute::One(seq) => {
            operator
                .show(parse_seq("seq", seq).map_err(bad_request)?)
                .await
        }
        OperatorRoute::Acknowledge(seq) => {
            let seq = parse_seq("seq", seq).map_err(bad_request)?;
            operator.acknowledge(seq, caller).await
        }
        OperatorRoute::Cancel(seq) => {
            let seq = parse_seq("seq", seq).map_err(bad_request)?;
            operator.cancel(seq, caller).await
        }
    };
    done.map_err(|error| {
        let status = match error {
            OperatorError::NoSuchOperation(_) => StatusCode::NOT_FOUND,
            OperatorError::Conflict(_) => StatusCode::CONFLICT,
            OperatorError::Invalid(_) => StatusCode::BAD_REQUEST,
            OperatorError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        (status, error.to_string())
    })
}

/// The name that the caller claims, if it is not too long.
fn operator_name(headers: &HeaderMap) -> Option<&str> {
    let name = headers.get(OPERATOR_NAME)?.to_str().ok()?;
    Some(name).filter(|name| name.len() <= NAME_BYTES_MAX)
}

fn unauthorized_response() -> Response<Vec<u8>> {
    let mut refused = error_response(
        StatusCode::UNAUTHORIZED,
        "operator token required: `snapgate operations` reads it from the file beside the store",
    );
    let challenge = HeaderValue::from_static("Bearer realm=\"snapgate operations\"");
    refused
        .headers_mut()
        .insert(header::WWW_AUTHENTICATE, challenge);
    refused
}

fn error_response(status: StatusCode, why: &str) -> Response<Vec<u8>> {
    let body = format!("{}\n", json!({ "error": why }));
    framed_response(status, JSON, body.into_bytes(), true)
}

/// Checks the token; the reason if it is not valid.
fn check_token(operator: &dyn Operator, headers: &HeaderMap) -> Result<(), &'static str> {
    if !headers.contains_key(header::AUTHORIZATION) {
        return Err("missing");
    }
    let token = bearer_token(headers).ok_or("malformed")?;
    if operator.is_token(token) {
        Ok(())
    } else {
        Err("unknown_token")
    }
}

/// The token of the one `Authorization` header.
fn bearer_token(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next().filter(|_| values.next().is_none())?;
    let (scheme, token) = value.as_bytes().split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token)
}

/// The parameters of a query, decoded.
fn parameters(text: &str) -> impl Iterator<Item = (&str, String)> {
    let pairs = text.split('&').filter(|part| !part.is_empty());
    pairs.map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = percent_decode_str(value).decode_utf8_lossy();
        (name, value.into_owned())
    })
}

/// Parses which operations are wanted; a sentence that names the invalid parameter.
fn parse_list_query(text: &str) -> Result<OperatorQuery, String> {
    let mut query = OperatorQuery::page();
    for (name, value) in parameters(text) {
        query.set(name, &value)?;
    }
    Ok(query)
}

/// Parses `level` and `for`; a sentence that names the invalid one.
fn parse_log_level_change(text: &str) -> Result<LogLevelChange, String> {
    let mut change = LogLevelChange::default();
    for (name, value) in parameters(text) {
        match name {
            "level" => change.level = Some(value),
            "for" => {
                let most = limits::LOG_LEVEL_FOR_MAX;
                let duration = humantime::parse_duration(&value).ok();
                let duration = duration.filter(|duration| !duration.is_zero() && *duration <= most);
                let bad =
                    || format!("invalid for {value:?} (expected a time such as 15m, at most 24h)");
                change.duration = Some(duration.ok_or_else(bad)?);
            }
            _ => {
                return Err(format!(
                    "unknown parameter {name:?} (expected level or for)"
                ));
            }
        }
    }
    Ok(change)
}

fn parse_seq(name: &str, text: &str) -> Result<OperationSeq, String> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let read = text.parse().ok().filter(|_| digits);
    read.and_then(OperationSeq::new)
        .ok_or_else(|| format!("invalid {name} {text:?} (expected an operation number)"))
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    /// Echoes what it was asked.
    #[derive(Debug, Default)]
    struct Echo(Mutex<Option<OperatorError>>, Mutex<Vec<&'static str>>);

    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    impl Echo {
        fn says(&self, text: String) -> Result<Value, OperatorError> {
            let fails = self.0.lock().clone();
            fails.map_or(Ok(Value::String(text)), Err)
        }
    }

    #[async_trait]
    impl Operator for Echo {
        fn is_token(&self, token: &[u8]) -> bool {
            token == b"t0"
        }
        async fn list(&self, query: OperatorQuery) -> Result<Vec<Value>, OperatorError> {
            let OperatorQuery {
                showing,
                older_than,
                limit,
                ..
            } = query;
            let before = older_than.map(OperationSeq::number);
            Ok(vec![self.says(format!("{showing:?} {before:?} {limit}"))?])
        }
        async fn log_level(&self) -> Result<Value, OperatorError> {
            self.says("level".to_owned())
        }
        async fn change_log_level(
            &self,
            change: LogLevelChange,
            _caller: OperatorCaller<'_>,
        ) -> Result<Value, OperatorError> {
            let LogLevelChange { level, duration } = change;
            self.says(format!("{} for {duration:?}", level.unwrap_or_default()))
        }
        async fn examine(&self) -> Result<Value, OperatorError> {
            self.says("examined".to_owned())
        }
        async fn cluster(&self) -> Result<Value, OperatorError> {
            self.says("member".to_owned())
        }
        async fn change_cluster(
            &self,
            change: ClusterChange,
            _caller: OperatorCaller<'_>,
        ) -> Result<Value, OperatorError> {
            self.says(change.as_str().to_owned())
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
            self.1.lock().push(reason);
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
        let found = handle_request(echo, &method, &uri, &headers, Some(PEER)).await?;
        let body = String::from_utf8(found.body().clone()).unwrap();
        Some((found.status().as_u16(), body.trim_end().to_owned()))
    }

    #[tokio::test]
    async fn requests_are_parsed_and_invalid_ones_named() {
        let echo = Echo::default();
        let rows = [
            ("GET /operations", 200, r#"{"operations":["All None 100"]}"#),
            ("GET /cluster", 200, r#""member""#),
            ("POST /cluster/step-down", 200, r#""step-down""#),
            ("POST /cluster/drain", 200, r#""drain""#),
            ("POST /cluster/return", 200, r#""return""#),
            (
                "GET /operations?state=unknown&limit=7&before=9",
                200,
                r#"{"operations":["Unknown Some(9) 7"]}"#,
            ),
            ("GET /operations/5", 200, r#""show 5""#),
            ("GET /log-level", 200, r#""level""#),
            (
                "POST /log-level?level=snapgate%3Ddebug,warn&for=15m",
                200,
                r#""snapgate=debug,warn for Some(900s)""#,
            ),
            ("POST /log-level", 200, r#"" for None""#),
            ("POST /log-level?for=2d", 400, "for"),
            ("POST /log-level?for=0s", 400, "for"),
            ("POST /log-level?lvl=debug", 400, "lvl"),
            ("PUT /log-level", 405, "method"),
            ("GET /doctor", 200, r#""examined""#),
            ("POST /doctor", 405, "method"),
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
            "GET /log-level/",
            "GET /metrics",
        ] {
            let found = ask(&echo, line, "Bearer t0").await;
            assert_eq!(found, None, "{line}: not here");
        }
    }

    #[tokio::test]
    async fn nothing_is_shown_or_done_without_the_token() {
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
                "GET /log-level",
                "POST /log-level?level=trace",
                "GET /doctor",
            ] {
                let (status, body) = ask(&echo, line, token).await.unwrap();
                assert_eq!(status, 401, "{line} with {token:?}: {body}");
                let noted = echo.1.lock().pop();
                assert_eq!(noted, Some(reason), "{line} with {token:?}: noted");
            }
        }
    }

    #[tokio::test]
    async fn failures_have_their_status() {
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
