//! `[server]`.

use std::time::Duration;

use crate::model::limits;
use crate::schema::Flag;
use crate::schema::TextList;
use crate::schema::declare_table;
use crate::schema::default_text;
use crate::schema::duration;
use crate::schema::integer;
use crate::schema::optional_text;

declare_table! { "server", false, "Addresses of the gateway, and how it stops.",
    LISTEN: Text = "listen", default_text("127.0.0.1:8080", "address and port"), Restart,
        "The API port. Port 0 takes a free one. Not used when the service manager hands over the socket.";
    ADMIN: Text = "admin", default_text("127.0.0.1:8970", "address and port"), Restart,
        "The port of metrics and health. Not used when the service manager hands over the socket.";
    PUBLIC_URL: Text = "public_url", optional_text("`http://` or `https://` and `listen`", "`http://` or `https://` URL"), Reload,
        "The base of links in responses. Required when `listen` is a wildcard address.", Shown = "\"http://127.0.0.1:8080\"";
    THREADS: Integer = "threads", integer(0, 0, 256), Restart,
        "Threads that serve requests; 0 means one per core.";
    DRAIN: DurationValue = "drain", duration(limits::DRAIN, 0, 3600), Restart,
        "Time for running requests to end when the gateway stops.";
    DRAIN_NOTICE: DurationValue = "drain_notice", duration(Duration::ZERO, 0, 600), Restart,
        "How long `/readyz` returns 503 before connections are refused; set it to the interval of the load balancer's health checks.";
    TRUSTED_PROXIES: TextList = "trusted_proxies", TextList { default: Some(&[]), form: "addresses or networks such as `10.0.0.0/8`" }, Reload,
        "The proxies whose `X-Forwarded-For`, `X-Request-Id` and `traceparent` are trusted.";
    ALLOWED_ORIGINS: TextList = "allowed_origins", TextList { default: Some(&[]), form: "origins such as `https://console.example`" }, Reload,
        "The other origins whose web pages may use the API in a browser. Pages of all others are refused changes and cannot read responses.";
    PAGE: Flag = "page", Flag(false), Reload,
        "Whether `/ui/` is a page for people in a browser: VMs, backups, restore, operations. It uses the API with the credentials of its reader.";
}
