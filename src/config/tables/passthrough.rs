//! `[[passthrough]]`.

use std::time::Duration;

use crate::config::tables::forms::NAME_FORM;
use crate::gate::PASS_THROUGH_METHODS;
use crate::model::limits;
use crate::schema::Choice;
use crate::schema::Flag;
use crate::schema::TextList;
use crate::schema::declare_table;
use crate::schema::duration;
use crate::schema::integer;
use crate::schema::optional_text;
use crate::schema::required_text;
use crate::schema::secret;
use crate::schema::size;

declare_table! { "passthrough", true, "A route to a VM manager's own interface. Backup routes are never passed through.",
    NAME: Text = "name", required_text(NAME_FORM), Reload, "Its name in logs and metrics.", Shown = "\"manager\"";
    PATH: Text = "path", required_text("path"), Reload,
        "The path prefix it matches. `/` matches everything that no other route matches.", Shown = "\"/manager\"";
    HOSTS: TextList = "hosts", TextList { default: Some(&[]), form: "host names" }, Reload,
        "The hosts it matches. None: all.";
    UPSTREAMS: TextList = "upstreams", TextList { default: None, form: "`http://host:port`, `https://host:port` or `unix:///path/of/the/socket`" }, Reload,
        "The servers that requests are passed to, all of one scheme.", Shown = "[\"http://127.0.0.1:8081\"]";
    AUTHENTICATION: Choice = "authentication", Choice { default: Some("required"), allowed: &["required", "none"] }, Reload,
        "Whether callers must authenticate.";
    ALLOW: TextList = "allow", TextList { default: Some(&[]), form: "`user:NAME` or `group:NAME`" }, Reload,
        "The callers that may use it. Required unless `authentication` is `none`.", Shown = "[\"group:ops\"]";
    METHODS: TextList = "methods", TextList { default: Some(PASS_THROUGH_METHODS), form: "methods" }, Reload, "The methods that are passed on.";
    STRIP_PREFIX: Flag = "strip_prefix", Flag(false), Reload, "Whether `path` is removed before the request is passed on.";
    HOST: Choice = "host", Choice { default: Some("keep"), allowed: &["keep", "upstream"] }, Reload,
        "The `Host` that the upstream receives: the client's, or its own.";
    REMOVE_HEADERS: TextList = "remove_headers", TextList { default: Some(&[]), form: "header names" }, Reload,
        "Request header fields that are removed, besides those that always are.";
    KEEP_HEADERS: TextList = "keep_headers", TextList { default: Some(&[]), form: "header names" }, Reload,
        "Header fields about the client's identity that are kept, for instance `X-Forwarded-User`. Any client can set them: only for upstreams that do not trust them.";
    CLIENT_AUTHORIZATION: Choice = "client_authorization", Choice { default: Some("strip"), allowed: &["strip", "keep"] }, Reload,
        "Whether the upstream receives the client's `Authorization`.";
    AUTHORIZATION: Text = "authorization", secret(optional_text("none", "`file:PATH` or `env:NAME`")), Reload,
        "The `Authorization` that the gateway sends to the upstream, for instance `Bearer ...`.", Commented = "\"file:manager.authorization\"";
    UPGRADE: Flag = "upgrade", Flag(false), Reload, "Whether WebSockets are passed on (HTTP/1.1 only), for consoles.";
    BALANCE: Choice = "balance", Choice { default: Some("round-robin"), allowed: &["round-robin", "least-loaded"] }, Reload,
        "How an upstream is chosen.";
    SERVER_FINGERPRINT: Text = "server_fingerprint", optional_text("`ca` decides", "64 hexadecimal digits"), Reload,
        "The SHA-256 of the only certificate that `https` upstreams may have.",
        Commented = "\"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\"";
    CA: Text = "ca", optional_text("those of the system", "path"), Reload,
        "The authorities (PEM) that signed the certificates of `https` upstreams.", Commented = "\"ca.crt\"";
    CLIENT_CERT: Text = "client_cert", optional_text("none", "path"), Reload,
        "The gateway's certificate (PEM) for `https` upstreams.", Commented = "\"gateway.crt\"";
    CLIENT_KEY: Text = "client_key", optional_text("none", "path"), Reload,
        "The key of `client_cert` (PEM).", Commented = "\"gateway.key\"";
    CONNECT_TIMEOUT: DurationValue = "connect_timeout", duration(Duration::from_secs(5), 1, 60), Reload,
        "Time to establish a connection, and again for its TLS handshake.";
    CONNECT_TOTAL_TIMEOUT: DurationValue = "connect_total_timeout", duration(Duration::from_secs(10), 1, 120), Reload, "Time for both together.";
    READ_TIMEOUT: DurationValue = "read_timeout", duration(Duration::from_secs(60), 1, 3600), Reload,
        "Time for the response head, and between two parts of its body.";
    WRITE_TIMEOUT: DurationValue = "write_timeout", duration(Duration::from_secs(30), 1, 3600), Reload,
        "Time for the upstream to accept a part of the request.";
    IDLE_TIMEOUT: DurationValue = "idle_timeout", duration(Duration::from_secs(30), 1, 3600), Reload,
        "How long an idle connection to an upstream is kept; it should be shorter than the upstream's own limit.";
    UPGRADED_TIMEOUT: DurationValue = "upgraded_timeout", duration(Duration::from_secs(600), 1, 24 * 3600), Reload,
        "How long a WebSocket may be idle.";
    BODY: Size = "body", size(limits::PASS_BODY_BYTES, limits::PASS_BODY_BYTES_RANGE.0, limits::PASS_BODY_BYTES_RANGE.1), Reload,
        "Largest request body. Bodies are streamed, not buffered.";
    BODY_PAUSE: DurationValue = "body_pause", duration(limits::BODY_TIMEOUT, 1, 600), Reload,
        "Longest pause between two parts of a request body, and the time before `body_rate` applies.";
    BODY_RATE: Size = "body_rate", size(limits::PASS_BODY_RATE, 0, 1024 * 1024 * 1024), Reload,
        "Lowest average rate of a request body, in bytes per second.";
    HEALTH_PATH: Text = "health_path", optional_text("no health checks", "path"), Reload,
        "The path of health checks (GET): 2xx and 3xx count as healthy.", Commented = "\"/healthz\"";
    HEALTH_INTERVAL: DurationValue = "health_interval", duration(Duration::from_secs(10), 1, 3600), Reload, "Interval of health checks.";
    HEALTH_TIMEOUT: DurationValue = "health_timeout", duration(Duration::from_secs(5), 1, 60), Reload, "Time for the response to a health check.";
    HEALTH_RISE: Integer = "health_rise", integer(2, 1, 100), Reload, "Successful health checks in a row after which an upstream is used again.";
    HEALTH_FALL: Integer = "health_fall", integer(3, 1, 100), Reload, "Failed health checks in a row after which an upstream is not used.";
    EJECT_FAILURES: Integer = "eject_failures", integer(3, 1, 1000), Reload,
        "Failed requests in a row after which an upstream is ejected, if there is another one.";
    EJECT_PAUSE: DurationValue = "eject_pause", duration(Duration::from_secs(10), 1, 3600), Reload, "How long an ejected upstream is not used.";
    RESOLVE: DurationValue = "resolve", duration(Duration::from_secs(30), 1, 3600), Reload, "How often host names of upstreams are resolved.";
}
